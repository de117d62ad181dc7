"""Rooms around listeners, against pyroomacoustics, scipy and the head itself."""

import numpy as np
import pytest
import scipy.signal

from unified_se_ss.data.binaural_rooms import (
    HIGH_PASS,
    BinauralRoomConfig,
    ShoeboxGeometry,
    binaural_rooms,
    image_sources,
    room_filters,
    simulate_rooms,
)
from unified_se_ss.data.hrtf_bank import HRTFBank
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.interaural import ild, itd
from unified_se_ss.spatial import HRIRSet, spherical_head, to_vector, woodworth_itd

RATE = 8000
SIZE = np.array([6.0, 5.0, 3.0])
MIDDLE = np.array([2.5, 2.0, 1.5])


def omnidirectional():
    """A head that hears everything alike."""
    filters = np.zeros((4, 2, 9), dtype=np.float32)
    filters[..., 0] = 1.0
    angles = np.array([0.0, 90.0, 180.0, -90.0])
    return HRIRSet("none", RATE, angles, np.zeros(4), filters)


def place(source, reverberation=0.4, yaw=0.0, index=0):
    """A source somewhere around the head in the room."""
    sources = np.asarray(source, dtype=np.float64)[None]
    return ShoeboxGeometry(SIZE, reverberation, MIDDLE, yaw, np.array([index]), sources)


def high_passed(signal):
    sos = scipy.signal.butter(2, HIGH_PASS, "highpass", fs=RATE, output="sos")
    return scipy.signal.sosfilt(sos, signal)


def reverberation_of(response):
    """RT60 from the slope between -5 and -35 dB of Schroeder's integral."""
    energy = np.cumsum(response[::-1].astype(float) ** 2)[::-1]
    decibel = 10 * np.log10(energy / energy[0] + 1e-30)
    return 2 * (np.argmax(decibel < -35) - np.argmax(decibel < -5)) / RATE


@pytest.fixture(scope="module")
def sphere():
    grid = np.meshgrid(np.arange(-170.0, 181, 10), np.arange(-80.0, 81, 20), indexing="ij")
    return spherical_head(RATE, *(g.ravel() for g in grid))


def test_a_room_without_a_head_is_that_of_pyroomacoustics():
    import pyroomacoustics as pra

    from unified_se_ss.data.rooms import _plain_pyroomacoustics

    source = MIDDLE + [1.0, 0.3, 0.1]
    ours = room_filters(omnidirectional(), place(source), 0.4)[0, 0]
    volume, surface = SIZE.prod(), 2 * (30 + 18 + 15)
    amplitude = np.exp(-12 * np.log(10) * volume / (343.0 * surface * 0.4))
    with _plain_pyroomacoustics():
        room = pra.ShoeBox(
            SIZE, fs=RATE, materials=pra.Material(1 - amplitude**2), max_order=8
        )
        room.add_source(source)
        room.add_microphone_array(MIDDLE[:, None])
        room.compute_rir()
    theirs = np.asarray(room.rir[0][0])
    distance = np.linalg.norm(source - MIDDLE)
    # Its windowed sincs are centred on sample 40 after the time of flight.
    shift = 40 + distance / 343.0 * RATE
    bins = np.fft.rfftfreq(8192)
    spectrum = np.fft.rfft(high_passed(theirs), 8192) * np.exp(2j * np.pi * bins * shift)
    early = slice(0, int(0.02 * RATE))  # all of order 8 and less, and nothing else
    expected = np.fft.irfft(spectrum, 8192)[early]
    # The gain of our direct path is 1, theirs 1 / distance.
    difference = ours[early] - distance * expected
    # What differs are the windows of the sincs, close to half the sampling rate.
    assert np.linalg.norm(difference) < 0.12 * np.linalg.norm(ours[early])


@pytest.mark.parametrize("reverberation", [0.15, 0.3])
def test_sound_decays_as_told(reverberation):
    response = room_filters(
        omnidirectional(), place(MIDDLE + [1.0, 0, 0], reverberation), 0.5
    )[0, 0]
    # Image sources of a shoebox decay more slowly than Eyring's diffuse field.
    assert 0.9 * reverberation < reverberation_of(response) < 1.5 * reverberation


def test_images_mirror_the_source():
    source, far = MIDDLE + [1.0, 0.5, -0.2], 30.0
    vectors, gains = image_sources(SIZE, 0.4, source, MIDDLE, far)
    assert np.allclose(vectors[0], source - MIDDLE) and gains[0] == 1.0
    lengths = np.linalg.norm(vectors, axis=-1)
    assert lengths.max() <= far and (gains > 0).all() and (gains[1:] < 1).all()
    # As many as fit: one for each volume of the room.
    expected = 4 / 3 * np.pi * far**3 / SIZE.prod()
    assert len(vectors) == pytest.approx(expected, rel=0.05)
    for axis in range(3):
        for wall in (0.0, SIZE[axis]):
            mirrored = source.copy()
            mirrored[axis] = 2 * wall - source[axis]
            distances = np.linalg.norm(vectors - (mirrored - MIDDLE), axis=-1)
            found = int(np.argmin(distances))
            assert distances[found] < 1e-9
            # One reflection each: all walls are alike.
            assert gains[found] == pytest.approx(np.sort(gains)[-2])


def test_a_dead_room_is_the_head(sphere):
    index = sphere.nearest(60.0, 0.0)
    towards = to_vector(sphere.azimuth[index], sphere.elevation[index])
    dead = place(MIDDLE + 1.2 * towards, reverberation=0.01, index=index)
    (response,) = room_filters(sphere, dead, 0.1)
    expected = np.zeros_like(response)
    expected[:, : sphere.filters.shape[-1]] = sphere.filters[index]
    assert np.abs(response - high_passed(expected)).max() < 2e-3


