"""Simulated scenes: a room, a target that talks, an interferer, and noise.

Axes: C microphones, K responses, T samples, R samples of a response, 2 inputs (0 raw,
1 beamformed).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data.dataset import SimulatedDataset, as_item_key
from unified_se_ss.data.guided import MicBeamExample
from unified_se_ss.data.manifest import Manifest
from unified_se_ss.data.mixing import (
    SOURCE_LUFS,
    checked_range,
    checked_share,
    decibels,
    peak_gain,
    power,
    power_gain,
)
from unified_se_ss.data.pools import NoisePool, SpeechPool
from unified_se_ss.data.rooms import Room, RoomBank
from unified_se_ss.errors import UserError
from unified_se_ss.spatial import BeamformerFrontend, convolve_rir


class SceneDataset(SimulatedDataset):
    """Items of one length in rooms, each simulated from (seed, epoch, index) alone.

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
        super().__init__(n_items, segment_seconds, rooms.settings.sample_rate, seed)
        if not rooms.settings.interferers or not rooms.settings.noises:
            raise UserError(
                f"{rooms.path}: its rooms have {rooms.settings.interferers} interferer(s) "
                f"and {rooms.settings.noises} noise(s), but one of each is needed"
            )
        self.rooms = rooms
        self.speech = SpeechPool(speech, self.sample_rate, resample, least=2)
        self.noise = NoisePool(noise, self.sample_rate, resample)
        self.levels = checked_range("levels", levels)
        self.components = components

    @property
    def lead(self) -> int:
        """Samples before an item's first one that still sound in it, R - 1."""
        return self.rooms.settings.record()["responses"].shape[-1] - 1


class ArrayScene(NamedTuple):
    """What every microphone records of speech, interferer and noise.

    name : of the item; images : float32 [3, C, T], their sum is the recording; target :
    float32 [T], the direct path to the first microphone; room : where it is;
    conditions : as those of the example.
    """

    name: str
    images: np.ndarray
    target: np.ndarray
    room: Room
    conditions: dict


class ArrayDataset(SceneDataset):
    """Items of a simulated array, whose guide is the output of a beamformer.

    Interferer and noise are there from the beginning; the target speaks after a
    stretch in which beamformers learn them. The raw input is the first microphone, the
    target the speech on its direct path to it.

    Arguments
    ---------
    *scene, **options
        As for `SceneDataset`.
    guide : BeamformerFrontend
        Makes the beamformed input. Data sets that differ in it alone have the same
        scenes.
    sir_db : pair
        Speech to interferer in dB at the first microphone, with all reflections, while
        the target speaks: uniform between these (default -5 to 10; inferred).
    snr_db : pair
        Speech to noise, likewise (default 0 to 20; inferred).
    interferer_probability : float
        Default 1.0.
    quiet_seconds : float
        Without target at the beginning (default 0.5).
    noise_points : int
        From so many places comes the noise, each with a stretch of its own (default 1).
    microphones : bool
        Whether items hold all microphones' signals (default False).

    Returns
    -------
    An item is a `MicBeamExample`, with the conditions of `PairedRIRDataset`.
    """

    def __init__(
        self,
        *scene,
        guide: BeamformerFrontend,
        sir_db: tuple = (-5.0, 10.0),
        snr_db: tuple = (0.0, 20.0),
        interferer_probability: float = 1.0,
        quiet_seconds: float = 0.5,
        noise_points: int = 1,
        microphones: bool = False,
        **options,
    ):
        super().__init__(*scene, **options)
        self.guide = guide
        self.sir_db = checked_range("sir_db", sir_db)
        self.snr_db = checked_range("snr_db", snr_db)
        self.interferer_probability = checked_share(
            "interferer_probability", interferer_probability
        )
        self.quiet_seconds = float(quiet_seconds)
        self.noise_points = noise_points
        self.microphones = microphones
        self._positions = torch.tensor(self.rooms.settings.microphones)
        self._check()

    def scene(self, key) -> ArrayScene:
        """The scene of an item, before any beamformer."""
        key = as_item_key(key)
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        return self._scene(rng, key.index)

    def _scene(self, rng, index) -> ArrayScene:
        """Draw a scene: levels, room, speech, noise, interferer, in this order."""
        sir, snr = rng.uniform(*self.sir_db), rng.uniform(*self.snr_db)
        is_there = rng.uniform() < self.interferer_probability
        room = self.rooms.draw(rng)
        target, interferer = self.speech.draw_speakers(rng, 2)
        level = rng.uniform(*self.levels)
        length = self.lead + self.length
        quiet = round(self.quiet_seconds * self.sample_rate)
        speech = np.zeros(length, dtype=np.float32)
        speech[self.lead + quiet :], name = self.speech.sample(
            rng, target, self.length - quiet, level
        )
        at_target = convolve_rir(speech, _with_direct(room), self.lead)
        noise, noise_name = self.noise.sample(rng, length, count=self.noise_points)
        image_of_noise = sum(
            convolve_rir(source, responses, self.lead)
            for source, responses in zip(noise, room.noises)
        )
        names, image_of_other = [name, noise_name], np.zeros_like(image_of_noise)
        if is_there:
            other, other_name = self.speech.sample(rng, interferer, length, level)
            image_of_other = convolve_rir(other, room.interferers[0], self.lead)
            names.insert(1, other_name)
        images = np.stack([at_target[:-1], image_of_other, image_of_noise])
        images = _at_ratios(images, quiet, sir, snr)
        recorded = images.sum(axis=0)
        factor = np.float32(peak_gain([recorded, at_target[-1]]))
        return ArrayScene(
            f"{index:06d}_{'_'.join(names)}",
            factor * images,
            factor * at_target[-1],
            room,
            {
                "angle": room.interferer_angle,
                "reverberation": room.reverberation,
                **ratios(images[:, 0, quiet:]),
            },
        )

    def _example(self, rng, index):
        scene = self._scene(rng, index)
        images = torch.from_numpy(scene.images)
        beamformed = self.guide.of_parts(
            images,
            self._positions,
            torch.from_numpy(scene.room.target_position),
            target=images[0],
            noise=images[1:].sum(0),
        )
        parts = torch.stack([images[:, 0], beamformed], dim=1)
        quiet = round(self.quiet_seconds * self.sample_rate)
        reached = ratios(parts[:, 1, quiet:].numpy())
        return MicBeamExample(
            scene.name,
            inputs=parts.sum(0),
            target=torch.from_numpy(scene.target),
            components=parts if self.components else None,
            microphones=images.sum(0) if self.microphones else None,
            conditions={
                **scene.conditions,
                **{f"{name}_beamformed": value for name, value in reached.items()},
            },
        )

    def _check(self) -> None:
        """Raise a UserError for a value that cannot be used."""
        if not 0 <= self.quiet_seconds < self.segment_seconds:
            raise UserError(
                f"quiet_seconds: is {self.quiet_seconds}, but the target has to speak in "
                f"items of {self.segment_seconds} s (segment_seconds)"
            )
        if self.guide.needs_context and self.guide.context_seconds > self.quiet_seconds:
            raise UserError(
                f"quiet_seconds: is {self.quiet_seconds}, but the guide learns the noise "
                f"for {self.guide.context_seconds} s (context_seconds); give it no more"
            )
        if self.guide.sample_rate != self.sample_rate:
            raise UserError(
                f"guide: is for {self.guide.sample_rate} Hz, but the rooms of "
                f"{self.rooms.path} are of {self.sample_rate} Hz"
            )
        if not 1 <= self.noise_points <= self.rooms.settings.noises:
            raise UserError(
                f"noise_points: is {self.noise_points}, but the rooms of "
                f"{self.rooms.path} have {self.rooms.settings.noises} noise(s)"
            )


