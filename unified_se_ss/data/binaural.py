"""Binaural mixtures with their sources, from files or made anew.

Every stem is a file of two channels: the left ear, then the right one. The mixture is
always the sum of the stems. For what this project makes, that is the file of the mixture
to the last bit; in the public Binaural-WSJ0Mix most files of mixtures are not the sum
of theirs, as its generator lets 16 bits wrap around.

Axes: J sources, E ears (left, right), T samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data.dataset import DynamicMixingDataset, MixtureDataset
from unified_se_ss.data.hrtf_bank import HRTFBank, Placement
from unified_se_ss.data.mixing import Mixture, mix
from unified_se_ss.errors import UserError

EARS = 2
# 16 bits wrap around after this; full scale is 1.
WRAP = 2.0
# What the public generator's 16 bits cut off stays below -40 dB of a mixture.
UNEXPLAINED = 1e-2


class BinauralExample(NamedTuple):
    """One mixture as both ears hear it.

    id; mixture [E, T] and sources [J, E, T], float32 tensors; directions [J, 2], float32:
    azimuth (+ = left) and elevation of each source in degrees, nan where not known.
    """

    id: str
    mixture: torch.Tensor
    sources: torch.Tensor
    directions: torch.Tensor


class BinauralDataset(MixtureDataset):
    """Binaural mixtures of a manifest, cropped and perturbed where asked for.

    A source's speed is that of both its ears; each source has its own (as the published
    recipe does; the ITD changes by as many percent), the noise keeps its speed, and all
    are cut to the shortest. The mixture is always the sum of the stems.

    Arguments
    ---------
    manifest : Manifest
        With the stems mixture, s1, ..., and noise where the mixture has noise; with the
        attributes azimuth_1, elevation_1, ... where the directions are known.
    n_speakers, segment_seconds, speed_percents, seed
        As for `MixtureDataset`.

    Raises
    ------
    UserError
        If the manifest cannot serve, or files do not have two channels.
    """

    channels, default_speeds = EARS, (100,)

    def _example(self, rng, index):
        directions = _true_directions(self.manifest.items[index], len(self.source_stems))
        return BinauralExample(*super()._example(rng, index), torch.from_numpy(directions))

    def _is_sum(self, mixture, sources):
        return unexplained(mixture, sum(sources)) <= UNEXPLAINED


class BinauralDynamicMixing(DynamicMixingDataset):
    """Binaural mixtures drawn from single utterances and heads, anew for every item.

    Speakers, utterances, levels and noise are drawn as `DynamicMixingDataset` does; a
    head is drawn for the mixture, and a direction around it for each source; noise is
    diffuse. Speed is perturbed before the head, so that its ITDs stay true.

    Arguments
    ---------
    speech_manifest, noise_manifest
        As for `DynamicMixingDataset`.
    heads : list of HRIRSet
        Listeners, or rooms around listeners; all of the mixtures' rate.
    *mixing, **options
        The further arguments of `DynamicMixingDataset`.
    least_angle : float
        Degrees between any two talkers of a mixture at least (default 0).

    Raises
    ------
    UserError
        If a manifest cannot serve, or the heads have another rate or no place for all.
    """

    def __init__(
        self, speech_manifest, noise_manifest, heads, *mixing, least_angle=0.0, **options
    ):
        super().__init__(speech_manifest, noise_manifest, *mixing, **options)
        self.bank = HRTFBank(heads)
        self.least_angle = least_angle
        if self.bank.sample_rate != self.sample_rate:
            rates = f"{self.bank.sample_rate} Hz, but sample_rate is {self.sample_rate}"
            raise UserError(f"the heads have {rates}; load them at this rate")
        self.bank.place(np.random.default_rng(0), self.n_speakers, least_angle)

    def _mixed(self, name, sources, noise, rng):
        placement = self.bank.place(rng, self.n_speakers, self.least_angle)
        mixture = mix_binaural(self.bank, placement, sources, noise, rng)
        return BinauralExample(
            f"{name}_{self.bank.hrirs[placement.head].name}",
            torch.from_numpy(mixture.mix_both),
            torch.from_numpy(mixture.sources),
            torch.from_numpy(_directions_of(self.bank, placement)),
        )


def mix_binaural(bank, placement, sources, noise, rng) -> Mixture:
    """Puts talkers around a head, diffuse noise behind them, and sums what its ears hear.

    Sources [J, T] and noise, [T] or None, are float32 at their levels, and become sources
    [J, E, T] and noise [E, T]; both ears get the same gain.
    """
    pairs = zip(sources, placement.directions)
    images = [bank.render_binaural(s, placement.head, direction) for s, direction in pairs]
    if noise is not None:
        noise = bank.render_diffuse(noise, placement.head, rng)
    return mix(np.stack(images), noise)


def _directions_of(bank: HRTFBank, placement: Placement) -> np.ndarray:
    """Azimuth and elevation of a placement's talkers in degrees, float32 [J, 2]."""
    angles = [bank.direction(placement.head, index) for index in placement.directions]
    return np.array(angles, dtype=np.float32)


def _true_directions(item, n_sources):
    """Azimuths and elevations in degrees, float32 [J, 2]; nan where an item says nothing."""
    known = np.full((n_sources, 2), np.nan, dtype=np.float32)
    for j in range(n_sources):
        for column, name in enumerate(("azimuth", "elevation")):
            text = item.attributes.get(f"{name}_{j + 1}")
            if text:
                known[j, column] = _degrees(text, f"{name}_{j + 1}", item)
    return known


def unexplained(mixture, total):
    """Part of a mixture that is neither the sum of its stems nor 16 bits' wrapping around.

    The rms of the difference of a file's mixture and the sum of its stems, [..., T], apart
    from whole turns of 16 bits, over that of the sum.

    Example
    -------
    >>> unexplained(np.array([0.5, -0.75]), np.array([0.5, 1.25]))
    0.0
    """
    difference = mixture - total
    difference = difference - WRAP * np.round(difference / WRAP)
    return float(np.linalg.norm(difference) / max(np.linalg.norm(total), 1e-12))


def _degrees(text, name, item):
    """The finite number that an attribute holds."""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise UserError(f"{item.id}: the {name} is {text!r}; degrees were expected")
    return value
