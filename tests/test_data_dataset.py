"""Mixture data set: determinism, alignment of crops, speed perturbation, batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import lengths_read, manifest_of
from torch.utils.data import DataLoader

from unified_se_ss.data import audio
from unified_se_ss.data.binaural import BinauralExample
from unified_se_ss.data.dataset import ItemKey, MixtureDataset, collate
from unified_se_ss.data.manifest import Item
from unified_se_ss.data.pools import Recording
from unified_se_ss.errors import UserError

RATE = 8000
ROUNDING = 3 / 32768
SPEEDS = (95, 100, 105)


def stems_of(frames, noise=True, seed=0):
    """Two sources and noise, and the mixture that is their sum."""
    rng = np.random.default_rng(seed)
    stems = {s: rng.uniform(-0.2, 0.2, frames) for s in ("s1", "s2", "noise")[: 2 + noise]}
    return {"mixture": sum(stems.values()), **stems}


def one_item(folder, frames, **options):
    return manifest_of(folder, {"a": stems_of(frames, **options)})


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    signals = {f"i{n}": stems_of(n, seed=n) for n in (3000, 9001, 12345, 16000)}
    return manifest_of(tmp_path_factory.mktemp("data"), signals)


def assert_same(one, other):
    assert torch.equal(one.mixture, other.mixture)
    assert torch.equal(one.sources, other.sources)


def _noise_at(manifest, example):
    """The noise that belongs to an example, found by where its mixture lies."""
    item = next(item for item in manifest.items if item.id == example.id)
    mixture, _ = audio.read(item.paths["mixture"])
    noise, _ = audio.read(item.paths["noise"])
    length = len(example.mixture)
    windows = np.lib.stride_tricks.sliding_window_view(mixture, length)
    start = int((windows == example.mixture.numpy()).all(1).argmax())
    return noise[start : start + length]


keys = st.tuples(st.integers(0, 50), st.integers(0, 3))


@settings(max_examples=12, deadline=None)
@given(keys, st.sampled_from([None, 0.25, 1.5]), st.integers(0, 9))
def test_crops_of_all_stems_are_aligned(manifest, key, segment, seed):
    data = MixtureDataset(manifest, 2, segment, seed=seed)
    example = data[ItemKey(*key)]
    rest = example.mixture - example.sources.sum(0)
    np.testing.assert_allclose(rest, _noise_at(manifest, example), atol=ROUNDING)
    expected = min(manifest.items[key[1]].frames, round((segment or 9) * RATE))
    assert example.mixture.shape == (expected,)
    assert example.sources.shape == (2, expected)
    assert example.mixture.dtype == example.sources.dtype == torch.float32


@settings(max_examples=12, deadline=None)
@given(keys, st.sampled_from([None, 0.25, 1.5]), st.sampled_from([None, SPEEDS]))
def test_same_key_same_bits_other_key_other_crop(manifest, key, segment, speeds):
    first, second = (MixtureDataset(manifest, 2, segment, speeds, seed=3) for _ in "ab")
    expected = first[ItemKey(*key)]
    second[ItemKey(1, 0)]
    assert_same(expected, second[ItemKey(*key)])
    data = MixtureDataset(manifest, 2, 0.25)
    crop = data[ItemKey(0, 3)].mixture
    assert not torch.equal(crop, data[ItemKey(1, 3)].mixture)
    assert not torch.equal(crop, MixtureDataset(manifest, 2, 0.25, seed=1)[3].mixture)
    assert torch.equal(crop, data[3].mixture)


def test_workers_do_not_matter(manifest):
    data = MixtureDataset(manifest, 2, 0.5, SPEEDS)
    batches = [[ItemKey(4, 0), ItemKey(4, 3)], [ItemKey(4, 2)], [ItemKey(4, 1)]]
    read = [
        list(DataLoader(data, batch_sampler=batches, num_workers=n, collate_fn=collate))
        for n in (0, 2)
    ]
    for alone, workers in zip(*read):
        assert alone.ids == workers.ids
        assert_same(alone, workers)


def test_speed_perturbation_follows_the_published_recipe(manifest):
    """Each source at its own speed, noise as it is, cut to the shortest, summed."""
    data = MixtureDataset(manifest, 2, speed_percents=SPEEDS)
    seen = set()
    for epoch in range(12):
        example = data[ItemKey(epoch, 2)]
        item = manifest.items[2]
        stems = {stem: audio.read(path)[0] for stem, path in item.paths.items()}
        noise = stems["noise"][: len(example.mixture)]
        np.testing.assert_allclose(
            example.mixture, example.sources.sum(0).numpy() + noise, atol=1e-6
        )
        percents = []
        for j, source in enumerate(example.sources.numpy(), 1):
            for percent in SPEEDS:
                at = audio.resample(stems[f"s{j}"], percent, 100)[: len(source)]
                if len(at) == len(source) and np.abs(at - source).max() < 1e-4:
                    percents.append(percent)
        assert len(percents) == 2
        shortest = round(item.frames * 100 / max(*percents, 100))
        assert example.mixture.shape == (shortest,)
        seen.add(tuple(percents))
    assert len(seen) > 3


def test_perturbed_crop_is_a_crop_of_the_perturbed(manifest):
    """The crop can be found, sample by sample, in the whole perturbed sources."""
    data = MixtureDataset(manifest, 2, 0.25, speed_percents=(95,))
    example = data[ItemKey(5, 3)]
    stems = {s: audio.read(p)[0] for s, p in manifest.items[3].paths.items()}
    whole = [audio.resample(stems[s], 95, 100) for s in ("s1", "s2")]
    windows = np.lib.stride_tricks.sliding_window_view(whole[0], 2000)
    start = int(np.abs(windows - example.sources[0].numpy()).max(1).argmin())
    for source, signal in zip(example.sources.numpy(), whole):
        np.testing.assert_allclose(source, signal[start : start + 2000], atol=1e-4)
    noise = example.mixture - example.sources.sum(0)
    np.testing.assert_allclose(noise, stems["noise"][start : start + 2000], atol=1e-6)


def test_speed_100_alone_gives_the_recorded_mixture(manifest):
    recorded = MixtureDataset(manifest, 2)[ItemKey(0, 1)]
    mixed = MixtureDataset(manifest, 2, speed_percents=(100,))[ItemKey(0, 1)]
    assert torch.equal(recorded.sources, mixed.sources)
    np.testing.assert_allclose(recorded.mixture, mixed.mixture, atol=ROUNDING)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_region_of_perturbed_file(tmp_path, data):
    frames = data.draw(st.integers(600, 6000))
    percent = data.draw(st.integers(80, 125))
    signal = np.random.default_rng(frames).uniform(-0.5, 0.5, frames)
    audio.write(tmp_path / "a.wav", signal, RATE)
    whole = audio.resample(audio.read(tmp_path / "a.wav")[0], percent, 100)
    assert len(whole) == round(frames * 100 / percent)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    item = Item("a", frames / RATE, RATE, {"speech": tmp_path / "a.wav"})
    recording = Recording(item, "speech", percent=percent)
    assert len(whole) == recording.frames
    region = recording.read(start, stop)
    np.testing.assert_allclose(region, whole[start:stop], atol=1e-6)


@pytest.mark.parametrize("stem", ["mixture", "s2", "noise"])
def test_file_of_another_rate_than_its_manifest_is_named(tmp_path, stem):
    manifest = one_item(tmp_path, 8000)
    audio.write(manifest.items[0].paths[stem], np.full(8000, 0.5), 16000)
    data = MixtureDataset(manifest, 2, speed_percents=(105,) if stem == "noise" else None)
    with pytest.raises(UserError, match=f"a-{stem}.wav: .*16000 Hz.* 8000 Hz"):
        data[0]


def test_only_the_crop_is_read(manifest, monkeypatch):
    asked = lengths_read(monkeypatch)
    MixtureDataset(manifest, 2, 0.25)[ItemKey(0, 3)]
    MixtureDataset(manifest, 2, 0.25, (95,))[ItemKey(0, 3)]
    assert max(asked) < 3500


def test_a_silent_crop_is_drawn_again(tmp_path):
    """The first source is silent in its first nine tenths, then the second one wholly."""
    stems = stems_of(20000)
    stems["s1"][:18000] = 0
    manifest = manifest_of(tmp_path, {"a": stems})
    data = MixtureDataset(manifest, 2, 0.25)
    silent = sum(
        audio.is_silent(data[ItemKey(epoch, 0)].sources[0].numpy()) for epoch in range(30)
    )
    # A crop is silent with probability 16/18; eight draws leave 0.39 of them, not 0.89.
    assert silent < 20
    audio.write(manifest.items[0].paths["s2"], np.zeros(20000), RATE)
    assert data[0].mixture.shape == (2000,)


def test_durations_are_those_after_cropping(manifest):
    data = MixtureDataset(manifest, 2, segment_seconds=1.25)
    assert data.durations == [0.375, 9001 / RATE, 1.25, 1.25] and data.sample_rate == RATE
    for index, duration in enumerate(data.durations):
        assert len(data[index].mixture) == round(duration * RATE)


def test_only_a_clean_mixture_can_be_perturbed_without_noise(tmp_path):
    clean = one_item(tmp_path, 8000, noise=False)
    example = MixtureDataset(clean, 2, speed_percents=SPEEDS)[0]
    assert torch.equal(example.mixture, example.sources.sum(0))
    stems = stems_of(8000)
    del stems["noise"]
    noisy = manifest_of(tmp_path, {"b": stems})
    MixtureDataset(noisy, 2)
    with pytest.raises(UserError, match="speed_percents.*noise"):
        MixtureDataset(noisy, 2, speed_percents=SPEEDS)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"n_speakers": 3}, "no column s3"),
        ({"n_speakers": 1}, "column s2"),
        ({"n_speakers": 2, "segment_seconds": 0}, "segment_seconds: is 0"),
        ({"n_speakers": 2, "speed_percents": (95, 0.9)}, "speed_percents: holds 0.9"),
    ],
)
def test_arguments_without_sense(manifest, arguments, words):
    with pytest.raises(UserError, match=words):
        MixtureDataset(manifest, **arguments)


@pytest.mark.parametrize("ears", [(), (2,)], ids=["one channel", "two ears"])
@pytest.mark.parametrize("lengths", [(3, 5, 1), (4,), (7, 7)])
def test_collate_pads_with_zeros(lengths, ears):
    examples = [
        BinauralExample(
            f"{n}", torch.ones(*ears, n), torch.full((2, *ears, n), 2.0), torch.zeros(2, 2)
        )
        for n in lengths
    ]
    batch, B, T = collate(examples), len(lengths), max(lengths)
    assert len(batch) == B and batch.ids == [f"{n}" for n in lengths]
    assert batch.lengths.dtype == torch.int64 and batch.lengths.tolist() == list(lengths)
    assert batch.mixture.shape == (B, *ears, T) and batch.directions.shape == (B, 2, 2)
    assert batch.sources.shape == (B, 2, *ears, T)
    for b, n in enumerate(lengths):
        for signal, value in ((batch.mixture[b], 1), (batch.sources[b], 2)):
            assert (signal[..., :n] == value).all() and not signal[..., n:].any()
    assert torch.equal(batch.clean_mixture, batch.sources[:, 0] + batch.sources[:, 1])
    moved = batch.to("meta")
    assert moved is batch and moved.mixture.is_meta and moved.sources.is_meta
    assert not moved.lengths.is_meta  # whoever needs them on the host need not wait
