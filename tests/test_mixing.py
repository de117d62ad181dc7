"""Loudness against pyloudnorm and EBU's test tone; invariants of mixing."""

import math

import numpy as np
import pyloudnorm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unified_se_ss.data.mixing import draw_levels, loudness_gain, measure_loudness, mix


def tone(seconds, sample_rate, dbfs=-23.0, hertz=997.0):
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    return 10 ** (dbfs / 20) * np.sin(2 * np.pi * hertz * time)


def test_ebu_tone_in_stereo_has_its_nominal_loudness():
    # EBU Tech 3341, test signal 1: a stereo sine at -23 dBFS measures -23 LUFS +- 0.1.
    mono = tone(20, 48000)
    stereo = np.stack([mono, mono], axis=1)
    assert measure_loudness(stereo, 48000) == pytest.approx(-23, abs=0.1)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 48000])
def test_tone_in_one_channel_is_3_db_below(sample_rate):
    # The K-weighting is defined at 48 kHz; other rates warp its shelf a little.
    measured = measure_loudness(tone(5, sample_rate), sample_rate)
    assert measured == pytest.approx(-23 - 10 * math.log10(2), abs=0.3)


def test_equals_pyloudnorm_with_pauses():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=24000) * np.repeat([0.1, 0.0, 0.03], 8000)
    expected = pyloudnorm.Meter(8000).integrated_loudness(signal)
    assert measure_loudness(signal, 8000) == pytest.approx(expected, abs=1e-9)


def test_short_signals_are_measured():
    for seconds in (0.02, 0.1, 0.3999, 0.4):
        short = measure_loudness(tone(seconds, 8000, hertz=1000), 8000)
        assert short == pytest.approx(measure_loudness(tone(2, 8000), 8000), abs=0.3)


@pytest.mark.filterwarnings("error")
def test_silence_is_minus_infinity():
    for length in (1, 100, 8000):
        assert measure_loudness(np.zeros(length), 8000) == -math.inf
        # Far below the absolute gate of -70 LUFS counts as silence too.
        assert measure_loudness(np.full(length, 1e-9), 8000) == -math.inf
    assert loudness_gain(-30.0, -math.inf) == 1.0


def test_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        measure_loudness(np.array([0.0, np.nan]), 8000)


def test_levels_are_uniform_in_the_ranges_of_librimix():
    levels = np.array([draw_levels(np.random.default_rng([1, i]), 3) for i in range(2000)])
    sources, noise = levels[:, :3], levels[:, 3]
    assert sources.shape == (2000, 3)
    assert -33 <= sources.min() < -32.9 and -25.1 < sources.max() <= -25
    assert -38 <= noise.min() < -37.9 and -30.1 < noise.max() <= -30
    # Mean of a uniform law, its error 8 / sqrt(12 * 6000) = 0.03; stems independent.
    assert sources.mean() == pytest.approx(-29, abs=0.15)
    assert noise.mean() == pytest.approx(-34, abs=0.25)
    correlation = np.corrcoef(levels.T)
    assert np.abs(correlation - np.eye(4)).max() < 0.1


@given(st.floats(-50, -10), st.floats(-33, -25), st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_gain_reaches_the_level(start, level, seed):
    signal = np.random.default_rng(seed).normal(size=8000)
    signal *= 10 ** (start / 20)
    signal *= loudness_gain(level, measure_loudness(signal, 8000))
    assert pyloudnorm.Meter(8000).integrated_loudness(signal) == pytest.approx(level)


def stems(dtype):
    width = np.dtype(dtype).itemsize * 8
    values = st.floats(-4, 4, width=width, allow_subnormal=False)
    shape = st.tuples(st.integers(1, 5), st.integers(1, 40))
    return hnp.arrays(dtype, shape, elements=values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_mixing_invariants(dtype, data):
    all_stems = data.draw(stems(dtype))
    sources, noise = all_stems[:-1], all_stems[-1]
    if len(sources) == 0:
        sources = all_stems
    before = sources.copy()
    mixture = mix(sources, noise)

    assert np.array_equal(sources, before)
    assert all(part.dtype == dtype for part in mixture)
    assert max(np.abs(part).max() for part in mixture) <= 0.9
    assert np.array_equal(mixture.mix_clean, mixture.sources.sum(axis=0))
    assert np.array_equal(mixture.mix_both, mixture.mix_clean + mixture.noise)

    # One gain for all, at most 1, and exactly 1 when nothing was too loud.
    given_stems = np.vstack([sources, noise])
    mixed_stems = np.vstack([mixture.sources, mixture.noise])
    sums = [sources.sum(0), sources.sum(0) + noise]
    top = max(np.abs(given_stems).max(), np.abs(sums).max())
    if top <= 0.9:
        assert np.array_equal(mixed_stems, given_stems)
    else:
        expected = given_stems.astype(np.float64) * (0.9 / float(top))
        tolerance = 1e-5 if dtype is np.float32 else 1e-12
        assert np.allclose(mixed_stems, expected, rtol=tolerance, atol=1e-30)


def test_without_noise_both_mixtures_are_the_same():
    mixture = mix(np.array([[0.1, 0.2], [0.3, -0.1]]))
    assert np.array_equal(mixture.mix_both, mixture.mix_clean)
    assert not mixture.noise.any()


@pytest.mark.parametrize(
    "stems, message",
    [
        ([np.zeros((2, 5)), np.zeros(4)], "noise"),
        ([np.zeros((2, 5), dtype=np.int16)], "floating"),
        ([np.zeros(5)], r"\[J, \.\.\., T\]"),
    ],
)
def test_wrong_shapes_are_refused(stems, message):
    with pytest.raises(ValueError, match=message):
        mix(*stems)
