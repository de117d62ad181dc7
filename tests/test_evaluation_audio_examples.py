"""Wav files whose levels can be compared."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.audio_examples import level_signals, save_waves


def item(seed=0, samples=2000):
    rng = np.random.default_rng(seed)
    sources = 0.1 * rng.standard_normal((2, samples)) * np.array([[1.0], [0.2]])
    noise = 0.01 * rng.standard_normal(samples)
    return sources.sum(axis=0) + noise, sources


def test_files_hold_the_levelled_signals(tmp_path):
    mixture, sources = item()
    paths = save_waves(
        tmp_path, "a_b", mixture, 30 * sources, -mixture, sources, sample_rate=16000
    )
    assert [path.name for path in paths] == [
        "mixture.wav",
        "enhanced.wav",
        "s1_estimate.wav",
        "s2_estimate.wav",
        "s1_reference.wav",
        "s2_reference.wav",
    ]
    assert {path.parent for path in paths} == {tmp_path / "a_b"}
    signals = level_signals(mixture, 30 * sources, -mixture, sources)
    for path in paths:
        samples, rate = soundfile.read(path)
        assert rate == 16000 and soundfile.info(path).subtype == "PCM_16"
        np.testing.assert_allclose(samples, signals[path.stem], atol=1 / 32768)
    assert len(list((tmp_path / "a_b").iterdir())) == 6


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 100),
    gain=st.floats(1e-6, 1e6),
    first=st.sampled_from([-1.0, 1.0]),
    second=st.sampled_from([-1.0, 1.0]),
)
def test_scale_and_signs_of_the_network_do_not_matter(seed, gain, first, second):
    mixture, sources = item(seed)
    expected = level_signals(mixture, sources, mixture)
    flipped = gain * sources * np.array([[first], [second]])
    found = level_signals(mixture, flipped, first * gain * mixture)
    for name, signal in expected.items():
        np.testing.assert_allclose(found[name], signal, atol=1e-9)


def test_gain_is_that_of_least_squares():
    mixture, sources = item()
    estimates = sources + 0.02 * np.random.default_rng(1).standard_normal(sources.shape)
    signals = level_signals(mixture, estimates)
    total = estimates.sum(axis=0)[:, None]
    gain = np.linalg.lstsq(total, mixture, rcond=None)[0][0]
    for j, estimate in enumerate(estimates, 1):
        np.testing.assert_allclose(signals[f"s{j}_estimate"], gain * estimate)


def test_peak_guard_turns_all_down_by_the_same_factor():
    mixture, sources = item()
    loud = 20 / np.max(np.abs(mixture))
    signals = level_signals(loud * mixture, sources, mixture, loud * sources)
    quiet = level_signals(mixture, sources, mixture, sources)
    assert max(np.max(np.abs(s)) for s in signals.values()) == pytest.approx(0.99)
    factor = signals["mixture"][0] / quiet["mixture"][0]
    for name in signals:
        np.testing.assert_allclose(signals[name], factor * quiet[name])


def test_silent_estimates_stay_silent():
    mixture, sources = item()
    signals = level_signals(mixture, 0 * sources, 0 * mixture)
    assert not np.any(signals["s1_estimate"]) and not np.any(signals["enhanced"])


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "", "a\\b"])
def test_ids_that_are_no_folder_are_refused(tmp_path, name):
    mixture, sources = item()
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        save_waves(tmp_path, name, mixture, sources, sample_rate=8000)
    assert not list(tmp_path.iterdir())


def test_signals_that_are_not_finite_are_refused(tmp_path):
    mixture, sources = item()
    sources[1, 3] = np.nan
    with pytest.raises(UserError, match="'a': .*nan"):
        save_waves(tmp_path, "a", mixture, sources, sample_rate=8000)
    assert not list(tmp_path.iterdir())
