"""A head: filters to both ears from many directions, and a sound heard through them.

Axes: D directions, E ears (left, right), N taps, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unified_se_ss.spatial.directions import to_vector


@dataclass(frozen=True, eq=False)
class HRIRSet:
    """Head-related impulse responses of one head, measured or calculated.

    Arguments
    ---------
    name : str
        Who it is; heads of one experiment have different names.
    sample_rate : int
        In Hz.
    azimuth, elevation : np.ndarray
        Directions in degrees, + = left and + = up, [D].
    filters : np.ndarray
        Impulse responses, [D, E, N] with E = 2: left, right.
    latency : int
        Samples in front of the time zero of all filters; `binaural` drops them.

    Raises
    ------
    ValueError
        If shapes do not agree, or values are not finite.

    Example
    -------
    >>> filters = np.zeros((2, 2, 4))
    >>> head = Head("two", 8000, np.array([-45.0, 45.0]), np.zeros(2), filters)
    >>> len(head), head.nearest(60.0)
    (2, 1)
    """

    name: str
    sample_rate: int
    azimuth: np.ndarray
    elevation: np.ndarray
    filters: np.ndarray
    latency: int = 0

    def __post_init__(self):
        """Refuses arrays that do not fit together."""
        directions = (len(self.filters),)
        if self.filters.ndim != 3 or self.filters.shape[1] != 2 or not self.filters.size:
            raise ValueError(f"filters of shape [D, 2, N] expected: {self.filters.shape}")
        if self.azimuth.shape != directions or self.elevation.shape != directions:
            raise ValueError("one azimuth and one elevation per filter pair are expected")
        if not 0 <= self.latency < self.filters.shape[2]:
            raise ValueError(f"latency {self.latency} is not within the filters")
        for values in (self.azimuth, self.elevation, self.filters):
            if not np.isfinite(values).all():
                raise ValueError("a head holds values that are nan or infinite")

    def __len__(self) -> int:
        """Number of directions D."""
        return len(self.filters)

    def nearest(self, azimuth: float, elevation: float = 0.0) -> int:
        """Index of the direction that lies closest on the sphere (the first of equals).

        Arguments
        ---------
        azimuth, elevation : float
            Degrees.

        Returns
        -------
        int
            Index into the directions.

        Example
        -------
        >>> angles = np.array([0.0, 170.0])
        >>> Head("two", 8000, angles, np.zeros(2), np.ones((2, 2, 1))).nearest(-170.0)
        1
        """
        cosines = to_vector(self.azimuth, self.elevation) @ to_vector(azimuth, elevation)
        return int(np.argmax(cosines))


def binaural(signal: np.ndarray, filters: np.ndarray, latency: int = 0) -> np.ndarray:
    """A sound as both ears hear it.

    Arguments
    ---------
    signal : np.ndarray
        [T], float32 or float64.
    filters : np.ndarray
        A direction's pair of filters, [E, N], at the rate of the signal.
    latency : int
        Samples dropped at the beginning, as `HRIRSet.latency` says (default 0).

    Returns
    -------
    np.ndarray
        Left and right ear, [E, T], in the signal's type; what rings on after the end of
        the signal is cut.

    Example
    -------
    >>> filters = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.5]])
    >>> binaural(np.array([1.0, 2.0, 3.0]), filters, latency=1).round(6).tolist()
    [[1.0, 2.0, 3.0], [0.0, 0.5, 1.0]]
    """
    signal = np.asarray(signal)
    samples, taps = signal.shape[-1], filters.shape[-1]
    n_fft = fast_length(samples + taps - 1)
    spectra = np.fft.rfft(signal, n_fft) * np.fft.rfft(
        filters.astype(signal.dtype, copy=False), n_fft
    )
    heard = np.fft.irfft(spectra, n_fft)[:, latency : latency + samples]
    missing = samples - heard.shape[1]
    return np.pad(heard, ((0, 0), (0, missing))).astype(signal.dtype, copy=False)


def fast_length(least: int) -> int:
    """The smallest even length, not below `least`, whose factors are 2, 3 and 5.

    Arguments
    ---------
    least : int
        At least 1.

    Returns
    -------
    int

    Example
    -------
    >>> fast_length(1), fast_length(1025)
    (2, 1080)
    """
    best = 2 ** max(1, (least - 1).bit_length())
    power_of_5 = 1
    while power_of_5 < best:
        odd = power_of_5
        while odd < best:
            evens = max(1, (-(-least // odd) - 1).bit_length())
            best = min(best, odd * 2**evens)
            odd *= 3
        power_of_5 *= 5
    return best
