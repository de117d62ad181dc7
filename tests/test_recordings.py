"""Recording folders with every surprise that real ones hold."""

import csv

import numpy as np
import pytest
import soundfile
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.corpora.array_recordings import (
    STEMS,
    _loud_level,
    prepare_recordings,
)
from unified_se_ss.data.dataset import ItemKey, collate
from unified_se_ss.data.guided import RecordingDataset
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.spatial import BeamformerFrontend, gcc_phat

RATE = 16000


def sound(seed, seconds=1.0):
    """Noise that swells, [T]: has levels and one delay."""
    rng = np.random.default_rng(seed)
    T = round(seconds * RATE)
    swell = 0.55 + 0.45 * np.sin(np.arange(T) / RATE * 9)
    return 0.05 * swell * rng.normal(size=T).astype(np.float32)


def plain(folder, name, seed, **others):
    """A recording without surprises, some stems replaced."""
    clean = sound(seed)
    noisy = clean + 0.2 * sound(seed + 100)
    stems = {"channel_1": clean + 0.1 * noisy, "channel_2": noisy, "ground_truth": clean}
    for stem, signal in {**stems, **others}.items():
        audio.write(folder / name / f"{stem}.wav", signal, RATE)
    return {**stems, **others}


def prepared(folder, tmp_path, **options):
    path = prepare_recordings(folder, tmp_path / "m.csv", RATE, workers=1, **options)
    return read_manifest(path, folder, STEMS)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "train"


def report(tmp_path):
    with open(tmp_path / "m_report.csv", newline="") as file:
        rows = {row["ID"]: row for row in csv.DictReader(file)}
    return (tmp_path / "m_report.txt").read_text(), rows


def test_the_layout_of_the_seed_is_read(folder, tmp_path):
    """channel_1 is the beamformed input, channel_2 the raw one."""
    signals = plain(folder, "recording_000010001.WAV", 0)
    plain(folder, "recording_000010002.WAV", 1)
    manifest = prepared(folder, tmp_path)
    ids = [item.id for item in manifest.items]
    assert ids == ["recording_000010001.WAV", "recording_000010002.WAV"]
    data = RecordingDataset(manifest)
    assert len(data) == 2 and data.durations == [1.0, 1.0] and data.sample_rate == RATE
    example = data[ItemKey(3, 0)]
    for ours, stem in ((0, "channel_2"), (1, "channel_1")):
        np.testing.assert_allclose(example.inputs[ours], signals[stem], atol=2e-5)
    np.testing.assert_allclose(example.target, signals["ground_truth"], atol=2e-5)
    assert example.components is None
    batch = collate([data[0], data[1]])
    assert batch.inputs.shape == (2, 2, RATE) and batch.lengths.tolist() == [RATE, RATE]
    text, rows = report(tmp_path)
    assert "2 of 2 recordings can be used" in text
    assert rows["recording_000010001.WAV"]["used"] == "True"
    assert not rows["recording_000010001.WAV"]["surprises"]


def test_crops_follow_from_seed_epoch_and_index(folder, tmp_path):
    whole = plain(folder, "a", 0)["ground_truth"]
    data = RecordingDataset(prepared(folder, tmp_path), 0.25, seed=5)
    assert data.durations == [0.25]
    first, again, later = data[ItemKey(1, 0)], data[ItemKey(1, 0)], data[ItemKey(2, 0)]
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, later.inputs)
    start = np.argmax(np.correlate(whole, first.target.numpy(), "valid"))
    np.testing.assert_allclose(first.target, whole[start : start + 4000], atol=2e-5)


def delayed(signal, samples):
    return np.pad(signal, (samples, 0))[: len(signal)]


def test_a_late_beamformed_channel_is_measured_told_and_made_up_for(folder, tmp_path):
    clean = sound(0)
    late = delayed(clean, 800)
    plain(folder, "late", 0, channel_1=late)
    manifest = prepared(folder, tmp_path)
    attributes = manifest.items[0].attributes
    assert (attributes["delay"], attributes["target_delay"]) == ("800", "0")
    assert "the beamformed signal is 800 samples (50.00 ms) late" in report(tmp_path)[0]
    as_it_is = RecordingDataset(manifest)[0]
    aligned = RecordingDataset(manifest, align="beamformed")[0]
    np.testing.assert_allclose(as_it_is.inputs[1], late, atol=2e-5)
    np.testing.assert_allclose(aligned.inputs[1, :-800], clean[:-800], atol=2e-5)
    assert not aligned.inputs[1, -800:].any()
    assert torch.equal(aligned.inputs[0], as_it_is.inputs[0])
    assert aligned.conditions["delay"] == 800


