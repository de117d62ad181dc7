"""Binaural mixtures: heard, mixed, made, read; against scipy, closed forms and the files."""

import csv
import logging
from dataclasses import replace

import numpy as np
import pyloudnorm
import pytest
import scipy.signal
import soundfile
import torch
from cues import ild, itd
from hypothesis import given, settings
from hypothesis import strategies as st
from librimix import make_tree, voice

from unified_se_ss.data import audio
from unified_se_ss.data.binaural import (
    BinauralDataset,
    BinauralDynamicMixing,
    unexplained,
)
from unified_se_ss.data.corpora.mixtures import (
    PLACEMENTS,
    placement_in_name,
    prepare_binaural_wsj0mix,
    prepare_librimix,
    prepare_wsj0mix,
)
from unified_se_ss.data.dataset import ItemKey
from unified_se_ss.data.hrtf_bank import SPHERE_DIRECTIONS, HRTFBank, binaural_heads
from unified_se_ss.data.manifest import Item, Manifest, read_manifest
from unified_se_ss.data.write import make_binaural_corpus
from unified_se_ss.errors import UserError
from unified_se_ss.spatial import (
    HRIRSet,
    head_shadow,
    spherical_head,
    woodworth_itd,
)

RATE = 8000
SUBSETS = {"train": "tr", "dev": "cv", "test": "tt"}


@pytest.fixture(scope="module")
def heads():
    """Nine spheres, in three disjoint subsets."""
    return binaural_heads(shares=(5, 2, 2))


@pytest.fixture(scope="module")
def bank(heads):
    return HRTFBank(heads["train"])


@pytest.fixture(scope="module")
def mono(tmp_path_factory):
    """Manifests of a tiny LibriMix."""
    folder = tmp_path_factory.mktemp("mono")
    root = make_tree(folder, counts=(6, 3, 3))
    paths = prepare_librimix(root, folder / "manifests")
    return {name: read_manifest(path, root) for name, path in paths.items()}


@pytest.fixture(scope="module")
def corpus(mono, heads, tmp_path_factory):
    """A binaural corpus with noise, and its manifests."""
    place = tmp_path_factory.mktemp("binaural")
    folder = make_binaural_corpus(place / "corpus", mono, heads, noise=True, workers=1)
    paths = prepare_binaural_wsj0mix(folder, place / "manifests", mixture="mix_both")
    return folder, {name: read_manifest(path, folder) for name, path in paths.items()}


@pytest.fixture(scope="module")
def utterances(tmp_path_factory):
    """Manifests of voices of four speakers, and of a noise."""
    folder, rng = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    items = []
    for n, speaker in enumerate(("Ann", "Bob", "Cat", "Dan")):
        path = folder / f"{speaker}.wav"
        audio.write(path, voice(rng, 20000 + 999 * n, 0.9 - 0.4 * n), RATE)
        told = {"speaker": speaker, "loudness": "-20.0"}
        seconds = (20000 + 999 * n) / RATE
        items.append(Item(f"{speaker}/1.wav", seconds, RATE, {"speech": str(path)}, told))
    audio.write(folder / "noise.wav", 0.1 * rng.standard_normal(30000).clip(-4, 4), RATE)
    paths = {"noise": str(folder / "noise.wav")}
    noise = Item("noise.wav", 30000 / RATE, RATE, paths, {"loudness": "-25.0"})
    return (
        Manifest("speech.csv", tuple(items), ("speech",), RATE),
        Manifest("noise.csv", (noise,), ("noise",), RATE),
    )


def ears_of(path, *region):
    return audio.read(path, *region, channels=2)[0]


def mixing(utterances, heads, noisy=True, n_speakers=2, seed=3, **options):
    """A small data set of dynamic mixtures."""
    speech, noise = utterances
    noise = noise if noisy else None
    return BinauralDynamicMixing(
        speech, noise, heads, n_speakers, 12, seed, 1.0, RATE, **options
    )


# What both ears hear


