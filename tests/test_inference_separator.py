"""Recordings as people have them: length, level, rate, kind, and what is wrong with them."""

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_model

from unified_se_ss.errors import UserError
from unified_se_ss.inference import Model, Separator, sound_files
from unified_se_ss.inference.chunks import LevelFit
from unified_se_ss.inference.pipeline import consistent

RATE = 8000


class BandSplit(Model):
    """Stands in for a model that hears two voices, one below and one above 1 kHz.

    A linear-phase filter of 401 samples, so what it gives depends on 25 ms around. Like a
    network trained by SI-SNR it has gains, signs and offsets of its own, and, if told to,
    an order of its own for each call.
    """

    kind, sample_rate, n_sources, channels = "unified", RATE, 2, 1
    causal, minimum_samples, can_enhance = False, 16, True
    device, precision, decoding = torch.device("cpu"), "fp32", None
    network = torch.nn.Identity()

    def __init__(self, gains=(3.0, -0.2), offset=0.5, seed=None):
        self.gains, self.offset = torch.tensor(gains), offset
        self.generator = None if seed is None else np.random.default_rng(seed)
        self.lengths, self.orders = [], []

    def separate(self, mixture, lengths=None):
        assert mixture.shape[0] == 1 and mixture.shape[1] >= self.minimum_samples
        self.lengths.append(mixture.shape[1])
        low = low_pass(mixture[0].numpy().astype(np.float64))
        sources = torch.from_numpy(np.stack((low, mixture[0].numpy() - low))).float()
        if self.generator is not None:
            self.orders.append(self.generator.permutation(2).tolist())
            sources = sources[self.orders[-1]]
        return (self.gains[:, None] * sources + self.offset).unsqueeze(0)

    def enhance(self, mixture, lengths=None):
        return -7 * self.separate(mixture)[:, 0] / self.gains[0]


def low_pass(signal):
    taps = scipy.signal.firwin(401, 1000, fs=RATE)
    return scipy.signal.convolve(signal, taps, "full")[200 : 200 + len(signal)]


def two_voices(seconds, seed=0, sample_rate=RATE):
    """Noise below 900 Hz and noise above 1100 Hz, each with a rhythm, [2, T]."""
    generator = np.random.default_rng(seed)
    samples = int(seconds * sample_rate)
    voices = []
    for band, syllables in (((100, 900), 1.3), ((1100, 3500), 1.7)):
        taps = scipy.signal.firwin(801, band, fs=sample_rate, pass_zero=False)
        noise = scipy.signal.convolve(generator.standard_normal(samples), taps, "same")
        time = np.arange(samples) / sample_rate
        voices.append(noise * np.sin(np.pi * syllables * time) ** 2)
    return (0.1 * np.array(voices) / np.std(voices, axis=1)[:, None]).astype(np.float32)


def ratio_db(error, signal):
    return 10 * np.log10(np.square(error).sum() / np.square(signal).sum() + 1e-20)


# ------------------------------------------------------------------ level


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([-50.0, -1.0, -0.02, 0.02, 1.0, 50.0]), min_size=3, max_size=3
    ),
    st.integers(0, 2**31),
)
def test_gain_and_sign_are_undone(gains, seed):
    sources = np.random.default_rng(seed).standard_normal((3, 4000)) * [[1.0], [0.5], [0.2]]
    fit = LevelFit(3)
    estimates = np.array(gains)[:, None] * sources
    for at in range(0, 4000, 700):
        mixture = sources.sum(0)[at : at + 700] + 0.7  # an offset does not count
        fit.add(estimates[:, at : at + 700] - 20, mixture)
    np.testing.assert_allclose(fit.gains() * gains, np.ones(3), atol=0.02)


