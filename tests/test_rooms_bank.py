"""The bank of rooms: tiny ones by pyroomacoustics, against geometry and beamformers."""

import json
import pickle
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from unified_se_ss.data import rooms
from unified_se_ss.data.rooms import RoomBank, RoomSettings, prepare_room_bank
from unified_se_ss.errors import UserError
from unified_se_ss.spatial.beamformers import MVDR
from unified_se_ss.spatial.dsp import convolve_rir
from unified_se_ss.spatial.geometry import (
    angle_between,
    bin_frequencies,
    line_array,
    near_field_steering,
)

RATE = 16000
MICROPHONES = line_array(3, 0.03)
TINY = RoomSettings(MICROPHONES, seconds=0.1, max_order=3, interferers=2)
ANECHOIC = replace(TINY, max_order=0, seconds=0.05, interferers=1)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return prepare_room_bank(tmp_path_factory.mktemp("bank"), TINY, 3, seed=7, workers=1)


def test_a_room_has_its_shapes(bank):
    assert len(bank) == 3 and bank.settings == TINY
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


def test_every_setting_changes_the_fingerprint(bank, monkeypatch):
    """A bank of other settings is not taken for this one."""
    monkeypatch.setattr(rooms, "_simulate", _interrupted)
    changes = {
        "microphones": 2 * MICROPHONES,
        "sizes": ((5, 5, 3), (6, 6, 3)),
        "interferers": 1,
        "noises": 2,
    }
    for name, value in asdict(TINY).items():
        if name in changes:
            changed = changes[name]
        elif isinstance(value, tuple):
            changed = (value[0], value[1] + 0.01)
        else:
            changed = value + 1 if isinstance(value, int) else value + 0.01
        with pytest.raises(KeyboardInterrupt):
            settings = replace(TINY, **{name: changed})
            prepare_room_bank(bank.path.parent, settings, 3, seed=7, workers=1)
    assert prepare_room_bank(bank.path.parent, TINY, 3, seed=7).path == bank.path


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


def test_the_bank_says_what_it_was_made_from(bank):
    told = json.loads(bank.path.with_suffix(".json").read_text())
    assert told["seed"] == 7 and told["n_rooms"] == 3
    assert told["settings"]["max_order"] == 3 and told["pyroomacoustics"]


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
        arrival = distance / rooms.SPEED_OF_SOUND * RATE + rooms.FRACTIONAL_DELAY // 2
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


def test_mvdr_in_a_simulated_room_without_reflections(tmp_path):
    """From positions to steering, from signals to sound: everything joined."""
    room = prepare_room_bank(tmp_path, ANECHOIC, 1, seed=5, workers=1)[0]
    rng = np.random.default_rng(0)
    target = convolve_rir(rng.normal(size=RATE), room.target)
    noise = convolve_rir(rng.normal(size=RATE), room.interferers[0])
    window = torch.hann_window(512)

    def spectra(signal):
        stft = torch.stft(
            torch.from_numpy(signal), 512, 128, window=window, return_complex=True
        )
        return stft[None]

    frequencies = bin_frequencies(512, RATE)
    steering = near_field_steering(MICROPHONES, room.target_position, frequencies)
    target, noise = spectra(target), spectra(noise)
    weights = MVDR(steering).weights(None, _covariance(noise))
    passed = torch.einsum("bfc,bcfl->bfl", weights.conj(), target)[:, 16:224]
    left = torch.einsum("bfc,bcfl->bfl", weights.conj(), noise)[:, 16:224]
    wanted, disturbing = target[:, 0, 16:224], noise[:, 0, 16:224]

    def power(x):
        return float(x.abs().square().mean())

    # A window of 512 sees the delayed microphones' sound cut a little elsewhere.
    assert power(passed - wanted) < 0.02 * power(wanted)
    assert power(left) < 0.01 * power(disturbing)


def _covariance(spectrum):
    return torch.einsum("bcfl,befl->bfce", spectrum, spectrum.conj()) / spectrum.shape[-1]


def test_places_are_where_the_settings_say():
    settings = replace(TINY, target_azimuth=(-45.0, 45.0), least_angle=60.0)
    for index in range(200):
        places = rooms._draw_places(settings, np.random.default_rng([1, index]))
        from_array = (places.sources - places.centre) @ rooms._turned(places.yaw).T
        assert (places.sources >= 0.25).all() and (
            places.sources <= places.size - 0.25
        ).all()
        assert (places.centre >= 0.5).all() and (places.centre <= places.size - 0.5).all()
        smallest, largest = np.array(settings.sizes)
        assert (places.size >= smallest).all() and (places.size <= largest).all()
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
    "wrong, said",
    [
        ({"microphones": [[0.0, 0.0]]}, r"positions are \[C, 3\]"),
        ({"reverberation": (0.5, 0.2)}, "reverberation: from 0.5 to 0.2"),
        ({"reverberation": (0.0, 0.2)}, "reverberation: .* above 0"),
        ({"sizes": ((0.8, 3, 3), (4, 4, 4))}, "wall_distance"),
        ({"sizes": ((5, 5, 3), (4, 6, 4))}, "smallest and largest"),
        ({"seconds": 0}, "seconds: 0"),
        ({"least_angle": 200}, "least_angle: 200"),
        ({"noises": -1}, "noises: -1"),
    ],
)
def test_settings_that_cannot_be_used_are_named(wrong, said):
    with pytest.raises(UserError, match=said):
        replace(TINY, **wrong)


def test_sources_that_find_no_place_are_an_error(tmp_path):
    settings = replace(TINY, target_distance=(20.0, 30.0))
    with pytest.raises(UserError, match="no place for all sources"):
        prepare_room_bank(tmp_path, settings, 1, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bank_is_named(bank, tmp_path):
    damaged = tmp_path / bank.path.name
    damaged.write_bytes(bank.path.read_bytes()[:1000])
    with pytest.raises(UserError, match="remove it"):
        RoomBank(damaged)
    damaged.with_suffix(".json").write_bytes(bank.path.with_suffix(".json").read_bytes())
    with pytest.raises(UserError, match="remove it"):
        RoomBank(damaged)


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        prepare_room_bank(tmp_path / "file", ANECHOIC, 1, workers=1)


@pytest.mark.parametrize("name, value", [("n_rooms", 0), ("workers", 0)])
def test_no_rooms_and_no_workers_are_errors(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name}: 0"):
        prepare_room_bank(tmp_path, ANECHOIC, **{"n_rooms": 1, name: value})