@pytest.mark.parametrize("samples", [1, 100, 2047, 9000])
@pytest.mark.parametrize("taps, latency", [(1, 0), (89, 43), (400, 399)])
def test_filtering_in_blocks_is_convolution(samples, taps, latency):
    rng = np.random.default_rng(samples)
    filters = rng.standard_normal((1, 2, taps)).astype(np.float32)
    bank = HRTFBank([HRIRSet("any", RATE, np.zeros(1), np.zeros(1), filters, latency)])
    signal = rng.standard_normal(samples).astype(np.float32)
    rendered = bank.render_binaural(signal, 0, 0)
    expected = scipy.signal.convolve(signal[None].astype(np.float64), filters[0])
    expected = np.pad(expected, ((0, 0), (0, latency)))[:, latency : latency + samples]
    expected *= np.sqrt(2 * np.sum(signal.astype(np.float64) ** 2) / np.sum(expected**2))
    assert rendered.dtype == np.float32 and rendered.shape == (2, samples)
    assert np.abs(rendered - expected).max() <= 1e-4 * np.abs(expected).max() + 1e-7


@pytest.mark.parametrize("azimuth", [-90.0, -35.0, 0.0, 60.0])
def test_a_source_has_the_time_and_level_of_its_direction(azimuth):
    bank = HRTFBank([spherical_head(RATE, azimuth=[azimuth])])
    rng = np.random.default_rng(1)
    ears = bank.render_binaural(rng.standard_normal(16000).astype(np.float32), 0, 0)
    assert itd(ears, RATE) == pytest.approx(1e6 * float(woodworth_itd(azimuth)), abs=5)
    gains = head_shadow(np.linspace(0, RATE / 2, 999), azimuth)
    left, right = np.mean(gains**2, axis=-1)
    assert ild(ears) == pytest.approx(10 * np.log10(left / right), abs=0.2)


def test_loudness_does_not_depend_on_the_direction(bank):
    rng = np.random.default_rng(0)
    signal = rng.standard_normal(4000).astype(np.float32)
    for direction in (0, 40, 94):
        ears = bank.render_binaural(signal, 2, direction)
        assert np.sum(ears**2) == pytest.approx(2 * np.sum(signal**2), rel=1e-5)
    noise = bank.render_diffuse(signal, 0, rng)
    assert np.sum(noise**2) == pytest.approx(2 * np.sum(signal**2), rel=1e-5)
    assert not bank.render_binaural(np.zeros(800, dtype=np.float32), 0, 0).any()


def test_noise_is_diffuse():
    """The ears' coherence is that of the head in a field of all directions."""
    height = np.degrees(np.arcsin(1 - (np.arange(1000) + 0.5) / 500))
    around = np.degrees(np.pi * (3 - np.sqrt(5)) * np.arange(1000)) % 360 - 180
    dense = spherical_head(RATE, around, height)
    left, right = np.moveaxis(np.fft.rfft(dense.filters.astype(float), 256), 1, 0)
    cross = (left * right.conj()).sum(0)
    expected = cross / np.sqrt((abs(left) ** 2).sum(0) * (abs(right) ** 2).sum(0))
    rng = np.random.default_rng(0)
    ears = HRTFBank([dense]).render_diffuse(
        rng.standard_normal(30 * RATE).astype(np.float32), 0, rng
    )
    spectrum = {(a, b): scipy.signal.csd(ears[a], ears[b], RATE, nperseg=256)[1]
                for a in (0, 1) for b in (0, 1)}  # fmt: skip
    measured = spectrum[1, 0] / np.sqrt(spectrum[0, 0] * spectrum[1, 1]).real
    # 64 directions and a finite noise leave deviations of about 1/sqrt(64).
    assert np.sqrt(np.mean(abs(measured - expected)[2:-2] ** 2)) < 0.15
    frequency = np.arange(129) * RATE / 256
    assert abs(measured[frequency < 150][1:]).min() > 0.8
    assert abs(measured[frequency > 1500]).mean() < 0.2
    assert not np.allclose(ears[0], ears[1], atol=0.1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.floats(0, 40, allow_nan=False))
