"""Spectrograms as small pictures, without axes.

Axes: T samples, F frequencies, L frames.
"""

from __future__ import annotations

import io

import numpy as np

#: Colours span this much below the loudest point of the example, in dB.
DYNAMIC_RANGE = 70.0
#: Steps of the colour scale: about 1 dB each, which keeps the file small.
COLOURS = 64
#: Frames and frequencies of a picture, at most.
COLUMNS = 320
ROWS = 128


def spectrogram_db(signal, sample_rate):
    """Level of a signal over time and frequency.

    Hann windows of 32 ms, hop 8 ms; 0 dB is a full-scale sine.

    Arguments
    ---------
    signal : np.ndarray
        Shape [T], or [E, T]: the mean power of both ears.
    sample_rate : int
        In Hz.

    Returns
    -------
    np.ndarray
        Shape [F, L] in dB, F frequencies from 0 to half the rate, L frames.

    Example
    -------
    >>> sine = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    >>> round(float(spectrogram_db(sine, 8000).max()), 1)
    0.0
    """
    import scipy.signal  # takes a second, which processes that only score can save

    size = max(16, round(0.032 * sample_rate))
    signal = np.atleast_2d(signal)
    signal = np.pad(signal, ((0, 0), (0, max(0, size - signal.shape[1]))))
    hop = max(1, size // 4)
    _, _, spectrum = scipy.signal.stft(
        signal, nperseg=size, noverlap=size - hop, boundary=None, padded=False
    )
    magnitude = np.sqrt(np.square(np.abs(spectrum)).mean(axis=0))
    return 20 * np.log10(2 * magnitude + 1e-10)


def spectrogram_png(level, top):
    """A spectrogram as the bytes of a PNG file of at most 320 by 128 points.

    Where a point stands for several frames or frequencies, it shows the loudest.

    Arguments
    ---------
    level : np.ndarray
        Shape [F, L] in dB, as of `spectrogram_db`.
    top : float
        Level of the brightest colour, in dB; the darkest is 70 dB below.

    Returns
    -------
    bytes

    Example
    -------
    >>> spectrogram_png(np.zeros((129, 400)), 0.0)[1:4]
    b'PNG'
    """
    from PIL import Image

    level = _loudest_of(_loudest_of(level, ROWS, axis=0), COLUMNS, axis=1)
    share = np.clip((level - top) / DYNAMIC_RANGE + 1, 0, 1)
    codes = np.rint(share * (COLOURS - 1)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(codes[::-1])).convert("P")
    image.putpalette(_palette())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _loudest_of(level, size, axis):
    """The maxima of equal pieces of an axis, so that it has at most `size` points."""
    length = level.shape[axis]
    if length <= size:
        return level
    return np.maximum.reduceat(level, np.arange(size) * length // size, axis=axis)


def _palette():
    """Red, green and blue of each colour: matplotlib's magma."""
    from matplotlib import colormaps

    colours = colormaps["magma"](np.linspace(0, 1, COLOURS))[:, :3]
    return np.rint(255 * colours).astype(np.uint8).tobytes()