def test_least_squares_is_joint_and_near_lstsq():
    # What leaks from one source into the other: fitted alone, both would be too loud.
    generator = np.random.default_rng(0)
    sources = generator.standard_normal((2, 8000))
    leaking = np.array([[1.0, 0.0], [0.2, -0.6]]) @ sources
    mixture = sources.sum(0) + 0.3 * generator.standard_normal(8000)
    fit = LevelFit(2)
    fit.add(leaking, mixture)
    centred = leaking - leaking.mean(1, keepdims=True)
    expected = np.linalg.lstsq(centred.T, mixture - mixture.mean(), rcond=None)[0]
    np.testing.assert_allclose(fit.gains(), expected, rtol=0.01)
    assert expected[1] < -1  # flipped, and too quiet


def test_the_same_signal_twice_gets_equal_shares():
    signal = np.random.default_rng(0).standard_normal(4000)
    fit = LevelFit(2)
    fit.add(np.stack((signal, 4 * signal)), signal)
    np.testing.assert_allclose(fit.gains() * [1, 4], [0.5, 0.5], atol=1e-3)


def test_no_source_is_louder_than_the_mixture():
    # All but the same signal: their difference would fit, at many times the level.
    generator = np.random.default_rng(0)
    signal, detail = generator.standard_normal((2, 4000))
    fit = LevelFit(2)
    estimates = np.stack((signal, signal + 0.05 * detail))
    fit.add(estimates, detail)
    levels = np.abs(fit.gains()) * estimates.std(1)
    assert (levels <= 1.001 * detail.std()).all()


def test_silence_has_no_gain():
    noise = np.random.default_rng(0).standard_normal((2, 100))
    for signals, mixture in ((noise, 0 * noise[0]), (0 * noise, noise[0])):
        fit = LevelFit(2)
        fit.add(signals, mixture)
        assert fit.gains().tolist() == [0, 0]
    assert LevelFit(2).gains().tolist() == [0, 0]


@given(st.integers(1, 4), st.integers(0, 2**31))
def test_consistent_signals_add_up(n_sources, seed):
    generator = np.random.default_rng(seed)
    signals, mixture = (
        generator.standard_normal((n_sources, 20)),
        generator.standard_normal(20),
    )
    np.testing.assert_allclose(consistent(signals, mixture).sum(0), mixture, atol=1e-12)


# ------------------------------------------------------------------ one recording


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_sources_come_back_at_their_level_rate_and_length(sample_rate):
    voices = two_voices(3, sample_rate=sample_rate)
    sources = Separator(BandSplit()).separate(voices.sum(0), sample_rate)
    assert sources.shape == voices.shape and sources.dtype == np.float32
    for source, voice in zip(sources, voices, strict=True):
        assert ratio_db(source - voice, voice) < -25


def test_a_quiet_recording_is_treated_as_a_loud_one():
    model = small_model()
    mixture = two_voices(2).sum(0)
    sources = Separator(model).separate(mixture, RATE)
    for gain in (1e-4, 0.01, 3.0, 32768.0):
        quiet = Separator(model).separate(np.float32(gain) * mixture, RATE)
        assert ratio_db(quiet / gain - sources, sources) < -80


@settings(deadline=None, max_examples=25)
@given(
    samples=st.integers(1, 3000),
    sample_rate=st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000]),
    use_tensor=st.booleans(),
)
def test_as_long_as_the_input_and_of_its_kind(samples, sample_rate, use_tensor):
    separator = Separator(BandSplit(), chunk_seconds=0.1, overlap_seconds=0.02)
    recording = np.random.default_rng(samples).uniform(-1, 1, samples)
    if use_tensor:
        recording = torch.from_numpy(recording).float()
    sources = separator.separate(recording, sample_rate)
    enhanced = separator.enhance(recording, sample_rate)
    assert type(sources) is type(enhanced) is type(recording)
    assert sources.dtype == enhanced.dtype == recording.dtype
    assert sources.shape == (2, samples) and enhanced.shape == (samples,)
    finite = torch.isfinite if use_tensor else np.isfinite
    assert finite(sources).all() and finite(enhanced).all()


