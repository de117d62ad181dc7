"""The HRIR sets that a data set draws from, and fast rendering with them.

Axes: D directions, E ears (left, right), N taps, T samples, J sources.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import scipy.fft

from unified_se_ss.data.cache import digest_of
from unified_se_ss.data.hrtf_files import PATTERN, load_hrirs
from unified_se_ss.errors import UserError
from unified_se_ss.spatial.hrtf import (
    HRIRSet,
    spherical_head,
    spherical_head_hrirs,
    spherical_radii,
)

SUBSETS = ("train", "dev", "test")
SHARES = (27, 9, 9)
"""Of CIPIC's 45 subjects, in training, dev and test of Binaural-WSJ0Mix."""
SPHERE_DIRECTIONS = {
    "train": (np.arange(-90.0, 91.0, 10.0), np.arange(-40.0, 41.0, 20.0)),
    "dev": (np.arange(-85.0, 86.0, 10.0), np.array([-30.0, 30.0])),
    "test": (np.arange(-85.0, 86.0, 10.0), np.array([-10.0, 10.0])),
}
"""Azimuths and elevations of the spheres' directions. All are in front, as a sphere makes
no difference between in front and behind; no subset shares one with another."""

_BLOCK = 16  # lengths of the filter that a block is long, about
_SHORTEST_BLOCK = 2048
_SPECTRA_BYTES = 64 << 20  # of spectra that a bank keeps at most
_DRAWS = 100


def binaural_heads(
    source=None,
    sample_rate: int = 8000,
    seed: int = 0,
    shares=SHARES,
    cache=None,
    pattern: str = PATTERN,
    positive: str = "left",
) -> dict[str, list[HRIRSet]]:
    """HRIR sets for training, dev and test; no listener is in two of them.

    Arguments
    ---------
    source : str or Path, optional
        Measured heads as `load_hrirs` reads them: a folder of SOFA files, CIPIC's
        `wav_database`, folders of azimuth wavs (also of room responses). By default
        spheres of as many radii as the shares add up to, of which dev and test have
        directions of their own too (`SPHERE_DIRECTIONS`).
    sample_rate : int
        In Hz (default 8000).
    seed, shares
        As for `split_hrirs`.
    cache, pattern, positive
        As for `load_hrirs`.

    Returns
    -------
    dict
        `train`, `dev`, `test`: lists of HRIRSet.

    Raises
    ------
    UserError
        If there are no heads, too few of them, or bad ones.

    Example
    -------
    >>> hrirs = binaural_heads(shares=(3, 1, 1))
    >>> [len(hrirs[subset]) for subset in SUBSETS], len(hrirs["test"][0])
    ([3, 1, 1], 36)
    """
    if source is not None:
        heads = load_hrirs(source, sample_rate, cache, pattern, positive)
        return split_hrirs(heads, shares, seed)
    # The split depends on the names alone: one direction of every sphere will do.
    spheres = spherical_head_hrirs(sum(shares), sample_rate, azimuth=0.0)
    radius = {h.name: r for h, r in zip(spheres, spherical_radii(len(spheres)))}
    found = {}
    for subset, chosen in split_hrirs(spheres, shares, seed).items():
        grid = np.meshgrid(*SPHERE_DIRECTIONS[subset], indexing="ij")
        azimuth, elevation = (angles.ravel() for angles in grid)
        found[subset] = [
            spherical_head(sample_rate, azimuth, elevation, radius[sphere.name])
            for sphere in chosen
        ]
    return found


