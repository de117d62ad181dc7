"""Simulated shoebox rooms: impulse responses to a microphone array or to both ears.

*Arrays*: `prepare_room_bank` simulates rooms by pyroomacoustics' image source method, once:

    {folder}/rooms-{digest}.npy      one record for each room
    {folder}/rooms-{digest}.json     all that they follow from

*Ears*: `binaural_rooms` puts listeners into rooms. A listener in a room is again an
`HRIRSet`, of a few directions with long filters, so everything that takes HRIR sets takes
rooms. (A folder of measured responses, such as CATT_0_4s_-30.wav, is read by `load_hrirs`
with `pattern=r"_(?P<azimuth>-?[0-9]+)$"`.) Each image source (Allen and Berkley, "Image
method for efficiently simulating small-room acoustics", JASA 65(4), 1979) goes through the
filters of its direction, at its own fraction of a sample; from `EARLY` seconds after the
direct path on, through those of the nearest of 64 directions, at a whole sample.
pyroomacoustics' MeasuredDirectivity takes 60 times as long.

Room i follows from (settings, seed, i) alone: a larger bank begins with the rooms of a
smaller one, and banks of different seeds share no room.

Axes: C microphones, S sources, D directions, E ears (left, right), I images, T samples.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import scipy.fft
import scipy.signal
from scipy.spatial import cKDTree

from unified_se_ss.data.audio import fitted
from unified_se_ss.data.cache import (
    cached_arrays,
    digest_of,
    process_pool,
    remove_left_over,
)
from unified_se_ss.data.hrtf_bank import (
    SHARES,
    SUBSETS,
    binaural_heads,
    hrirs_digest,
    split_hrirs,
)
from unified_se_ss.data.hrtf_files import default_cache
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path, atomic_write
from unified_se_ss.progress import progress_bar
from unified_se_ss.spatial.dsp import windowed_sinc
from unified_se_ss.spatial.geometry import (
    SPEED_OF_SOUND,
    angle_between,
    from_vector,
    to_vector,
)
from unified_se_ss.spatial.hrtf import HRIRSet, spherical_head_hrirs

# To be raised with every change that changes a sample of a room.
_FORMAT, _BINAURAL_FORMAT = 1, 2

_ROOMS_TRIED = 200
_PLACES_TRIED = 100
_ANGLES = ("target_azimuth", "azimuth", "elevation")
_MAY_BE_0 = ("max_order", "interferers", "noises", "wall_distance", "noise_distance")
_MAY_BE_0 += ("least_angle",)

FRACTIONAL_DELAY = 81
"""pyroomacoustics draws each reflection as a windowed sinc of so many samples, so that every
response, the direct path too, is late by half of it."""
EARLY = 0.05
"""Seconds after the direct path until which images have their own direction and delay."""
HIGH_PASS = 50.0
"""Hz. Walls that only reflect with a plus sign pile up a pressure that no room has."""
SPHERE_GRID = (np.arange(-170.0, 181.0, 10.0), np.arange(-80.0, 81.0, 10.0))
_FOLLOWED = 1.5  # RT60s for which images are followed: what comes later is below -70 dB
_HALF_SINC = 16
_KAISER_BETA = 7.0
_GRID = 2.0  # degrees, of the table in which a direction's nearest filter is looked up

# ------------------------------------------------------------------ settings


@dataclass(frozen=True, kw_only=True)
class _ShoeboxSettings:
    """Ranges from which a room is drawn uniformly; a UserError for what cannot be used."""

    seconds: float = 0.5
    sizes: tuple = ((4.0, 3.5, 2.4), (9.0, 7.0, 3.5))
    reverberation: tuple = (0.15, 0.6)
    elevation: tuple = (-15.0, 25.0)
    wall_distance: float = 0.5

    # Metres between which the centre is: somebody holds an array, or it stands on a table.
    _heights: ClassVar = (0.7, 1.7)

    def __post_init__(self):
        for name, value in vars(self).items():
            if np.ndim(value):
                # Plain numbers can be compared and written, and frozen ones not be changed.
                value = _tuples(value)
                object.__setattr__(self, name, value)
            if name not in ("microphones", "sizes"):
                _check_range(name, value)
        smallest, largest = np.asarray(self.sizes)
        if not (smallest <= largest).all() or smallest.min() <= 2 * self.wall_distance:
            wanted = f"above twice the wall_distance ({self.wall_distance} m), the smallest first"
            raise UserError(
                f"sizes: from {smallest} to {largest} m, but has to be {wanted}"
            )


def _tuples(value):
    values = np.asarray(value, dtype=np.float64).tolist()
    return tuple(tuple(row) if isinstance(row, list) else row for row in values)


def _check_range(name, value):
    low, high = value if isinstance(value, tuple) else (value, value)
    if not low <= high:
        raise UserError(f"{name}: from {low} to {high}, but the first is to be less")
    if name not in _ANGLES and not (low > 0 or (low == 0 and name in _MAY_BE_0)):
        least = "at least 0" if name in _MAY_BE_0 else "above 0"
        raise UserError(f"{name}: {value}, but has to be {least}")


@dataclass(frozen=True)
class RoomSettings(_ShoeboxSettings):
    """Settings of rooms with a microphone array; every range is drawn from uniformly.

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

    Example
    -------
    >>> RoomSettings([[0, 0.05, 0], [0, -0.05, 0]]).microphones
    ((0.0, 0.05, 0.0), (0.0, -0.05, 0.0))
    """

    microphones: tuple
    sample_rate: int = 16000
    max_order: int = 40
    target_distance: tuple = (0.5, 2.0)
    interferer_distance: tuple = (1.0, 4.0)
    noise_distance: float = 1.0
    target_azimuth: tuple = (-180.0, 180.0)
    least_angle: float = 20.0
    interferers: int = 1
    noises: int = 1

    def __post_init__(self):
        shape = np.shape(self.microphones)
        if len(shape) != 2 or shape[1] != 3 or not shape[0]:
            raise UserError(f"microphones: shape {shape}, but has to be [C, 3], metres")
        super().__post_init__()
        if self.least_angle >= 180:
            raise UserError(f"least_angle: {self.least_angle}, but has to be below 180")

    def record(self) -> np.dtype:
        """One room in the file of a bank."""
        C, T = len(self.microphones), math.ceil(self.seconds * self.sample_rate)
        S = 1 + self.interferers + self.noises
        radius = float(np.linalg.norm(self.microphones, axis=-1).max())
        farthest = (self.target_distance[1] + radius) / SPEED_OF_SOUND
        direct = math.ceil(farthest * self.sample_rate) + FRACTIONAL_DELAY
        sounds = [("responses", "<f4", (S, C, T)), ("direct", "<f4", (C, min(direct, T)))]
        places = [("positions", "<f8", (S, 3)), ("size", "<f8", (3,))]
        return np.dtype([*sounds, *places, ("reverberation", "<f8")])


@dataclass(frozen=True, kw_only=True)
class BinauralRoomConfig(_ShoeboxSettings):
    """Settings of rooms around a listener; every range is drawn from uniformly.

    Arguments
    ---------
    rooms, directions : int
        Rooms of each head (default 4), and sources in each room (default 12).
    seconds : float
        Length of a response after the direct path (default 0.5); what is later is cut.
    reverberation : pair
        RT60 in seconds by Eyring's formula (default 0.1 to 0.6).
    distance : pair
        Metres from the head to a source (default 0.8 to 2.0).
    azimuth, elevation : pair
        Degrees between which sources are (default -90 to 90, and -40 to 40).
    sizes, wall_distance
        As in `RoomSettings`, around the head (default 0.8 m to the wall).

    Example
    -------
    >>> BinauralRoomConfig(rooms=2).directions
    12
    """

    rooms: int = 4
    directions: int = 12
    reverberation: tuple = (0.1, 0.6)
    distance: tuple = (0.8, 2.0)
    azimuth: tuple = (-90.0, 90.0)
    elevation: tuple = (-40.0, 40.0)
    wall_distance: float = 0.8

    _heights: ClassVar = (-math.inf, math.inf)


class ShoeboxGeometry(NamedTuple):
    """A room, and an array or a head in it: `size` and `centre` [3] in metres, RT60 in seconds.

    `yaw` in radians is the direction of the nose, anticlockwise from the room's x axis.
    """

    size: np.ndarray
    reverberation: float
    centre: np.ndarray
    yaw: float

    @property
    def surface(self) -> float:
        """Square metres of all walls."""
        length, width, height = self.size
        return 2 * (length * width + length * height + width * height)

    def is_inside(self, points: np.ndarray, margin: float) -> np.ndarray:
        """True for points [..., 3] that are no nearer to a wall than a margin in metres."""
        return ((points >= margin) & (points <= self.size - margin)).all(axis=-1)


def _draw_room(settings: _ShoeboxSettings, rng, place: Callable, advice: str):
    """The first of some rooms in which `place(room)` finds a place for all, and what it found."""
    margin = settings.wall_distance
    for _ in range(_ROOMS_TRIED):
        size = rng.uniform(*np.asarray(settings.sizes))
        reverberation = rng.uniform(*settings.reverberation)
        centre = rng.uniform(margin, size - margin)
        lowest, highest = settings._heights
        lowest, highest = max(margin, lowest), min(size[2] - margin, highest)
        centre[2] = rng.uniform(min(lowest, highest), highest)
        yaw = rng.uniform(-math.pi, math.pi)
        room = ShoeboxGeometry(size, reverberation, centre, yaw)
        placed = place(room)
        if placed is not None:
            return room, placed
    raise UserError(f"{advice}; in {_ROOMS_TRIED} rooms there was no place for all sources")


# ------------------------------------------------------------------ arrays


class Room(NamedTuple):
    """Impulse responses of one room, with one origin of time and one scale.

    The direct path from the target to the first microphone has an energy of 1. Sound arrives
    after the time it travels and 40 samples more, half of `FRACTIONAL_DELAY`.

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
        rooms-*.npy, as `prepare_room_bank` wrote it; a UserError if it cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            kept = json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))
            self.settings = RoomSettings(**kept["settings"])
            self._rooms = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if self._rooms.dtype != self.settings.record():
                raise ValueError("it holds something else than its .json says")
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"is no bank of rooms that can be read ({error})"
            raise UserError(f"{self.path}: {what}; remove it to have it made") from error

    def __reduce__(self):
        # To another process goes the name, not the samples.
        return RoomBank, (self.path,)

    def __len__(self) -> int:
        return len(self._rooms)

    def __getitem__(self, index: int) -> Room:
        record = self._rooms[index]
        responses, positions = np.array(record["responses"]), np.array(record["positions"])
        ends = 1, 1 + self.settings.interferers
        (target,), interferers, noises = np.split(responses, ends)
        (target_at,), interferers_at, noises_at = np.split(positions, ends)
        sounds = target, np.array(record["direct"]), interferers, noises
        places = target_at, interferers_at, noises_at, np.array(record["size"])
        return Room(*sounds, *places, float(record["reverberation"]))

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

    Arguments
    ---------
    folder : str or Path
        Where banks of any settings are kept; made if it is missing.
    seed : int
        Every room follows from it and its index (default 1234). Take different seeds
        for training and test.
    workers : int, optional
        Processes (default: one for each core). The bank does not depend on it.

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
    for name, value in (("n_rooms", n_rooms), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name}: {value}, but at least 1 is needed")
    made_from = {"format": _FORMAT, "n_rooms": n_rooms, "seed": int(seed)}
    made_from["settings"] = asdict(settings)
    path = Path(folder) / f"rooms-{digest_of(made_from)[:16]}.npy"
    description = path.with_suffix(".json")
    if path.exists() and description.exists():
        return RoomBank(path)
    remove_left_over(path.parent, ".rooms-")
    made_from["pyroomacoustics"] = importlib.metadata.version("pyroomacoustics")
    simulate = functools.partial(_simulate, settings, seed)
    with atomic_path(path) as temporary, process_pool(workers) as run:
        rooms = progress_bar(run(simulate, range(n_rooms)), "rooms", n_rooms, "room")
        _write_records(temporary, settings.record(), rooms, n_rooms)
    atomic_write(description, json.dumps(made_from, indent=2) + "\n")
    return RoomBank(path)


