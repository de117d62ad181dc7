"""Simulated rooms, against pyroomacoustics, geometry, beamformers and the head itself."""

import json
import os
import pickle
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.signal
import torch
from cues import ild, itd

from unified_se_ss.data import rooms
from unified_se_ss.data.hrtf_bank import HRTFBank
from unified_se_ss.data.rooms import (
    HIGH_PASS,
    BinauralRoomConfig,
    RoomBank,
    RoomSettings,
    ShoeboxGeometry,
    binaural_rooms,
    prepare_room_bank,
    simulate_rooms,
)
from unified_se_ss.errors import UserError
from unified_se_ss.spatial import (
    HRIRSet,
    line_array,
    spherical_head,
)
from unified_se_ss.spatial.geometry import (
    SPEED_OF_SOUND,
    angle_between,
    near_field_steering,
)

RATE = 16000
MICROPHONES = line_array(3, 0.03)
TINY = RoomSettings(MICROPHONES, seconds=0.1, max_order=3, interferers=2)
ANECHOIC = replace(TINY, max_order=0, seconds=0.05, interferers=1)

EAR_RATE = 8000
SMALL = BinauralRoomConfig(rooms=2, directions=3, seconds=0.1, reverberation=(0.1, 0.2))
SIZE, MIDDLE = np.array([6.0, 5.0, 3.0]), np.array([2.5, 2.0, 1.5])


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return prepare_room_bank(tmp_path_factory.mktemp("bank"), TINY, 3, seed=7, workers=1)


def test_a_room_has_its_shapes(bank):
    assert len(bank) == 3 and bank.settings == TINY
    description = json.loads(bank.path.with_suffix(".json").read_text())
    assert (description["seed"], description["n_rooms"]) == (7, 3)
    room = bank[1]
    assert room.target.shape == (3, 1600) and room.target.dtype == np.float32
    assert room.interferers.shape == (2, 3, 1600) and room.noises.shape == (1, 3, 1600)
    assert room.target_position.shape == (3,) and room.interferer_positions.shape == (2, 3)
    assert 0.1 < room.reverberation < 0.8
    assert all(np.isfinite(part).all() for part in room)


def test_a_room_follows_from_seed_and_index(bank, tmp_path):
    fewer = prepare_room_bank(tmp_path, TINY, 2, seed=7, workers=2)
    other = prepare_room_bank(tmp_path, TINY, 1, seed=8, workers=1)
    for index in range(2):
        for ours, theirs in zip(fewer[index], bank[index]):
            np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(fewer[0].target, fewer[1].target)
    assert not np.array_equal(other[0].target, fewer[0].target)
    # Two banks in one folder do not disturb each other.
    assert len(list(tmp_path.glob("rooms-*.npy"))) == 2


