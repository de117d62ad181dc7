"""Reading, writing and resampling of audio files; files written whole."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import soundfile

from unified_se_ss.data import audio
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path, atomic_write


@pytest.fixture
def signal():
    return np.random.default_rng(0).uniform(-0.9, 0.9, 4000).astype(np.float32)


def test_written_file_is_what_scipy_reads(tmp_path, signal):
    signal[:2] = 1, -1  # full scale does not wrap
    audio.write(tmp_path / "a.wav", signal, 8000)
    rate, codes = scipy.io.wavfile.read(tmp_path / "a.wav")
    assert rate == 8000 and codes.dtype == np.int16
    np.testing.assert_allclose(codes / 32768, signal, atol=1 / 32768)
    assert audio.info(tmp_path / "a.wav") == (4000, 8000, 1)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_region_equals_slice_of_whole(tmp_path, signal, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", signal, 8000)
    whole, _ = audio.read(tmp_path / f"a.{suffix}")
    region, rate = audio.read(tmp_path / f"a.{suffix}", 1001, 3003)
    assert rate == 8000 and region.dtype == np.float32
    np.testing.assert_array_equal(region, whole[1001:3003])


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "au", "w64"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_values_are_libsndfiles_to_the_last_bit(tmp_path, suffix, subtype):
    path = tmp_path / f"a.{suffix}"
    codes = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(path, np.stack((codes, codes[::-1]), 1), 8000, subtype)
    theirs, _ = soundfile.read(path, dtype="float32")
    for channel in range(2):
        ours, _ = audio.read(path, channel=channel)
        assert ours.dtype == np.float32 and ours.flags.c_contiguous
        np.testing.assert_array_equal(ours, theirs[:, channel])


def test_only_the_region_is_read(tmp_path, signal, monkeypatch):
    audio.write(tmp_path / "a.wav", signal, 8000)
    asked = []
    original = soundfile.SoundFile.read

    def read(self, frames=-1, *args, **kwargs):
        asked.append(frames)
        return original(self, frames, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    audio.read(tmp_path / "a.wav", 10, 30)
    assert asked == [20]


def test_write_refuses_what_would_not_be_the_signal(tmp_path):
    faults = {"not finite": [0.0, np.nan], "peak is 1.25": [0, -1.25], "1, 2": [[0.0, 0]]}
    for words, signal in faults.items():
        with pytest.raises(ValueError, match=words):
            audio.write(tmp_path / "a.wav", np.array(signal), 8000)
    assert list(tmp_path.iterdir()) == []


def test_channel_of_a_stereo_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([[0.25, 0.5]] * 10), 8000)
    assert (audio.read(tmp_path / "a.wav", channel=1)[0] == 0.5).all()
    for channel, words in ((2, "no channel 2"), (None, "has 2 channels, one was expected")):
        with pytest.raises(UserError, match=f"a.wav: .*{words}"):
            audio.read(tmp_path / "a.wav", channel=channel)


def test_reading_past_the_end_is_an_error(tmp_path, signal):
    audio.write(tmp_path / "a.wav", signal, 8000)
    with pytest.raises(UserError, match="has 4000 samples"):
        audio.read(tmp_path / "a.wav", 0, 4001)
    with pytest.raises(ValueError):
        audio.read(tmp_path / "a.wav", 7, 3)


@pytest.mark.parametrize("to_rate", [4000, 11025, 16000])
def test_resample_keeps_a_tone(to_rate):
    def tone(rate):
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    resampled = audio.resample(tone(8000), 8000, to_rate)
    assert len(resampled) == to_rate and resampled.dtype == np.float32
    inner = slice(to_rate // 10, -to_rate // 10)
    np.testing.assert_allclose(resampled[inner], tone(to_rate)[inner], atol=1e-5)


def test_resample_agrees_with_scipy_on_a_band_limited_signal(signal):
    low = scipy.signal.sosfiltfilt(
        scipy.signal.butter(12, 1000, fs=8000, output="sos"), signal
    )
    expected = scipy.signal.resample(low, 2000)
    resampled = audio.resample(low.astype(np.float32), 8000, 4000)
    np.testing.assert_allclose(resampled[200:-200], expected[200:-200], atol=1e-3)


def test_resample_to_the_same_rate_is_the_input(signal):
    assert audio.resample(signal, 8000, 8000) is signal


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic_write(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half of")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot be written"):
        atomic_write(path / "b.txt", "new")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="a.txt: cannot be written .No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