def test_directions_keep_their_distance(bank, seed, n_sources, least):
    placement = bank.place(np.random.default_rng(seed), n_sources, least)
    vectors = bank.hrirs[placement.head].vectors[list(placement.directions)]
    cosines = np.clip(vectors @ vectors.T, -1, 1)[np.triu_indices(n_sources, 1)]
    assert (np.degrees(np.arccos(cosines)) >= least - 0.01).all()
    assert len(set(placement.directions)) == n_sources


def test_no_place_is_an_error(utterances, heads):
    with pytest.raises(UserError, match="least_angle"):
        mixing(utterances, heads["train"], least_angle=175.0, n_speakers=3)
    with pytest.raises(UserError, match="one rate"):
        HRTFBank([spherical_head(8000), spherical_head(16000)])
    with pytest.raises(UserError, match="sample_rate"):
        mixing(utterances, [spherical_head(16000)])


def test_the_bank_keeps_a_bounded_number_of_spectra(bank, monkeypatch):
    from unified_se_ss.data import hrtf_bank as module

    monkeypatch.setattr(module, "_SPECTRA_BYTES", 40_000)
    own, signal = HRTFBank(bank.hrirs), np.ones(100, dtype=np.float32)
    first = own.render_binaural(signal, 0, 0)
    for direction in range(20):
        own.render_binaural(signal, 1, direction)
    assert 1 <= len(own._spectra) <= 3
    assert np.array_equal(own.render_binaural(signal, 0, 0), first)


def test_heads_are_in_one_subset_and_directions_too(heads):
    names = {name: {head.name for head in heads[name]} for name in heads}
    assert [len(names[name]) for name in SUBSETS] == [5, 2, 2]
    assert len(set.union(*names.values())) == 9
    grids = {
        name: {(a, e) for a in azimuth for e in elevation}
        for name, (azimuth, elevation) in SPHERE_DIRECTIONS.items()
    }
    assert not grids["train"] & grids["test"] and not grids["train"] & grids["dev"]
    assert not grids["dev"] & grids["test"]


# Mixed anew


def test_an_item_is_a_function_of_seed_epoch_and_index(utterances, heads):
    first, second, third = (
        mixing(utterances, heads["train"], seed=seed) for seed in (3, 3, 4)
    )
    for key in (ItemKey(0, 0), ItemKey(2, 7)):
        again = second[ItemKey(1, 3)] and second[key]
        assert first[key].id == again.id
        for one, other in zip(first[key][1:], again[1:]):
            assert torch.equal(one, other)
        assert not torch.equal(first[key].mixture, third[key].mixture)
    assert not torch.equal(first[ItemKey(0, 0)].mixture, first[ItemKey(1, 0)].mixture)
    with pytest.raises(IndexError):
        first[12]


@pytest.mark.parametrize("n_speakers, noisy", [(2, False), (2, True), (3, True)])
def test_dynamic_mixtures_are_their_sums(utterances, heads, n_speakers, noisy):
    data = mixing(utterances, heads["train"], noisy, n_speakers, least_angle=10.0)
    names = {head.name for head in heads["train"]}
    for index in range(6):
        example = data[ItemKey(5, index)]
        total = example.sources.sum(0)
        assert example.sources.shape == (n_speakers, 2, 8000)
        noise = example.mixture - total
        assert torch.equal(example.mixture, total) is not noisy
        assert example.mixture.abs().max() <= 0.9
        assert any(example.id.endswith(name) for name in names)
        speakers = example.id.split("_")[:n_speakers]
        assert len(set(speakers)) == n_speakers
        if noisy:
            assert not torch.allclose(noise[0], noise[1], atol=1e-3)


