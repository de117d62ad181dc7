"""SI-SNR and SDR against SpeechBrain, mir_eval and closed forms."""

import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.metrics import (
    FLOOR_DB,
    best_permutation,
    sdr,
    si_snr,
    si_snr_table,
)
from unified_se_ss.evaluation.rows import _conditions, evaluate_item

SAMPLES = 4000
RATE = 8000


def voice(seed, samples=SAMPLES, rate=RATE):
    """Harmonics of a gliding pitch in syllables, with a little breath, [samples]."""
    rng = np.random.default_rng([1, seed])
    t = np.arange(samples) / rate
    pitch = rng.uniform(90, 220) + 15 * np.sin(2 * np.pi * 3 * t + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 15))
    syllables = np.clip(np.sin(2 * np.pi * 4 * t + rng.uniform(0, 6)), 0, None)
    return tone * syllables + 1e-3 * rng.standard_normal(samples)


def sources(kind, count):
    """True sources [count, SAMPLES] of several kinds."""
    noise = np.random.default_rng([2, count]).standard_normal((count, SAMPLES))
    if kind == "band-limited":
        low_pass = scipy.signal.butter(10, 0.2, output="sos")
        return scipy.signal.sosfiltfilt(low_pass, noise, axis=-1)
    if kind == "correlated":
        return noise + 0.8 * noise[:1]
    if kind == "speech-like":
        return np.stack([voice(j) for j in range(count)])
    if kind == "tones":
        hertz = 200.0 + 37 * np.arange(count)[:, None]
        return np.sin(2 * np.pi * hertz * np.arange(SAMPLES) / RATE)
    return noise


def estimates_of(targets, level):
    """Targets with cross talk and noise of a level, filtered a little."""
    noise = np.random.default_rng(3).standard_normal(targets.shape) * targets.std()
    others = targets.sum(axis=0) - targets
    filtered = scipy.signal.lfilter([0.9, 0.2, -0.1], [1.0], targets, axis=-1)
    return filtered + level * (0.5 * others + 0.3 * noise)


