"""Who listens, from where it sounds, and what both ears hear of it; fast.

Axes: D directions, E ears (left, right), N taps, T samples, J sources.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import scipy.fft

from unified_se_ss.data.hrirs import PATTERN, load_hrirs, split_hrirs
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

BLOCK = 16  # lengths of the filter that a block is long, about
SHORTEST_BLOCK = 2048
SPECTRA_BYTES = 64 << 20  # of spectra that a bank keeps at most
DRAWS = 100


class Placement(NamedTuple):
    """A listener, and where its talkers are: indices of a bank's head and directions."""

    head: int
    directions: tuple[int, ...]


def binaural_heads(
    source=None,
    sample_rate: int = 8000,
    seed: int = 0,
    shares=SHARES,
    cache=None,
    pattern: str = PATTERN,
    positive: str = "left",
) -> dict[str, list[HRIRSet]]:
    """Heads for training, dev and test; nobody is in two of them.

    Arguments
    ---------
    source : str or Path, optional
        Measured heads as `load_hrirs` reads them: a folder of SOFA files, CIPIC's
        `wav_database`, folders of azimuth wavs (also of room responses). By default
        spheres of as many radii as the shares add up to, of which dev and test have
        directions of their own too (`SPHERE_DIRECTIONS`).
    sample_rate : int
        In Hz (default 8000).
    seed : int
        Decides, with the names alone, who goes where (default 0).
    shares : tuple of int
        How many parts go to train, dev and test (default 27, 9, 9).
    cache, pattern, positive
        As for `load_hrirs`.

    Returns
    -------
    dict
        `train`, `dev`, `test`: lists of Head.

    Raises
    ------
    UserError
        If there are no heads, too few of them, or bad ones.

    Example
    -------
    >>> heads = binaural_heads(shares=(3, 1, 1))
    >>> [len(heads[subset]) for subset in SUBSETS], len(heads["test"][0])
    ([3, 1, 1], 36)
    """
    if source is not None:
        heads = load_hrirs(source, sample_rate, cache, pattern, positive)
        return split_hrirs(heads, shares, seed)
    # Who goes where depends on the names alone: one direction of everybody will do.
    everyone = spherical_head_hrirs(sum(shares), sample_rate, azimuth=0.0)
    radius = {h.name: r for h, r in zip(everyone, spherical_radii(len(everyone)))}
    heads = {}
    for subset, chosen in split_hrirs(everyone, shares, seed).items():
        azimuth, elevation = (
            grid.ravel() for grid in np.meshgrid(*SPHERE_DIRECTIONS[subset], indexing="ij")
        )
        heads[subset] = [
            spherical_head(sample_rate, azimuth, elevation, radius[head.name])
            for head in chosen
        ]
    return heads


