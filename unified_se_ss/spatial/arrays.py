"""Where microphones are, and what a wave from somewhere does to them.

Axes: C microphones, F bins.

Conventions, here and in everything that uses steering vectors:

- positions in metres, x ahead, y to the left, z up, and directions as in
  `unified_se_ss.spatial.directions`; an array's positions are relative to its centre;
- a direction points from the array to the source, so a microphone that lies further
  along it hears the wave earlier;
- spectra as `torch.stft` gives them, X(f) = sum_t x(t) exp(-2j pi f t): a delay of tau
  seconds is a factor exp(-2j pi f tau);
- a steering vector is relative to a reference microphone r: d = transfer / transfer[r],
  so d[r] = 1, and the recorded spectra of a source are d times what r records.
"""

from __future__ import annotations

import math

import numpy as np
import torch

SPEED_OF_SOUND = 343.0  # m/s in air of 20 degrees Celsius


def line_array(microphones: int = 4, spacing: float = 0.05) -> torch.Tensor:
    """Microphones on a line from right to left (along y), so that ahead is broadside.

    Arguments
    ---------
    microphones : int
        Number of microphones C (default 4).
    spacing : float
        Metres between neighbours (default 0.05). Above c / (2 spacing), 3430 Hz for the
        default, directions are ambiguous.

    Returns
    -------
    torch.Tensor
        Positions in metres, [C, 3], float64.

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

    Arguments
    ---------
    microphones : int
        Microphones on the circle (default 6).
    radius : float
        Metres (default 0.04).
    centre : bool
        One more microphone in the centre, as the first (default False).

    Returns
    -------
    torch.Tensor
        Positions in metres, [C, 3], float64; C counts the centre.

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

    Returns
    -------
    torch.Tensor
        Positions in metres, [3, 3], float64.

    Example
    -------
    >>> phone_array().shape
    torch.Size([3, 3])
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

    Returns
    -------
    torch.Tensor
        Positions in metres, [5, 3], float64.

    Example
    -------
    >>> glasses_array()[0]
    tensor([ 0.0500,  0.0000, -0.0050], dtype=torch.float64)
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


#: The arrays by the name that a YAML gives them.
ARRAYS = {
    "line": line_array,
    "circle": circle_array,
    "phone": phone_array,
    "glasses": glasses_array,
}


def bin_frequencies(fft_length: int, sample_rate: float) -> torch.Tensor:
    """Frequencies of the bins of a one-sided STFT.

    Arguments
    ---------
    fft_length : int
        Samples of the Fourier transform.
    sample_rate : float
        In Hz.

    Returns
    -------
    torch.Tensor
        Hz, [F] with F = fft_length // 2 + 1, float64.

    Example
    -------
    >>> bin_frequencies(4, 16000)
    tensor([   0., 4000., 8000.], dtype=torch.float64)
    """
    bins = torch.arange(fft_length // 2 + 1, dtype=torch.float64)
    return bins * (sample_rate / fft_length)


def far_field_steering(
    microphones: torch.Tensor,
    towards: torch.Tensor | np.ndarray,
    frequencies: torch.Tensor,
    *,
    reference: int = 0,
    speed_of_sound: float = SPEED_OF_SOUND,
    dtype: torch.dtype = torch.complex64,
) -> torch.Tensor:
    """Steering vectors of a plane wave: delays alone.

    Arguments
    ---------
    microphones : torch.Tensor
        Positions in metres, [C, 3].
    towards : torch.Tensor or np.ndarray
        Direction from the array to the source, [..., 3], as `directions.to_vector`
        gives it; its length does not matter.
    frequencies : torch.Tensor
        Hz, [F]; see `bin_frequencies`.
    reference : int
        Microphone whose steering is 1 (default 0).
    speed_of_sound : float
        m/s (default 343).
    dtype : torch.dtype
        Of the result (default complex64). Phases are computed in float64.

    Returns
    -------
    torch.Tensor
        [..., F, C].

    Example
    -------
    >>> from unified_se_ss.spatial.directions import to_vector
    >>> frequencies = torch.tensor([0.0, 1000.0])
    >>> steering = far_field_steering(line_array(2, 0.1715), to_vector(90), frequencies)
    >>> steering[1].real  # from the left, the left microphone is half a millisecond early
    tensor([ 1., -1.])
    """
    microphones = _positions(microphones)
    towards = torch.nn.functional.normalize(
        torch.as_tensor(towards, dtype=torch.float64, device=microphones.device), dim=-1
    )
    delays = -(towards @ microphones.T) / speed_of_sound
    delays = delays - delays[..., reference, None]
    return _transfer(delays, frequencies).to(dtype)


def near_field_steering(
    microphones: torch.Tensor,
    source: torch.Tensor | np.ndarray,
    frequencies: torch.Tensor,
    *,
    reference: int = 0,
    speed_of_sound: float = SPEED_OF_SOUND,
    dtype: torch.dtype = torch.complex64,
) -> torch.Tensor:
    """Steering vectors of a point source: delays, and levels that fall with distance.

    Arguments
    ---------
    microphones : torch.Tensor
        Positions in metres, [C, 3].
    source : torch.Tensor or np.ndarray
        Position of the source in the same coordinates, metres, [..., 3].
    frequencies : torch.Tensor
        Hz, [F]; see `bin_frequencies`.
    reference : int
        Microphone whose steering is 1 (default 0).
    speed_of_sound : float
        m/s (default 343).
    dtype : torch.dtype
        Of the result (default complex64). Phases are computed in float64.

    Returns
    -------
    torch.Tensor
        [..., F, C].

    Raises
    ------
    ValueError
        If the source is at a microphone.

    Example
    -------
    >>> microphones = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]])
    >>> near_field_steering(microphones, torch.tensor([3.0, 0, 0]), torch.zeros(1)).real
    tensor([[1.0000, 1.5000]])
    """
    microphones = _positions(microphones)
    source = torch.as_tensor(source, dtype=torch.float64, device=microphones.device)
    offsets = source[..., None, :] - microphones
    distances = torch.linalg.vector_norm(offsets, dim=-1)
    if not bool((distances > 0).all()):
        raise ValueError("near_field_steering: the source is at a microphone's own place")
    heard_first = distances[..., reference, None]
    transfer = _transfer((distances - heard_first) / speed_of_sound, frequencies)
    return ((heard_first / distances)[..., None, :] * transfer).to(dtype)


def _transfer(delays: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """exp(-2j pi f tau): delays [..., C] in seconds to [..., F, C], complex128."""
    frequencies = frequencies.to(delays.device, torch.float64)
    phases = -2 * math.pi * frequencies[:, None] * delays[..., None, :]
    return torch.polar(torch.ones_like(phases), phases)


def _positions(microphones: torch.Tensor) -> torch.Tensor:
    """Microphone positions in float64, if they are [C, 3]."""
    if microphones.dim() != 2 or microphones.shape[-1] != 3:
        raise ValueError(
            f"microphones: shape {tuple(microphones.shape)}, but positions are [C, 3]"
        )
    return microphones.double()


def _require_positive(function: str, **values: float) -> None:
    """Raise a ValueError for a value that is not above zero."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{function}: {name} is {value}, but has to be above 0")
