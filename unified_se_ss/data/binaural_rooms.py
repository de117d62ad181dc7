"""Listeners in rooms: binaural room responses by image sources, a head looked up for each.

A room with somebody in it is again a `HRIRSet`: a few directions, and long filters that hold
the direct path and what the walls send back. All that takes heads takes rooms. A set of
measured room responses needs nothing from here: `binaural_heads` (or `load_hrirs`) reads a
folder of them, such as CATT_0_4s_-30.wav with `pattern=r"_(?P<azimuth>-?[0-9]+)$"`.

Each image source of a shoebox (Allen and Berkley, "Image method for efficiently
simulating small-room acoustics", J. Acoust. Soc. Am. 65(4), 1979) is heard through the
filters of the direction in which it lies, at its own fraction of a sample. From
`EARLY` seconds after the direct path on, where there are thousands, an image comes from
the nearest of 64 directions around the head, at a whole sample.

Axes: R rooms, D directions, E ears (left, right), N taps, I images, F bins.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.signal
from scipy.spatial import cKDTree

from unified_se_ss.data.cache import process_pool
from unified_se_ss.data.hrirs import PATTERN, default_cache, split_hrirs
from unified_se_ss.data.hrtf_bank import (
    SHARES,
    SUBSETS,
    binaural_heads,
    heads_digest,
)
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path
from unified_se_ss.progress import progress_bar
from unified_se_ss.spatial.dsp import windowed_sinc
from unified_se_ss.spatial.geometry import SPEED_OF_SOUND, from_vector, to_vector
from unified_se_ss.spatial.hrtf import HRIRSet, spherical_head_hrirs

# To be raised with every change that changes a sample of a room.
RECIPE = 1

EARLY = 0.05
"""Seconds after the direct path until which images have their own direction and delay."""
HIGH_PASS = 50.0
"""Hz. Walls that only reflect with a plus sign pile up a pressure that no room has."""
FOLLOWED = 1.5
"""RT60s for which images are followed: what comes later is weaker than -70 dB."""
HALF_SINC = 16
KAISER_BETA = 7.0
GRID = 2.0  # degrees, of the table in which a direction's nearest filter is looked up
PLACES_TRIED = 200
SPHERE_GRID = (np.arange(-170.0, 181.0, 10.0), np.arange(-80.0, 81.0, 10.0))


@dataclass(frozen=True)
class BinauralRoomConfig:
    """What the rooms around a listener are like; every range is drawn from uniformly.

    Arguments
    ---------
    rooms : int
        Rooms of each head (default 4).
    directions : int
        Directions of sources in each room (default 12).
    seconds : float
        Length of a response after the direct path (default 0.5); what is later is cut.
    reverberation : pair
        RT60 in seconds by Eyring's formula (default 0.1 to 0.6).
    sizes : pair of 3 numbers each
        Smallest and largest length, width and height, in metres.
    distance : pair
        Metres from the head to a source (default 0.8 to 2.0).
    azimuth, elevation : pair
        Degrees between which sources are (default -90 to 90, and -40 to 40).
    wall_distance : float
        The head is no nearer to a wall, in metres (default 0.8); sources keep half of it.

    Raises
    ------
    UserError
        If a value cannot be used.

    Example
    -------
    >>> BinauralRoomConfig(rooms=2).directions
    12
    """

    rooms: int = 4
    directions: int = 12
    seconds: float = 0.5
    reverberation: tuple = (0.1, 0.6)
    sizes: tuple = ((4.0, 3.5, 2.4), (9.0, 7.0, 3.5))
    distance: tuple = (0.8, 2.0)
    azimuth: tuple = (-90.0, 90.0)
    elevation: tuple = (-40.0, 40.0)
    wall_distance: float = 0.8

    def __post_init__(self):
        for name in ("rooms", "directions", "seconds", "wall_distance"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: {getattr(self, name)}, but has to be above 0")
        for name in ("reverberation", "distance"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(
                    f"{name}: from {low} to {high}, but 0 < low <= high is wanted"
                )
        smallest, largest = np.asarray(self.sizes, dtype=np.float64)
        if not (smallest <= largest).all() or smallest.min() <= 2 * self.wall_distance:
            raise UserError(
                f"sizes: from {smallest.tolist()} to {largest.tolist()} m, but rooms larger "
                f"than twice the wall_distance of {self.wall_distance} m are wanted, the "
                "smallest first"
            )


class ShoeboxGeometry(NamedTuple):
    """A shoebox and who is where in it: sizes and positions [3] in metres, yaw in degrees.

    `sources` [D, 3] belong to the head's directions `indices` [D].
    """

    size: np.ndarray
    reverberation: float
    head: np.ndarray
    yaw: float
    indices: np.ndarray
    sources: np.ndarray


def binaural_rooms(
    source=None,
    sample_rate: int = 8000,
    seed: int = 0,
    shares=SHARES,
    cache=None,
    pattern: str = PATTERN,
    positive: str = "left",
    settings: BinauralRoomConfig | None = None,
    workers: int | None = None,
) -> dict[str, list[HRIRSet]]:
    """Rooms around heads for training, dev and test; no head or room is in two of them.

    Arguments
    ---------
    source, sample_rate, seed, shares, cache, pattern, positive
        As for `binaural_heads`; by default spheres, with directions all around.
    settings : BinauralRoomConfig, optional
        What the rooms are like.
    workers : int, optional
        Processes (default: one for each core). The rooms do not depend on it.

    Returns
    -------
    dict
        `train`, `dev`, `test`: lists of Head, named HEAD-room0, HEAD-room1, ...

    Raises
    ------
    UserError
        If there are no heads, too few of them, or no place in a room.

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
        everyone = spherical_head_hrirs(sum(shares), sample_rate, azimuth, elevation)
        heads = split_hrirs(everyone, shares, seed)
    else:
        heads = binaural_heads(source, sample_rate, seed, shares, cache, pattern, positive)
    return {
        subset: simulate_rooms(
            heads[subset], settings, seed=[seed, number], cache=cache, workers=workers
        )
        for number, subset in enumerate(SUBSETS)
    }


