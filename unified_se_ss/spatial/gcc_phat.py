"""How much later one signal is than another (numpy).

Axes: T samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Bins that are 60 dB weaker than the strongest hold rounding alone, which has a phase too.
_AUDIBLE = 1e-6


class Delay(NamedTuple):
    """What correlation says of two signals.

    samples : so much later is the first than the second; clear : the peak of the
    correlation against the root mean square of what is around it. Independent
    noises have about 4; below 10 the delay says nothing.
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
    size = np.abs(cross)
    if not size.any():
        return Delay(0, 0.0)
    audible = size > _AUDIBLE * size.max()
    phases = np.where(audible, cross / np.where(audible, size, 1.0), 0.0)
    most = min(most, frame - 1)
    # Correlations at -most ... most; a signal turned upside down is as late as before.
    around = np.abs(np.roll(np.fft.irfft(phases, 2 * frame), most)[: 2 * most + 1])
    peak = int(np.argmax(around))
    others = np.delete(around, peak)
    scale = float(np.sqrt(np.mean(np.square(others)))) if len(others) else 0.0
    return Delay(peak - most, float(around[peak] / scale) if scale else np.inf)
