"""Simulated scenes: a room, a target that talks, an interferer, and noise.

A guided network learns from arrays with a beamformer (`ArrayDataset`), or from two inputs
that differ as a microphone and a beamformer do (`PairedRIRDataset`). Of a source j (0
target, 1 noise, 2 interferer), r_jk is the response to the input in role k (0
beamformed, 1 raw); s, n and i are speech, noise and interfering speech:

    y_beam = s * r_00 + g_n n * r_10 + pi g_i i * r_20
    y_raw  = s * r_01 + alpha g_n n * r_11 + beta pi g_i i * r_21
    target = s * direct path of r_00

Source: Yang et al., "Guided speech enhancement network", ICASSP 2023, arXiv 2303.07486.

Axes: C microphones, K responses, T samples, R samples of a response, 2 inputs (0 raw,
1 beamformed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data import mixing
from unified_se_ss.data.dataset import ItemKey, SimulatedDataset
from unified_se_ss.data.guided import MicBeamExample
from unified_se_ss.data.manifest import Manifest
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
        levels: tuple = mixing.SOURCE_LUFS,
        resample: bool = False,
        components: bool = False,
    ):
        super().__init__(n_items, segment_seconds, rooms.settings.sample_rate, seed)
        if not rooms.settings.interferers or not rooms.settings.noises:
            needed = "rooms with an interferer and a noise are needed"
            raise UserError(f"{rooms.path}: interferers or noises is 0; {needed}")
        self.rooms = rooms
        self.speech = SpeechPool(speech, self.sample_rate, resample, least=2)
        self.noise = NoisePool(noise, self.sample_rate, resample)
        self.levels = mixing.checked_range("levels", levels)
        self.components = components

    @property
    def lead(self) -> int:
        """Samples before an item's first one that still sound in it, R - 1."""
        return self.rooms.settings.record()["responses"].shape[-1] - 1

    def _talk(self, rng, speaker, level, responses):
        """A speaker's speech through responses [K, R], and the recording's name."""
        speech, name = self.speech.sample(rng, speaker, self.lead + self.length, level)
        return convolve_rir(speech, responses, self.lead), name


