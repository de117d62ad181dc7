"""Speed perturbation, of whole signals and of regions of a file.

A region of a perturbed recording is made from the samples around it alone, so that a
short crop of a long recording costs no more than the crop.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from unified_se_ss.data import audio

CONTEXT = 512
"""Samples of the output made and dropped at each inner edge of a region: with these,
a region differs from the same samples of the whole by less than 1e-8 of full scale
(measured for changes of rate up to 2 times up and 5.5 times down)."""


def speed_perturb(signal, percent):
    """Plays a signal at another speed, which changes its length and its pitch.

    Arguments
    ---------
    signal : np.ndarray
        [T]
    percent : int
        New speed in percent: 95 is 5 % slower, so longer; 100 returns the input.

    Returns
    -------
    np.ndarray
        float32, [round(T * 100 / percent)], at the same sampling rate.

    Example
    -------
    >>> speed_perturb(np.zeros(950, dtype=np.float32), 95).shape
    (1000,)
    """
    return audio.resample(signal, percent, 100)


def speed_ratio(percent, from_rate=1, to_rate=1):
    """Samples of a recording that go into one sample of its perturbed version.

    Arguments
    ---------
    percent : int
        Speed in percent.
    from_rate, to_rate : int
        Sampling rates of the recording and of the result, in Hz.

    Returns
    -------
    Fraction

    Example
    -------
    >>> speed_ratio(95), speed_ratio(105, 16000, 8000)
    (Fraction(19, 20), Fraction(21, 10))
    """
    return Fraction(percent * from_rate, 100 * to_rate)


def perturbed_frames(frames, ratio):
    """Length of a recording after the change of speed and rate.

    Arguments
    ---------
    frames : int
        Samples of the recording.
    ratio : Fraction
        As `speed_ratio` gives it.

    Returns
    -------
    int

    Example
    -------
    >>> perturbed_frames(950, speed_ratio(95))
    1000
    """
    return round(frames / ratio)


def read_perturbed(path, frames, start, stop, ratio=Fraction(1), channel=None):
    """Reads the samples [start, stop) of a recording's perturbed version.

    Arguments
    ---------
    path : str or Path
        The recording.
    frames : int
        Its length in samples.
    start, stop : int
        The region, counted in samples of the perturbed version.
    ratio : Fraction
        As `speed_ratio` gives it; 1 (default) reads the recording as it is.
    channel : int, optional
        The channel to take from a recording of several.

    Returns
    -------
    np.ndarray
        float32, [stop - start]

    Example
    -------
    >>> path = getfixture("tmpdir") / "tone.wav"
    >>> audio.write(path, 0.5 * np.sin(np.arange(9500) / 10), 8000)
    >>> region = read_perturbed(path, 9500, 4000, 4800, speed_ratio(95))
    >>> whole = speed_perturb(audio.read(path)[0], 95)
    >>> bool(np.abs(region - whole[4000:4800]).max() < 1e-4)
    True
    """
    if ratio == 1:
        return audio.read(path, start, stop, channel)[0]
    # Only at multiples of the denominator do samples of both versions coincide.
    grid = ratio.denominator
    first = max(0, start - CONTEXT) // grid * grid
    last = -(-(stop + CONTEXT) // grid) * grid
    source_start, source_stop = int(first * ratio), min(frames, int(last * ratio))
    block, _ = audio.read(path, source_start, source_stop, channel)
    block = audio.resample(block, ratio.numerator, ratio.denominator)
    return audio.fitted(block[start - first :], stop - start).astype(np.float32, copy=False)
