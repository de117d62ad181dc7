"""Head-related impulse responses: sets of them, and the head as a rigid sphere.

The sphere is a closed form, always there, nothing to download. Its ears lie on opposite ends
of a diameter, the source is far away. What reaches an ear depends on one angle alone, that
between the source and the ear:

- *when*: Woodworth's ray. It comes straight to an ear that faces the source, and creeps
  around the sphere to one that does not, so the ITD is (a/c)(λ + sin λ), with λ the
  lateral angle. Source: Woodworth, "Experimental psychology", 1938; for all directions
  Larcher and Jot, 1997.
- *how much*: the head shadow of one pole and one zero of Brown and Duda, "A structural
  model for binaural sound synthesis", IEEE Trans. Speech and Audio Processing 6(5), 1998,
  equations 5 to 7. Below a few hundred Hz nothing is shadowed; high up, the near ear
  gains up to 6 dB and the far ear loses up to 20 dB.

Of the shadow the magnitude alone is taken: its phase would add a delay of its own to
Woodworth's, different at each frequency. So the sphere has one ITD, at all frequencies, and
an ILD that is known in closed form, and measures of both can be held to them.

Axes: D directions, E ears (left, right), N taps, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from unified_se_ss.spatial.dsp import convolve_rir, kaiser_window
from unified_se_ss.spatial.geometry import SPEED_OF_SOUND, lateral_angle, to_vector

RADIUS = 0.0875
"""Radius of the average head in metres."""
RADII = (0.079, 0.095)
"""Smallest and largest radius of `spherical_head_hrirs` in metres. Source: the heads measured
by Algazi, Avendano and Duda, "Estimation of a spherical-head model from anthropometry",
J. Audio Eng. Soc. 49(6), 2001."""
LARGEST_RADIUS = 0.12
"""Filters have room for the delays of a sphere of this radius, whichever sphere it is, so
that all spheres share latency and length."""

# Brown and Duda's constants: the least gain, and the angle of incidence where it is met
# (not at 180 degrees, where rays around the sphere meet in a bright spot).
_LEAST_SHADOW_ZERO = 0.1
_DARKEST_ANGLE = 150.0

# Half of the window of the delayed filters: in samples, and in seconds (so that the
# shadow's slope at low frequencies is resolved at high rates too).
_HALF_WINDOW_SAMPLES = 32
_HALF_WINDOW_SECONDS = 0.005
_KAISER_BETA = 7.0


@dataclass(frozen=True, eq=False)
class HRIRSet:
    """Head-related impulse responses of one listener, measured, calculated, or in a room.

    Arguments
    ---------
    name : str
        Who it is; sets of one experiment have different names.
    sample_rate : int
        In Hz.
    azimuth, elevation : np.ndarray
        Directions in degrees, + = left and + = up, [D].
    filters : np.ndarray
        Impulse responses, [D, E, N].
    latency : int
        Samples in front of the time zero of all filters (default 0).

    Raises
    ------
    ValueError
        If shapes do not agree, or values are not finite.

    Example
    -------
    >>> filters = np.zeros((2, 2, 4))
    >>> hrirs = HRIRSet("two", 8000, np.array([-45.0, 170.0]), np.zeros(2), filters)
    >>> len(hrirs), hrirs.nearest(-170.0)
    (2, 1)
    """

    name: str
    sample_rate: int
    azimuth: np.ndarray
    elevation: np.ndarray
    filters: np.ndarray
    latency: int = 0

    def __post_init__(self):
        directions = (len(self.filters),)
        if self.filters.ndim != 3 or self.filters.shape[1] != 2 or not self.filters.size:
            raise ValueError(f"filters of shape [D, 2, N] expected: {self.filters.shape}")
        if self.azimuth.shape != directions or self.elevation.shape != directions:
            raise ValueError("one azimuth and one elevation per filter pair are expected")
        if not 0 <= self.latency < self.filters.shape[2]:
            raise ValueError(f"latency {self.latency} is not within the filters")
        for values in (self.azimuth, self.elevation, self.filters):
            if not np.isfinite(values).all():
                raise ValueError("an HRIR set holds values that are nan or infinite")

    def __len__(self) -> int:
        """Number of directions D."""
        return len(self.filters)

    @property
    def vectors(self) -> np.ndarray:
        """Unit vectors of the directions, [D, 3]."""
        return to_vector(self.azimuth, self.elevation)

    def nearest(self, azimuth: float, elevation: float = 0.0) -> int:
        """Index of the direction that lies closest on the sphere (the first of equals)."""
        return int(np.argmax(self.vectors @ to_vector(azimuth, elevation)))

    def evenly_spread(self, count: int = 64) -> np.ndarray:
        """Indices of the directions nearest to points spread evenly over the sphere.

        Sorted, each once: at most `count` (default 64), which lie on a Fibonacci spiral.
        """
        place = np.arange(count) + 0.5
        height = 1 - 2 * place / count
        around = 180 * (3 - np.sqrt(5)) * place
        points = to_vector(around, np.degrees(np.arcsin(height)))
        return np.unique(np.argmax(points @ self.vectors.T, axis=1))

    def render(self, signal: np.ndarray, direction: int) -> np.ndarray:
        """A sound [T] from a direction (its index) at both ears, [E, T], without the latency."""
        late = np.pad(signal, (0, self.latency))
        return convolve_rir(late, self.filters[direction], self.latency)


def woodworth_itd(azimuth, elevation=0.0, radius: float = RADIUS) -> np.ndarray:
    """Interaural time difference of a sphere in seconds, positive on the left.

    Directions are in degrees, [...], the radius in metres.

    Example
    -------
    >>> (1e6 * woodworth_itd([0, 90, 150])).round(1).tolist()
    [0.0, 655.8, 261.1]
    """
    delays = _ear_delays(azimuth, elevation, radius)
    return delays[..., 1] - delays[..., 0]


def head_shadow(frequency, azimuth, elevation=0.0, radius: float = RADIUS) -> np.ndarray:
    """Gain at each ear of a sphere, [..., E, F]; 1 is that without a head.

    |H(f, θ)|² = (1 + (α x)²) / (1 + x²), with x = π f a / c, and
    α(θ) = (1 + α₀/2) + (1 - α₀/2) cos(180° θ / θ₀), α₀ = 0.1, θ₀ = 150°, where θ is the
    angle between the source and the ear. Frequencies are in Hz, [F], directions in
    degrees, [...], the radius in metres.

    Example
    -------
    >>> gain = head_shadow([0.0, 3000.0], 90.0)
    >>> (20 * np.log10(gain)).round(1).tolist()
    [[0.0, 5.5], [0.0, -6.7]]
    """
    degrees = np.degrees(_incidence(azimuth, elevation))
    half = _LEAST_SHADOW_ZERO / 2
    zero = (1 + half) + (1 - half) * np.cos(np.pi * degrees / _DARKEST_ANGLE)
    ratio = np.pi * np.atleast_1d(frequency) * radius / SPEED_OF_SOUND
    return np.hypot(1.0, zero[..., None] * ratio) / np.hypot(1.0, ratio)


def spherical_head(
    sample_rate: int, azimuth=None, elevation=0.0, radius: float = RADIUS
) -> HRIRSet:
    """Impulse responses of a sphere: Woodworth's delays and the shadow's level.

    A filter is the shadow's zero-phase response, delayed by a fraction of a sample that
    is exact for all frequencies but the uppermost: the band-limited response is
    evaluated around the true arrival and faded there by a Kaiser window of ±5 ms (±32
    samples at least). Up to 0.45 of the sampling rate its delay is exact to 0.05 µs and
    its level to 0.1 dB (`tests/test_hrtf.py`).

    Arguments
    ---------
    sample_rate : int
        In Hz.
    azimuth, elevation : float or np.ndarray
        Degrees, [D]; by default the horizontal plane in steps of 5°.
    radius : float
        In metres, at most 0.12; it names the head.

    Example
    -------
    >>> head = spherical_head(8000)
    >>> head.name, len(head), head.filters.shape[1:], head.latency
    ('sphere-87.50mm', 72, (2, 89), 43)
    """
    if not 0 < radius <= LARGEST_RADIUS:
        raise ValueError(f"radius {radius}: metres within (0, {LARGEST_RADIUS}] expected")
    azimuth = np.arange(-175.0, 181.0, 5.0) if azimuth is None else azimuth
    azimuth, elevation = np.broadcast_arrays(
        np.atleast_1d(np.asarray(azimuth, dtype=np.float64)), elevation
    )
    latency, taps, half_window = _timing(sample_rate)
    # n_fft has room for the tails that the window cuts; what folds back is below them.
    n_fft = 2 * scipy.fft.next_fast_len(8 * taps, real=True)
    frequency = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    gain = head_shadow(frequency, azimuth, elevation, radius)
    arrival = latency + sample_rate * _ear_delays(azimuth, elevation, radius)  # [D, E]
    phase = 2 * np.pi * frequency / sample_rate * arrival[..., None]
    filters = np.fft.irfft(gain * np.exp(-1j * phase), n_fft)[..., :taps]
    place = (np.arange(taps) - arrival[..., None]) / half_window
    filters = (filters * kaiser_window(place, _KAISER_BETA)).astype(np.float32)
    name = f"sphere-{1000 * radius:.2f}mm"
    elevation = elevation.astype(np.float64)
    return HRIRSet(name, sample_rate, azimuth.copy(), elevation, filters, latency)


def spherical_head_hrirs(
    count: int, sample_rate: int, azimuth=None, elevation=0.0
) -> list[HRIRSet]:
    """Spheres of evenly spaced radii, 79 to 95 mm, as if each were a listener.

    All share their latency and number of taps; directions are as for `spherical_head`.

    Example
    -------
    >>> [head.name for head in spherical_head_hrirs(3, 8000)]
    ['sphere-79.00mm', 'sphere-87.00mm', 'sphere-95.00mm']
    """
    return [
        spherical_head(sample_rate, azimuth, elevation, radius)
        for radius in spherical_radii(count)
    ]


def spherical_radii(count: int) -> list[float]:
    """Radii of `spherical_head_hrirs` in metres, in their order."""
    return [RADIUS] if count == 1 else np.linspace(*RADII, count).tolist()


def _ear_delays(azimuth, elevation, radius):
    """Arrival at each ear in seconds after that at the centre of the head, [..., E]."""
    angle = _incidence(azimuth, elevation)
    path = np.where(angle <= np.pi / 2, -np.cos(angle), angle - np.pi / 2)
    return radius / SPEED_OF_SOUND * path


def _incidence(azimuth, elevation):
    """Angle between the source and each ear in radians, [..., E]."""
    lateral = np.radians(lateral_angle(azimuth, elevation))
    return np.stack([np.pi / 2 - lateral, np.pi / 2 + lateral], axis=-1)


def _timing(sample_rate):
    """Latency, number of taps and half of the window, in samples."""
    half_window = max(_HALF_WINDOW_SAMPLES, round(_HALF_WINDOW_SECONDS * sample_rate))
    travel = LARGEST_RADIUS / SPEED_OF_SOUND * sample_rate
    latency = half_window + int(np.ceil(travel))
    taps = latency + half_window + int(np.ceil(np.pi / 2 * travel)) + 1
    return latency, taps, half_window