def test_a_file_gives_what_its_samples_give(tmp_path):
    voices = two_voices(1, sample_rate=16000)
    soundfile.write(tmp_path / "a.wav", voices.sum(0), 16000, "FLOAT")
    separator = Separator(BandSplit())
    expected = separator.separate(voices.sum(0), 16000)
    assert np.array_equal(separator.separate(tmp_path / "a.wav"), expected)
    assert np.array_equal(separator.separate(str(tmp_path / "a.wav"), 16000), expected)
    with pytest.raises(UserError, match="has 16000 Hz; leave sample_rate out"):
        separator.separate(tmp_path / "a.wav", 8000)


def test_several_channels_are_never_a_batch():
    separator = Separator(BandSplit())
    stereo = np.stack([two_voices(0.5).sum(0), np.zeros(4000, np.float32)])
    for recording in (stereo, torch.from_numpy(stereo)):
        with pytest.raises(UserError, match="2 channels, the model takes one; choose"):
            separator.separate(recording, RATE)
    left = separator.separate(stereo[0], RATE)
    np.testing.assert_array_equal(separator.separate(stereo, RATE, channel=0), left)
    np.testing.assert_allclose(
        separator.separate(stereo, RATE, downmix=True), left / 2, atol=1e-6
    )
    np.testing.assert_array_equal(separator.separate(stereo[:1], RATE), left)
    assert not separator.separate(stereo, RATE, channel=1).any()
    with pytest.raises(UserError, match="there is no channel 2"):
        separator.separate(stereo, RATE, channel=2)
    with pytest.raises(UserError, match="give one of the two"):
        separator.separate(stereo, RATE, channel=1, downmix=True)
    with pytest.raises(UserError, match="transpose"):
        separator.separate(stereo.T, RATE, downmix=True)


def test_resampling_is_soxrs_of_the_whole_and_keeps_time():
    # A model that gives its input back: what comes out is the resampled recording.
    identity = BandSplit()
    identity.separate = lambda mixture, lengths=None: torch.stack((mixture, mixture), 1)
    recording = two_voices(2, sample_rate=44100).sum(0)
    sources = Separator(identity).separate(recording, 44100)
    down = soxr.resample(recording, 44100, RATE, quality="VHQ")
    up = soxr.resample(down, RATE, 44100, quality="VHQ")
    total, up = sources.sum(0).astype(np.float64), up.astype(np.float64)
    total, up = total - total.mean(), up - up.mean()  # offsets are removed
    assert len(up) == len(total)
    assert ratio_db(total - up * (total @ up) / (up @ up), up) < -80
    inside = slice(4410, -4410)  # the recording breaks off at its end, which rings
    assert ratio_db((total - recording)[inside], recording[inside]) < -50


def test_mixture_consistency_adds_up_to_the_mixture():
    mixture = two_voices(2).sum(0) + 0.02 * np.random.default_rng(0).standard_normal(
        16000
    ).astype(np.float32)
    model = small_model()
    plain = Separator(model).separate(mixture, RATE)
    sources = Separator(model, mixture_consistency=True).separate(mixture, RATE)
    np.testing.assert_allclose(sources.sum(0), mixture, atol=1e-6)
    assert np.abs(plain.sum(0) - mixture).max() > 0.01


def test_forward_wav_is_the_network_itself():
    model = small_model()
    mixture = torch.randn(3, 400)
    separator = Separator(model)
    assert separator.sample_rate == 8000
    assert torch.equal(separator.forward_wav(mixture), model.separate(mixture))
    assert torch.equal(separator.forward_wav(mixture[0]), model.separate(mixture[:1])[0])


