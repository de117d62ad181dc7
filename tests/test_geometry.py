"""Arrays and steering vectors: against delays of real signals and closed forms."""

import math

import numpy as np
import pytest
import torch

from unified_se_ss.spatial.covariance import diffuse_coherence
from unified_se_ss.spatial.geometry import (
    SPEED_OF_SOUND,
    bin_frequencies,
    circle_array,
    glasses_array,
    line_array,
    near_field_steering,
    phone_array,
    to_vector,
)

RATE = 16000
FAR = 1e4  # metres, from where a wave is plane


@pytest.mark.parametrize("array", [line_array, circle_array, phone_array, glasses_array])
def test_microphones_are_apart_and_within_reach_of_each_other(array):
    positions = array()
    assert positions.dtype == torch.float64 and positions.shape[-1] == 3
    distances = torch.cdist(positions, positions)
    apart = distances[~torch.eye(len(positions), dtype=torch.bool)]
    assert apart.min() > 0.01 and apart.max() < 0.25


def test_line_and_circle_are_where_they_say():
    line = line_array(5, 0.03)
    torch.testing.assert_close(line.mean(0), torch.zeros(3).double())
    torch.testing.assert_close(line.diff(dim=0)[:, 1], torch.full((4,), 0.03).double())
    circle = circle_array(6, 0.04, centre=True)
    assert (circle[0] == 0).all()
    torch.testing.assert_close(circle[1:].norm(dim=-1), torch.full((6,), 0.04).double())
    # Anticlockwise: the second of four is on the left.
    torch.testing.assert_close(circle_array(4, 1.0)[1], torch.tensor([0.0, 1, 0]).double())


@pytest.mark.parametrize("bad", [{"microphones": 0}, {"spacing": -0.1}])
def test_a_line_of_nothing_is_an_error(bad):
    with pytest.raises(ValueError, match="above 0"):
        line_array(**bad)


def test_positions_of_a_wrong_shape_are_an_error():
    with pytest.raises(ValueError, match=r"\[C, 3\]"):
        near_field_steering(torch.zeros(4, 2), to_vector(0), torch.zeros(1))


def test_steering_is_what_a_delayed_signal_does_to_torch_stft():
    """A source on the left, delays of whole samples: the spectra are d times the reference."""
    spacing = 3 * SPEED_OF_SOUND / RATE  # three samples from microphone to microphone
    microphones, reference = line_array(3, spacing), 1
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(0)).double()
    # From the left, the leftmost (last) microphone is first.
    heard = torch.stack([noise.roll(6 - 3 * c) for c in range(3)])
    window = torch.hann_window(512, dtype=torch.float64)
    spectra = torch.stft(heard, 512, 128, window=window, return_complex=True)[..., 3:-3]
    d = near_field_steering(
        microphones,
        FAR * to_vector(90),
        bin_frequencies(512, RATE),
        reference=reference,
        dtype=torch.complex128,
    )
    product = (spectra * spectra[reference].conj()).mean(-1)
    measured = product / spectra[reference].abs().square().mean(-1)
    # The window sees the delayed signal a little shifted, so equality is on average.
    assert (measured.T - d).abs().mean() < 0.05
    assert (measured.T - d.conj()).abs().mean() > 0.5


def test_near_field_becomes_a_plane_wave_with_distance():
    microphones, frequencies = circle_array(), bin_frequencies(320, RATE)
    towards = to_vector(40, 10)
    delays = -(microphones - microphones[0]) @ torch.from_numpy(towards) / SPEED_OF_SOUND
    plane = torch.exp(-2j * math.pi * frequencies[:, None] * delays)
    errors = [
        (near_field_steering(microphones, x * towards, frequencies) - plane).abs().max()
        for x in (1.0, 10.0, 1000.0)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_near_field_has_the_levels_and_delays_of_a_point_source():
    microphones = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0]])
    frequency = torch.tensor([500.0])
    d = near_field_steering(
        microphones, torch.tensor([1.0, 0.0, 0.0]), frequency, dtype=torch.complex128
    )
    phase = 2 * math.pi * 500 * 0.3 / SPEED_OF_SOUND  # 0.3 m earlier
    expected = torch.polar(torch.tensor(1 / 0.7).double(), torch.tensor(phase).double())
    torch.testing.assert_close(d[0, 1], expected, rtol=1e-6, atol=0)


def test_a_source_at_a_microphone_is_an_error():
    with pytest.raises(ValueError, match="own place"):
        near_field_steering(line_array(), line_array()[1], torch.zeros(1))


def test_diffuse_coherence_is_the_mean_over_all_directions():
    """Against plane waves from 4000 directions spread evenly over the sphere."""
    microphones, frequencies = circle_array(3, 0.1), torch.tensor([200.0, 1500.0, 4000.0])
    numbers = np.arange(4000) + 0.5
    directions = to_vector(
        np.degrees(numbers * math.pi * (1 + math.sqrt(5))),
        np.degrees(np.arcsin(1 - 2 * numbers / 4000)),
    )
    sources = FAR * directions
    d = near_field_steering(microphones, sources, frequencies, dtype=torch.complex128)
    mean = torch.einsum("qfc,qfe->fce", d, d.conj()) / 4000
    coherence = diffuse_coherence(microphones, frequencies, dtype=torch.complex128)
    torch.testing.assert_close(coherence, mean, rtol=0, atol=2e-3)