def test_a_room_keeps_where_the_direct_sound_comes_from(sphere):
    for azimuth in (-50.0, 30.0, 80.0):
        index = sphere.nearest(azimuth, 0.0)
        towards = to_vector(sphere.azimuth[index], sphere.elevation[index])
        where = place(MIDDLE + 0.8 * towards, 0.2, index=index)
        (response,) = room_filters(sphere, where, 0.3)
        direct = response[:, : sphere.latency + 16]
        exact = woodworth_itd(sphere.azimuth[index], sphere.elevation[index])
        assert itd(direct, RATE) == pytest.approx(1e6 * float(exact), abs=40)


def test_a_turned_head_in_a_turned_room_hears_the_same(sphere):
    """Yaw turns the listener: what was ahead is to the right of who turned left."""
    source = MIDDLE + [1.0, 0.0, 0.0]
    right = sphere.nearest(-90.0, 0.0)
    (response,) = room_filters(sphere, place(source, 0.2, 90.0, right), 0.3)
    assert itd(response[:, : sphere.latency + 16], RATE) < -500
    assert ild(response) < -1


def test_the_nearer_wall_is_heard_on_its_side(sphere):
    """Ahead is the talker, on the left a wall: its echo is louder in the left ear."""
    size, head = np.array([30.0, 30.0, 30.0]), np.array([15.0, 29.0, 15.0])
    index = sphere.nearest(0.0, 0.0)
    towards = to_vector(sphere.azimuth[index], sphere.elevation[index])
    where = ShoeboxGeometry(
        size, 2.0, head, 0.0, np.array([index]), (head + 1.5 * towards)[None]
    )
    (response,) = room_filters(sphere, where, 0.02)
    direct, echo = response[:, : sphere.latency + 12], response[:, sphere.latency + 14 :]
    assert abs(itd(direct, RATE)) < 60
    assert ild(echo[:, :30]) > 2


def test_late_sound_comes_from_all_around(sphere):
    index = sphere.nearest(80.0, 0.0)
    towards = to_vector(sphere.azimuth[index], sphere.elevation[index])
    (response,) = room_filters(sphere, place(MIDDLE + 1.5 * towards, 0.6, index=index), 0.5)
    late = response[:, sphere.latency + int(0.08 * RATE) :]
    assert abs(ild(late)) < 1.5
    high = scipy.signal.butter(4, 1500, "highpass", fs=RATE, output="sos")
    assert abs(np.corrcoef(scipy.signal.sosfilt(high, late))[0, 1]) < 0.25


@pytest.fixture(scope="module")
def small():
    return BinauralRoomConfig(rooms=2, directions=3, seconds=0.1, reverberation=(0.1, 0.2))


def test_rooms_follow_from_seed_and_index(sphere, small, tmp_path):
    alone = simulate_rooms([sphere], small, 1, tmp_path / "a", workers=1)
    both = simulate_rooms([sphere], small, 1, tmp_path / "b", workers=2)
    other = simulate_rooms([sphere], small, 2, tmp_path / "a", workers=1)
    for one, two in zip(alone, both):
        assert np.array_equal(one.filters, two.filters) and one.name == two.name
    assert not np.array_equal(alone[0].filters, other[0].filters)
    assert not np.array_equal(alone[0].filters, alone[1].filters)
    assert np.isfinite(alone[0].filters).all() and alone[0].filters.dtype == np.float32


def test_rooms_are_kept_and_spoilt_ones_made_again(sphere, small, tmp_path, monkeypatch):
    from unified_se_ss.data import binaural_rooms as module

    first = simulate_rooms([sphere], small, 0, tmp_path, workers=1)
    (kept,) = tmp_path.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(module, "room_filters", None)  # whoever simulated would fail
        again = simulate_rooms([sphere], small, 0, tmp_path, workers=1)
    assert np.array_equal(first[1].filters, again[1].filters)
    assert np.array_equal(first[1].azimuth, again[1].azimuth)
    kept.write_bytes(kept.read_bytes()[:100])
    mended = simulate_rooms([sphere], small, 0, tmp_path, workers=1)
    assert np.array_equal(first[0].filters, mended[0].filters)


def test_rooms_serve_as_heads(tmp_path, small):
    rooms = binaural_rooms(
        shares=(1, 1, 1), cache=tmp_path, settings=BinauralRoomConfig(rooms=1, directions=3, seconds=0.1),
        workers=1,
    )  # fmt: skip
    names = [head.name for subset in rooms.values() for head in subset]
    assert len(set(names)) == 3
    bank, rng = HRTFBank(rooms["train"]), np.random.default_rng(0)
    placement = bank.place(rng, 2)
    ears = bank.render_binaural(
        rng.standard_normal(4000).astype(np.float32), 0, placement.directions[0]
    )
    assert ears.shape == (2, 4000) and np.isfinite(ears).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rooms": 0}, "rooms"),
        ({"reverberation": (0.5, 0.2)}, "reverberation"),
        ({"distance": (0.0, 1.0)}, "distance"),
        ({"sizes": ((1.0, 3.0, 3.0), (2.0, 4.0, 4.0))}, "sizes"),
        ({"sizes": ((5.0, 5.0, 5.0), (4.0, 4.0, 4.0))}, "sizes"),
    ],
)
def test_what_no_room_is_like_is_told(options, message):
    with pytest.raises(UserError, match=message):
        BinauralRoomConfig(**options)


def test_no_place_in_any_room_is_told(sphere, tmp_path):
    settings = BinauralRoomConfig(rooms=1, directions=3, distance=(20.0, 30.0))
    with pytest.raises(UserError, match="no place for 3 sources"):
        simulate_rooms([sphere], settings, cache=tmp_path, workers=1)