@pytest.mark.parametrize(
    "kind, count",
    [
        ("random", 3),
        *((k, 2) for k in ("band-limited", "correlated", "speech-like", "tones")),
    ],
)
@pytest.mark.parametrize("level", [1.0, 1e-2])
def test_sdr_is_that_of_mir_eval(kind, count, level):
    import mir_eval.separation

    targets = sources(kind, count)
    estimates = estimates_of(targets, level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = mir_eval.separation.bss_eval_sources(
            targets, estimates, compute_permutation=False
        )[0]
    found = [sdr(e, t) for e, t in zip(estimates, targets)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sdr_of_a_target_singular_to_rounding_is_near_the_exact_projection():
    # A brick-wall filtered, smoothly windowed target has no energy at all above its
    # band; mir_eval's own answer is not stable there, so QR is the oracle.
    rng = np.random.default_rng(4)
    spectrum = np.fft.rfft(rng.standard_normal(SAMPLES))
    spectrum[SAMPLES // 6 :] = 0
    target = np.fft.irfft(spectrum, SAMPLES) * np.hanning(SAMPLES)
    estimate = target + 0.1 * rng.standard_normal(SAMPLES) * target.std()
    copies = scipy.linalg.toeplitz(np.pad(target, (0, 511)), np.zeros(512))
    basis, _ = np.linalg.qr(copies)
    padded = np.pad(estimate, (0, 511))
    projection = basis @ (basis.T @ padded)
    rest = padded - projection
    exact = 10 * np.log10((projection @ projection) / (rest @ rest))
    found = sdr(estimate, target)
    assert exact - 10 * np.log10(SAMPLES / (SAMPLES - 512)) < found < exact + 1e-6
    assert sdr(3 * estimate, 3 * target) == pytest.approx(found, abs=1e-2)


@pytest.mark.parametrize("kind", ["random", "correlated", "speech-like"])
def test_si_snr_is_that_of_speechbrain(kind):
    from speechbrain.nnet.losses import cal_si_snr

    targets = sources(kind, 3) + 0.1
    estimates = estimates_of(targets, 0.5) - 0.2
    expected = -cal_si_snr(
        torch.tensor(targets.T)[:, None], torch.tensor(estimates.T)[:, None]
    )
    found = [si_snr(e, t) for e, t in zip(estimates, targets)]
    np.testing.assert_allclose(found, expected.flatten().numpy(), atol=1e-6)


@pytest.mark.parametrize("metric, offset", [(si_snr, 7.0), (sdr, 0.0)])
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    gain=st.floats(1e-6, 1e6),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_scale_sign_and_offset_do_not_matter(metric, offset, seed, gain, sign):
    target, noise = np.random.default_rng(seed).standard_normal((2, 1500))
    estimate = target + 0.3 * noise
    expected = metric(estimate, target)
    changed = sign * gain * (estimate + offset)
    assert metric(changed, target) == pytest.approx(expected, abs=1e-6)
    assert metric(estimate, gain * target) == pytest.approx(expected, abs=1e-6)


def test_signals_shorter_than_the_filter_have_an_sdr():
    target, noise = np.random.default_rng(5).standard_normal((2, 50))
    assert np.isfinite(sdr(target + noise, target))


def test_silence_has_stated_values():
    signal = np.random.default_rng(6).standard_normal(1000)
    silence = np.zeros(1000)
    assert np.isnan(si_snr(signal, silence)) and np.isnan(sdr(signal, silence))
    assert np.isnan(si_snr(signal, silence + 0.3))
    assert si_snr(silence, signal) == FLOOR_DB == sdr(silence, signal)
    assert 100 < si_snr(signal, signal) < 200 and 100 < sdr(signal, signal) < 200


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        si_snr(np.ones(3), np.ones(4))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_best_permutation_finds_every_order(count):
    targets = np.random.default_rng(7).standard_normal((count, 300))
    for order in itertools.permutations(range(count)):
        found = best_permutation(si_snr_table(targets[list(order)] * -0.1, targets))
        assert [order[i] for i in found] == list(range(count))


def test_evaluate_item_gives_the_metrics_of_the_best_order():
    targets = sources("speech-like", 2)
    noise = 0.3 * np.random.default_rng(8).standard_normal(SAMPLES)
    mixture = targets.sum(axis=0) + noise
    estimates = estimates_of(targets, 0.1)[::-1]
    enhanced = targets.sum(axis=0) + 0.1 * noise
    row = evaluate_item(mixture, estimates, targets, enhanced, targets.sum(axis=0))
    assert row["permutation"] == (1, 0)
    for j in (0, 1):
        separated, gain = si_snr(estimates[1 - j], targets[j]), sdr(mixture, targets[j])
        assert row[f"si_snr_{j + 1}"] == pytest.approx(separated)
        assert row[f"si_snr_i_{j + 1}"] == pytest.approx(
            separated - si_snr(mixture, targets[j])
        )
        assert row[f"sdr_i_{j + 1}"] == pytest.approx(row[f"sdr_{j + 1}"] - gain)
    for name in ("si_snr", "si_snr_i", "sdr", "sdr_i"):
        assert row[name] == pytest.approx((row[f"{name}_1"] + row[f"{name}_2"]) / 2)
    assert row["se_si_snr_i"] == pytest.approx(20.0, abs=0.5)
    assert "se_si_snr" not in evaluate_item(mixture, estimates, targets)


def test_a_silent_target_is_an_empty_cell():
    targets = np.stack([voice(1), np.zeros(SAMPLES)])
    estimates = np.stack([0.01 * voice(2), voice(1) + 0.1 * voice(3)])
    row = evaluate_item(targets.sum(axis=0) + voice(4), estimates, targets)
    assert row["permutation"] == (1, 0)
    assert row["si_snr_2"] is None and row["sdr_i_2"] is None
    assert row["si_snr"] == row["si_snr_1"] > 10
    silent = evaluate_item(voice(4), estimates, np.zeros((2, SAMPLES)), voice(4))
    assert silent["si_snr"] is None and silent["se_si_snr_i"] is None


def test_an_output_that_is_not_finite_is_named():
    targets = sources("random", 2)
    broken = targets.copy()
    broken[0, 5] = np.nan
    with pytest.raises(UserError, match="estimates: .*diverged"):
        evaluate_item(targets.sum(axis=0), broken, targets)
    with pytest.raises(UserError, match="enhanced: "):
        evaluate_item(targets.sum(axis=0), targets, targets, enhanced=broken[0])


MANY_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from unified_se_ss.evaluation.evaluate import score_separation
from unified_se_ss.evaluation.metrics import sdr

rng = np.random.default_rng(0)
targets = rng.standard_normal((12, 3000))
estimates = targets + 0.3 * rng.standard_normal(targets.shape)
with ThreadPoolExecutor(4) as threads:
    print(*threads.map(sdr, estimates, targets))
assert "torch" not in sys.modules
"""


def test_sdr_with_several_threads_neither_hangs_nor_errs():
    """torch.linalg.solve of batches of 150 and more does, on several threads of a CPU.

    Source: pytorch issue 142815. So the filters are not solved by torch; this keeps it
    so: 12 systems of 512 unknowns, four at once, each on four threads, with a time limit.
    """
    threads = dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "4")
    done = subprocess.run(
        [sys.executable, "-c", MANY_THREADS],
        env={**os.environ, **threads, "MKL_NUM_THREADS": "4"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = np.array(done.stdout.split(), dtype=float)
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((12, 3000))
    estimates = targets + 0.3 * rng.standard_normal(targets.shape)
    np.testing.assert_allclose(found, [sdr(e, t) for e, t in zip(estimates, targets)])


def scene(sample_rate=8000, noise=0.0):
    """Two tones of one second each that overlap for 0.48 s of 1.52 s, and noise."""
    t = np.arange(round(1.536 * sample_rate)) / sample_rate
    first = np.sin(2 * np.pi * 300 * t) * (t < 1.008)
    second = np.sin(2 * np.pi * 500 * t) * (t >= 0.528)
    targets = np.stack([first, second])
    rest = noise * np.random.default_rng(0).standard_normal(len(t))
    return targets.sum(axis=0) + rest, targets, rest


@pytest.mark.parametrize("rate", [8000, 16000])
def test_conditions_are_those_that_were_made(rate):
    mixture, targets, noise = scene(rate, 0.1)
    found = _conditions(mixture, targets, rate)
    speech = targets.sum(axis=0)
    expected = 10 * np.log10((speech @ speech) / (noise @ noise))
    assert found["input_snr"] == pytest.approx(expected)
    # 48 frames of 32 ms, of which 31.5 and 31.5 hold a source.
    assert found["overlap"] == pytest.approx(100 * 15 / 48, abs=5)
    assert found["duration"] == pytest.approx(1.536)
    row = evaluate_item(mixture, targets, targets, sample_rate=rate)
    assert {key: row[key] for key in found} == found
    assert "overlap" not in evaluate_item(mixture, targets, targets)


@settings(deadline=None, max_examples=20)
@given(gain=st.floats(1e-4, 1e3), seed=st.integers(0, 50))
def test_conditions_do_not_depend_on_the_level(gain, seed):
    rng = np.random.default_rng(seed)
    mixture, targets, _ = scene(noise=rng.uniform(0.01, 1))
    found = _conditions(mixture, targets, 8000)
    # The overlap does not depend on how loud the sources are to each other either.
    louder = _conditions(gain * mixture, gain * targets, 8000)
    assert louder == pytest.approx(found)
    other = targets * np.array([[1.0], [gain]])
    assert _conditions(mixture, other, 8000)["overlap"] == found["overlap"]


def test_conditions_that_are_not_there():
    mixture, targets, _ = scene()
    found = _conditions(mixture, targets, 8000)
    assert found["input_snr"] is None and found["overlap"] > 0
    rounded = np.round(mixture * 3276.8) / 3276.8  # 16-bit files are not noise
    assert _conditions(rounded, targets, 8000)["input_snr"] is None
    silent = _conditions(mixture, 0 * targets, 8000)
    assert silent["input_snr"] is None and silent["overlap"] is None
    one = _conditions(mixture, targets[:1], 8000)
    assert "overlap" not in one and np.isfinite(one["input_snr"])
    alone = np.stack([targets[0], 0 * targets[1]])
    assert _conditions(mixture, alone, 8000)["overlap"] == 0.0
    assert _conditions(mixture[:9], targets[:, :9], 8000)["overlap"] is None