def split_hrirs(hrirs, shares=SHARES, seed: int = 0) -> dict[str, list[HRIRSet]]:
    """Split HRIR sets, so that no listener of training is in dev or test.

    Arguments
    ---------
    hrirs : list of HRIRSet
        With distinct names; their order does not matter.
    shares : tuple of int
        How many parts go to train, dev and test (default 27, 9, 9).
    seed : int
        Decides, with the names alone, who goes where (default 0).

    Returns
    -------
    dict
        `train`, `dev`, `test`: lists sorted by name. Every subset whose share is not 0
        has at least one; a UserError if there are too few for that.

    Example
    -------
    >>> parts = split_hrirs(spherical_head_hrirs(5, 8000), shares=(3, 1, 1))
    >>> [len(parts[name]) for name in SUBSETS]
    [3, 1, 1]
    """
    wanted = sum(share > 0 for share in shares)
    if len(hrirs) < wanted:
        parted = f"{len(hrirs)} head(s) cannot be parted into {wanted} disjoint subsets"
        raise UserError(f"{parted}; give more heads, or use the spherical ones")
    by_name = sorted(hrirs, key=lambda one: one.name)
    order = np.random.default_rng(seed).permutation(len(hrirs))
    ends = np.cumsum(_apportioned(len(hrirs), shares))
    return {
        subset: [by_name[i] for i in sorted(part)]
        for subset, part in zip(SUBSETS, np.split(order, ends[:-1]))
    }


def hrirs_digest(hrirs) -> str:
    """A fingerprint of HRIR sets: it changes with any name, direction and filter."""
    parts = []
    for one in hrirs:
        parts += [[one.name, one.sample_rate, one.latency]]
        parts += [one.azimuth, one.elevation, one.filters]
    return digest_of(*parts)


class Placement(NamedTuple):
    """A listener, and where its talkers are: indices of a bank's HRIR set and directions."""

    head: int
    directions: tuple[int, ...]