def test_a_late_target_is_shifted_only_when_all_are(folder, tmp_path):
    late = delayed(sound(0), 96)
    plain(folder, "a", 0, ground_truth=late)
    manifest = prepared(folder, tmp_path)
    kept, shifted = (
        RecordingDataset(manifest, align=align)[0].target for align in ("beamformed", "all")
    )
    np.testing.assert_allclose(kept, late, atol=2e-5)
    np.testing.assert_allclose(shifted[:-96], sound(0)[:-96], atol=2e-5)


def test_levels_and_lengths_that_differ_are_told_and_mended(folder, tmp_path):
    clean = sound(0)
    stems = {"channel_1": 0.1 * clean, "channel_2": clean, "ground_truth": clean[:-1600]}
    plain(folder, "quiet", 0, **stems)
    manifest = prepared(folder, tmp_path)
    assert float(manifest.items[0].attributes["level"]) == pytest.approx(-20, abs=0.1)
    assert manifest.items[0].frames == RATE - 1600
    text, _ = report(tmp_path)
    assert "the beamformed signal is 20.0 dB quieter" in text
    assert "0.100 s longer than ground_truth.wav; cut to it" in text
    left, levelled = (
        RecordingDataset(manifest, match_levels=match)[0].inputs
        for match in ("nothing", "beamformed")
    )
    assert left.shape == (2, RATE - 1600)
    np.testing.assert_allclose(left[1], 0.1 * clean[:-1600], atol=2e-5)
    np.testing.assert_allclose(levelled[1], clean[:-1600], atol=4e-4)


def test_what_cannot_be_used_is_left_out_and_told(folder, tmp_path):
    plain(folder, "good", 0)
    (folder / "good" / "._channel_1.wav").write_bytes(b"\0\5\26\7 Mac OS X")
    (folder / "good" / "notes.txt").write_text("window open")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "pictures").mkdir()
    plain(folder, "silent", 1, channel_2=np.zeros(RATE, np.float32))
    plain(folder, "broken", 2)
    (folder / "broken" / "channel_1.wav").write_bytes(b"RIFF, but no more")
    plain(folder, "lacking", 3)
    (folder / "lacking" / "ground_truth.wav").unlink()
    plain(folder, "not_finite", 4)
    endless = np.full(RATE, np.inf, np.float32)
    soundfile.write(folder / "not_finite" / "channel_2.wav", endless, RATE, "FLOAT")
    manifest = prepared(folder, tmp_path)
    assert [item.id for item in manifest.items] == ["good"]
    text, rows = report(tmp_path)
    assert "1 of 5 recordings can be used" in text
    assert "not recordings, ignored: .DS_Store, pictures" in text
    assert "._channel_1.wav; ignored" in rows["good"]["surprises"]
    assert "extra file: notes.txt; ignored" in rows["good"]["surprises"]
    for name, surprise in {
        "silent": "silent: channel_2.wav; left out",
        "broken": "is corrupt or not a",
        "lacking": "missing stem: has no ground_truth.wav; left out",
        "not_finite": "channel_2.wav holds values that are not finite",
    }.items():
        assert rows[name]["used"] == "False" and surprise in rows[name]["surprises"]


def test_another_rate_is_an_error_or_resampled(folder, tmp_path):
    seconds = np.arange(48000) / 48000
    tone = (0.1 * np.sin(2 * np.pi * 440 * seconds) * (1 + seconds)).astype(np.float32)
    for stem in ("channel_1", "channel_2", "ground_truth"):
        audio.write(folder / "a" / f"{stem}.wav", tone, 48000)
    with pytest.raises(UserError, match=r"at 48000 Hz; resample the files.*resample: True"):
        prepared(folder, tmp_path)
    manifest = prepared(folder, tmp_path, resample=True)
    assert manifest.items[0].frames == RATE
    whole = RecordingDataset(manifest)[0].target.numpy()
    middle = slice(1000, -1000)
    np.testing.assert_allclose(whole[middle], tone[::3][middle], atol=1e-4)