class _ArrayScene(NamedTuple):
    """Speech, interferer and noise as every microphone records them.

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
        **options,
    ):
        super().__init__(*scene, **options)
        self.guide = guide
        self.sir_db = mixing.checked_range("sir_db", sir_db)
        self.snr_db = mixing.checked_range("snr_db", snr_db)
        share = mixing.checked_share("interferer_probability", interferer_probability)
        self.interferer_probability = share
        self.quiet_seconds = float(quiet_seconds)
        self._positions = torch.tensor(self.rooms.settings.microphones)
        self._check()

    def _scene(self, rng, index) -> _ArrayScene:
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
        (noise,), noise_name = self.noise.sample(rng, length)
        image_of_noise = convolve_rir(noise, room.noises[0], self.lead)
        names, image_of_other = [name, noise_name], np.zeros_like(image_of_noise)
        if is_there:
            image_of_other, other = self._talk(rng, interferer, level, room.interferers[0])
            names.insert(1, other)
        images = np.stack([at_target[:-1], image_of_other, image_of_noise])
        images = _at_ratios(images, quiet, sir, snr)
        recorded = images.sum(axis=0)
        factor = np.float32(mixing.peak_gain([recorded, at_target[-1]]))
        name = f"{index:06d}_{'_'.join(names)}"
        conditions = {**_conditions(room), **_ratios(images[:, 0, quiet:])}
        return _ArrayScene(name, factor * images, factor * at_target[-1], room, conditions)

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
        reached = _ratios(parts[:, 1, quiet:].numpy(), "_beamformed")
        return MicBeamExample(
            scene.name,
            inputs=parts.sum(0),
            target=torch.from_numpy(scene.target),
            components=parts if self.components else None,
            conditions={**scene.conditions, **reached},
        )

    def _check(self) -> None:
        """Raise a UserError for a value that cannot be used."""
        guide, quiet = self.guide, f"quiet_seconds: is {self.quiet_seconds}"
        if not 0 <= self.quiet_seconds < self.segment_seconds:
            most = f"segment_seconds ({self.segment_seconds})"
            raise UserError(f"{quiet}, but has to be from 0 to less than {most}")
        if guide.needs_context and guide.context_seconds > self.quiet_seconds:
            least = f"context_seconds ({guide.context_seconds})"
            raise UserError(f"{quiet}, but the guide learns the noise for {least}")
        if guide.sample_rate != self.sample_rate:
            rates = (
                f"{guide.sample_rate} Hz, but {self.rooms.path} of {self.sample_rate} Hz"
            )
            raise UserError(f"guide: is for {rates}")


class _Gains(NamedTuple):
    """Factors of one item: g_n, pi g_i (0 without interferer), alpha and beta."""

    noise: float
    interferer: float
    raw_noise: float
    raw_interferer: float


@dataclass(frozen=True)
class PairedRIRGains:
    """Levels of noise and interferer, and how much more there is in the raw input.

    All figures are those of one source (arXiv 2303.07486), and no other was found to
    confirm them. The second number of a pair is read as a standard deviation.

    Arguments
    ---------
    noise_db : pair
        dB(g_n) is normal with this mean and deviation (default -5, 10).
    interferer_probability : float
        pi is 1 with it, else 0 (default 0.4).
    interferer_db : pair
        dB(g_i), likewise (default -3, 3).
    raw_noise_db : pair
        dB(alpha), likewise (default 0, 3) ...
    least_raw_noise_db : float
        ... but not less (default -4).
    raw_interferer_db : pair
        dB(beta), likewise (default 4, 6) ...
    least_raw_interferer_db : float
        ... but not less (default 4): the beamformer always weakens the interferer.

    Example
    -------
    >>> gains = PairedRIRGains(noise_db=(-20, 0)).draw(np.random.default_rng(0))
    >>> round(gains.noise, 6)
    0.1
    """

    noise_db: tuple = (-5.0, 10.0)
    interferer_probability: float = 0.4
    interferer_db: tuple = (-3.0, 3.0)
    raw_noise_db: tuple = (0.0, 3.0)
    least_raw_noise_db: float = -4.0
    raw_interferer_db: tuple = (4.0, 6.0)
    least_raw_interferer_db: float = 4.0

    def __post_init__(self):
        mixing.checked_share("interferer_probability", self.interferer_probability)
        for name in ("noise_db", "interferer_db", "raw_noise_db", "raw_interferer_db"):
            value = getattr(self, name)
            if len(value) != 2 or not value[1] >= 0:
                expected = "mean and standard deviation in dB are expected"
                raise UserError(f"{name}: is {list(value)}, but {expected}")

    def draw(self, rng: np.random.Generator) -> _Gains:
        """The factors of one item; always of as many draws."""
        noise = rng.normal(*self.noise_db)
        interferer = rng.normal(*self.interferer_db)
        raw_noise = rng.normal(*self.raw_noise_db)
        raw_interferer = rng.normal(*self.raw_interferer_db)
        is_there = rng.uniform() < self.interferer_probability
        return _Gains(
            noise=_amplitude(noise),
            interferer=_amplitude(interferer) if is_there else 0.0,
            raw_noise=_amplitude(max(raw_noise, self.least_raw_noise_db)),
            raw_interferer=_amplitude(max(raw_interferer, self.least_raw_interferer_db)),
        )


class PairedRIRDataset(SceneDataset):
    """Items by contrast: no beamformer is needed, and any may guide what is learnt.

    What the source leaves open, and how it is read here (inferred):

    - the two roles are two different microphones of the room's array, drawn for each
      item (the same, if it has but one);
    - a beamformer gives the target as the reference microphone has it. So r_00 has the
      direct path of r_01, and reflections of its own: the target is equal in both
      inputs, to the sample;
    - n and i are scaled such that in the beamformed input, before g_n and g_i, each is
      as strong as the speech: -dB(g_n) is that input's signal-to-noise ratio.

    Arguments
    ---------
    *scene, **options
        As for `SceneDataset`.
    gains : PairedRIRGains, optional
        By default those of the source.

    Example
    -------
    An item is `dataset[ItemKey(epoch, index)]`, a `MicBeamExample`. Its conditions: snr
    and sir at the raw input and snr_beamformed and sir_beamformed, in dB (NaN without an
    interferer); angle between target and interferer in degrees; reverberation, seconds.
    """

    def __init__(self, *scene, gains: PairedRIRGains | None = None, **options):
        super().__init__(*scene, **options)
        self.gains = gains or PairedRIRGains()

    def _example(self, rng, index):
        gains, room = self.gains.draw(rng), self.rooms.draw(rng)
        C = len(room.target)
        roles = rng.choice(C, 2, replace=C < 2).tolist()
        target, interferer = self.speech.draw_speakers(rng, 2)
        level = rng.uniform(*self.levels)
        length = self.lead + self.length
        speech, name = self.speech.sample(rng, target, length, level)
        (noise,), noise_name = self.noise.sample(rng, length)
        responses = self._speech_responses(room, roles)
        *at_target, direct = convolve_rir(speech, responses, self.lead)
        at_noise = convolve_rir(noise, room.noises[0, roles], self.lead)
        names, at_other = [name, noise_name], np.zeros_like(at_noise)
        if gains.interferer:
            responses = room.interferers[0, roles]
            at_other, other = self._talk(rng, interferer, level, responses)
            names.insert(1, other)
        parts = self._with_gains(np.stack([at_target, at_other, at_noise]), gains)
        inputs = parts.sum(axis=0)
        factor = mixing.peak_gain([inputs, direct])
        conditions = {**_conditions(room), **_ratios(parts[:, 0])}
        return MicBeamExample(
            f"{index:06d}_{'_'.join(names)}",
            inputs=torch.from_numpy(factor * inputs),
            target=torch.from_numpy(factor * direct),
            components=torch.from_numpy(factor * parts) if self.components else None,
            conditions={**conditions, **_ratios(parts[:, 1], "_beamformed")},
        )

    def _with_gains(self, images: np.ndarray, gains: _Gains) -> np.ndarray:
        """Parts of both inputs, of images of speech, interferer and noise [3, 2, T]."""
        speech = mixing.power(images[0, 1])
        for image in images[1:]:
            image *= mixing.power_gain(speech, mixing.power(image[1]))
        in_raw = np.array([[1.0], [gains.raw_interferer], [gains.raw_noise]])
        in_both = np.array([[1.0], [gains.interferer], [gains.noise]])
        factors = np.concatenate([in_both * in_raw, in_both], axis=1)
        return factors[..., None].astype(images.dtype) * images

    def _speech_responses(self, room: Room, roles: list[int]) -> np.ndarray:
        """Raw, beamformed and the target's response [3, R]."""
        raw, beamformed = room.target[roles]
        direct = np.zeros((2, raw.shape[-1]), dtype=raw.dtype)
        direct[:, : room.direct.shape[-1]] = room.direct[roles]
        return np.stack([raw, beamformed - direct[1] + direct[0], direct[0]])


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
            both = f"{len(contrast)} by contrast and {len(arrays)} of arrays"
            raise UserError(f"n_items: {both}, but as many are needed")
        pairs = zip(contrast.durations, arrays.durations, strict=True)
        self.durations, self.seed = [max(pair) for pair in pairs], seed
        self.array_share = mixing.checked_share("array_share", array_share)
        self.sample_rate = contrast.sample_rate
        self.contrast, self.arrays = contrast, arrays

    def __len__(self) -> int:
        return len(self.durations)

    def __getitem__(self, key) -> MicBeamExample:
        key = ItemKey.of(key)
        # The third number keeps this draw apart from those of the items.
        rng = np.random.default_rng([self.seed, key.epoch, key.index, 1])
        chosen = self.arrays if rng.uniform() < self.array_share else self.contrast
        return chosen[key]


def _with_direct(room: Room) -> np.ndarray:
    direct = np.zeros_like(room.target[:1])
    direct[0, : room.direct.shape[-1]] = room.direct[0]
    return np.concatenate([room.target, direct])


def _at_ratios(images: np.ndarray, quiet: int, sir: float, snr: float) -> np.ndarray:
    speech, interferer, noise = images[:, 0, quiet:]
    others = (interferer, sir), (noise, snr)
    gains = [1.0, *(mixing.snr_gain(speech, other, ratio) for other, ratio in others)]
    return images * np.array(gains, dtype=images.dtype)[:, None, None]


def _conditions(room: Room) -> dict:
    return {"angle": room.interferer_angle, "reverberation": room.reverberation}


def _ratios(parts: np.ndarray, ending: str = "") -> dict:
    """Speech to interferer and to noise in dB, of speech, interferer and noise [3, T]."""
    speech, interferer, noise = map(mixing.power, parts)
    return {
        f"sir{ending}": mixing.decibels(speech, interferer),
        f"snr{ending}": mixing.decibels(speech, noise),
    }


def _amplitude(level: float) -> float:
    return math.pow(10.0, level / 20.0)