def test_a_bank_is_made_once_and_read_without_pyroomacoustics(bank, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    written = bank.path.stat().st_mtime_ns
    again = prepare_room_bank(bank.path.parent, TINY, 3, seed=7)
    assert again.path == bank.path and again.path.stat().st_mtime_ns == written


def _interrupted(settings, seed, index):
    raise KeyboardInterrupt


def test_a_build_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    simulate = rooms._simulate

    def stopped(settings, seed, index):
        return simulate(settings, seed, index) if index < 1 else _interrupted(None, 0, 0)

    monkeypatch.setattr(rooms, "_simulate", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare_room_bank(tmp_path, ANECHOIC, 3, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_builds_left_behind_is_removed(tmp_path):
    old, new = tmp_path / ".rooms-1.npy.old", tmp_path / ".rooms-2.npy.new"
    for path in (old, new):
        path.write_text("part of a bank")
    os.utime(old, (0, 0))
    prepare_room_bank(tmp_path, ANECHOIC, 1, workers=1)
    assert new.exists() and not old.exists()


def test_only_the_name_goes_to_another_process(bank):
    pickled = pickle.dumps(bank)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled)[2].target, bank[2].target)


def test_drawing_is_a_function_of_the_generator(bank):
    first, second = (bank.draw(np.random.default_rng([3, 1])) for _ in range(2))
    np.testing.assert_array_equal(first.target, second.target)
    drawn = {float(bank.draw(np.random.default_rng([3, i])).size[0]) for i in range(30)}
    assert drawn == {float(bank[i].size[0]) for i in range(3)}


def test_the_direct_path_is_the_beginning_of_the_response(bank):
    for index in range(3):
        room = bank[index]
        np.testing.assert_allclose(np.linalg.norm(room.direct[0]), 1.0, rtol=1e-5)
        # Up to its peak nothing else has come, but for the ringing of reflections.
        peak = int(np.abs(room.direct[0]).argmax())
        before = slice(0, peak + 1)
        np.testing.assert_allclose(
            room.target[0, before], room.direct[0, before], atol=0.1 * room.direct[0, peak]
        )
        distance = np.linalg.norm(room.target_position - np.array(TINY.microphones[0]))
        arrival = distance / SPEED_OF_SOUND * RATE + rooms.FRACTIONAL_DELAY // 2
        assert abs(peak - arrival) <= 1
        reflected = room.target[0].copy()
        reflected[: room.direct.shape[-1]] -= room.direct[0]
        assert np.linalg.norm(reflected) > 0.05


def test_without_reflections_the_direct_path_is_all(tmp_path):
    room = prepare_room_bank(tmp_path, ANECHOIC, 1, workers=1)[0]
    length = room.direct.shape[-1]
    np.testing.assert_array_equal(room.target[:, :length], room.direct)
    assert np.abs(room.target[:, length:]).max() < 1e-6


def test_positions_are_in_the_arrays_own_frame(tmp_path):
    """The responses have the steering vectors that the positions give."""
    bank = prepare_room_bank(tmp_path, ANECHOIC, 2, seed=5, workers=1)
    hertz = np.fft.rfftfreq(800, 1 / RATE)  # of the whole response
    inside = (hertz > 1000) & (hertz < 6000)  # where fractional delays are exact
    for index in range(2):
        room = bank[index]
        for response, position in (
            (room.target, room.target_position),
            (room.interferers[0], room.interferer_positions[0]),
            (room.noises[0], room.noise_positions[0]),
        ):
            steering = near_field_steering(
                MICROPHONES, position, torch.tensor(hertz)
            ).numpy()
            spectrum = np.fft.rfft(response, 800)
            measured = (spectrum / spectrum[0]).T
            assert np.abs(measured - steering)[inside].max() < 0.02
            assert np.abs(measured - steering.conj())[inside].max() > 0.1


def test_places_are_where_the_settings_say():
    settings = replace(TINY, target_azimuth=(-45.0, 45.0), least_angle=60.0)
    for index in range(20):
        rng = np.random.default_rng([1, index])
        place = partial(rooms._draw_sources, settings, rng)
        room, sources = rooms._draw_room(settings, rng, place, "")
        from_array = (sources - room.centre) @ rooms._turned(room.yaw).T
        assert (sources >= 0.25).all() and (sources <= room.size - 0.25).all()
        assert (room.centre >= 0.5).all() and (room.centre <= room.size - 0.5).all()
        smallest, largest = np.array(settings.sizes)
        assert (room.size >= smallest).all() and (room.size <= largest).all()
        target, *interferers, noise = from_array
        assert 0.5 <= np.linalg.norm(target) <= 2.0
        assert abs(np.degrees(np.arctan2(target[1], target[0]))) <= 45.001
        for interferer in interferers:
            assert 1.0 <= np.linalg.norm(interferer) <= 4.0
            assert angle_between(interferer, target) >= 60
        assert np.linalg.norm(noise) >= 1.0


def test_the_reverberation_is_what_is_asked_for(tmp_path):
    """Measured on the decay by pyroomacoustics, for a room and order where it can be."""
    import pyroomacoustics as pra

    settings = RoomSettings(
        MICROPHONES[:1],
        sizes=((5.0, 4.0, 3.0), (5.0, 4.0, 3.0)),
        reverberation=(0.3, 0.3),
        max_order=60,
        noises=0,
    )
    room = prepare_room_bank(tmp_path, settings, 1, workers=1)[0]
    measured = pra.experimental.measure_rt60(room.target[0], fs=RATE, decay_db=30)
    assert room.reverberation == pytest.approx(0.3)
    # Sabine's formula knows only the volume and the surface of a room.
    assert 0.2 < measured < 0.4


def test_pyroomacoustics_own_settings_stay_as_they_are(tmp_path):
    import pyroomacoustics as pra

    before = {name: pra.constants.get(name) for name in ("num_threads", "rir_hpf_enable")}
    prepare_room_bank(tmp_path, ANECHOIC, 1, workers=1)
    assert before == {name: pra.constants.get(name) for name in before}


@pytest.mark.parametrize(
    "settings, wrong, message",
    [
        (TINY, {"microphones": [[0.0, 0.0]]}, r"has to be \[C, 3\]"),
        (TINY, {"reverberation": (0.5, 0.2)}, "reverberation: from 0.5 to 0.2"),
        (TINY, {"reverberation": (0.0, 0.2)}, "reverberation: .* above 0"),
        (TINY, {"sizes": ((0.8, 3, 3), (4, 4, 4))}, "wall_distance"),
        (TINY, {"sizes": ((5, 5, 3), (4, 6, 4))}, "the smallest first"),
        (TINY, {"seconds": 0}, "seconds: 0"),
        (TINY, {"least_angle": 200}, "least_angle: 200"),
        (TINY, {"noises": -1}, "noises: -1, but has to be at least 0"),
        (SMALL, {"rooms": 0}, "rooms: 0"),
        (SMALL, {"distance": (0.0, 1.0)}, "distance"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, wrong, message):
    with pytest.raises(UserError, match=message):
        replace(settings, **wrong)


def test_a_damaged_bank_is_named(bank, tmp_path):
    damaged = tmp_path / bank.path.name
    damaged.write_bytes(bank.path.read_bytes()[:1000])
    with pytest.raises(UserError, match="remove it"):
        RoomBank(damaged)
    damaged.with_suffix(".json").write_bytes(bank.path.with_suffix(".json").read_bytes())
    with pytest.raises(UserError, match="remove it"):
        RoomBank(damaged)


@pytest.mark.parametrize(
    "folder, settings, n_rooms, workers, message",
    [
        ("file", ANECHOIC, 1, 1, "cannot be written"),
        ("new", ANECHOIC, 0, 1, "n_rooms: 0"),
        ("new", ANECHOIC, 1, 0, "workers: 0"),
        ("new", replace(TINY, target_distance=(20.0, 30.0)), 1, 1, "no place for all"),
    ],
)
def test_a_bank_that_cannot_be_made_is_an_error(
    tmp_path, monkeypatch, folder, settings, n_rooms, workers, message
):
    monkeypatch.setattr(rooms, "_ROOMS_TRIED", 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        prepare_room_bank(tmp_path / folder, settings, n_rooms, workers=workers)
    assert not any(tmp_path.glob("new/*"))


# Both ears


def omnidirectional():
    """A head that hears everything alike."""
    filters = np.zeros((4, 2, 9), dtype=np.float32)
    filters[..., 0] = 1.0
    angles = np.array([0.0, 90.0, 180.0, -90.0])
    return HRIRSet("none", EAR_RATE, angles, np.zeros(4), filters)


def responses(head, source, seconds, reverberation=0.4, yaw=0.0, index=0, **geometry):
    """Both ears' responses from one source in a direction of a head, [E, N].

    `source` is a place, or the distance of one in the head's direction `index`.
    """
    geometry = {"size": SIZE, "centre": MIDDLE, **geometry}
    room = ShoeboxGeometry(reverberation=reverberation, yaw=yaw, **geometry)
    if np.ndim(source) == 0:
        source = room.centre + source * head.vectors[index]
    sources = np.asarray(source, dtype=np.float64)[None]
    return rooms._binaural_responses(head, room, np.array([index]), sources, seconds)[0]


def high_passed(signal):
    sos = scipy.signal.butter(2, HIGH_PASS, "highpass", fs=EAR_RATE, output="sos")
    return scipy.signal.sosfilt(sos, signal)


def reverberation_of(response):
    """RT60 from the slope between -5 and -35 dB of Schroeder's integral."""
    energy = np.cumsum(response[::-1].astype(float) ** 2)[::-1]
    decibel = 10 * np.log10(energy / energy[0] + 1e-30)
    return 2 * (np.argmax(decibel < -35) - np.argmax(decibel < -5)) / EAR_RATE


@pytest.fixture(scope="module")
def sphere():
    grid = np.meshgrid(np.arange(-170.0, 181, 10), np.arange(-80.0, 81, 20), indexing="ij")
    return spherical_head(EAR_RATE, *(g.ravel() for g in grid))


def test_a_room_without_a_head_is_that_of_pyroomacoustics():
    import pyroomacoustics as pra

    source = MIDDLE + [1.0, 0.3, 0.1]
    ours = responses(omnidirectional(), source, 0.4)[0]
    volume, surface = SIZE.prod(), 2 * (30 + 18 + 15)
    amplitude = np.exp(-12 * np.log(10) * volume / (343.0 * surface * 0.4))
    with rooms._plain_pyroomacoustics():
        room = pra.ShoeBox(
            SIZE, fs=EAR_RATE, materials=pra.Material(1 - amplitude**2), max_order=8
        )
        room.add_source(source)
        room.add_microphone_array(MIDDLE[:, None])
        room.compute_rir()
    theirs = np.asarray(room.rir[0][0])
    distance = np.linalg.norm(source - MIDDLE)
    # Its windowed sincs are centred on sample 40 after the time of flight.
    shift = 40 + distance / 343.0 * EAR_RATE
    bins = np.fft.rfftfreq(8192)
    spectrum = np.fft.rfft(high_passed(theirs), 8192) * np.exp(2j * np.pi * bins * shift)
    early = slice(0, int(0.02 * EAR_RATE))  # all of order 8 and less, and nothing else
    expected = np.fft.irfft(spectrum, 8192)[early]
    # The gain of our direct path is 1, theirs 1 / distance.
    difference = ours[early] - distance * expected
    # What differs are the windows of the sincs, close to half the sampling rate.
    assert np.linalg.norm(difference) < 0.12 * np.linalg.norm(ours[early])


@pytest.mark.parametrize("reverberation", [0.15, 0.3])
def test_sound_decays_as_told(reverberation):
    source = MIDDLE + [1.0, 0, 0]
    response = responses(omnidirectional(), source, 0.5, reverberation)[0]
    # Image sources of a shoebox decay more slowly than Eyring's diffuse field.
    assert 0.9 * reverberation < reverberation_of(response) < 1.5 * reverberation


def test_images_mirror_the_source():
    source, far = MIDDLE + [1.0, 0.5, -0.2], 30.0
    room = ShoeboxGeometry(SIZE, 0.4, MIDDLE, 0.0)
    vectors, gains = rooms._image_sources(room, source, far)
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
    response = responses(sphere, 1.2, 0.1, 0.01, index=index)
    expected = np.zeros_like(response)
    expected[:, : sphere.filters.shape[-1]] = sphere.filters[index]
    assert np.abs(response - high_passed(expected)).max() < 2e-3


def test_a_turned_head_in_a_turned_room_hears_the_same(sphere):
    """Yaw turns the listener: what was ahead is to the right of who turned left."""
    source = MIDDLE + [1.0, 0.0, 0.0]
    right = sphere.nearest(-90.0, 0.0)
    response = responses(sphere, source, 0.3, 0.2, np.pi / 2, right)
    assert itd(response[:, : sphere.latency + 16], EAR_RATE) < -500
    assert ild(response) < -1


def test_the_nearer_wall_is_heard_on_its_side(sphere):
    """Ahead is the talker, on the left a wall: its echo is louder in the left ear."""
    size, head = np.array([30.0, 30.0, 30.0]), np.array([15.0, 29.0, 15.0])
    index = sphere.nearest(0.0, 0.0)
    response = responses(sphere, 1.5, 0.02, 2.0, index=index, size=size, centre=head)
    direct, echo = response[:, : sphere.latency + 12], response[:, sphere.latency + 14 :]
    assert abs(itd(direct, EAR_RATE)) < 60
    assert ild(echo[:, :30]) > 2


def test_late_sound_comes_from_all_around(sphere):
    response = responses(sphere, 1.5, 0.5, 0.6, index=sphere.nearest(80.0, 0.0))
    late = response[:, sphere.latency + int(0.08 * EAR_RATE) :]
    assert abs(ild(late)) < 1.5
    high = scipy.signal.butter(4, 1500, "highpass", fs=EAR_RATE, output="sos")
    assert abs(np.corrcoef(scipy.signal.sosfilt(high, late))[0, 1]) < 0.25


def test_binaural_rooms_follow_from_seed_and_index(sphere, tmp_path):
    alone = simulate_rooms([sphere], SMALL, 1, tmp_path / "a", workers=1)
    both = simulate_rooms([sphere], SMALL, 1, tmp_path / "b", workers=2)
    other = simulate_rooms([sphere], SMALL, 2, tmp_path / "a", workers=1)
    for one, two in zip(alone, both):
        assert np.array_equal(one.filters, two.filters) and one.name == two.name
    assert not np.array_equal(alone[0].filters, other[0].filters)
    assert not np.array_equal(alone[0].filters, alone[1].filters)
    assert np.isfinite(alone[0].filters).all() and alone[0].filters.dtype == np.float32


def test_rooms_are_kept(sphere, tmp_path, monkeypatch):
    first = simulate_rooms([sphere], SMALL, 0, tmp_path, workers=1)
    monkeypatch.setattr(rooms, "_binaural_responses", None)  # whoever simulated would fail
    again = simulate_rooms([sphere], SMALL, 0, tmp_path, workers=1)
    assert np.array_equal(first[1].filters, again[1].filters)
    assert np.array_equal(first[1].azimuth, again[1].azimuth)


def test_binaural_rooms_serve_as_heads(tmp_path):
    small = replace(SMALL, rooms=1)
    found = binaural_rooms(shares=(1, 1, 1), cache=tmp_path, settings=small, workers=1)
    names = [head.name for subset in found.values() for head in subset]
    assert len(set(names)) == 3
    bank, rng = HRTFBank(found["train"]), np.random.default_rng(0)
    placement = bank.place(rng, 2)
    ears = bank.render_binaural(
        rng.standard_normal(4000).astype(np.float32), 0, placement.directions[0]
    )
    assert ears.shape == (2, 4000) and np.isfinite(ears).all()


def test_no_place_in_any_room_is_told(sphere, tmp_path):
    settings = BinauralRoomConfig(rooms=1, directions=3, distance=(20.0, 30.0))
    with pytest.raises(UserError, match="directions: is 3, .* no place for all sources"):
        simulate_rooms([sphere], settings, cache=tmp_path, workers=1)
