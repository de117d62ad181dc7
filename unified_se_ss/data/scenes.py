"""Simulated scenes: a room, a target that talks, an interferer, and noise.

Axes: C microphones, K responses, T samples, R samples of a response.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch

from unified_se_ss.data.dataset import as_item_key, check_segment
from unified_se_ss.data.guided import MicBeamExample
from unified_se_ss.data.manifest import Manifest
from unified_se_ss.data.mixing import PEAK, SOURCE_LUFS
from unified_se_ss.data.pools import NoisePool, SpeechPool
from unified_se_ss.data.rooms import RoomBank
from unified_se_ss.errors import UserError


class SceneDataset(torch.utils.data.Dataset, ABC):
    """Items of one length, each simulated from (seed, epoch, index) alone.

    Arguments
    ---------
    rooms : RoomBank
        As `prepare_room_bank` makes it; its settings give the sample rate.
    speech : Manifest
        As `prepare_speech_folder` writes it; two speakers at least. Rooms and speakers
        of training, validation and test are to be others.
    noise : Manifest
        Likewise, of kind "noise".
    n_items : int
        In an epoch.
    segment_seconds : float
        Length of an item.
    seed : int
        Default 0.
    levels : pair
        LUFS between which the target's loudness is drawn (default -33 to -25, as
        LibriMix has it).
    resample : bool
        Whether recordings of other rates are resampled (default False: an error).
    components : bool
        Whether items tell what speech, interferer and noise contribute (default False).

    Raises
    ------
    UserError
        If a manifest lacks something, or a value cannot be used.
    """

    def __init__(
        self,
        rooms: RoomBank,
        speech: Manifest,
        noise: Manifest,
        n_items: int,
        segment_seconds: float,
        seed: int = 0,
        levels: tuple = SOURCE_LUFS,
        resample: bool = False,
        components: bool = False,
    ):
        if segment_seconds is None:
            raise UserError("segment_seconds: must be set where scenes are simulated")
        check_segment(segment_seconds)
        if n_items < 1:
            raise UserError(f"n_items: is {n_items}, but a whole number from 1 is expected")
        if not rooms.settings.interferers or not rooms.settings.noises:
            raise UserError(
                f"{rooms.path}: its rooms have {rooms.settings.interferers} interferer(s) "
                f"and {rooms.settings.noises} noise(s), but one of each is needed"
            )
        self.rooms = rooms
        self.sample_rate = rooms.settings.sample_rate
        self.talkers = SpeechPool(speech, self.sample_rate, resample, least=2)
        self.noises = NoisePool(noise, self.sample_rate, resample)
        self.n_items = n_items
        self.segment_seconds = float(segment_seconds)
        self.seed = seed
        self.levels = checked_range("levels", levels)
        self.components = components

    @property
    def durations(self) -> list[float]:
        """Seconds of each item."""
        return [self.segment_seconds] * self.n_items

    @property
    def length(self) -> int:
        """Samples T of an item."""
        return round(self.segment_seconds * self.sample_rate)

    @property
    def lead(self) -> int:
        """Samples before an item's first one that are still heard in it, R - 1."""
        return self.rooms.settings.record()["responses"].shape[-1] - 1

    def __len__(self) -> int:
        return self.n_items

    def __getitem__(self, key) -> MicBeamExample:
        key = as_item_key(key)
        if not 0 <= key.index < self.n_items:
            raise IndexError(key.index)
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        return self._example(rng, key.index)

    @abstractmethod
    def _example(self, rng: np.random.Generator, index: int) -> MicBeamExample:
        """The item that follows from a generator; its number names it."""


def power(signal: np.ndarray) -> float:
    """Mean square of a signal.

    Example
    -------
    >>> power(np.array([1.0, -3.0]))
    5.0
    """
    return float(np.mean(np.square(signal, dtype=np.float64)))


def gain_between(wanted: float, present: float) -> float:
    """Factor that gives a signal of power `present` the power `wanted`.

    1 where one of them is silent, for which there is no factor.

    Example
    -------
    >>> gain_between(4.0, 1.0), gain_between(1.0, 0.0)
    (2.0, 1.0)
    """
    return math.sqrt(wanted / present) if wanted > 0 and present > 0 else 1.0


def decibels(numerator: float, denominator: float) -> float:
    """Ratio of two powers in dB; NaN where one of them is zero.

    Example
    -------
    >>> decibels(10.0, 1.0), decibels(1.0, 0.0)
    (10.0, nan)
    """
    if numerator <= 0 or denominator <= 0:
        return math.nan
    return 10 * math.log10(numerator / denominator)


def guarded(signals: list[np.ndarray], peak: float = PEAK) -> float:
    """The common factor, at most 1, that keeps all signals within a peak.

    Arguments
    ---------
    signals : list of np.ndarray
        Of any shapes.
    peak : float
        Largest absolute sample (default 0.9).

    Returns
    -------
    float

    Example
    -------
    >>> guarded([np.array([0.1, -1.8])])
    0.5
    """
    top = max(float(np.abs(signal).max(initial=0.0)) for signal in signals)
    return min(1.0, peak / top) if top else 1.0


def checked_range(name: str, values) -> tuple[float, float]:
    """Two numbers, the first no larger than the second, or a UserError."""
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: is {values!r}, but two numbers are expected") from error
    if not low <= high:
        raise UserError(f"{name}: from {low} to {high}, but the first is to be less")
    return low, high


def checked_share(name: str, value: float) -> float:
    """A number from 0 to 1, or a UserError."""
    if not 0 <= value <= 1:
        raise UserError(f"{name}: is {value}, but a number from 0 to 1 is expected")
    return float(value)