class HRTFBank:
    """HRIR sets of one sampling rate, a UserError if it is not one; with fast rendering.

    A signal is filtered in blocks (overlap-save), whose short spectra stay in the
    processor's cache: many times faster than one transform of the whole signal.

    Example
    -------
    >>> bank = HRTFBank([spherical_head(8000)])
    >>> left = bank.hrirs[0].nearest(90.0)
    >>> ears = bank.render_binaural(np.sin(np.arange(800) / 9).astype(np.float32), 0, left)
    >>> bool(np.abs(ears[0]).max() > np.abs(ears[1]).max())
    True
    """

    def __init__(self, hrirs):
        self.hrirs = list(hrirs)
        rates = sorted({one.sample_rate for one in self.hrirs})
        if len(rates) != 1:
            raise UserError(f"the heads have {rates} Hz; heads of one rate were expected")
        self.sample_rate = rates[0]
        self._vectors = [one.vectors for one in self.hrirs]
        self._around = {}
        self._spectra = OrderedDict()
        self._bytes = 0

    def place(self, rng, n_sources: int, least_angle: float = 0.0) -> Placement:
        """Draw a listener, and a direction for each source.

        Any two directions differ, by `least_angle` degrees at least; a UserError if in 100
        draws there was no place for all sources.

        Example
        -------
        >>> bank = HRTFBank(binaural_heads(shares=(3, 1, 1))["train"])
        >>> placement = bank.place(np.random.default_rng(0), 2, least_angle=30.0)
        >>> 0 <= placement.head < 3, len(placement.directions)
        (True, 2)
        """
        for _ in range(_DRAWS):
            head = int(rng.integers(len(self.hrirs)))
            vectors = self._vectors[head]
            free = np.ones(len(vectors), dtype=bool)
            drawn = []
            while len(drawn) < n_sources and free.any():
                drawn.append(int(rng.choice(np.flatnonzero(free))))
                cosines = vectors @ vectors[drawn[-1]]
                free &= cosines <= np.cos(np.radians(least_angle)) + 1e-9
                free[drawn[-1]] = False
            if len(drawn) == n_sources:
                return Placement(head, tuple(drawn))
        where = f"{n_sources} talkers around {self.hrirs[0].name}"
        raise UserError(f"least_angle: {least_angle} degrees leave no place for {where}")

    def direction(self, head: int, direction: int) -> tuple[float, float]:
        """Azimuth and elevation in degrees."""
        chosen = self.hrirs[head]
        return float(chosen.azimuth[direction]), float(chosen.elevation[direction])

    def render_binaural(self, signal, head: int, direction: int) -> np.ndarray:
        """A source [T] from a direction at both ears, float32 [E, T], as loud as it was.

        Without the latency and what rings on after the end. Both ears' energy together is
        twice that of the signal, as in Binaural-WSJ0Mix: a direction makes nobody louder.
        """
        chosen = self.hrirs[head]
        spectra = self._spectra_of(head, direction)
        overlap, samples = chosen.filters.shape[-1] - 1, len(signal)
        n_fft = 2 * (spectra.shape[-1] - 1)
        step = n_fft - overlap
        wanted = samples + chosen.latency
        count = -(-wanted // step)
        padded = np.zeros(count * step + overlap, dtype=np.float32)
        padded[overlap : overlap + samples] = signal
        blocks = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::step]
        ears = scipy.fft.irfft(scipy.fft.rfft(blocks) * spectra[:, None], n_fft)
        ears = ears[..., overlap:].reshape(2, -1)[:, chosen.latency : wanted]
        return _as_loud(np.ascontiguousarray(ears), signal)

    def render_diffuse(self, noise, head: int, rng) -> np.ndarray:
        """A noise from everywhere at once, different at each ear.

        From each of up to 64 directions, spread evenly over the sphere, comes the same
        noise [T] at another time that `rng` draws (turned around its end), so the ears'
        coherence is that of this head in a diffuse field. float32 [E, T], whose energy
        together is twice that of the noise.

        Example
        -------
        >>> rng = np.random.default_rng(0)
        >>> bank = HRTFBank(binaural_heads(shares=(1, 1, 1))["train"])
        >>> noise = rng.standard_normal(16000).astype(np.float32)
        >>> bool(abs(np.corrcoef(bank.render_diffuse(noise, 0, rng))[0, 1]) < 0.5)
        True
        """
        filters = self.hrirs[head].filters
        if head not in self._around:
            self._around[head] = self.hrirs[head].evenly_spread()
        around = self._around[head]
        samples = len(noise)
        # All of it is one filter, as long as the noise and circular like its turning.
        field = np.zeros((2, samples), dtype=np.float32)
        for direction, start in zip(around, rng.integers(samples, size=len(around))):
            taps = filters[direction, :, :samples]
            first = min(taps.shape[1], samples - start)
            field[:, start : start + first] += taps[:, :first]
            field[:, : taps.shape[1] - first] += taps[:, first:]
        spectra = scipy.fft.rfft(field) * scipy.fft.rfft(noise)
        return _as_loud(scipy.fft.irfft(spectra, samples), noise)

    def _spectra_of(self, head, direction):
        """Spectra of a direction's filters, [E, F]; those not used for longest are dropped."""
        key = head, direction
        if key in self._spectra:
            self._spectra.move_to_end(key)
            return self._spectra[key]
        filters = self.hrirs[head].filters[direction].astype(np.float32, copy=False)
        least = max(_SHORTEST_BLOCK, _BLOCK * filters.shape[-1])
        self._spectra[key] = spectra = scipy.fft.rfft(
            filters, 1 << (least - 1).bit_length()
        )
        self._bytes += spectra.nbytes
        while self._bytes > _SPECTRA_BYTES and len(self._spectra) > 1:
            self._bytes -= self._spectra.popitem(last=False)[1].nbytes
        return spectra

    def __getstate__(self):
        """To another process go the HRIR sets, not the spectra."""
        return {**self.__dict__, "_spectra": OrderedDict(), "_bytes": 0}


def _apportioned(total, shares):
    """Whole numbers in the proportion of the shares, at least 1 where a share is not 0."""
    exact = np.array(shares, dtype=np.float64) * total / sum(shares)
    counts = np.where(exact > 0, np.maximum(1, np.floor(exact)), 0).astype(int)
    while counts.sum() < total:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts.tolist()


def _as_loud(ears, signal):
    """Ears [E, T] whose energy together is twice that of the signal [T]."""
    energy = float(np.vdot(ears, ears))
    if energy == 0.0:
        return ears
    return ears * np.float32(np.sqrt(2 * float(np.vdot(signal, signal)) / energy))
