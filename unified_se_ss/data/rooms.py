"""A bank of rooms: impulse responses from several places to an array, made once.

    {folder}/rooms-{fingerprint}.npy      one record for each room
    {folder}/rooms-{fingerprint}.json     what they follow from

Room i follows from (settings, seed, i) alone: a larger bank begins with the rooms of a
smaller one, and banks of different seeds share no room. Simulated by the image source
method of pyroomacoustics; a bank that is there is read without it.

Axes: C microphones, S sources (target, interferers, noises), T samples.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.data.cache import process_pool
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path, atomic_write
from unified_se_ss.progress import progress_bar
from unified_se_ss.spatial.geometry import SPEED_OF_SOUND, angle_between, to_vector

# To be raised with every change that changes a sample of a bank.
RECIPE = 1

# pyroomacoustics draws each reflection as a windowed sinc of so many samples, so that
# every response, the direct path too, is late by half of it.
FRACTIONAL_DELAY = 81

# What a killed build left behind is removed by the first build after this time.
_LEFT_OVER_SECONDS = 3600.0
_PLACES_TRIED = 100
_ARRAYS_TRIED = 100


@dataclass(frozen=True)
class RoomSettings:
    """What the rooms of a bank are like; every range is drawn from uniformly.

    Arguments
    ---------
    microphones : sequence of 3 numbers each
        Positions of an array relative to its centre, in metres (x ahead, y left, z up),
        [C, 3]; an array or a tensor will do.
    sample_rate : int
        Hz (default 16000).
    seconds : float
        Length of a response (default 0.5); what is later is cut off.
    sizes : pair of 3 numbers each
        Smallest and largest length, width and height, in metres.
    reverberation : pair
        RT60 in seconds by Sabine's formula (default 0.15 to 0.6). Where a room is too
        large for what was drawn even with walls that reflect nothing, it has its least.
    max_order : int
        Reflections that are followed at most (default 40). In a small room with much
        reverberation the late tail is then too thin; the cost grows with its cube.
    target_distance, interferer_distance : pair
        Metres from the array's centre (default 0.5 to 2, and 1 to 4).
    noise_distance : float
        Noise points are anywhere in the room, but not nearer (default 1.0).
    target_azimuth : pair
        Degrees in the array's own frame (default -180 to 180, everywhere).
    elevation : pair
        Degrees, of target and interferers (default -15 to 25).
    least_angle : float
        Degrees between the target and an interferer as the array sees them (default 20).
    interferers, noises : int
        How many points of each kind (default 1 and 1).
    wall_distance : float
        The array's centre is no nearer to a wall, in metres (default 0.5); sources keep
        half of it.

    Raises
    ------
    UserError
        If a value cannot be used.

    Example
    -------
    >>> RoomSettings([[0, 0.05, 0], [0, -0.05, 0]]).microphones
    ((0.0, 0.05, 0.0), (0.0, -0.05, 0.0))
    """

    microphones: tuple
    sample_rate: int = 16000
    seconds: float = 0.5
    sizes: tuple = ((4.0, 3.5, 2.4), (9.0, 7.0, 3.5))
    reverberation: tuple = (0.15, 0.6)
    max_order: int = 40
    target_distance: tuple = (0.5, 2.0)
    interferer_distance: tuple = (1.0, 4.0)
    noise_distance: float = 1.0
    target_azimuth: tuple = (-180.0, 180.0)
    elevation: tuple = (-15.0, 25.0)
    least_angle: float = 20.0
    interferers: int = 1
    noises: int = 1
    wall_distance: float = 0.5

    def __post_init__(self):
        positions = np.asarray(self.microphones, dtype=np.float64)
        if positions.ndim != 2 or positions.shape[-1] != 3 or not len(positions):
            raise UserError(
                f"microphones: shape {positions.shape}, but positions are [C, 3] in metres"
            )
        # Frozen, so that a bank and its fingerprint cannot part.
        object.__setattr__(self, "microphones", _as_tuples(positions))
        object.__setattr__(self, "sizes", _as_tuples(np.asarray(self.sizes, dtype=float)))
        for name in _RANGES:
            low, high = object.__getattribute__(self, name)
            object.__setattr__(self, name, (float(low), float(high)))
            if not low <= high:
                raise UserError(
                    f"{name}: from {low} to {high}, but the first is to be less"
                )
        self._check()

    def _check(self) -> None:
        """Raise a UserError for a value that cannot be used."""
        smallest, largest = self.sizes
        if not all(0 < a <= b for a, b in zip(smallest, largest, strict=True)):
            raise UserError(f"sizes: {self.sizes}, but smallest and largest are wanted")
        if min(smallest) <= 2 * self.wall_distance:
            raise UserError(
                f"sizes: {min(smallest)} m, but with a wall_distance of "
                f"{self.wall_distance} m a room has to be larger than twice that"
            )
        for name in ("sample_rate", "seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: {getattr(self, name)}, but has to be above 0")
        for name in ("reverberation", "target_distance", "interferer_distance"):
            if not getattr(self, name)[0] > 0:
                raise UserError(f"{name}: {getattr(self, name)}, but has to be above 0")
        for name in ("max_order", "interferers", "noises", "wall_distance"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: {getattr(self, name)}, but has to be at least 0")
        if not 0 <= self.least_angle < 180:
            raise UserError(f"least_angle: {self.least_angle}, but has to be in 0...180")

    @property
    def n_sources(self) -> int:
        """Target, interferers and noises."""
        return 1 + self.interferers + self.noises

    @property
    def radius(self) -> float:
        """Metres from the array's centre to its outermost microphone."""
        return float(np.linalg.norm(self.microphones, axis=-1).max())

    def record(self) -> np.dtype:
        """What the bank holds of one room."""
        C = len(self.microphones)
        T = math.ceil(self.seconds * self.sample_rate)
        farthest = self.target_distance[1] + self.radius
        direct = math.ceil(farthest / SPEED_OF_SOUND * self.sample_rate) + FRACTIONAL_DELAY
        return np.dtype(
            [
                ("responses", "<f4", (self.n_sources, C, T)),
                ("direct", "<f4", (C, min(direct, T))),
                ("positions", "<f8", (self.n_sources, 3)),
                ("size", "<f8", (3,)),
                ("reverberation", "<f8"),
            ]
        )


