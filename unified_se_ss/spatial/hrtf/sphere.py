"""The head as a rigid sphere: a closed form, always there, nothing to download.

The two ears lie on opposite ends of a diameter, the source is far away. What an ear hears
depends on one angle alone, that between the source and the ear:

- *when*: Woodworth's ray. It comes straight to an ear that faces the source, and creeps
  around the sphere to one that does not, so the ITD is (a/c)(λ + sin λ), with λ the
  lateral angle: in front |az|, behind the ear 180° - |az|. Source: Woodworth,
  "Experimental psychology", 1938; for all directions Larcher and Jot, 1997.
- *how much*: the head shadow of one pole and one zero of Brown and Duda, "A structural
  model for binaural sound synthesis", IEEE Trans. Speech and Audio Processing 6(5), 1998,
  equations 5 to 7. Below a few hundred Hz nothing is shadowed; high up, the near ear
  gains up to 6 dB and the far ear loses up to 20 dB.

Of the shadow the magnitude alone is taken: its phase would add a delay of its own to
Woodworth's, different at each frequency. So this head has one ITD, at all frequencies,
and an ILD that is known in closed form, and measures of both can be held to them.

Axes: D directions, E ears (left, right), N taps.
"""

from __future__ import annotations

import numpy as np

from unified_se_ss.spatial.directions import lateral_angle
from unified_se_ss.spatial.hrtf.hrir import HRIRSet, fast_length

RADIUS = 0.0875
"""Radius of the average head in metres."""
SPEED_OF_SOUND = 343.0
"""Metres per second, at 20 °C."""
RADII = (0.079, 0.095)
"""Smallest and largest radius of `spherical_head_hrirs` in metres. Source: the heads measured
by Algazi, Avendano and Duda, "Estimation of a spherical-head model from anthropometry",
J. Audio Eng. Soc. 49(6), 2001."""
LARGEST_RADIUS = 0.12
"""Filters have room for the delays of a sphere of this radius, whichever sphere it is, so
that all spheres share latency and length."""

# Brown and Duda's constants: the least gain, and the angle of incidence where it is met
# (not at 180 degrees, where rays around the sphere meet in a bright spot).
LEAST_SHADOW_ZERO = 0.1
DARKEST_ANGLE = 150.0

# Half of the window of the delayed filters: in samples, and in seconds (so that the
# shadow's slope at low frequencies is resolved at high rates too).
HALF_WINDOW_SAMPLES = 32
HALF_WINDOW_SECONDS = 0.005
KAISER_BETA = 7.0


def woodworth_itd(azimuth, elevation=0.0, radius: float = RADIUS) -> np.ndarray:
    """Interaural time difference of a sphere, in seconds.

    Arguments
    ---------
    azimuth, elevation : float or np.ndarray
        Degrees, + = left and + = up, [...].
    radius : float
        In metres.

    Returns
    -------
    np.ndarray
        Positive where the left ear hears first, [...].

    Example
    -------
    >>> (1e6 * woodworth_itd([0, 90, 150])).round(1).tolist()
    [0.0, 655.8, 261.1]
    """
    delays = ear_delays(azimuth, elevation, radius)
    return delays[..., 1] - delays[..., 0]


def ear_delays(azimuth, elevation=0.0, radius: float = RADIUS) -> np.ndarray:
    """When each ear hears a source, in seconds after the centre of the head would.

    Arguments
    ---------
    azimuth, elevation : float or np.ndarray
        Degrees, [...].
    radius : float
        In metres.

    Returns
    -------
    np.ndarray
        Left, right: [..., E]; negative for an ear that faces the source.

    Example
    -------
    >>> (1e6 * ear_delays(90.0)).round(1).tolist()
    [-255.1, 400.7]
    """
    angle = _incidence(azimuth, elevation)
    path = np.where(angle <= np.pi / 2, -np.cos(angle), angle - np.pi / 2)
    return radius / SPEED_OF_SOUND * path


def head_shadow(frequency, azimuth, elevation=0.0, radius: float = RADIUS) -> np.ndarray:
    """What a sphere does to the level at each ear.

    |H(f, θ)|² = (1 + (α x)²) / (1 + x²), with x = π f a / c, and
    α(θ) = (1 + α₀/2) + (1 - α₀/2) cos(180° θ / θ₀), α₀ = 0.1, θ₀ = 150°, where θ is the
    angle between the source and the ear.

    Arguments
    ---------
    frequency : float or np.ndarray
        Hz, [F].
    azimuth, elevation : float or np.ndarray
        Degrees, [...].
    radius : float
        In metres.

    Returns
    -------
    np.ndarray
        Gain (1 is that without a head), [..., E, F].

    Example
    -------
    >>> gain = head_shadow([0.0, 3000.0], 90.0)
    >>> (20 * np.log10(gain)).round(1).tolist()
    [[0.0, 5.5], [0.0, -6.7]]
    """
    degrees = np.degrees(_incidence(azimuth, elevation))
    half = LEAST_SHADOW_ZERO / 2
    zero = (1 + half) + (1 - half) * np.cos(np.pi * degrees / DARKEST_ANGLE)
    ratio = np.pi * np.atleast_1d(frequency) * radius / SPEED_OF_SOUND
    return np.hypot(1.0, zero[..., None] * ratio) / np.hypot(1.0, ratio)


