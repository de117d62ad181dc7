"""Directions, heads and the sphere, against closed forms and scipy."""

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.spatial import (
    HRIRSet,
    head_shadow,
    spherical_head,
    spherical_head_hrirs,
    to_vector,
    woodworth_itd,
)
from unified_se_ss.spatial.geometry import from_interaural_polar, from_vector, lateral_angle
from unified_se_ss.spatial.hrtf import LARGEST_RADIUS, RADIUS, _ear_delays

AZIMUTHS = st.floats(-180, 180)
ELEVATIONS = st.floats(-90, 90)


def great_circle(one, other):
    """Angle between two unit vectors in radians, exact for small ones too."""
    return 2 * np.arcsin(np.clip(np.linalg.norm(one - other) / 2, 0, 1))


@given(AZIMUTHS, ELEVATIONS)
def test_vectors_and_angles_are_the_same_directions(azimuth, elevation):
    vector = to_vector(azimuth, elevation)
    assert np.linalg.norm(vector) == pytest.approx(1)
    again = to_vector(*from_vector(3.0 * vector))
    assert great_circle(vector, again) < 1e-7


def test_left_is_positive_and_up_is_positive():
    assert np.allclose(to_vector(0), [1, 0, 0])
    assert np.allclose(to_vector(90), [0, 1, 0])
    assert np.allclose(to_vector(0, 90), [0, 0, 1])
    azimuth, elevation = from_vector([[-1.0, -0.0, 0.0], [0.0, -1.0, 1.0]])
    assert azimuth.tolist() == [180.0, -90.0] and np.allclose(elevation, [0, 45])


@given(st.floats(-89, 89), st.floats(-90, 270))
def test_interaural_polar_coordinates_keep_the_lateral_angle(lateral, polar):
    azimuth, elevation = from_interaural_polar(lateral, polar)
    assert lateral_angle(azimuth, elevation) == pytest.approx(lateral, abs=1e-6)
    ahead, _, up = to_vector(azimuth, elevation)
    around = np.array([np.cos(np.radians(polar)), np.sin(np.radians(polar))])
    assert np.allclose([ahead, up], around * np.cos(np.radians(lateral)), atol=1e-9)


@pytest.mark.parametrize("azimuth", range(0, 181, 15))
def test_the_itd_is_woodworths_in_front_and_behind(azimuth):
    theta = np.radians(azimuth if azimuth <= 90 else 180 - azimuth)
    expected = 0.0875 / 343 * (theta + np.sin(theta))
    assert woodworth_itd(azimuth) == pytest.approx(expected, abs=1e-12)
    assert woodworth_itd(-azimuth) == pytest.approx(-expected, abs=1e-12)


@given(AZIMUTHS, ELEVATIONS, st.floats(0.07, 0.1))
def test_a_cone_of_confusion_has_one_itd_and_one_shadow(azimuth, elevation, radius):
    lateral = lateral_angle(azimuth, elevation)
    itd = woodworth_itd(azimuth, elevation, radius)
    assert itd == pytest.approx(woodworth_itd(lateral, 0, radius), abs=1e-9)
    shadows = [
        head_shadow([1000.0, 4000.0], *d) for d in ((azimuth, elevation), (lateral, 0))
    ]
    assert np.allclose(*shadows, atol=1e-6)


@pytest.mark.parametrize("azimuth", [-90, -60, 0, 37, 90, 120])
def test_the_shadow_is_the_filter_of_brown_and_duda(azimuth):
    frequency = np.linspace(0, 8000, 50)
    for ear, angle in enumerate((abs(90 - azimuth), abs(-90 - azimuth))):
        angle = min(angle, 360 - angle)
        alpha = 1.05 + 0.95 * np.cos(np.radians(angle * 180 / 150))
        pole = 1 / (2 * 343 / 0.0875)
        _, response = scipy.signal.freqs(
            [alpha * pole, 1], [pole, 1], 2 * np.pi * frequency
        )
        assert np.allclose(
            head_shadow(frequency, azimuth)[ear], np.abs(response), rtol=1e-9
        )


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
@pytest.mark.parametrize("radius", [0.07, RADIUS, LARGEST_RADIUS])
def test_filters_have_the_delays_and_levels_of_the_closed_form(rate, radius):
    azimuth = np.linspace(-180, 180, 25)
    head = spherical_head(rate, azimuth, 20.0, radius)
    frequency = np.linspace(0, 0.45 * rate, 200)[1:]
    time = (np.arange(head.filters.shape[-1]) - head.latency) / rate
    waves = np.exp(-2j * np.pi * np.outer(time, frequency))
    delays = _ear_delays(azimuth, 20.0, radius)[..., None]
    response = head.filters.astype(np.float64) @ waves
    response = response * np.exp(2j * np.pi * frequency * delays)
    late = 1e6 * np.angle(response) / (2 * np.pi * frequency)
    assert np.abs(late).max() < 0.05  # µs
    level = np.abs(response) / head_shadow(frequency, azimuth, 20.0, radius)
    assert np.abs(20 * np.log10(level)).max() < 0.1


def test_spheres_differ_but_fit_together():
    heads = spherical_head_hrirs(45, 8000, [10.0, 80.0])
    assert len({head.name for head in heads}) == 45
    assert len({(head.filters.shape, head.latency) for head in heads}) == 1
    assert np.all(np.diff([head.filters[1, 0].argmax() for head in heads]) <= 0)
    assert len({head.filters.tobytes() for head in heads}) == 45


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 80), st.data())
def test_binaural_is_a_convolution_without_the_latency(samples, taps, data):
    latency = data.draw(st.integers(0, taps - 1))
    rng = np.random.default_rng(samples)
    signal, filters = rng.standard_normal(samples), rng.standard_normal((2, taps))
    expected = [np.convolve(signal, ear) for ear in filters]
    expected = np.pad(expected, ((0, 0), (0, samples)))[:, latency : latency + samples]
    head = HRIRSet("any", 8000, np.zeros(1), np.zeros(1), filters[None], latency)
    assert np.allclose(head.render(signal, 0), expected, atol=1e-10)
    ears = head.render(signal.astype(np.float32), 0)
    assert ears.dtype == np.float32 and ears.shape == (2, samples)


@given(AZIMUTHS, ELEVATIONS)
def test_the_nearest_direction_is_nearest_on_the_sphere(azimuth, elevation):
    rng = np.random.default_rng(0)
    angles = rng.uniform(-180, 180, 40), rng.uniform(-90, 90, 40)
    head = HRIRSet("any", 8000, *angles, np.ones((40, 2, 3)))
    distances = [
        great_circle(to_vector(a, e), to_vector(azimuth, elevation))
        for a, e in zip(*angles)
    ]
    assert distances[head.nearest(azimuth, elevation)] == pytest.approx(min(distances))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"filters": np.ones((2, 3, 4))}, "D, 2, N"),
        ({"filters": np.ones((3, 2, 4))}, "one azimuth"),
        ({"filters": np.full((2, 2, 4), np.nan)}, "nan"),
        ({"latency": 4}, "latency"),
        ({"elevation": np.array([0.0, np.inf])}, "infinite"),
    ],
)
def test_a_head_refuses_what_does_not_fit(change, message):
    fields = dict(azimuth=np.zeros(2), elevation=np.zeros(2), filters=np.ones((2, 2, 4)))
    HRIRSet("good", 8000, **fields)
    with pytest.raises(ValueError, match=message):
        HRIRSet("bad", 8000, **{**fields, **change})
    for radius in (0.0, 0.5, np.nan):
        with pytest.raises(ValueError, match="radius"):
            spherical_head(8000, radius=radius)
