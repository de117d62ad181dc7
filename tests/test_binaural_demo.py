"""The binaural demo: what is held out, what is left alone, what training draws from."""

import csv

import numpy as np
import pytest
import soundfile
from librimix import voice

from unified_se_ss.data import audio
from unified_se_ss.data.corpora.mixtures import prepare_binaural_wsj0mix
from unified_se_ss.data.demo.binaural import LEAST_ANGLE, _timbre, prepare_binaural_demo
from unified_se_ss.data.demo.corpus import prepare_demo_corpus
from unified_se_ss.data.demo.speakers import cast_voices
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.spatial import to_vector


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tiny mono demo corpus of recordings, which are there sooner than voices are."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for speaker in range(10):
        for number in range(2):
            path = folder / f"people/P{speaker}/{number}.wav"
            audio.write(path, voice(rng, 24000, 0.9 - 0.15 * speaker), 8000)
    prepare_demo_corpus(
        folder / "demo",
        n_train=8,
        n_dev=2,
        n_test=3,
        seconds=2.0,
        workers=1,
        speech_folder=folder / "people",
    )
    return folder / "demo"


@pytest.fixture(scope="module")
def demo(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("binaural") / "demo_binaural"
    return prepare_binaural_demo(folder, corpus=corpus, n_train=4, n_speech=6, workers=1)


@pytest.fixture(scope="module")
def manifests(demo, tmp_path_factory):
    paths = prepare_binaural_wsj0mix(demo, tmp_path_factory.mktemp("manifests"))
    return {name: read_manifest(path, demo) for name, path in paths.items()}


def directions(manifest):
    """All directions of a manifest's talkers."""
    return {
        (item.attributes[f"azimuth_{j}"], item.attributes[f"elevation_{j}"])
        for item in manifest.items
        for j in (1, 2)
    }


def test_the_demo_is_as_large_as_asked(manifests):
    assert [len(manifests[name]) for name in ("train", "dev", "test")] == [4, 2, 3]


def test_heads_directions_and_voices_are_held_out(demo, corpus, manifests):
    heads = {
        name: {item.attributes["head"] for item in manifest.items}
        for name, manifest in manifests.items()
    }
    assert not heads["train"] & heads["test"] and not heads["train"] & heads["dev"]
    assert not directions(manifests["train"]) & directions(manifests["test"])
    with open(corpus / "transcripts.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    held_out = {
        row[name]
        for row in rows
        if row["subset"] != "train-360"
        for name in ("speaker_1", "speaker_2")
    }
    people = {path.name for path in (demo / "speech").iterdir() if path.is_dir()}
    assert people and held_out and not people & held_out


def test_accents_and_pitches_of_a_timbre_are_one_speaker():
    for cast in cast_voices(0).values():
        for group in cast.talkers:
            assert len({_timbre(speaker.name) for speaker in group}) == 1
        timbres = [_timbre(group[0].name) for group in cast.talkers]
        assert len(set(timbres)) == len(timbres)
    assert _timbre("Ann") == "Ann"


def test_talkers_keep_their_distance(manifests):
    for manifest in manifests.values():
        for item in manifest.items:
            first, second = (
                to_vector(float(told[f"azimuth_{j}"]), float(told[f"elevation_{j}"]))
                for told in [item.attributes]
                for j in (1, 2)
            )
            assert np.degrees(np.arccos(first @ second)) >= LEAST_ANGLE - 0.1


def test_voices_are_the_files_of_the_mono_corpus(demo, corpus):
    for path in sorted((demo / "speech").rglob("*.wav")):
        item, stem = path.stem.rsplit("-", 1)
        mono = corpus / "Libri2Mix/wav8k/min/train-360" / stem / f"{item}.wav"
        assert np.array_equal(soundfile.read(path)[0], soundfile.read(mono)[0])


def test_the_mono_corpus_is_left_alone_and_the_demo_made_once(demo, corpus):
    before = (corpus / "fingerprint.json").read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in demo.rglob("*.wav")}
    prepare_binaural_demo(demo, corpus=corpus, n_train=4, n_speech=6, workers=1)
    assert (corpus / "fingerprint.json").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in demo.rglob("*.wav")} == stamps


def test_with_noise_it_is_made_anew(corpus, tmp_path):
    options = dict(corpus=corpus, n_train=2, n_dev=1, n_test=1, n_speech=2, workers=1)
    prepare_binaural_demo(tmp_path / "d", **options)
    prepare_binaural_demo(tmp_path / "d", noise=True, **options)
    place = tmp_path / "d/2speakers/wav8k/min/tt"
    stems = {p.name for p in place.iterdir() if p.is_dir()}
    assert stems == {"mix_both", "noise", "s1", "s2"}
    noise = audio.read(next((place / "noise").iterdir()), channels=2)[0]
    assert noise.any() and not np.allclose(noise[0], noise[1], atol=1e-4)
    (tmp_path / "d/speech/mine").mkdir()
    with pytest.raises(UserError, match="mine"):
        prepare_binaural_demo(tmp_path / "d", noise=True, **{**options, "n_speech": 1})