class RandomChoiceDataset(torch.utils.data.Dataset):
    """Each item from one of two data sets, by chance.

    Arguments
    ---------
    contrast, arrays : Dataset
        Of as many items each; the item's number is the same in both.
    array_share : float
        Probability of the second, 0 to 1 (default 0.5).
    seed : int
        Default 0.
    """

    def __init__(self, contrast, arrays, array_share: float = 0.5, seed: int = 0):
        if len(contrast) != len(arrays):
            raise UserError(
                f"n_items: {len(contrast)} by contrast and {len(arrays)} of arrays, but as "
                "many are needed"
            )
        pairs = zip(contrast.durations, arrays.durations, strict=True)
        self.durations, self.seed = [max(pair) for pair in pairs], seed
        self.array_share = checked_share("array_share", array_share)
        self.sample_rate = contrast.sample_rate
        self.contrast, self.arrays = contrast, arrays

    def __len__(self) -> int:
        return len(self.durations)

    def __getitem__(self, key) -> MicBeamExample:
        key = as_item_key(key)
        # The third number keeps this draw apart from those of the items.
        rng = np.random.default_rng([self.seed, key.epoch, key.index, 1])
        chosen = self.arrays if rng.uniform() < self.array_share else self.contrast
        return chosen[key]


def _with_direct(room: Room) -> np.ndarray:
    direct = np.zeros_like(room.target[:1])
    direct[0, : room.direct.shape[-1]] = room.direct[0]
    return np.concatenate([room.target, direct])


def _at_ratios(images: np.ndarray, quiet: int, sir: float, snr: float) -> np.ndarray:
    speech, *others = (power(image[0, quiet:]) for image in images)
    factors = [
        power_gain(speech * 10 ** (-ratio / 10), other)
        for ratio, other in zip((sir, snr), others, strict=True)
    ]
    return images * np.array([1.0, *factors], dtype=images.dtype)[:, None, None]


def ratios(parts: np.ndarray) -> dict:
    """Speech to interferer and to noise in dB, of speech, interferer and noise [3, T]."""
    speech, interferer, noise = map(power, parts)
    return {"sir": decibels(speech, interferer), "snr": decibels(speech, noise)}
