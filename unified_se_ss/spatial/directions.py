"""Where a sound comes from: the one convention, and the ways into it.

The project has one convention. **Azimuth** is in degrees, 0 straight ahead, + to the
left, ±180 behind; **elevation** is in degrees, + up. In metres, x points ahead, y to the
left, z up (as in SOFA). What is measured between the ears has the same sign: an ITD is
positive where the left ear hears first, an ILD where the left ear hears more.

All functions take numbers or arrays of any shape and work in float64.
"""

from __future__ import annotations

import numpy as np


def to_vector(azimuth, elevation=0.0) -> np.ndarray:
    """Unit vectors that point to directions.

    Arguments
    ---------
    azimuth : float or np.ndarray
        Degrees, + = left, [...].
    elevation : float or np.ndarray
        Degrees, + = up, of a shape that broadcasts with it (default 0).

    Returns
    -------
    np.ndarray
        Ahead, left, up: [..., 3].

    Example
    -------
    >>> to_vector(90.0).round(6).tolist()
    [0.0, 1.0, 0.0]
    """
    azimuth, elevation = np.broadcast_arrays(np.radians(azimuth), np.radians(elevation))
    level = np.cos(elevation)
    ahead, left = level * np.cos(azimuth), level * np.sin(azimuth)
    return np.stack([ahead, left, np.sin(elevation)], axis=-1)


def from_vector(vector) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth and elevation of vectors of any length but zero.

    Arguments
    ---------
    vector : np.ndarray
        Ahead, left, up: [..., 3].

    Returns
    -------
    azimuth : np.ndarray
        Degrees in (-180, 180], [...].
    elevation : np.ndarray
        Degrees in [-90, 90], [...].

    Example
    -------
    >>> azimuth, elevation = from_vector([0.0, -2.0, 2.0])
    >>> float(azimuth), float(elevation.round(6))
    (-90.0, 45.0)
    """
    ahead, left, up = np.moveaxis(np.asarray(vector, dtype=np.float64), -1, 0)
    azimuth = np.degrees(np.arctan2(left, ahead))
    elevation = np.degrees(np.arctan2(up, np.hypot(ahead, left)))
    return np.where(azimuth == -180.0, 180.0, azimuth), elevation


def lateral_angle(azimuth, elevation=0.0) -> np.ndarray:
    """How far to the left a direction lies: its angle to the median plane.

    Directions of one lateral angle form a cone around the axis of the ears; on a sphere
    they all have the same ITD and ILD, in front, above and behind.

    Arguments
    ---------
    azimuth, elevation : float or np.ndarray
        Degrees, [...].

    Returns
    -------
    np.ndarray
        Degrees in [-90, 90], + = left, [...].

    Example
    -------
    >>> lateral_angle([30.0, 150.0]).round(6).tolist()
    [30.0, 30.0]
    """
    left = to_vector(azimuth, elevation)[..., 1]
    return np.degrees(np.arcsin(np.clip(left, -1.0, 1.0)))


def from_interaural_polar(lateral, polar) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth and elevation of interaural-polar coordinates (those of CIPIC, mirrored).

    Arguments
    ---------
    lateral : float or np.ndarray
        Angle to the median plane, degrees in [-90, 90], + = left (CIPIC's azimuth has
        the other sign), [...].
    polar : float or np.ndarray
        Angle around the axis of the ears, degrees: 0 ahead, 90 up, 180 behind, [...].

    Returns
    -------
    azimuth, elevation : np.ndarray
        Degrees, [...].

    Example
    -------
    >>> azimuth, elevation = from_interaural_polar(30.0, 180.0)
    >>> float(azimuth.round(6)), abs(float(elevation.round(6)))
    (150.0, 0.0)
    """
    lateral, polar = np.broadcast_arrays(np.radians(lateral), np.radians(polar))
    around = np.cos(lateral)
    ahead, up = around * np.cos(polar), around * np.sin(polar)
    return from_vector(np.stack([ahead, np.sin(lateral), up], axis=-1))
