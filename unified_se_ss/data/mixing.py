"""Levels and sums: loudness, powers and their ratios, gains, mixing with a guard.

Axes: J sources, T samples, C channels.

Source: LibriMix, Cosentino et al. 2020, arXiv 2005.11262, and ITU-R BS.1770
for loudness.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from unified_se_ss.errors import UserError

# LibriMix draws the loudness of every stem uniformly from these ranges, in LUFS.
SOURCE_LUFS = (-33.0, -25.0)
NOISE_LUFS = (-38.0, -30.0)
# LibriMix rescales an item as a whole when a stem or the mixture exceeds this.
PEAK = 0.9
# BS.1770 measures mean squares over blocks of this many seconds.
GATING_BLOCK_SECONDS = 0.4


class Mixture(NamedTuple):
    """Stems of one item after the common gain, and their sums.

    mix_clean [..., T] is the sum of sources [J, ..., T]; mix_both is mix_clean + noise.
    """

    mix_both: np.ndarray
    mix_clean: np.ndarray
    sources: np.ndarray
    noise: np.ndarray


def measure_loudness(signal: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness by ITU-R BS.1770 in LUFS, measured by pyloudnorm.

    A signal shorter than one gating block (0.4 s) is repeated until it fills one.

    Arguments
    ---------
    signal : np.ndarray
        [T] or [T, C], full scale 1; a value that is not finite is a ValueError.
    sample_rate : int
        Hz.

    Returns
    -------
    float
        -inf for silence, which is all that stays below the gate of -70 LUFS.

    Example
    -------
    >>> seconds = np.arange(16000) / 8000
    >>> tone = 10 ** (-23 / 20) * np.sin(2 * np.pi * 997 * seconds)
    >>> round(measure_loudness(tone, 8000))
    -26
    """
    import pyloudnorm

    signal = np.asarray(signal, dtype=np.float64)
    if not np.isfinite(signal).all():
        raise ValueError("loudness: the signal has samples that are not finite")
    if not signal.any():
        return -math.inf
    # One sample more than the block, so that no rounding of its length makes it short.
    needed = int(GATING_BLOCK_SECONDS * sample_rate) + 1
    if len(signal) < needed:
        repeats = -(-needed // len(signal))
        signal = np.tile(signal, (repeats,) + (1,) * (signal.ndim - 1))
    meter = pyloudnorm.Meter(sample_rate, block_size=GATING_BLOCK_SECONDS)
    # A block of zeros has the logarithm -inf, which the gate drops: no need to warn.
    with np.errstate(divide="ignore", invalid="ignore"):
        loudness = float(meter.integrated_loudness(signal))
    return loudness if math.isfinite(loudness) else -math.inf


def draw_levels(rng: np.random.Generator, n_speakers: int) -> list[float]:
    """Draw the loudness of every source and, last, of the noise, as LibriMix does.

    Sources are uniform in -33...-25 LUFS, noise in -38...-30 LUFS, independently
    (arXiv 2005.11262).
    """
    ranges = [SOURCE_LUFS] * n_speakers + [NOISE_LUFS]
    return [float(rng.uniform(*between)) for between in ranges]


def loudness_gain(level: float, measured: float) -> float:
    """Factor that brings a signal from one loudness to another, in LUFS.

    Silence (a measured -inf) gives 1, as no gain helps.
    """
    if measured == -math.inf:
        return 1.0
    return 10.0 ** ((level - measured) / 20.0)


def power(signal: np.ndarray) -> float:
    """Mean square of a signal."""
    return float(np.mean(np.square(signal, dtype=np.float64)))


def power_gain(wanted: float, present: float) -> float:
    """Factor that gives a signal of power `present` the power `wanted`.

    1 where one of them is silent, for which there is no factor.
    """
    return math.sqrt(wanted / present) if wanted > 0 and present > 0 else 1.0


def snr_gain(signal: np.ndarray, noise: np.ndarray, snr: float) -> float:
    """Factor of a noise for a signal-to-noise ratio in dB; 1 where either is silent."""
    return power_gain(power(signal) * 10 ** (-snr / 10), power(noise))


def decibels(numerator: float, denominator: float) -> float:
    """Ratio of two powers in dB; NaN where one of them is zero."""
    if numerator <= 0 or denominator <= 0:
        return math.nan
    return 10 * math.log10(numerator / denominator)


def peak_gain(signals: Iterable[np.ndarray], peak: float = PEAK) -> float:
    """The common factor, at most 1, that keeps signals of any shapes within a peak."""
    top = max(float(np.abs(signal).max(initial=0.0)) for signal in signals)
    return min(1.0, peak / top) if top else 1.0


def mix(
    sources: np.ndarray, noise: np.ndarray | None = None, peak: float = PEAK
) -> Mixture:
    """Sum sources and noise, under one common gain that keeps all below `peak`.

    The gain is 1 unless a stem or a sum exceeds `peak`, so differences in level between
    stems are never changed.

    Arguments
    ---------
    sources : np.ndarray
        [J, T] or [J, C, T], at their levels; floating point, and so is the result.
    noise : np.ndarray, optional
        [T] or [C, T]; None stands for no noise and gives zeros.
    peak : float
        Largest absolute sample in anything that is returned (default 0.9).

    Returns
    -------
    Mixture
        The sums are exact in the dtype: mix_clean = sources.sum(axis=0), mix_both =
        mix_clean + noise.
    """
    sources = np.asarray(sources)
    if sources.ndim < 2 or not np.issubdtype(sources.dtype, np.floating):
        raise ValueError(
            f"mix: sources must be a floating-point array [J, ..., T], got {sources.dtype} "
            f"of shape {sources.shape}"
        )
    n_sources, *shape = sources.shape
    if noise is None:
        noise = np.zeros(shape, dtype=sources.dtype)
    noise = np.asarray(noise, dtype=sources.dtype)
    if list(noise.shape) != shape:
        raise ValueError(f"mix: noise must be {shape}, got {list(noise.shape)}")
    mixture = _sum_stems(sources.copy(), noise.copy())
    gain = peak_gain(mixture, peak)
    if gain == 1.0:
        return mixture
    # Scaling rounds every stem and then every sum: the margin keeps those below peak.
    gain *= 1.0 - 4 * (n_sources + 1) * float(np.finfo(sources.dtype).eps)
    return _sum_stems(gain * sources, gain * noise)


def _sum_stems(sources: np.ndarray, noise: np.ndarray) -> Mixture:
    mix_clean = sources.sum(axis=0)
    return Mixture(mix_clean + noise, mix_clean, sources, noise)


def checked_range(name: str, values) -> tuple[float, float]:
    """Two numbers, the first no larger than the second, or a UserError."""
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not low <= high:
        raise UserError(
            f"{name}: is {values!r}, but two numbers are expected, the lower one first"
        )
    return low, high


def checked_share(name: str, value: float) -> float:
    """A number from 0 to 1, or a UserError."""
    if not 0 <= value <= 1:
        raise UserError(f"{name}: is {value}, but a number from 0 to 1 is expected")
    return float(value)