def test_what_a_model_cannot_do():
    with pytest.raises(UserError, match="cannot enhance; it can separate"):
        Separator(small_model(use_se=False)).enhance(np.ones(100), RATE)
    with pytest.raises(UserError, match="not causal"):
        Separator(small_model()).stream()
    stereo = BandSplit()
    stereo.kind, stereo.channels = "binaural", 2
    with pytest.raises(UserError, match="is for BinauralSeparator, not for Separator"):
        Separator(stereo)
    diverged = BandSplit(offset=float("nan"))
    with pytest.raises(UserError, match="output is not finite"):
        Separator(diverged).separate(np.ones(100), RATE)


@pytest.mark.parametrize(
    "options, word",
    [
        ({"chunk_seconds": 0.0}, "chunk_seconds: is 0"),
        ({"chunk_seconds": float("nan")}, "chunk_seconds: is nan"),
        ({"overlap_seconds": -1.0}, "overlap_seconds: is -1"),
        ({"chunk_seconds": 5.0}, "at most half of chunk_seconds"),
        ({"chunk_seconds": 0.001, "overlap_seconds": 0.0005}, "the model needs at least"),
    ],
)
def test_chunks_that_cannot_be(options, word):
    with pytest.raises(UserError, match=word):
        Separator(BandSplit(), **options)


# ------------------------------------------------------------------ long recordings


@pytest.mark.parametrize("sample_rate", [8000, 16000])
def test_chunks_give_what_the_whole_gives(sample_rate):
    # The model hears 25 ms around and the fade lies 0.3 s from an edge: equal but for
    # rounding.
    mixture = two_voices(23, sample_rate=sample_rate).sum(0)
    model = BandSplit()
    whole = Separator(model, chunk_seconds=30).separate(mixture, sample_rate)
    assert len(model.lengths) == 1
    model = BandSplit(seed=0)
    chunked = Separator(model, chunk_seconds=3, overlap_seconds=0.8)
    chunked = chunked.separate(mixture, sample_rate)
    assert len(model.lengths) > 10 and max(model.lengths) == 3 * RATE
    assert len({tuple(order) for order in model.orders}) == 2
    if model.orders[0] == [1, 0]:
        chunked = chunked[::-1]
    # The two outputs' gains are fitted to other parts of the voices.
    assert ratio_db(chunked - whole, whole) < -40


def test_a_gain_is_one_for_the_whole_file():
    # Loud, then quiet: the levels stay what they are, in each chunk and with any order.
    voices = two_voices(20)
    voices[:, 10 * RATE :] *= 0.03
    for seed in range(3):
        model = BandSplit(seed=seed)
        separator = Separator(model, chunk_seconds=3, overlap_seconds=0.8)
        sources = separator.separate(voices.sum(0), RATE)
        if model.orders[0] == [1, 0]:
            sources = sources[::-1]
        for part in (slice(0, 9 * RATE), slice(11 * RATE, None)):
            for source, voice in zip(sources, voices, strict=True):
                assert ratio_db(source[part] - voice[part], voice[part]) < -25


def test_memory_does_not_keep_the_recording(tmp_path, monkeypatch):
    # Everything that the writer is given comes in pieces no longer than a chunk.
    path = tmp_path / "in" / "a.wav"
    path.parent.mkdir()
    soundfile.write(path, two_voices(30).sum(0), RATE, "FLOAT")
    sizes = []

    class Watching(sound_files.Writer):
        def write(self, blocks):
            super().write(sizes.append(block.shape[1]) or block for block in blocks)

    monkeypatch.setattr(sound_files, "Writer", Watching)
    separator = Separator(BandSplit(), chunk_seconds=2, overlap_seconds=0.5)
    outputs = [tmp_path / "out" / "1.wav", tmp_path / "out" / "2.wav"]
    result = separator.separate_file(path, outputs)
    assert result.chunks == len(sizes) >= 19 and max(sizes) <= 2 * RATE
    assert sum(sizes) == 30 * RATE
    in_memory = separator.separate(path)
    written = np.stack([soundfile.read(output, dtype="float32")[0] for output in outputs])
    assert np.array_equal(written, in_memory)
    assert sorted(p.name for p in outputs[0].parent.iterdir()) == ["1.wav", "2.wav"]