_RANGES = (
    "reverberation",
    "target_distance",
    "interferer_distance",
    "target_azimuth",
    "elevation",
)


class Room(NamedTuple):
    """Impulse responses of one room, from the same origin of time and at the same scale.

    One factor scales them all, such that the direct path from the target to the first
    microphone has an energy of 1. Sound arrives after the time it travels and 40 samples
    more, half of `FRACTIONAL_DELAY`.

    target : [C, T], float32; direct : [C, T'], its direct path alone, on the same time
    axis; interferers : [I, C, T]; noises : [N, C, T].
    target_position : [3], metres in the array's frame, and so on; size : [3], metres;
    reverberation : RT60 in seconds.
    """

    target: np.ndarray
    direct: np.ndarray
    interferers: np.ndarray
    noises: np.ndarray
    target_position: np.ndarray
    interferer_positions: np.ndarray
    noise_positions: np.ndarray
    size: np.ndarray
    reverberation: float

    @property
    def interferer_angle(self) -> float:
        """Degrees between target and first interferer as the array sees them."""
        return float(angle_between(self.target_position, self.interferer_positions[0]))


class RoomBank:
    """Rooms in a file, of which only what is used is read.

    Arguments
    ---------
    path : str or Path
        rooms-*.npy, as `prepare_room_bank` wrote it.

    Raises
    ------
    UserError
        If the file or what belongs to it cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            told = json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))
            self.settings = RoomSettings(**told["settings"])
            self._rooms = np.load(self.path, mmap_mode="r", allow_pickle=False)
            whole = self._rooms.dtype == self.settings.record()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _not_a_bank(self.path, error) from error
        if not whole:
            raise _not_a_bank(self.path, "it holds something else than its .json says")

    def __reduce__(self):
        # To another process goes the name, not the samples.
        return RoomBank, (self.path,)

    def __len__(self) -> int:
        return len(self._rooms)

    def __getitem__(self, index: int) -> Room:
        room = self._rooms[index]
        responses, positions = np.array(room["responses"]), np.array(room["positions"])
        noises = 1 + self.settings.interferers
        return Room(
            target=responses[0],
            direct=np.array(room["direct"]),
            interferers=responses[1:noises],
            noises=responses[noises:],
            target_position=positions[0],
            interferer_positions=positions[1:noises],
            noise_positions=positions[noises:],
            size=np.array(room["size"]),
            reverberation=float(room["reverberation"]),
        )

    def draw(self, rng: np.random.Generator) -> Room:
        """Any room of the bank; a function of the generator alone."""
        return self[int(rng.integers(len(self)))]


def prepare_room_bank(
    folder: str | Path,
    settings: RoomSettings,
    n_rooms: int = 1000,
    *,
    seed: int = 1234,
    workers: int | None = None,
) -> RoomBank:
    """Simulate the rooms of a bank, unless it is there already.

    Banks of other settings in the same folder are left alone.

    Arguments
    ---------
    folder : str or Path
        Where banks are kept; made if it is missing.
    settings : RoomSettings
        What the rooms are like.
    n_rooms : int
        How many (default 1000).
    seed : int
        Every room follows from it and its index (default 1234). Take different seeds
        for training and test.
    workers : int, optional
        Processes (default: one for each core). The bank does not depend on it.

    Returns
    -------
    RoomBank
        The rooms.

    Raises
    ------
    UserError
        If no room of these settings has a place for all sources, or if the bank cannot be
        written.

    Example
    -------
    >>> settings = RoomSettings(
    ...     [[0, 0.05, 0], [0, -0.05, 0]], seconds=0.05, max_order=2, reverberation=(0.2, 0.3)
    ... )
    >>> bank = prepare_room_bank(getfixture("tmpdir"), settings, 1, workers=1)
    >>> bank[0].target.shape
    (2, 800)
    """
    if n_rooms < 1:
        raise UserError(f"n_rooms: {n_rooms}, but at least 1 is needed")
    if workers is not None and workers < 1:
        raise UserError(f"workers: {workers}, but at least 1 is needed")
    made_from = {
        "recipe": RECIPE,
        "n_rooms": n_rooms,
        "seed": int(seed),
        "settings": asdict(settings),
    }
    fingerprint = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    path = Path(folder) / f"rooms-{fingerprint}.npy"
    told = path.with_suffix(".json")
    if path.exists() and told.exists():
        return RoomBank(path)
    _remove_left_over(path.parent)
    version = importlib.metadata.version("pyroomacoustics")
    simulate = functools.partial(_simulate, settings, seed)
    with atomic_path(path) as temporary, process_pool(workers) as run:
        _write_rooms(temporary, settings.record(), run(simulate, range(n_rooms)), n_rooms)
    atomic_write(
        told, json.dumps({**made_from, "pyroomacoustics": version}, indent=2) + "\n"
    )
    return RoomBank(path)


# Where everything is


class _Places(NamedTuple):
    """A room, and in its coordinates microphones [C, 3] and sources [S, 3]."""

    size: np.ndarray
    reverberation: float
    centre: np.ndarray
    yaw: float
    sources: np.ndarray


def _draw_places(settings: RoomSettings, rng: np.random.Generator) -> _Places:
    """Draw a room, where the array is and looks, and the sources."""
    for _ in range(_ARRAYS_TRIED):
        size = rng.uniform(*np.asarray(settings.sizes))
        reverberation = max(
            rng.uniform(*settings.reverberation), _least_reverberation(size)
        )
        margin = settings.wall_distance
        centre = rng.uniform(margin, size - margin)
        # Somebody holds it, or it stands on a table.
        lowest, highest = max(margin, 0.7), min(size[2] - margin, 1.7)
        centre[2] = rng.uniform(min(lowest, highest), highest)
        yaw = rng.uniform(-math.pi, math.pi)
        sources = _draw_sources(settings, rng, size, centre, yaw)
        if sources is not None:
            return _Places(size, reverberation, centre, yaw, sources)
    raise UserError(
        f"sizes: in {_ARRAYS_TRIED} rooms there was no place for all sources; give larger "
        "rooms, smaller distances or a smaller least_angle"
    )


def _draw_sources(settings, rng, size, centre, yaw) -> np.ndarray | None:
    """Positions of all sources in the room, [S, 3], or None if one finds no place."""
    target = _first_inside(
        size,
        settings,
        lambda: centre + _around(rng, settings.target_distance, settings, yaw, True),
    )
    if target is None:
        return None
    sources = [target]
    for _ in range(settings.interferers):
        sources.append(
            _first_inside(
                size,
                settings,
                lambda: centre + _around(rng, settings.interferer_distance, settings, yaw),
                lambda place: (
                    angle_between(place - centre, target - centre) >= settings.least_angle
                ),
            )
        )
    for _ in range(settings.noises):
        sources.append(
            _first_inside(
                size,
                settings,
                lambda: rng.uniform(0, size),
                lambda place: np.linalg.norm(place - centre) >= settings.noise_distance,
            )
        )
    return None if any(source is None for source in sources) else np.stack(sources)


def _first_inside(size, settings, draw, accept=lambda place: True) -> np.ndarray | None:
    """The first drawn place that is in the room and accepted."""
    margin = settings.wall_distance / 2
    for _ in range(_PLACES_TRIED):
        place = draw()
        if (place >= margin).all() and (place <= size - margin).all() and accept(place):
            return place
    return None


def _around(rng, distances, settings, yaw, is_target=False) -> np.ndarray:
    """A place around the array, in directions of the room, [3]."""
    distance = rng.uniform(*distances)
    azimuths = settings.target_azimuth if is_target else (-180.0, 180.0)
    azimuth = rng.uniform(*azimuths) + math.degrees(yaw)
    return distance * to_vector(azimuth, rng.uniform(*settings.elevation))


def _least_reverberation(size: np.ndarray) -> float:
    """RT60 by Sabine's formula of a room whose walls reflect nothing, in seconds."""
    length, width, height = size
    surface = 2 * (length * width + length * height + width * height)
    # A little more, so that rounding does not ask for more than all absorption.
    return 1.0001 * 24 * math.log(10) * size.prod() / (SPEED_OF_SOUND * surface)