def simulate_rooms(
    heads, settings: BinauralRoomConfig, seed=0, cache=None, workers: int | None = None
) -> list[HRIRSet]:
    """Puts heads into rooms; what was simulated once is kept and read again.

    Arguments
    ---------
    heads : list of Head
        All of one rate, with directions all around.
    settings : BinauralRoomConfig
        What the rooms are like.
    seed : int or list of int
        Room i follows from it, i and the head (default 0).
    cache : str or Path, optional
        Folder of the kept file; by default that of the heads. It may be deleted.
    workers : int, optional
        Processes (default: one for each core).

    Returns
    -------
    list of Head
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
    folder = default_cache() if cache is None else Path(cache)
    kept = folder / f"binaural-rooms-{_fingerprint(heads, settings, seed)[:20]}.npz"
    rooms = _read_kept(kept, jobs)
    if rooms is not None:
        return rooms
    simulate = functools.partial(_simulate, settings=settings, seed=seed)
    with process_pool(workers) as run:
        progress = progress_bar(
            run(simulate, enumerate(jobs)), "binaural rooms", len(jobs), "room"
        )
        rooms = list(progress)
    arrays = {
        name: np.stack([getattr(room, name) for room in rooms])
        for name in ("azimuth", "elevation", "filters")
    }
    with atomic_path(kept) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return rooms


def room_filters(head: HRIRSet, place: ShoeboxGeometry, seconds: float) -> np.ndarray:
    """Binaural responses of a room, from each of its sources.

    Arguments
    ---------
    head : Head
        Who listens.
    place : Place
        The room.
    seconds : float
        Length after the direct path.

    Returns
    -------
    np.ndarray
        float32 [D, E, N], with the head's latency; the direct path has the head's gain.

    Example
    -------
    >>> from unified_se_ss.spatial import spherical_head
    >>> size, middle = np.array([6.0, 5.0, 3.0]), np.array([3.0, 2.0, 1.5])
    >>> ahead = middle + [[1.0, 0.0, 0.0]]
    >>> head = spherical_head(8000)
    >>> place = ShoeboxGeometry(size, 0.3, middle, 0.0, np.array([head.nearest(0.0)]), ahead)
    >>> room_filters(head, place, 0.2).shape
    (1, 2, 1689)
    """
    table = _nearest_table(head)
    around = head.evenly_spread()
    coarse = around[_nearest_in(head, around)]
    responses = [
        _response(head, place, source, int(index), seconds, table, coarse)
        for source, index in zip(place.sources, place.indices)
    ]
    high_pass = scipy.signal.butter(
        2, HIGH_PASS, "highpass", fs=head.sample_rate, output="sos"
    )
    return scipy.signal.sosfilt(high_pass, np.stack(responses)).astype(np.float32)


def image_sources(size, reverberation, source, head, farthest):
    """Image sources of a shoebox, seen from the head.

    Arguments
    ---------
    size, source, head : np.ndarray
        Sizes and positions [3] in metres.
    reverberation : float
        RT60 in seconds by Eyring's formula: all walls reflect exp(-12 ln(10) V / (c S
        RT60)) of the amplitude.
    farthest : float
        Metres to which images are followed.

    Returns
    -------
    vectors : np.ndarray
        From the head to each image, in the room's directions, [I, 3]; the source first.
    gains : np.ndarray
        What the walls left of the amplitude, without the distance's share, [I].

    Example
    -------
    >>> size, middle = np.array([4.0, 4.0, 3.0]), np.array([2.0, 2.0, 1.5])
    >>> vectors, gains = image_sources(size, 0.5, middle + [1, 0, 0], middle, 3.5)
    >>> vectors[0].tolist(), float(gains[0])
    ([1.0, 0.0, 0.0], 1.0)
    """
    volume, (length, width, height) = np.prod(size), size
    surface = 2 * (length * width + length * height + width * height)
    decay = 12 * np.log(10) * volume / (SPEED_OF_SOUND * surface * reverberation)
    axes = []
    for extent, at, ear in zip(size, source, head):
        turns = int(np.ceil((farthest + extent) / (2 * extent)))
        n, mirrored = np.meshgrid(np.arange(-turns, turns + 1), [0, 1], indexing="ij")
        offsets = (1 - 2 * mirrored) * at + 2 * n * extent - ear
        reflections = np.abs(n - mirrored) + np.abs(n)
        axes.append((offsets.ravel(), reflections.ravel()))
    squares = [offsets**2 for offsets, _ in axes]
    distance = (
        squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None]
    )
    found = np.nonzero(distance <= farthest**2)
    vectors = np.stack([axes[a][0][found[a]] for a in range(3)], axis=-1)
    reflections = sum(axes[a][1][found[a]] for a in range(3))
    # The source is the only image that met no wall.
    first = int(np.argmin(reflections))
    for values in (vectors, reflections):
        values[[0, first]] = values[[first, 0]]
    return vectors, np.exp(-decay * reflections)


def _response(head, place, source, index, seconds, table, coarse):
    """The response from one source, [E, N] in float64."""
    rate, taps = head.sample_rate, head.filters.shape[-1]
    samples = int(round(seconds * rate))
    nearest = np.linalg.norm(source - place.head)
    followed = min(seconds, FOLLOWED * place.reverberation)
    farthest = nearest + followed * SPEED_OF_SOUND
    vectors, gains = image_sources(
        place.size, place.reverberation, source, place.head, farthest
    )
    distances = np.linalg.norm(vectors, axis=-1)
    arrivals = (distances - nearest) / SPEED_OF_SOUND * rate
    gains = gains * nearest / distances
    azimuth, elevation = from_vector(vectors)
    cells = _cells(azimuth - place.yaw, elevation)
    early = arrivals < EARLY * rate
    directions = table[cells]
    directions[0] = index
    late = coarse[directions]
    response = np.zeros((2, samples + taps))
    for chosen, towards, fractional in ((early, directions, True), (~early, late, False)):
        if chosen.any():
            heard = _heard(
                head, towards[chosen], arrivals[chosen], gains[chosen], fractional
            )
            length = min(heard.shape[-1], response.shape[-1])
            response[:, :length] += heard[:, :length]
    return response[:, : samples + taps]


def _heard(head, directions, arrivals, gains, fractional):
    """Images through the filters of their directions, summed: [E, samples]."""
    used, which = np.unique(directions, return_inverse=True)
    lead = HALF_SINC if fractional else 0
    length = int(arrivals.max()) + 2 * HALF_SINC + 2
    trains = np.zeros(len(used) * length)
    for offset, weights in _taps(arrivals, fractional):
        places = which * length + np.floor(arrivals).astype(int) + offset + lead
        trains += np.bincount(places, weights * gains, minlength=len(trains))
    least = length + head.filters.shape[-1]
    n_fft = 2 * scipy.fft.next_fast_len(-(-least // 2), real=True)
    spectra = scipy.fft.rfft(trains.reshape(len(used), length), n_fft)
    filters = scipy.fft.rfft(head.filters[used].astype(np.float64), n_fft)
    heard = scipy.fft.irfft(np.einsum("df,def->ef", spectra, filters), n_fft)
    return heard[:, lead:]


def _taps(arrivals, fractional):
    """(offset in whole samples, weight of each image) of a delay by a part of a sample."""
    fractions = arrivals - np.floor(arrivals)
    if not fractional:
        yield 0, np.ones_like(arrivals)
        return
    for offset in range(1 - HALF_SINC, HALF_SINC + 1):
        yield offset, windowed_sinc(offset - fractions, HALF_SINC, KAISER_BETA)


def _cells(azimuth, elevation):
    """Where directions stand in the table of `_nearest_table`, [...]."""
    columns = round(360 / GRID)
    column = np.round(azimuth / GRID).astype(int) % columns
    row = np.round((elevation + 90) / GRID).astype(int)
    return row * columns + column


def _nearest_table(head):
    """For directions in steps of 2 degrees, the head's nearest one, [cells]."""
    rows, columns = np.meshgrid(
        np.arange(-90, 90.5, GRID), np.arange(0, 360, GRID), indexing="ij"
    )
    wanted = to_vector(columns.ravel(), rows.ravel())
    return cKDTree(to_vector(head.azimuth, head.elevation)).query(wanted)[1]


