"""Speed perturbation, of whole signals and of regions of a file.

A region of a perturbed recording is made from the samples around it alone, so that a
short crop of a long recording costs no more than the crop.
"""

from __future__ import annotations

from fractions import Fraction

from unified_se_ss.data import audio
from unified_se_ss.errors import UserError

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
    >>> import numpy as np
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


def read_perturbed(item, stem, start, stop, ratio=Fraction(1)):
    """Reads the samples [start, stop) of a recording's perturbed version.

    Arguments
    ---------
    item : Item
        The manifest's line that holds the recording. If it has an attribute `channel`,
        that one is taken from a recording of several.
    stem : str
        Which of the item's recordings.
    start, stop : int
        The region, counted in samples of the perturbed version.
    ratio : Fraction
        As `speed_ratio` gives it; 1 (default) reads the recording as it is.

    Returns
    -------
    np.ndarray
        float32, [stop - start]

    Raises
    ------
    UserError
        If the recording cannot be read, or is not as the manifest says.

    Example
    -------
    >>> import numpy as np
    >>> from unified_se_ss.data.manifest import Item
    >>> path = getfixture("tmpdir") / "tone.wav"
    >>> audio.write(path, 0.5 * np.sin(np.arange(9500) / 10), 8000)
    >>> item = Item("tone", 9500 / 8000, 8000, {"speech": path})
    >>> region = read_perturbed(item, "speech", 4000, 4800, speed_ratio(95))
    >>> whole = speed_perturb(audio.read(path)[0], 95)
    >>> bool(np.abs(region - whole[4000:4800]).max() < 1e-4)
    True
    """
    if ratio == 1:
        return _read(item, stem, start, stop)
    # Only at multiples of the denominator do samples of both versions coincide.
    grid = ratio.denominator
    first = max(0, start - CONTEXT) // grid * grid
    last = -(-(stop + CONTEXT) // grid) * grid
    block = _read(item, stem, int(first * ratio), min(item.frames, int(last * ratio)))
    block = audio.resample(block, ratio.numerator, ratio.denominator)
    return audio.fitted(block[start - first :], stop - start)


def _read(item, stem, start, stop):
    """The samples [start, stop) of a recording, whose rate must be the item's."""
    path, channel = item.paths[stem], item.attributes.get("channel")
    channel = None if channel is None else int(channel)
    signal, sample_rate = audio.read(path, start, stop, channel)
    if sample_rate != item.sample_rate:
        raise UserError(
            f"{path}: has a sampling rate of {sample_rate} Hz, but its manifest says"
            f" {item.sample_rate} Hz; if it changed since, delete the manifest"
        )
    return signal