def _turned(yaw: float) -> np.ndarray:
    """Turns vectors [..., 3] @ it from the array's frame into the room's."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    return np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])


# What is heard there


def _simulate(settings: RoomSettings, seed: int, index: int) -> bytes:
    """The record of one room, as it is written."""
    places = _draw_places(settings, np.random.default_rng([seed, index]))
    turned = _turned(places.yaw)
    microphones = places.centre + np.array(settings.microphones) @ turned
    with _plain_pyroomacoustics() as pra:
        absorption, order = pra.inverse_sabine(places.reverberation, places.size)
        order = min(order, settings.max_order)
        hear = functools.partial(_responses, pra, settings, places.size, absorption)
        responses = hear(order, places.sources, microphones)
        direct = hear(0, places.sources[:1], microphones)[0]
    room = np.zeros((), dtype=settings.record())
    scale = 1 / np.linalg.norm(direct[0])
    room["responses"] = scale * responses
    room["direct"] = scale * direct[:, : room["direct"].shape[-1]]
    room["positions"] = (places.sources - places.centre) @ turned.T
    room["size"] = places.size
    room["reverberation"] = places.reverberation
    return room.tobytes()


def _responses(pra, settings, size, absorption, order, sources, microphones) -> np.ndarray:
    """Impulse responses [S, C, T] of a shoebox."""
    room = pra.ShoeBox(
        size,
        fs=settings.sample_rate,
        materials=pra.Material(absorption),
        max_order=order,
    )
    for source in sources:
        room.add_source(source)
    room.add_microphone_array(microphones.T)
    room.compute_rir()
    T = math.ceil(settings.seconds * settings.sample_rate)
    responses = np.zeros((len(sources), len(microphones), T))
    for c, heard in enumerate(room.rir):
        for s, response in enumerate(heard):
            length = min(T, len(response))
            responses[s, c, :length] = response[:length]
    return responses


@contextmanager
def _plain_pyroomacoustics() -> Iterator:
    """pyroomacoustics on one thread, without its high-pass, which rings before a sound."""
    import pyroomacoustics as pra

    ours = {
        "num_threads": 1,
        "rir_hpf_enable": False,
        "frac_delay_length": FRACTIONAL_DELAY,
        "c": SPEED_OF_SOUND,
    }
    theirs = {name: pra.constants.get(name) for name in ours}
    try:
        for name, value in ours.items():
            pra.constants.set(name, value)
        yield pra
    finally:
        for name, value in theirs.items():
            pra.constants.set(name, value)


# How they are kept


def _write_rooms(
    path: Path, record: np.dtype, rooms: Iterator[bytes], n_rooms: int
) -> None:
    """Write a .npy record by record, so that a full disk is an error and no crash."""
    header = {
        "descr": np.lib.format.dtype_to_descr(record),
        "fortran_order": False,
        "shape": (n_rooms,),
    }
    with open(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        for room in progress_bar(rooms, "rooms", n_rooms, "room"):
            file.write(room)


def _not_a_bank(path: Path, reason) -> UserError:
    """What to tell when a bank cannot be read."""
    return UserError(
        f"{path}: is no bank of rooms that can be read ({reason}); remove it, and the "
        "next run makes it anew"
    )


def _remove_left_over(folder: Path) -> None:
    """Remove what builds that were killed long ago left behind."""
    for left_over in folder.glob(".rooms-*.npy.*"):
        if time.time() - left_over.stat().st_mtime > _LEFT_OVER_SECONDS:
            left_over.unlink(missing_ok=True)


def _as_tuples(positions: np.ndarray) -> tuple:
    """Nested tuples of plain numbers, which can be compared and written."""
    return tuple(tuple(row) for row in positions.tolist())