def test_true_directions_are_heard(utterances, heads):
    data = mixing(utterances, heads["train"], noisy=False)
    radii = {head.name: float(head.name[7:-2]) / 1000 for head in heads["train"]}
    for index in range(8):
        example = data[index]
        radius = next(radii[name] for name in radii if example.id.endswith(name))
        for source, (azimuth, elevation) in zip(example.sources, example.directions):
            expected = 1e6 * float(woodworth_itd(azimuth, elevation, radius))
            assert itd(source.numpy(), RATE) == pytest.approx(expected, abs=6)


# Made from mono mixtures


def test_files_are_what_scipy_makes_of_the_mono_ones(corpus, mono, heads):
    folder, manifests = corpus
    for name in SUBSETS:
        by_name = {head.name: head for head in heads[name]}
        for item in manifests[name].items:
            mono_item = next(i for i in mono[name].items if i.id == item.id)
            head = by_name[item.attributes["head"]]
            for j in (1, 2):
                index = head.nearest(
                    float(item.attributes[f"azimuth_{j}"]),
                    float(item.attributes[f"elevation_{j}"]),
                )
                dry, _ = soundfile.read(mono_item.paths[f"s{j}"])
                wet = scipy.signal.convolve(dry[None], head.filters[index].astype(float))
                wet = wet[:, head.latency : head.latency + len(dry)]
                wet *= np.sqrt(2 * np.sum(dry**2) / np.sum(wet**2))
                stem = ears_of(item.paths[f"s{j}"])
                gain = np.vdot(stem, wet) / np.vdot(wet, wet)
                assert 0 < gain <= 1.0001
                assert np.abs(stem - gain * wet).max() < 1e-5


def test_mixtures_in_files_are_their_sums_to_the_last_bit(corpus):
    _, manifests = corpus
    for manifest in manifests.values():
        for item in manifest.items:
            signals = {stem: ears_of(path) for stem, path in item.paths.items()}
            total = (signals["s1"] + signals["s2"]) + signals["noise"]
            assert np.array_equal(signals["mixture"], total)
            assert signals["noise"].any()
        data = BinauralDataset(manifest, 2)
        example = data[1]
        mixture = ears_of(manifest.items[1].paths["mixture"])
        assert np.array_equal(example.mixture.numpy(), mixture)