class HRTFBank:
    """Heads of one sampling rate, with the spectra of the filters used last at hand.

    A signal is filtered in blocks (overlap-save), so that the spectra are short and stay
    in the processor's cache: many times faster than one transform of the whole signal.

    Arguments
    ---------
    heads : list of Head
        At least one.

    Raises
    ------
    UserError
        If there are none, or their rates differ.

    Example
    -------
    >>> bank = HRTFBank(binaural_heads(shares=(1, 1, 1))["train"])
    >>> left = bank.heads[0].nearest(90.0)
    >>> ears = bank.render_binaural(np.sin(np.arange(800) / 9).astype(np.float32), 0, left)
    >>> bool(np.abs(ears[0]).max() > np.abs(ears[1]).max())
    True
    """

    def __init__(self, heads):
        self.heads = list(heads)
        rates = sorted({head.sample_rate for head in self.heads})
        if len(rates) != 1:
            raise UserError(
                f"the heads have the sampling rates {rates} Hz; heads of one rate were "
                "expected"
            )
        self.sample_rate = rates[0]
        self._vectors = [head.vectors for head in self.heads]
        self._around = {}
        self._spectra = OrderedDict()
        self._bytes = 0

    def place(self, rng, n_sources: int, least_angle: float = 0.0) -> Placement:
        """Draws a head, and a direction for each source.

        Arguments
        ---------
        rng : np.random.Generator
            All that decides.
        n_sources : int
            J
        least_angle : float
            Degrees between any two directions at least (default 0, but no direction
            comes twice).

        Returns
        -------
        Placement

        Raises
        ------
        UserError
            If in 100 draws there was no place for all sources.

        Example
        -------
        >>> bank = HRTFBank(binaural_heads(shares=(3, 1, 1))["train"])
        >>> placement = bank.place(np.random.default_rng(0), 2, least_angle=30.0)
        >>> 0 <= placement.head < 3, len(placement.directions)
        (True, 2)
        """
        for _ in range(DRAWS):
            head = int(rng.integers(len(self.heads)))
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
        raise UserError(
            f"least_angle: {least_angle} degrees leave no place for {n_sources} talkers "
            f"around {self.heads[0].name}; give less, or heads of more directions"
        )

    def direction(self, head: int, direction: int) -> tuple[float, float]:
        """Azimuth and elevation in degrees."""
        chosen = self.heads[head]
        return float(chosen.azimuth[direction]), float(chosen.elevation[direction])

    def render_binaural(self, signal, head: int, direction: int) -> np.ndarray:
        """A sound from a direction, as both ears hear it, as loud as it was.

        Arguments
        ---------
        signal : np.ndarray
            float32 [T]; silence before it is taken for granted.
        head, direction : int
            Indices into the bank and the head.

        Returns
        -------
        np.ndarray
            float32 [E, T], without the head's latency and without what rings on after
            the end. Both ears' energy together is twice that of the signal, as in
            Binaural-WSJ0Mix: a direction makes nobody louder than others.
        """
        heard = self._filtered(signal, head, direction)
        return _as_loud(heard, signal)

    def render_diffuse(self, noise, head: int, rng) -> np.ndarray:
        """A noise that comes from everywhere at once: diffuse, other at each ear.

        From each of up to 64 directions, spread evenly over the sphere, comes the same
        noise at another time (turned around its end), and so the ears agree no more and
        no less than this head's do in a diffuse field.

        Arguments
        ---------
        noise : np.ndarray
            float32 [T]
        head : int
            Index into the bank.
        rng : np.random.Generator
            Draws the times.

        Returns
        -------
        np.ndarray
            float32 [E, T]; both ears' energy together is twice that of the noise.

        Example
        -------
        >>> rng = np.random.default_rng(0)
        >>> bank = HRTFBank(binaural_heads(shares=(1, 1, 1))["train"])
        >>> noise = rng.standard_normal(16000).astype(np.float32)
        >>> bool(abs(np.corrcoef(bank.render_diffuse(noise, 0, rng))[0, 1]) < 0.5)
        True
        """
        filters = self.heads[head].filters
        if head not in self._around:
            self._around[head] = self.heads[head].evenly_spread()
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

    def _filtered(self, signal, head, direction):
        """Overlap-save in blocks: [E, T] of a signal [T]."""
        chosen = self.heads[head]
        spectra = self._spectra_of(head, direction)
        overlap, samples = chosen.filters.shape[-1] - 1, len(signal)
        n_fft = 2 * (spectra.shape[-1] - 1)
        step = n_fft - overlap
        wanted = samples + chosen.latency
        count = -(-wanted // step)
        padded = np.zeros(count * step + overlap, dtype=np.float32)
        padded[overlap : overlap + samples] = signal
        blocks = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::step]
        heard = scipy.fft.irfft(scipy.fft.rfft(blocks) * spectra[:, None], n_fft)
        heard = heard[..., overlap:].reshape(2, -1)
        return np.ascontiguousarray(heard[:, chosen.latency : wanted])

    def _spectra_of(self, head, direction):
        """Spectra of a direction's filters, [E, F]; those not used for longest are dropped."""
        key = head, direction
        if key in self._spectra:
            self._spectra.move_to_end(key)
            return self._spectra[key]
        filters = self.heads[head].filters[direction].astype(np.float32, copy=False)
        least = max(SHORTEST_BLOCK, BLOCK * filters.shape[-1])
        spectra = scipy.fft.rfft(filters, 1 << (least - 1).bit_length())
        self._spectra[key] = spectra
        self._bytes += spectra.nbytes
        while self._bytes > SPECTRA_BYTES and len(self._spectra) > 1:
            self._bytes -= self._spectra.popitem(last=False)[1].nbytes
        return spectra

    def __getstate__(self):
        """To another process go the heads, not the spectra."""
        return {**self.__dict__, "_spectra": OrderedDict(), "_bytes": 0}


def heads_digest(heads) -> str:
    """A fingerprint of heads: it changes with any name, direction and filter.

    Arguments
    ---------
    heads : list of Head

    Returns
    -------
    str
        SHA-256 in hexadecimal.

    Example
    -------
    >>> from unified_se_ss.spatial import spherical_head_hrirs
    >>> heads_digest(spherical_head_hrirs(2, 8000)) == heads_digest(spherical_head_hrirs(3, 8000))
    False
    """
    digest = hashlib.sha256()
    for head in heads:
        told = json.dumps([head.name, head.sample_rate, head.latency, len(head)])
        digest.update(told.encode())
        for values in (head.azimuth, head.elevation, head.filters):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _as_loud(heard, signal):
    """Ears [E, T] whose energy together is twice that of the signal [T]."""
    energy = float(np.vdot(heard, heard))
    if energy == 0.0:
        return heard
    return heard * np.float32(np.sqrt(2 * float(np.vdot(signal, signal)) / energy))