def test_a_beamformer_makes_the_guide_of_raw_microphones(folder, tmp_path):
    clean, noise = sound(0), sound(9)
    clean[:8000] = 0
    microphones = {f"channel_{c}": clean + np.roll(noise, c) for c in (1, 2, 3)}
    plain(folder, "a.WAV", 0, ground_truth=clean, **microphones)
    guide = BeamformerFrontend("souden_mvdr", context_seconds=0.4)
    manifest = prepared(folder, tmp_path, guide=guide, raw_channels=[1, 2, 3])
    assert manifest.items[0].attributes["microphones"] == "3"
    example = RecordingDataset(manifest)[0]
    stacked = torch.from_numpy(np.stack(list(microphones.values())))
    np.testing.assert_allclose(example.inputs[0], microphones["channel_1"], atol=2e-5)
    np.testing.assert_allclose(example.inputs[1], guide(stacked), atol=1e-3)
    wanted = torch.from_numpy(clean)
    error = (example.inputs - wanted).square().sum(-1)
    assert error[1] < 0.1 * error[0]


def test_a_guide_that_has_to_be_steered_says_so(folder, tmp_path):
    plain(folder, "a", 0, channel_3=sound(3))
    for wrong, words in (
        ({"beamformer": "delay_and_sum"}, "delay_and_sum needs the positions"),
        ({"knowledge": "oracle"}, ""),
        ({"sample_rate": 8000}, ""),
    ):
        with pytest.raises(UserError, match=f"guide: {words}"):
            prepared(folder, tmp_path, guide=BeamformerFrontend(**wrong))
    plain(folder, "b", 1)
    guide = BeamformerFrontend("delay_and_sum")
    places = {"microphones": [[0, 0, 0], [0, 0.05, 0]], "source": [1, 0, 0]}
    manifest = prepared(folder, tmp_path, guide=guide, **places)
    assert [item.attributes["microphones"] for item in manifest.items] == ["2"]
    assert "has no 2 raw microphones, but 1" in report(tmp_path)[0]


def test_a_manifest_is_made_once_and_again_when_something_changed(folder, tmp_path):
    plain(folder, "a", 0)
    prepared(folder, tmp_path)
    written = (tmp_path / "m.csv").stat().st_mtime_ns
    prepared(folder, tmp_path)
    assert (tmp_path / "m.csv").stat().st_mtime_ns == written
    plain(folder, "b", 1)
    assert len(prepared(folder, tmp_path)) == 2
    two = prepare_recordings(folder, tmp_path / "processes.csv", RATE, workers=2)
    assert two.read_text() == (tmp_path / "m.csv").read_text()


def test_nothing_to_use_or_wrong_choices_are_an_error(folder, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        prepared(folder, tmp_path)
    folder.mkdir()
    with pytest.raises(UserError, match="holds no recordings"):
        prepared(folder, tmp_path)
    plain(folder, "a", 0, channel_1=np.zeros(RATE, np.float32))
    with pytest.raises(UserError, match="none of its 1 recordings can be used"):
        prepared(folder, tmp_path)
    assert "channel_1.wav" in report(tmp_path)[0]
    plain(folder, "a", 0)
    manifest = prepared(folder, tmp_path)
    for wrong in ({"align": "yes"}, {"match_levels": True}):
        with pytest.raises(UserError, match=f"{[*wrong][0]}: is "):
            RecordingDataset(manifest, **wrong)


@pytest.mark.parametrize("delay, gain", [(0, 1.0), (1, -0.01), (37, 1.0), (-250, -0.01)])
def test_delays_are_found_at_any_level_and_polarity(delay, gain):
    noise = np.random.default_rng(1).normal(size=20000)
    found = gcc_phat(gain * np.roll(noise, delay), noise, 400)
    assert found.samples == delay and found.clear > 30


def test_a_delay_is_found_in_reverberation_and_noise():
    rng = np.random.default_rng(2)
    noise = rng.normal(size=40000)
    tail = 0.3 * rng.normal(size=2000) * np.exp(-np.arange(2000) / 400)
    tail[0] = 1
    heard = np.convolve(noise, tail)[: len(noise)]
    late = np.roll(heard, 123) + 0.5 * rng.normal(size=len(noise))
    assert gcc_phat(late, noise, 400).samples == 123


def test_what_has_nothing_in_common_has_no_delay():
    rng = np.random.default_rng(3)
    assert gcc_phat(rng.normal(size=40000), rng.normal(size=40000), 400).clear < 10
    assert gcc_phat(np.zeros(100), rng.normal(size=100), 10) == (0, 0.0)


def test_the_level_is_that_of_the_loud_frames():
    signal = np.zeros(RATE)
    signal[: RATE // 4] = 0.1
    assert _loud_level(signal, RATE) == pytest.approx(-20)
    assert _loud_level(np.zeros(10), RATE) == -np.inf