def spherical_head(
    sample_rate: int,
    azimuth=None,
    elevation=0.0,
    radius: float = RADIUS,
    name: str | None = None,
) -> HRIRSet:
    """Impulse responses of a sphere: Woodworth's delays and the shadow's level.

    A filter is the shadow's zero-phase response, delayed by a fraction of a sample that
    is exact for all frequencies but the uppermost: the band-limited response is
    evaluated around the true arrival and faded there by a Kaiser window of ±5 ms (±32
    samples at least). Up to 0.45 of the sampling rate its delay is exact to 0.05 µs and
    its level to 0.1 dB (`tests/test_spherical_head.py`).

    Arguments
    ---------
    sample_rate : int
        In Hz.
    azimuth : float or np.ndarray
        Degrees, + = left, [D]; by default the horizontal plane in steps of 5°.
    elevation : float or np.ndarray
        Degrees, + = up, [D] or a number (default 0).
    radius : float
        In metres, at most 0.12.
    name : str
        By default it states the radius.

    Returns
    -------
    Head
        With the given directions in their order; filters float32.

    Raises
    ------
    ValueError
        If the radius is not within (0, 0.12].

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
    n_fft = fast_length(16 * taps)
    frequency = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    gain = head_shadow(frequency, azimuth, elevation, radius)
    arrival = latency + sample_rate * ear_delays(azimuth, elevation, radius)  # [D, E]
    phase = 2 * np.pi * frequency / sample_rate * arrival[..., None]
    filters = np.fft.irfft(gain * np.exp(-1j * phase), n_fft)[..., :taps]
    place = (np.arange(taps) - arrival[..., None]) / half_window
    inside = np.clip(1 - place**2, 0.0, None)
    window = np.where(inside > 0, np.i0(KAISER_BETA * np.sqrt(inside)), 0.0)
    filters = filters * window / np.i0(KAISER_BETA)
    name = f"sphere-{1000 * radius:.2f}mm" if name is None else name
    return HRIRSet(
        name,
        sample_rate,
        azimuth.copy(),
        elevation.astype(np.float64),
        filters.astype(np.float32),
        latency,
    )


def spherical_head_hrirs(
    count: int, sample_rate: int, azimuth=None, elevation=0.0
) -> list[HRIRSet]:
    """Spheres of different radii, 79 to 95 mm, as if each were a listener.

    Arguments
    ---------
    count : int
        How many.
    sample_rate : int
        In Hz.
    azimuth, elevation : float or np.ndarray
        Directions of every head, as for `spherical_head`.

    Returns
    -------
    list of Head
        In the order of their radii, evenly spaced; no two are the same, so any split of
        them is disjoint. All share their latency and number of taps.

    Example
    -------
    >>> [head.name for head in spherical_head_hrirs(3, 8000)]
    ['sphere-79.00mm', 'sphere-87.00mm', 'sphere-95.00mm']
    """
    return [
        spherical_head(sample_rate, azimuth, elevation, a) for a in spherical_radii(count)
    ]


def spherical_radii(count: int) -> list[float]:
    """Radii of `spherical_head_hrirs` in metres, in their order.

    Arguments
    ---------
    count : int
        How many.

    Returns
    -------
    list of float

    Example
    -------
    >>> spherical_radii(1), spherical_radii(3)
    ([0.0875], [0.079, 0.087, 0.095])
    """
    return [RADIUS] if count == 1 else np.linspace(*RADII, count).tolist()


def _incidence(azimuth, elevation):
    """Angle between the source and each ear in radians, [..., E]."""
    lateral = np.radians(lateral_angle(azimuth, elevation))
    return np.stack([np.pi / 2 - lateral, np.pi / 2 + lateral], axis=-1)


def _timing(sample_rate):
    """Latency, number of taps and half of the window, in samples."""
    half_window = max(HALF_WINDOW_SAMPLES, round(HALF_WINDOW_SECONDS * sample_rate))
    travel = LARGEST_RADIUS / SPEED_OF_SOUND * sample_rate
    latency = half_window + int(np.ceil(travel))
    return (
        latency,
        latency + half_window + int(np.ceil(np.pi / 2 * travel)) + 1,
        half_window,
    )
