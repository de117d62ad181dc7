"""LibriMix folders, in order and broken in every way, to manifests."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from librimix import make_tree

from unified_se_ss.data import audio
from unified_se_ss.data.corpora import mixtures
from unified_se_ss.data.corpora.mixtures import prepare_librimix
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError

RATE = 8000


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("librimix"), 2, (3, 3, 3), 2000)


@pytest.fixture
def libri2mix(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "Libri2Mix"))


def test_manifests_hold_what_the_folders_hold(libri2mix, tmp_path):
    for data_folder in (libri2mix, libri2mix.parent):
        paths = prepare_librimix(data_folder, tmp_path / f"from-{data_folder.name}")
        assert list(paths) == ["train", "dev", "test"]
        manifest = read_manifest(paths["train"], data_folder)
        assert manifest.stems == ("mixture", "s1", "s2", "noise")
        assert [item.id for item in manifest.items] == [f"train-360-{n}" for n in range(3)]
        for item in manifest.items:
            mixture, *stems = (audio.read(path)[0] for path in item.paths.values())
            assert item.frames == len(mixture)
            np.testing.assert_allclose(mixture, sum(stems), atol=1e-6)


@pytest.mark.parametrize(
    "n_speakers, mixture, stems",
    [
        (2, "mix_clean", ("mixture", "s1", "s2")),
        (3, "mix_both", ("mixture", "s1", "s2", "s3", "noise")),
        (1, "mix_single", ("mixture", "s1", "noise")),
    ],
)
def test_choices_choose(tmp_path, n_speakers, mixture, stems):
    root = make_tree(tmp_path, max(2, n_speakers), (1, 1, 1), 2000)
    for folder in root.glob("wav8k/min/*/mix_both"):
        shutil.copytree(folder, folder.with_name("mix_single"))
    paths = prepare_librimix(tmp_path, tmp_path / "manifests", n_speakers, mixture=mixture)
    manifest = read_manifest(paths["dev"], tmp_path)
    assert manifest.stems == stems
    assert f"/{mixture}/" in manifest.items[0].paths["mixture"]


def test_rate_mode_and_subset_choose_and_noise_may_be_missing(libri2mix, tmp_path):
    make_tree(tmp_path, 2, (1, 1, 1), 2000, 16000)
    (libri2mix / "wav16k/min").rename(libri2mix / "wav16k/max")
    place = libri2mix / "wav16k/max"
    (place / "train-360").rename(place / "train-100")
    for folder in place.glob("*/noise"):
        shutil.rmtree(folder)
    paths = prepare_librimix(
        libri2mix, tmp_path, sample_rate=16000, mode="max", train_subset="train-100"
    )
    manifest = read_manifest(paths["train"], libri2mix)
    assert manifest.sample_rate == 16000 and manifest.stems == ("mixture", "s1", "s2")
    assert "/wav16k/max/train-100/" in manifest.items[0].paths["s1"]


def test_made_once_and_again_when_the_data_changes(libri2mix, tmp_path, monkeypatch):
    check = Mock(wraps=mixtures._check_item)
    monkeypatch.setattr(mixtures, "_check_item", check)
    for _ in range(2):
        first = prepare_librimix(libri2mix, tmp_path)["train"].read_bytes()
        assert check.call_count == 9
    for path in libri2mix.glob("wav8k/min/train-360/*/train-360-0.wav"):
        path.unlink()
    second = prepare_librimix(libri2mix, tmp_path)["train"].read_bytes()
    assert check.call_count == 11 and first != second


def _remove(pattern):
    def fault(root):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return fault


def _add_third_speaker(root):
    for subset in root.glob("wav8k/min/*"):
        shutil.copytree(subset / "s1", subset / "s3")


def to_photos(root):
    (root / "wav8k").rename(root / "photos")


FOLDER_FAULTS = {
    "missing folder": (shutil.rmtree, {}, ["data_folder", "does not exist"]),
    "empty folder": (_remove("*"), {}, ["data_folder", "no files", "wav8k"]),
    "no LibriMix": (to_photos, {}, ["data_folder", "photos", "wav8k", "Libri2Mix"]),
    "single": (None, {"mixture": "mix_single"}, ["mixture", "mix_single", "one"]),
    "too few sources": (None, {"n_speakers": 3}, ["n_speakers: is 3", "s3", "s1, s2"]),
    "too many sources": (_add_third_speaker, {}, ["n_speakers", "2", "s3"]),
    "no mixtures": (_remove("wav8k/min/*/mix_both"), {}, ["mix_both", "mix_clean"]),
    "no wav": (_remove("wav8k/min/dev/mix_both/*"), {}, ["mix_both", "no wav files"]),
    "no test": (_remove("wav8k/min/test"), {}, ["test", "dev, train-360"]),
}
CHOICES = [  # one that the tree does not have, or that there is not, and what is said
    ("sample_rate", 16000, ["wav16k", "wav8k"]),
    ("mode", "max", ["max", "min"]),
    ("train_subset", "train-100", ["train-100", "train-360"]),
    ("mode", "mean", ["'mean'", "min, max"]),
    ("sample_rate", 44100, ["8000, 16000"]),
    ("mixture", "mix", ["mix_both"]),
    ("train_subset", "360", ["train-360"]),
    ("n_speakers", 4, ["4", "1, 2, 3"]),
]
FOLDER_FAULTS |= {f"{k}: {v}": (None, {k: v}, [k, *words]) for k, v, words in CHOICES}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_fault_of_folders_is_named(libri2mix, tmp_path, fault):
    break_it, choices, words = FOLDER_FAULTS[fault]
    if break_it is not None:
        break_it(libri2mix)
    with pytest.raises(UserError) as error:
        prepare_librimix(libri2mix, tmp_path / "manifests", **choices)
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.glob("manifests/*_dev_*"))


def test_all_that_is_missing_is_named_and_many_are_counted(tmp_path):
    root = make_tree(tmp_path, 2, (1, 12, 1), 2000)
    dev = root / "wav8k/min/dev"
    gone = ["s2/dev-0.wav", "mix_both/dev-1.wav", "noise/dev-2.wav"]
    for name in (*gone, *(f"s1/dev-{number}.wav" for number in range(3, 12))):
        (dev / name).unlink()
    with pytest.raises(UserError) as error:
        prepare_librimix(root, tmp_path)
    message = str(error.value)
    assert all(f"{name}: does not exist" in message for name in gone)
    assert "12 problem(s)" in message and "and 2 more" in message
    assert message.count("does not exist") == 10


def test_all_that_is_wrong_with_recordings_is_named(template, tmp_path):
    folder, loud = tmp_path / "Libri2Mix", np.full(2000, 0.5)
    shutil.copytree(template, folder)
    dev = folder / "wav8k/min/dev"
    for stem in ("mix_both", "s1", "s2", "noise"):
        for name in ("dev-3.wav", "dev-4.wav"):
            shutil.copy(dev / stem / "dev-0.wav", dev / stem / name)
    nan = np.where(np.arange(2000) == 1000, np.nan, loud)
    soundfile.write(dev / "s2/dev-0.wav", loud[1:], RATE)
    soundfile.write(dev / "s1/dev-1.wav", loud, 16000)
    (dev / "s2/dev-1.wav").write_bytes(b"no wav at all")
    soundfile.write(dev / "s1/dev-2.wav", loud[:0], RATE)
    soundfile.write(dev / "s2/dev-2.wav", np.stack([loud, loud], 1), RATE)
    soundfile.write(dev / "s1/dev-3.wav", 0 * loud, RATE)
    soundfile.write(dev / "mix_both/dev-3.wav", 0 * loud, RATE)
    soundfile.write(dev / "s1/dev-4.wav", nan, RATE, "FLOAT")
    with pytest.raises(UserError) as error:
        prepare_librimix(folder, tmp_path / "manifests")
    for name, words in {
        "s2/dev-0.wav": ["1999 samples", "mix_both/dev-0.wav has 2000"],
        "s1/dev-1.wav": ["16000 Hz", "8000 Hz was expected"],
        "s2/dev-1.wav": ["is corrupt"],
        "s1/dev-2.wav": ["is empty"],
        "s2/dev-2.wav": ["2 channels"],
        "s1/dev-3.wav": ["is silent"],
        "mix_both/dev-3.wav": ["is silent"],
        "s1/dev-4.wav": ["not finite"],
    }.items():
        (line,) = (x for x in str(error.value).splitlines() if f"/{name}: " in x)
        assert all(word in line for word in words), line


def test_libri3mix_given_for_two_speakers(tmp_path):
    make_tree(tmp_path, 3, (1, 1, 1), 2000)
    for given in (tmp_path, tmp_path / "Libri3Mix"):
        with pytest.raises(UserError, match="n_speakers.* to match"):
            prepare_librimix(given, tmp_path / "manifests", n_speakers=2)


def test_late_sound_is_not_silence_and_silent_noise_is_warned_of(
    libri2mix, tmp_path, caplog
):
    dev = libri2mix / "wav8k/min/dev"
    for folder in ("mix_both", "s1", "s2", "noise"):
        audio.write(dev / folder / "dev-0.wav", np.pad([0.5], (19999, 0)), RATE)
    audio.write(dev / "noise/dev-1.wav", np.zeros(2160), RATE)
    (dev / "s1/._dev-0.wav").write_bytes(b"hidden, no sound")
    with caplog.at_level(logging.WARNING):
        prepare_librimix(libri2mix, tmp_path)
    assert "1 silent noise recording(s)" in caplog.text and "dev-1.wav" in caplog.text