def _write_records(path, record, records, count) -> None:
    """Write a .npy record by record, so that a full disk is an error and no crash."""
    descr = np.lib.format.dtype_to_descr(record)
    header = {"descr": descr, "fortran_order": False, "shape": (count,)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        for content in records:
            file.write(content)


def _simulate(settings: RoomSettings, seed: int, index: int) -> bytes:
    """The record of one room, as it is written."""
    rng = np.random.default_rng([seed, index])
    place = functools.partial(_draw_sources, settings, rng)
    advice = "sizes: give larger rooms, smaller distances or a smaller least_angle"
    geometry, sources = _draw_room(settings, rng, place, advice)
    # A little more than the least, so that rounding does not ask for more than all absorption.
    least = 24 * math.log(10) * geometry.size.prod() / (SPEED_OF_SOUND * geometry.surface)
    reverberation = max(geometry.reverberation, 1.0001 * least)
    turned = _turned(geometry.yaw)
    microphones = geometry.centre + np.array(settings.microphones) @ turned
    with _plain_pyroomacoustics() as pra:
        absorption, order = pra.inverse_sabine(reverberation, geometry.size)
        order = min(order, settings.max_order)
        respond = functools.partial(_responses, pra, settings, geometry.size, absorption)
        responses = respond(order, sources, microphones)
        direct = respond(0, sources[:1], microphones)[0]
    room = np.zeros((), dtype=settings.record())
    scale = 1 / np.linalg.norm(direct[0])
    room["responses"] = scale * responses
    room["direct"] = scale * direct[:, : room["direct"].shape[-1]]
    room["positions"] = (sources - geometry.centre) @ turned.T
    room["size"] = geometry.size
    room["reverberation"] = reverberation
    return room.tobytes()


def _draw_sources(settings, rng, room) -> np.ndarray | None:
    """Positions of target, interferers and noises, [S, 3]; None if one finds no place."""
    centre = room.centre

    def around(distances, azimuths=(-180.0, 180.0)):
        distance = rng.uniform(*distances)
        azimuth = rng.uniform(*azimuths) + math.degrees(room.yaw)
        return centre + distance * to_vector(azimuth, rng.uniform(*settings.elevation))

    def first(draw, accept=lambda place: True):
        for _ in range(_PLACES_TRIED):
            place = draw()
            if room.is_inside(place, settings.wall_distance / 2) and accept(place):
                return place
        return None

    def is_apart(place):
        return angle_between(place - centre, target - centre) >= settings.least_angle

    def is_far(place):
        return np.linalg.norm(place - centre) >= settings.noise_distance

    target = first(lambda: around(settings.target_distance, settings.target_azimuth))
    if target is None:
        return None
    sources = [target]
    for _ in range(settings.interferers):
        sources.append(first(lambda: around(settings.interferer_distance), is_apart))
    for _ in range(settings.noises):
        sources.append(first(lambda: rng.uniform(0, room.size), is_far))
    return None if any(source is None for source in sources) else np.stack(sources)


def _turned(yaw: float) -> np.ndarray:
    """Turns vectors [..., 3] @ it from the array's frame into the room's."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    return np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def _responses(pra, settings, size, absorption, order, sources, microphones) -> np.ndarray:
    """Impulse responses [S, C, T] of a shoebox."""
    materials = pra.Material(absorption)
    room = pra.ShoeBox(size, fs=settings.sample_rate, materials=materials, max_order=order)
    for source in sources:
        room.add_source(source)
    room.add_microphone_array(microphones.T)
    room.compute_rir()
    T = math.ceil(settings.seconds * settings.sample_rate)
    responses = [
        [fitted(response, T) for response in of_sources] for of_sources in room.rir
    ]
    return np.array(responses, dtype=np.float64).swapaxes(0, 1)


@contextmanager
def _plain_pyroomacoustics() -> Iterator:
    """pyroomacoustics on one thread, without its high-pass, which rings before a sound."""
    import pyroomacoustics as pra

    ours = {"frac_delay_length": FRACTIONAL_DELAY, "c": SPEED_OF_SOUND}
    ours |= {"num_threads": 1, "rir_hpf_enable": False}
    theirs = {name: pra.constants.get(name) for name in ours}
    try:
        for name, value in ours.items():
            pra.constants.set(name, value)
        yield pra
    finally:
        for name, value in theirs.items():
            pra.constants.set(name, value)


# ------------------------------------------------------------------ ears


def binaural_rooms(
    source=None,
    sample_rate: int = 8000,
    seed: int = 0,
    shares=SHARES,
    cache=None,
    settings: BinauralRoomConfig | None = None,
    workers: int | None = None,
    **files,
) -> dict[str, list[HRIRSet]]:
    """Rooms around heads for training, dev and test; no head or room is in two of them.

    Arguments
    ---------
    source, sample_rate, seed, shares, cache, files
        As for `binaural_heads`; by default spheres, with directions all around.
    settings, workers
        As for `simulate_rooms`.

    Returns
    -------
    dict
        `train`, `dev`, `test`: lists of HRIRSet, named HEAD-room0, HEAD-room1, ...

    Example
    -------
    >>> settings = BinauralRoomConfig(rooms=1, directions=2, seconds=0.1)
    >>> rooms = binaural_rooms(
    ...     shares=(1, 1, 1), cache=getfixture("tmpdir"), settings=settings, workers=1
    ... )
    >>> rooms["test"][0].filters.shape
    (2, 2, 889)
    """
    settings = settings or BinauralRoomConfig()
    if source is None:
        azimuth, elevation = (g.ravel() for g in np.meshgrid(*SPHERE_GRID, indexing="ij"))
        spheres = spherical_head_hrirs(sum(shares), sample_rate, azimuth, elevation)
        heads = split_hrirs(spheres, shares, seed)
    else:
        heads = binaural_heads(source, sample_rate, seed, shares, cache, **files)
    return {
        subset: simulate_rooms(heads[subset], settings, [seed, number], cache, workers)
        for number, subset in enumerate(SUBSETS)
    }


def simulate_rooms(
    heads, settings: BinauralRoomConfig, seed=0, cache=None, workers: int | None = None
) -> list[HRIRSet]:
    """Put heads into rooms; what was simulated once is kept and read again.

    Arguments
    ---------
    heads : list of HRIRSet
        All of one rate, with directions all around.
    seed : int or list of int
        Room i follows from it, i and the head (default 0).
    cache : str or Path, optional
        Folder of the kept file; by default that of `load_hrirs`. It may be deleted.
    workers : int, optional
        Processes (default: one for each core).

    Returns
    -------
    list of HRIRSet
        `settings.rooms` of each head. A filter's time zero is the arrival of the direct
        path, whose gain is that of the head.

    Example
    -------
    >>> from unified_se_ss.spatial import spherical_head
    >>> settings = BinauralRoomConfig(rooms=1, directions=3, seconds=0.1)
    >>> head = spherical_head(8000)
    >>> (room,) = simulate_rooms([head], settings, cache=getfixture("tmpdir"), workers=1)
    >>> room.name, len(room), room.latency == head.latency
    ('sphere-87.50mm-room0', 3, True)
    """
    jobs = [(head, number) for head in heads for number in range(settings.rooms)]
    seed = np.atleast_1d(seed).tolist()

    def make():
        simulate = functools.partial(_simulate_binaural, settings, seed)
        with process_pool(workers) as run:
            rooms = run(simulate, enumerate(head for head, _ in jobs))
            rooms = list(progress_bar(rooms, "binaural rooms", len(jobs), "room"))
        azimuth, elevation, filters = map(np.stack, zip(*rooms))
        return {"azimuth": azimuth, "elevation": elevation, "filters": filters}

    digest = digest_of([_BINAURAL_FORMAT, asdict(settings), seed], hrirs_digest(heads))
    folder = default_cache() if cache is None else Path(cache)
    rooms = cached_arrays(folder / f"binaural-rooms-{digest[:20]}.npz", make)
    rooms = zip(rooms["azimuth"], rooms["elevation"], rooms["filters"], strict=True)
    return [
        HRIRSet(f"{head.name}-room{number}", head.sample_rate, *room, head.latency)
        for (head, number), room in zip(jobs, rooms, strict=True)
    ]


def _simulate_binaural(settings, seed, job):
    """Directions, and responses of a room around a head."""
    index, head = job
    rng = np.random.default_rng([*seed, index])
    room, (indices, sources) = _draw_binaural_room(head, settings, rng)
    filters = _binaural_responses(head, room, indices, sources, settings.seconds)
    return head.azimuth[indices], head.elevation[indices], filters


def _draw_binaural_room(head, settings: BinauralRoomConfig, rng):
    """A room around a head; the indices of some of its directions, and sources in them, [D, 3]."""
    (left, right), (low, high) = settings.azimuth, settings.elevation
    in_range = (head.azimuth >= left) & (head.azimuth <= right)
    in_range &= (head.elevation >= low) & (head.elevation <= high)
    front = np.flatnonzero(in_range)

    def place(room):
        indices = rng.permutation(front)
        distances = rng.uniform(*settings.distance, size=len(indices))
        azimuth = head.azimuth[indices] + math.degrees(room.yaw)
        towards = to_vector(azimuth, head.elevation[indices])
        sources = room.centre + distances[:, None] * towards
        fits = np.flatnonzero(room.is_inside(sources, settings.wall_distance / 2))
        chosen = fits[: settings.directions]
        enough = len(chosen) == settings.directions
        return (indices[chosen], sources[chosen]) if enough else None

    counts = f"directions: is {settings.directions}, and {head.name} has {len(front)}"
    advice = f"{counts} in that range; give fewer, larger rooms or smaller distances"
    return _draw_room(settings, rng, place, advice)


def _binaural_responses(head, room, indices, sources, seconds):
    """Responses from sources in directions of a head, float32 [D, E, N].

    They last `seconds` after the direct path, whose latency and gain are the head's.
    """
    table = _nearest_table(head)
    # The nearest of some directions all around, for each of the head's.
    around = head.evenly_spread()
    coarse = around[np.argmax(head.vectors @ head.vectors[around].T, axis=1)]
    responses = [
        _binaural_response(head, room, source, index, seconds, table, coarse)
        for source, index in zip(sources, indices)
    ]
    rate = head.sample_rate
    high_pass = scipy.signal.butter(2, HIGH_PASS, "highpass", fs=rate, output="sos")
    return scipy.signal.sosfilt(high_pass, np.stack(responses)).astype(np.float32)


def _binaural_response(head, room, source, index, seconds, table, coarse):
    """The response from one source, [E, N] in float64."""
    rate = head.sample_rate
    direct = np.linalg.norm(source - room.centre)
    followed = min(seconds, _FOLLOWED * room.reverberation)
    vectors, gains = _image_sources(room, source, direct + followed * SPEED_OF_SOUND)
    distances = np.linalg.norm(vectors, axis=-1)
    arrivals = (distances - direct) / SPEED_OF_SOUND * rate
    gains = gains * direct / distances
    azimuth, elevation = from_vector(vectors)
    directions = table[_cells(azimuth - math.degrees(room.yaw), elevation)]
    directions[0] = index
    early = arrivals < EARLY * rate
    response = np.zeros((2, int(round(seconds * rate)) + head.filters.shape[-1]))
    directions = np.where(early, directions, coarse[directions])
    for chosen, is_fractional in ((early, True), (~early, False)):
        if chosen.any():
            images = directions[chosen], arrivals[chosen], gains[chosen]
            part = _filtered_images(head, *images, is_fractional)
            length = min(part.shape[-1], response.shape[-1])
            response[:, :length] += part[:, :length]
    return response


def _image_sources(room: ShoeboxGeometry, source, farthest):
    """Image sources of a shoebox up to a distance in metres.

    All walls reflect exp(-12 ln(10) V / (c S RT60)) of the amplitude, by Eyring's formula.

    Returns
    -------
    vectors : np.ndarray
        From the centre to each image, in the room's directions, [I, 3]; the source first.
    gains : np.ndarray
        What the walls left of the amplitude, without the distance's share, [I].
    """
    volume = np.prod(room.size)
    decay = 12 * np.log(10) * volume / (SPEED_OF_SOUND * room.surface * room.reverberation)
    axes = []
    for extent, at, centre in zip(room.size, source, room.centre):
        turns = int(np.ceil((farthest + extent) / (2 * extent)))
        n, mirrored = np.meshgrid(np.arange(-turns, turns + 1), [0, 1], indexing="ij")
        offsets = (1 - 2 * mirrored) * at + 2 * n * extent - centre
        reflections = np.abs(n - mirrored) + np.abs(n)
        axes.append((offsets.ravel(), reflections.ravel()))
    x, y, z = np.ix_(*(offsets**2 for offsets, _ in axes))
    found = np.nonzero(x + y + z <= farthest**2)
    vectors = np.stack([offsets[i] for (offsets, _), i in zip(axes, found)], axis=-1)
    reflections = sum(reflections[i] for (_, reflections), i in zip(axes, found))
    # The source is the only image that met no wall.
    first = int(np.argmin(reflections))
    for values in (vectors, reflections):
        values[[0, first]] = values[[first, 0]]
    return vectors, np.exp(-decay * reflections)


def _filtered_images(head, directions, arrivals, gains, is_fractional):
    """Images through the filters of their directions, summed: [E, samples]."""
    used, which = np.unique(directions, return_inverse=True)
    lead = _HALF_SINC if is_fractional else 0
    length = int(arrivals.max()) + 2 * _HALF_SINC + 2
    trains = np.zeros(len(used) * length)
    whole = np.floor(arrivals)
    places = which * length + whole.astype(int) + lead
    if is_fractional:
        for offset in range(1 - _HALF_SINC, _HALF_SINC + 1):
            taps = windowed_sinc(offset - (arrivals - whole), _HALF_SINC, _KAISER_BETA)
            trains += np.bincount(places + offset, taps * gains, minlength=len(trains))
    else:
        trains += np.bincount(places, gains, minlength=len(trains))
    half = -(-(length + head.filters.shape[-1]) // 2)
    n_fft = 2 * scipy.fft.next_fast_len(half, real=True)
    spectra = scipy.fft.rfft(trains.reshape(len(used), length), n_fft)
    filters = scipy.fft.rfft(head.filters[used].astype(np.float64), n_fft)
    ears = scipy.fft.irfft(np.einsum("df,def->ef", spectra, filters), n_fft)
    return ears[:, lead:]


def _cells(azimuth, elevation):
    """Indices of directions into the table of `_nearest_table`, [...]."""
    columns = round(360 / _GRID)
    column = np.round(azimuth / _GRID).astype(int) % columns
    row = np.round((elevation + 90) / _GRID).astype(int)
    return row * columns + column


def _nearest_table(head):
    """For directions in steps of 2 degrees, the head's nearest one, [cells]."""
    rows, columns = np.arange(-90, 90.5, _GRID), np.arange(0, 360, _GRID)
    wanted = to_vector(columns, rows[:, None]).reshape(-1, 3)
    return cKDTree(head.vectors).query(wanted)[1]