def _nearest_in(head, around):
    """For each of the head's directions, the nearest of some, as an index into these."""
    vectors = to_vector(head.azimuth, head.elevation)
    return np.argmax(vectors @ vectors[around].T, axis=1)


def _draw_place(head, settings, rng) -> ShoeboxGeometry:
    """Draws a room, the head in it, and sources in directions of the head."""
    azimuths, elevations = settings.azimuth, settings.elevation
    front = np.flatnonzero(
        (head.azimuth >= azimuths[0])
        & (head.azimuth <= azimuths[1])
        & (head.elevation >= elevations[0])
        & (head.elevation <= elevations[1])
    )
    for _ in range(PLACES_TRIED):
        size = rng.uniform(*np.asarray(settings.sizes, dtype=np.float64))
        margin = settings.wall_distance
        middle = rng.uniform(margin, size - margin)
        yaw = float(rng.uniform(-180, 180))
        indices = rng.permutation(front)
        distances = rng.uniform(*settings.distance, size=len(indices))
        towards = to_vector(head.azimuth[indices] + yaw, head.elevation[indices])
        sources = middle + distances[:, None] * towards
        fits = ((sources >= margin / 2) & (sources <= size - margin / 2)).all(axis=1)
        if fits.sum() >= settings.directions:
            chosen = np.flatnonzero(fits)[: settings.directions]
            reverberation = float(rng.uniform(*settings.reverberation))
            return ShoeboxGeometry(
                size, reverberation, middle, yaw, indices[chosen], sources[chosen]
            )
    raise UserError(
        f"directions: in {PLACES_TRIED} rooms there was no place for "
        f"{settings.directions} sources around {head.name}, which has {len(front)} "
        "directions in that range; give fewer, larger rooms, or smaller distances"
    )


def _simulate(job, *, settings, seed):
    """One room around one head."""
    index, (head, number) = job
    rng = np.random.default_rng([*np.atleast_1d(seed), index])
    place = _draw_place(head, settings, rng)
    return HRIRSet(
        _name(head, number),
        head.sample_rate,
        head.azimuth[place.indices],
        head.elevation[place.indices],
        room_filters(head, place, settings.seconds),
        head.latency,
    )


def _name(head, number):
    """Name of a room around a head."""
    return f"{head.name}-room{number}"


def _read_kept(path, jobs):
    """The rooms that a kept file holds; None if it is missing or spoilt."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rooms = zip(arrays["azimuth"], arrays["elevation"], arrays["filters"])
            return [
                HRIRSet(_name(head, number), head.sample_rate, *room, head.latency)
                for (head, number), room in zip(jobs, rooms, strict=True)
            ]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _fingerprint(heads, settings, seed):
    """Changes with all that the rooms follow from."""
    digest = hashlib.sha256()
    told = [RECIPE, asdict(settings), np.atleast_1d(seed).tolist()]
    digest.update(json.dumps(told).encode())
    digest.update(heads_digest(heads).encode())
    return digest.hexdigest()
