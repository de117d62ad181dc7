"""Training by contrast: two inputs that differ as a microphone and a beamformer do.

Of a source j (0 target, 1 noise, 2 interferer), r_jk is the response to the input in
role k (0 beamformed, 1 raw); s, n and i are speech, noise and interfering speech:

    y_beam = s * r_00 + g_n n * r_10 + pi g_i i * r_20
    y_raw  = s * r_01 + alpha g_n n * r_11 + beta pi g_i i * r_21
    target = s * direct path of r_00

Source: Yang et al., "Guided speech enhancement network", ICASSP 2023, arXiv 2303.07486.

Axes: T samples, 2 inputs (0 raw, 1 beamformed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data.guided import MicBeamExample
from unified_se_ss.data.mixing import checked_share, peak_gain, power, power_gain
from unified_se_ss.data.rooms import Room
from unified_se_ss.data.scenes import (
    SceneDataset,
    ratios,
)
from unified_se_ss.errors import UserError
from unified_se_ss.spatial import convolve_rir


class Gains(NamedTuple):
    """Factors of one item: g_n, pi g_i (0 without interferer), alpha and beta."""

    noise: float
    interferer: float
    raw_noise: float
    raw_interferer: float


@dataclass(frozen=True)
class PairedRIRGains:
    """How much noise and interferer there is, and how much more in the raw input.

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
        checked_share("interferer_probability", self.interferer_probability)
        for name in ("noise_db", "interferer_db", "raw_noise_db", "raw_interferer_db"):
            value = getattr(self, name)
            if len(value) != 2 or not value[1] >= 0:
                raise UserError(
                    f"{name}: is {list(value)}, but mean and standard deviation in dB are "
                    "expected"
                )

    def draw(self, rng: np.random.Generator) -> Gains:
        """The factors of one item; always of as many draws."""
        noise = rng.normal(*self.noise_db)
        interferer = rng.normal(*self.interferer_db)
        raw_noise = max(rng.normal(*self.raw_noise_db), self.least_raw_noise_db)
        raw_interferer = max(
            rng.normal(*self.raw_interferer_db), self.least_raw_interferer_db
        )
        is_there = rng.uniform() < self.interferer_probability
        return Gains(
            noise=_amplitude(noise),
            interferer=_amplitude(interferer) if is_there else 0.0,
            raw_noise=_amplitude(raw_noise),
            raw_interferer=_amplitude(raw_interferer),
        )


class PairedRIRDataset(SceneDataset):
    """Items by contrast: no beamformer is needed, and any may guide what is learnt.

    What the source leaves open, and how it is read here (inferred):

    - the two roles are two different microphones of the room's array, drawn for each
      item (the same, if it has but one);
    - a beamformer gives the target as the reference microphone has it. So r_00 has the
      direct path of r_01, and reflections of its own: the target is equal in both
      inputs, to the sample. `same_direct_path: False` leaves r_00 as it was simulated;
    - n and i are scaled such that in the beamformed input, before g_n and g_i, each is
      as strong as the speech: -dB(g_n) is that input's signal-to-noise ratio.
      `equalise: False` brings only their recordings to the loudness of the speech, and
      distance and room do the rest.

    Arguments
    ---------
    *scene, **options
        As for `SceneDataset`.
    gains : PairedRIRGains, optional
        By default those of the source.
    same_direct_path, equalise : bool
        See above (default True).

    Example
    -------
    An item is `dataset[ItemKey(epoch, index)]`, a `MicBeamExample`. Its conditions: snr
    and sir at the raw input and snr_beamformed and sir_beamformed, in dB (NaN without an
    interferer); angle between target and interferer in degrees; reverberation, seconds.
    """

    def __init__(
        self,
        *scene,
        gains: PairedRIRGains | None = None,
        same_direct_path: bool = True,
        equalise: bool = True,
        **options,
    ):
        super().__init__(*scene, **options)
        self.gains = gains or PairedRIRGains()
        self.same_direct_path = same_direct_path
        self.equalise = equalise

    def _example(self, rng, index):
        gains = self.gains.draw(rng)
        room = self.rooms.draw(rng)
        roles = _draw_roles(rng, room)
        target, interferer = self.speech.draw_speakers(rng, 2)
        level = rng.uniform(*self.levels)
        length = self.lead + self.length
        speech, name = self.speech.sample(rng, target, length, level)
        (noise,), noise_name = self.noise.sample(rng, length)
        if not self.equalise:
            noise *= power_gain(power(speech), power(noise))
        responses = _speech_responses(room, roles, self.same_direct_path)
        images = [
            convolve_rir(speech, responses, self.lead),
            convolve_rir(noise, room.noises[0, roles], self.lead),
        ]
        names = [name, noise_name]
        if gains.interferer:
            other, other_name = self.speech.sample(rng, interferer, length, level)
            images.append(convolve_rir(other, room.interferers[0, roles], self.lead))
            names.insert(1, other_name)
        return _as_example(
            f"{index:06d}_{'_'.join(names)}",
            images,
            gains,
            self.equalise,
            self.components,
            {"angle": room.interferer_angle, "reverberation": room.reverberation},
        )


def contrasted(
    speech: np.ndarray, interferer: np.ndarray, noise: np.ndarray, gains: Gains
) -> np.ndarray:
    """Parts of speech, interferer and noise in both inputs, [3, 2, T].

    The images are those in the roles raw and beamformed, [2, T] each; the sum over the
    first axis is [y_raw, y_beam].
    """
    in_raw = np.array([[1.0], [gains.raw_interferer], [gains.raw_noise]])
    in_both = np.array([[1.0], [gains.interferer], [gains.noise]])
    factors = np.concatenate([in_both * in_raw, in_both], axis=1)
    images = np.stack([speech, interferer, noise])
    return factors[..., None].astype(images.dtype) * images


def _as_example(name, images, gains, equalise, components, conditions) -> MicBeamExample:
    """An item of the images: speech [3, T] (raw, beamformed, direct), noise, interferer."""
    speech, target = images[0][:2], images[0][2]
    noise = images[1]
    interferer = images[2] if len(images) > 2 else np.zeros_like(noise)
    if equalise:
        noise, interferer = (
            power_gain(power(speech[1]), power(image[1])) * image
            for image in (noise, interferer)
        )
    parts = contrasted(speech, interferer, noise, gains)
    inputs = parts.sum(axis=0)
    factor = peak_gain([inputs, target])
    for role, ending in enumerate(("", "_beamformed")):
        found = ratios(parts[:, role])
        conditions.update({f"{name}{ending}": value for name, value in found.items()})
    return MicBeamExample(
        name,
        inputs=_tensor(factor * inputs),
        target=_tensor(factor * target),
        components=_tensor(factor * parts) if components else None,
        conditions=conditions,
    )


def _speech_responses(room: Room, roles: list[int], same_direct_path: bool) -> np.ndarray:
    raw, beamformed = room.target[roles]
    direct = np.zeros((2, raw.shape[-1]), dtype=raw.dtype)
    direct[:, : room.direct.shape[-1]] = room.direct[roles]
    if not same_direct_path:
        return np.stack([raw, beamformed, direct[1]])
    return np.stack([raw, beamformed - direct[1] + direct[0], direct[0]])


def _draw_roles(rng: np.random.Generator, room: Room) -> list[int]:
    C = len(room.target)
    return rng.choice(C, 2, replace=C < 2).tolist()


def _amplitude(level: float) -> float:
    return math.pow(10.0, level / 20.0)


def _tensor(signal: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(signal, dtype=np.float32))