def files_of(folder):
    """Contents of all wavs and tables below a folder."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".wav", ".csv"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_corpus_depends_on_no_number_of_processes(corpus, mono, heads, tmp_path):
    folder, _ = corpus
    other = make_binaural_corpus(tmp_path / "other", mono, heads, noise=True, workers=2)
    assert files_of(folder) == files_of(other)
    changed = make_binaural_corpus(tmp_path / "new", mono, heads, noise=True, seed=5)
    assert files_of(folder) != files_of(changed)


def test_a_corpus_is_made_once_and_replaces_nothing_else(mono, heads, tmp_path):
    one = {"dev": mono["dev"]}
    folder = make_binaural_corpus(tmp_path / "a", one, heads, workers=1)
    stamp = (folder / "wav8k/min/cv/mix/dev-0.wav").stat().st_mtime_ns
    make_binaural_corpus(folder, one, heads, workers=1)
    assert (folder / "wav8k/min/cv/mix/dev-0.wav").stat().st_mtime_ns == stamp
    make_binaural_corpus(folder, one, heads, seed=2, workers=1)
    assert (folder / "wav8k/min/cv/mix/dev-0.wav").stat().st_mtime_ns != stamp
    (folder / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="mine.txt"):
        make_binaural_corpus(folder, one, heads, seed=3)


def test_noise_recordings_surround_mixtures_without_noise(
    mono, heads, utterances, tmp_path
):
    """The noise is as loud as WHAM! has it, and another one at each ear."""
    dry = {"test": replace(mono["test"], stems=("mixture", "s1", "s2"))}
    noise = {"test": utterances[1]}
    made = [
        make_binaural_corpus(tmp_path / n, dry, heads, noise=noise, workers=1) for n in "ab"
    ]
    assert files_of(made[0]) == files_of(made[1])
    meter = pyloudnorm.Meter(RATE, block_size=0.4)
    for path in sorted((made[0] / "wav8k/min/tt/noise").iterdir()):
        ears = ears_of(path)
        assert abs(np.corrcoef(ears)[0, 1]) < 0.9
        loudness = {
            stem: meter.integrated_loudness(ears_of(path.parents[1] / stem / path.name).T)
            for stem in ("s1", "s2", "noise")
        }
        ratio = max(loudness["s1"], loudness["s2"]) - loudness["noise"]
        # Drawn for the mono signals; heads colour them.
        assert -8 < ratio < 5


def test_what_cannot_be_made_is_told(mono, heads, tmp_path):
    quiet = {"dev": replace(mono["dev"], stems=("mixture", "s1", "s2"))}
    with pytest.raises(UserError, match="no column noise"):
        make_binaural_corpus(tmp_path / "x", quiet, heads, noise=True)
    both = {**heads, "test": heads["train"][:1]}
    with pytest.raises(UserError, match="is in train and in test"):
        make_binaural_corpus(tmp_path / "x", mono, both)
    other_rate = {"dev": [spherical_head(16000)]}
    with pytest.raises(UserError, match="one rate"):
        make_binaural_corpus(tmp_path / "x", {"dev": mono["dev"]}, other_rate)
    gone = mono["dev"].items[0]
    paths = {**gone.paths, "s1": str(tmp_path / "gone.wav")}
    lost = replace(mono["dev"], items=(replace(gone, paths=paths),))
    with pytest.raises(UserError, match="gone.wav"):
        make_binaural_corpus(tmp_path / "x", {"dev": lost}, heads)
    assert not (tmp_path / "x").exists()


def test_three_speakers(heads, tmp_path):
    root = make_tree(tmp_path, n_speakers=3, counts=(2, 1, 1))
    paths = prepare_librimix(root, tmp_path / "m", n_speakers=3)
    mono = {name: read_manifest(path, root) for name, path in paths.items()}
    folder = make_binaural_corpus(tmp_path / "b", mono, heads, workers=1)
    made = prepare_binaural_wsj0mix(folder, tmp_path / "mb", n_speakers=3)
    example = BinauralDataset(read_manifest(made["train"], folder), 3)[0]
    assert example.sources.shape[:2] == (3, 2)
    assert torch.equal(example.mixture, example.sources.sum(0))
    assert example.directions.isfinite().all()
    with pytest.raises(UserError, match="n_speakers"):
        prepare_binaural_wsj0mix(folder, tmp_path / "mb", n_speakers=2)


# The public set


def public_tree(folder, level=0.4, wav=True, n_items=2, samples=3000):
    """Binaural-WSJ0Mix as its generator writes it, 16 bits that wrap around included."""
    utterances = ["011a0101", "01ao030u", "22gc010x"]
    for subset in SUBSETS.values():
        for index in range(n_items):
            name = f"subject_00{3 + index}_{utterances[0]}_-45_0.0_{utterances[1]}_30_22.5"
            rng = np.random.default_rng(index)
            sources = level * rng.uniform(-1, 1, (2, samples, 2))
            stems = {"s1": sources[0], "s2": sources[1], "mix": sources.sum(axis=0)}
            for stem, signal in stems.items():
                path = folder / f"2speakers/wav8k/min/{subset}/{stem}/{name}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                codes = (signal * 32768).astype(np.int64).astype(np.int16)
                soundfile.write(path, codes, RATE, "PCM_16")
    return folder


def test_the_public_set_is_read_and_its_wrapped_mixtures_are_mended(tmp_path, caplog):
    root = public_tree(tmp_path / "public", level=0.9)
    with caplog.at_level(logging.WARNING):
        paths = prepare_binaural_wsj0mix(root, tmp_path / "manifests")
    assert "wrapped around" in caplog.text
    manifest = read_manifest(paths["test"], root)
    told = manifest.items[0].attributes
    assert told["head"] == "subject_003" and told["azimuth_1"] == "45.00"
    example = BinauralDataset(manifest, 2)[0]
    wrapped = ears_of(manifest.items[0].paths["mixture"])
    assert np.abs(example.mixture.numpy() - wrapped).max() > 1.9
    assert torch.equal(example.mixture, example.sources.sum(0))
    assert example.mixture.abs().max() > 1.0
    assert example.directions[0].tolist() == [45.0, 0.0]
    caplog.clear()
    quiet = public_tree(tmp_path / "quiet", level=0.4)
    with caplog.at_level(logging.WARNING):
        prepare_binaural_wsj0mix(quiet / "2speakers", tmp_path / "manifests")
    assert not caplog.text


def test_the_angles_of_the_public_names_are_cipics():
    # Straight up, and behind on the right (lateral 30 to the right, polar 180).
    told = placement_in_name("subject_147_40oc020g_0_90.0_441c0201_30_180.0", 2)
    assert told["elevation_1"] == "90.00"
    assert (told["azimuth_2"], told["elevation_2"]) == ("-150.00", "0.00")
    three = placement_in_name("subject_9_a_-80_-45.0_b_80_0.0_c_5_5.625", 3)
    assert three["azimuth_2"] == "-80.00" and "azimuth_3" in three
    assert placement_in_name("0_4s_a_-30_b_45", 2) == {}
    assert placement_in_name("train-000001", 2) == {}


def test_noise_that_no_stem_holds_is_an_error(tmp_path):
    root = public_tree(tmp_path / "public")
    path = next((root / "2speakers/wav8k/min/tt/mix").iterdir())
    rng = np.random.default_rng(0)
    soundfile.write(path, 0.2 * rng.standard_normal((3000, 2)), RATE, "PCM_16")
    paths = prepare_binaural_wsj0mix(root, tmp_path / "manifests")
    manifest = read_manifest(paths["test"], root)
    items = [i for i in manifest.items if path.stem in i.id]
    with pytest.raises(UserError, match="not the sum of its sources"):
        BinauralDataset(replace(manifest, items=tuple(items)), 2)


def _write(stem, samples):
    """Spoils a file of a stem, by samples [T] or [E, T]."""

    def spoil(tt):
        write = audio.write_float if samples.ndim == 2 else audio.write
        write(next((tt / stem).iterdir()), samples, RATE)

    return spoil


def _list(content):
    return lambda tt: (tt / PLACEMENTS).write_bytes(content)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (_write("s1", np.ones(3000) / 2), r"has 1 channel\(s\), 2 were expected"),
        (lambda tt: next((tt / "s2").iterdir()).unlink(), "does not exist"),
        (lambda tt: [p.unlink() for p in (tt / "mix").iterdir()], "holds no wav files"),
        (_write("s1", np.full((2, 3000), 2e-5)), "is silent"),
        (_write("s1", np.ones((2, 2999))), "the same length was expected"),
        (lambda tt: (tt / "s3").mkdir(), "mixtures of more speakers"),
        (_list(b"name\na\n"), f"{PLACEMENTS}: is no CSV file"),
        (_list(b"ID\n\xff\n"), f"{PLACEMENTS}: is no CSV file"),
        (_list(b"ID\n" + b"a" * 200_000), f"{PLACEMENTS}: is no CSV file"),
        ({"n_speakers": 4}, "n_speakers: 4"),
        ({"sample_rate": 44100}, "sample_rate: 44100"),
        ({"mode": "mid"}, "mode: 'mid'"),
        ({"mixture": "mix_single"}, "mixture: 'mix_single'"),
        ({"mixture": "mix_both"}, "mix_both does not exist"),
        ({"mode": "max"}, "does not exist"),
    ],
)
def test_a_spoilt_folder_or_choice_is_named(tmp_path, spoil, message):
    root = public_tree(tmp_path / "public")
    choice = spoil if isinstance(spoil, dict) else {}
    if not choice:
        spoil(root / "2speakers/wav8k/min/tt")
    with pytest.raises(UserError, match=message):
        prepare_binaural_wsj0mix(root, tmp_path / "manifests", **choice)


def test_a_mono_wsj0mix_becomes_a_binaural_one(heads, tmp_path):
    rng = np.random.default_rng(0)
    for subset in SUBSETS.values():
        s1, s2 = voice(rng, 3000, 0.9), voice(rng, 3000, -0.5)
        for stem, signal in (("s1", s1), ("s2", s2), ("mix", s1 + s2)):
            audio.write(
                tmp_path / f"mono/wav8k/min/{subset}/{stem}/a_1_b_-1.wav", signal, RATE
            )
    paths = prepare_wsj0mix(tmp_path / "mono", tmp_path / "m")
    mono = {n: read_manifest(p, tmp_path / "mono") for n, p in paths.items()}
    folder = make_binaural_corpus(tmp_path / "b", mono, heads, workers=1)
    with open(folder / "wav8k/min/tt" / PLACEMENTS) as file:
        (row,) = csv.DictReader(file)
    assert row["head"] in {head.name for head in heads["test"]}
    with pytest.raises(UserError, match="2 channels, one was expected"):
        prepare_wsj0mix(folder, tmp_path / "m")


# Read again


def test_a_speed_is_that_of_both_ears(corpus):
    _, manifests = corpus
    data = BinauralDataset(manifests["train"], 2, speed_percents=[95])
    for index in range(2):
        item, example = manifests["train"].items[index], data[ItemKey(1, index)]
        length = example.mixture.shape[-1]
        assert length == item.frames  # that of the noise, which keeps its speed
        for j in (1, 2):
            ears = ears_of(item.paths[f"s{j}"])
            expected = np.stack([audio.resample(ear, 95, 100) for ear in ears])[:, :length]
            assert np.abs(example.sources[j - 1].numpy() - expected).max() < 1e-4
            plain, slow = itd(ears, RATE), itd(example.sources[j - 1].numpy(), RATE)
            assert slow == pytest.approx(plain / 0.95, abs=8)


@pytest.mark.parametrize("turns", [-3, 0, 1])
def test_whole_turns_of_16_bits_are_explained(turns):
    total = np.random.default_rng(0).uniform(-3, 3, (2, 40))
    assert unexplained(total + 2.0 * turns, total) == pytest.approx(0, abs=1e-6)


def test_float_files_hold_what_exceeds_full_scale(tmp_path):
    signal = np.random.default_rng(0).standard_normal((2, 801)).astype(np.float32)
    audio.write_float(tmp_path / "a.wav", 3 * signal, 16000)
    header = soundfile.info(str(tmp_path / "a.wav"))
    assert (header.samplerate, header.channels, header.subtype) == (16000, 2, "FLOAT")
    assert np.array_equal(ears_of(tmp_path / "a.wav"), 3 * signal)
    assert np.array_equal(ears_of(tmp_path / "a.wav", 5, 9), 3 * signal[:, 5:9])
    with pytest.raises(ValueError):
        audio.write_float(tmp_path / "b.wav", np.full((2, 3), np.nan), 16000)
    with pytest.raises(UserError, match="has 801 samples"):
        ears_of(tmp_path / "a.wav", 0, 900)
    audio.write(tmp_path / "mono.wav", np.zeros(80), RATE)
    with pytest.raises(UserError, match="is it a mono corpus"):
        ears_of(tmp_path / "mono.wav")


def test_a_direction_that_is_no_number_is_told(corpus):
    _, manifests = corpus
    item = manifests["dev"].items[0]
    wrong = replace(item, attributes={**item.attributes, "azimuth_1": "left"})
    data = BinauralDataset(replace(manifests["dev"], items=(wrong,)), 2)
    with pytest.raises(UserError, match="azimuth_1 is 'left'"):
        data[0]
