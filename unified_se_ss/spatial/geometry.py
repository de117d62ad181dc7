"""Directions, microphone arrays and steering vectors: the one convention of the project.

Axes: C microphones, F bins.

- **Azimuth** is in degrees, 0 straight ahead, + to the left, ±180 behind; **elevation** is
  in degrees, + up. In metres, x points ahead, y to the left, z up (as in SOFA). What is
  measured between the ears has the same sign: an ITD is positive where the left ear hears
  first, an ILD where the left ear hears more.
- An array's positions are relative to its centre. A direction points from the array to the
  source, so a microphone that lies further along it hears the wave earlier.
- Spectra are those of `torch.stft`, X(f) = sum_t x(t) exp(-2j pi f t): a delay of tau
  seconds is a factor exp(-2j pi f tau). A steering vector is relative to a reference
  microphone r: d = transfer / transfer[r], and the recorded spectra of a source are d times
  what r records.
"""

from __future__ import annotations

import math

import numpy as np
import torch

SPEED_OF_SOUND = 343.0  # m/s in air of 20 degrees Celsius


# Directions (NumPy, float64, any shape)


def to_vector(azimuth, elevation=0.0) -> np.ndarray:
    """Unit vectors [..., 3] of directions in degrees.

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
    """Azimuth in (-180, 180] and elevation, in degrees, of vectors [..., 3] of any length.

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


def angle_between(one, other) -> np.ndarray:
    """Angle in degrees between vectors [..., 3] of any length.

    Example
    -------
    >>> float(angle_between([1, 0, 0], to_vector(170, 0)).round(6))
    170.0
    """
    one, other = np.asarray(one), np.asarray(other)
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    cosine = np.einsum("...i,...i->...", one, other) / lengths
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def lateral_angle(azimuth, elevation=0.0) -> np.ndarray:
    """Angle to the median plane in degrees, + = left.

    Directions of one lateral angle form a cone around the axis of the ears; on a sphere
    they all have the same ITD and ILD, in front, above and behind.

    Example
    -------
    >>> lateral_angle([30.0, 150.0]).round(6).tolist()
    [30.0, 30.0]
    """
    left = to_vector(azimuth, elevation)[..., 1]
    return np.degrees(np.arcsin(np.clip(left, -1.0, 1.0)))


def from_interaural_polar(lateral, polar) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth and elevation of interaural-polar coordinates (CIPIC's, mirrored).

    `lateral` is the angle to the median plane, degrees in [-90, 90], + = left (CIPIC's
    azimuth has the other sign), `polar` that around the axis of the ears, 0 ahead, 90 up,
    180 behind.

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


# Arrays: positions in metres, [C, 3], float64


def line_array(microphones: int = 4, spacing: float = 0.05) -> torch.Tensor:
    """Microphones on a line from right to left (along y), so that ahead is broadside.

    Above c / (2 spacing), 3430 Hz for the default of 5 cm, directions are ambiguous.

    Example
    -------
    >>> line_array(2, 0.1)[:, 1]
    tensor([-0.0500,  0.0500], dtype=torch.float64)
    """
    _require_positive("line_array", microphones=microphones, spacing=spacing)
    offsets = torch.arange(microphones, dtype=torch.float64) - (microphones - 1) / 2
    return torch.stack([0 * offsets, spacing * offsets, 0 * offsets], dim=-1)


def circle_array(
    microphones: int = 6, radius: float = 0.04, *, centre: bool = False
) -> torch.Tensor:
    """Microphones evenly on a horizontal circle, anticlockwise from ahead.

    With `centre`, one more microphone in the centre is the first.

    Example
    -------
    >>> circle_array(4, 0.1, centre=True).shape
    torch.Size([5, 3])
    """
    _require_positive("circle_array", microphones=microphones, radius=radius)
    angles = 2 * math.pi / microphones * torch.arange(microphones, dtype=torch.float64)
    circle = radius * torch.stack([angles.cos(), angles.sin(), 0 * angles], dim=-1)
    return torch.cat([torch.zeros(1, 3, dtype=torch.float64), circle]) if centre else circle


def phone_array() -> torch.Tensor:
    """Three microphones of an upright phone whose screen looks ahead.

    The first, the reference, is at the bottom edge near the mouth; one is at the top
    edge, and one on the back beside the camera. The outlines are those of a common
    phone (147 by 71 by 8 mm); the places are inferred, for makers do not publish them.
    """
    return torch.tensor(
        [[0.0, 0.015, -0.0735], [0.0, -0.010, 0.0735], [-0.008, 0.020, 0.055]],
        dtype=torch.float64,
    )


def glasses_array() -> torch.Tensor:
    """Five microphones of glasses: nose bridge, both hinges, both temples' ends.

    The first, the reference, is at the nose bridge. The frame is 140 mm wide and the
    temples carry microphones 90 mm behind the hinges; the places are inferred.
    The wearer's head is not there.
    """
    return torch.tensor(
        [
            [0.050, 0.0, -0.005],
            [0.045, 0.070, 0.0],
            [0.045, -0.070, 0.0],
            [-0.045, 0.072, -0.005],
            [-0.045, -0.072, -0.005],
        ],
        dtype=torch.float64,
    )


# Steering vectors


def bin_frequencies(fft_length: int, sample_rate: float) -> torch.Tensor:
    """Frequencies in Hz of the bins of a one-sided STFT, [F], float64.

    Example
    -------
    >>> bin_frequencies(4, 16000)
    tensor([   0., 4000., 8000.], dtype=torch.float64)
    """
    bins = torch.arange(fft_length // 2 + 1, dtype=torch.float64)
    return bins * (sample_rate / fft_length)


def near_field_steering(
    microphones: torch.Tensor,
    source: torch.Tensor | np.ndarray,
    frequencies: torch.Tensor,
    *,
    reference: int = 0,
    dtype: torch.dtype = torch.complex64,
) -> torch.Tensor:
    """Steering vectors of a point source: delays, and levels that fall with distance.

    Microphones are at [C, 3] in metres, sources at [..., 3] in the same coordinates (for a
    plane wave far away), `frequencies` are Hz, [F]. Returns [..., F, C], 1 at the `reference`
    microphone; phases are computed in float64. A ValueError if a source is at a microphone.

    Example
    -------
    >>> microphones = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]])
    >>> near_field_steering(microphones, torch.tensor([3.0, 0, 0]), torch.zeros(1)).real
    tensor([[1.0000, 1.5000]])
    """
    if microphones.dim() != 2 or microphones.shape[-1] != 3:
        raise ValueError(
            f"microphones: shape {tuple(microphones.shape)}, but positions are [C, 3]"
        )
    microphones = microphones.double()
    source = torch.as_tensor(source, dtype=torch.float64, device=microphones.device)
    distances = torch.linalg.vector_norm(source[..., None, :] - microphones, dim=-1)
    if not bool((distances > 0).all()):
        raise ValueError("near_field_steering: the source is at a microphone's own place")
    at_reference = distances[..., reference, None]
    delays = (distances - at_reference) / SPEED_OF_SOUND
    frequencies = frequencies.to(delays.device, torch.float64)
    phases = -2 * math.pi * frequencies[:, None] * delays[..., None, :]
    transfer = torch.polar(torch.ones_like(phases), phases)
    return ((at_reference / distances)[..., None, :] * transfer).to(dtype)


def _require_positive(function: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{function}: {name} is {value}, but has to be above 0")
