"""Convolution with impulse responses, fractional delays, and delays between signals (GCC-PHAT).

Axes: K channels, R taps of a response, T samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.fft

# Bins that are 60 dB weaker than the strongest hold rounding alone, which has a phase too.
_AUDIBLE = 1e-6


def convolve_rir(signal: np.ndarray, responses: np.ndarray, start: int = 0) -> np.ndarray:
    """Samples `start` to T of a signal's convolution with impulse responses.

    From a signal [T] and responses [K, R] to [K, T - start], in the type of the signal; what
    rings on after its end is cut. With a `start` of R - 1, the most, no sample lacks a part of
    its reverberation; with the latency of the responses, they add no delay.

    Example
    -------
    >>> convolve_rir(np.array([1.0, 2.0, 3.0]), np.array([[1.0, 10.0]]), 1).round(6).tolist()
    [[12.0, 23.0]]
    """
    # What a circular convolution of this length gets wrong are samples before `start`.
    length = len(signal) + responses.shape[-1] - 1 - start
    n = scipy.fft.next_fast_len(max(len(signal), length), real=True)
    spectra = scipy.fft.rfft(responses.astype(signal.dtype, copy=False), n)
    convolved = scipy.fft.irfft(spectra * scipy.fft.rfft(signal, n), n)
    return convolved[:, start : len(signal)]


def windowed_sinc(time, half: float, beta: float) -> np.ndarray:
    """Band-limited impulse sin(pi t) / (pi t), faded by a Kaiser window to 0 at ±`half`.

    `time` and `half` are in samples from the middle of the impulse; a `beta` of 7 to 9
    keeps what the window folds back below -70 dB.

    Example
    -------
    >>> windowed_sinc([0.0, 0.5, 40.5], 32, 8.0).round(3).tolist()
    [1.0, 0.636, 0.0]
    """
    time = np.asarray(time)
    return np.sinc(time) * kaiser_window(time / half, beta)


def kaiser_window(place, beta: float) -> np.ndarray:
    """Kaiser window at places from -1 to 1; 1 in the middle, 0 outside.

    Example
    -------
    >>> kaiser_window(np.array([0.0, 1.5]), 7.0).tolist()
    [1.0, 0.0]
    """
    inside = np.clip(1 - np.square(place), 0.0, None)
    window = np.where(inside > 0, np.i0(beta * np.sqrt(inside)), 0.0)
    return window / np.i0(beta)


def phat_correlation(cross_spectrum: np.ndarray, floor: float, n_fft: int) -> np.ndarray:
    """Cross-correlation with the phase transform: every bin counts alike.

    From a one-sided X conj(Y), [..., F], to lags of 0, 1, ..., -2, -1 samples of x against y,
    [..., n_fft]. Bins of at most `floor` times the largest magnitude count for nothing.
    """
    size = np.abs(cross_spectrum)
    audible = size > floor * size.max(axis=-1, keepdims=True)
    phases = np.zeros(cross_spectrum.shape, dtype=np.complex128)
    np.divide(cross_spectrum, size, out=phases, where=audible)
    return scipy.fft.irfft(phases, n_fft)


class Delay(NamedTuple):
    """So many `samples` is the first signal later than the second.

    `clear` is the peak of the correlation against the root mean square of what is around
    it. Independent noises have about 4; below 10 the delay says nothing.
    """

    samples: int
    clear: float


def gcc_phat(
    signal: np.ndarray, reference: np.ndarray, most: int, window: int = 32768
) -> Delay:
    """Delay by generalised cross-correlation with the phase transform.

    The cross-spectrum is averaged over windows that overlap by half, then all its
    audible bins count alike.

    Arguments
    ---------
    signal, reference : np.ndarray
        [T], [T'].
    most : int
        Largest delay, either way, in samples.
    window : int
        Samples of a window (default 32768), made longer where `most` asks for it.

    Returns
    -------
    Delay
        0 samples and a clearness of 0, if one of the signals is silent.

    Source: Knapp and Carter, "The generalized correlation method for estimation of time
    delay", IEEE Trans. ASSP 24(4), 1976.

    Example
    -------
    >>> noise = np.random.default_rng(0).normal(size=8000)
    >>> gcc_phat(np.roll(noise, 17), noise, 100).samples
    17
    """
    length = min(len(signal), len(reference))
    # Padded to twice their length, so that nothing wraps around.
    frame = max(1, min(max(window // 2, 2 * most), length))
    shape = np.hanning(frame + 2)[1:-1]
    cross = np.zeros(frame + 1, dtype=np.complex128)
    for start in range(0, length - frame + 1, max(1, frame // 2)):
        part = slice(start, start + frame)
        later = np.fft.rfft(shape * signal[part], 2 * frame)
        cross += later * np.fft.rfft(shape * reference[part], 2 * frame).conj()
    if not cross.any():
        return Delay(0, 0.0)
    most = min(most, frame - 1)
    correlation = phat_correlation(cross, _AUDIBLE, 2 * frame)
    # Correlations at -most ... most; a signal turned upside down is as late as before.
    around = np.abs(np.roll(correlation, most)[: 2 * most + 1])
    peak = int(np.argmax(around))
    others = np.delete(around, peak)
    scale = float(np.sqrt(np.mean(np.square(others)))) if len(others) else 0.0
    return Delay(peak - most, float(around[peak] / scale) if scale else np.inf)