# ------------------------------------------------------------------ bad and odd inputs


@pytest.mark.parametrize(
    "task, message",
    [
        ("recognise", "cannot recognise; it can separate and enhance"),
        ("seperate", "cannot seperate; it can separate and enhance"),
    ],
)
def test_a_task_that_it_was_not_made_for_writes_nothing(tmp_path, task, message):
    path = tmp_path / "a.wav"
    soundfile.write(path, two_voices(1).sum(0), RATE, "FLOAT")
    outputs = [tmp_path / "out" / "1.wav", tmp_path / "out" / "2.wav"]
    with pytest.raises(UserError, match=message):
        Separator(BandSplit()).separate_file(path, outputs, task)
    assert not outputs[0].parent.exists()


def odd(name):
    """Recordings of 0.5 s, unless they are short; floats at 16 kHz."""
    speech = two_voices(0.5, sample_rate=16000).sum(0)
    return {
        "one sample": np.array([0.3]),
        "0.1 s": speech[:1600],
        "silence": np.zeros(8000),
        "DC": np.full(8000, 0.25),
        "clipped": np.clip(40 * speech, -1, 1),
        "beyond full scale": 300 * speech,
        "very quiet": 1e-6 * speech,
        "a click": np.eye(1, 8000, 4000)[0],
    }[name].astype(np.float32)


VALID = ["one sample", "0.1 s", "silence", "DC", "clipped", "beyond full scale"]
VALID += ["very quiet", "a click"]


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("sort", ["stub", "dprnn", "sepformer"])
def test_an_odd_recording_gives_a_valid_one(name, sort):
    separator = Separator(BandSplit() if sort == "stub" else small_model(sort))
    recording = odd(name)
    sources = separator.separate(recording, 16000)
    enhanced = separator.enhance(recording, 16000)
    assert sources.shape == (2, len(recording)) and enhanced.shape == recording.shape
    assert np.isfinite(sources).all() and np.isfinite(enhanced).all()
    # No louder than the mixture (of which only what lies below 4 kHz is left).
    level = np.sqrt(np.square(recording, dtype=np.float64).mean())
    assert (np.sqrt(np.square(sources, dtype=np.float64).mean(1)) <= 1.05 * level).all()
    if name in ("one sample", "silence"):
        assert not sources.any() and not enhanced.any()


@pytest.mark.parametrize(
    "recording, sample_rate, word",
    [
        (np.zeros(0), 8000, "is empty"),
        (torch.zeros(2, 0), 8000, "2 channels|is empty"),
        (np.array([0.0, np.nan]), 8000, r"sample 1 \(at 0.000 s\) is nan"),
        (np.r_[np.zeros(12000), -np.inf], 8000, r"sample 12000 \(at 1.500 s\) is -inf"),
        (torch.tensor([float("inf")]), 8000, "sample 0"),
        (np.zeros(9, dtype=np.int16), 8000, "samples are int16; expected floating-point"),
        (torch.zeros(9, dtype=torch.long), 8000, "samples are torch.int64"),
        (np.zeros(9, dtype=complex), 8000, "samples are complex128"),
        (np.zeros((2, 1, 9)), 8000, "expected"),
        (np.array(0.5), 8000, "expected"),
        ([0.0, 0.1], 8000, "is a list"),
        (None, 8000, "is a NoneType"),
        (np.zeros(9), None, "need their sampling rate"),
        (np.zeros(9), 0, "need their sampling rate"),
        (np.zeros(9), 8000.5, "need their sampling rate"),
        ("no/such/file.wav", None, "does not exist"),
    ],
)
def test_a_bad_recording_gets_one_clear_word(recording, sample_rate, word):
    with pytest.raises(UserError, match=word):
        Separator(BandSplit()).separate(recording, sample_rate)
