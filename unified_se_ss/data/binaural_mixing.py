"""Binaural mixtures made anew for every item: who, how loud, whose ears, from where.

Axes: J sources, E ears (left, right), T samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data.binaural import BinauralExample
from unified_se_ss.data.dynamic_mixing import DynamicMixingDataset
from unified_se_ss.data.hrtf_bank import HRTFBank, Placement
from unified_se_ss.data.mixing import mix
from unified_se_ss.errors import UserError


class BinauralMixture(NamedTuple):
    """Stems of one item as both ears hear them, after a common gain, and their sum.

    mixture [E, T] = sources.sum(axis=0) + noise, of sources [J, E, T] and noise [E, T].
    """

    mixture: np.ndarray
    sources: np.ndarray
    noise: np.ndarray


class BinauralDynamicMixing(DynamicMixingDataset):
    """Binaural mixtures drawn from single utterances and heads, anew for every item.

    Speakers, utterances, levels and noise are drawn as `DynamicMixingDataset` does; a
    head is drawn for the mixture, and a direction around it for each source; noise is
    diffuse. Speed is perturbed before the head, so that its ITDs stay true. An item is
    a function of (seed, epoch, index) alone.

    Arguments
    ---------
    speech_manifest : Manifest
        Of single utterances, with speaker and loudness, as `prepare_speech_folder`
        writes it.
    noise_manifest : Manifest, optional
        Of noise recordings; None: no noise.
    heads : list of Head
        Listeners, or rooms around listeners; all of the mixtures' rate.
    n_speakers, n_items, seed, segment_seconds, sample_rate, speed_percents, resample, \
min_seconds
        As for `DynamicMixingDataset`.
    least_angle : float
        Degrees between any two talkers of a mixture at least (default 0).

    Raises
    ------
    UserError
        If there are too few speakers, a manifest lacks what is needed, or the heads have
        another rate or no place for all talkers.

    Example
    -------
    >>> from unified_se_ss.data import audio
    >>> from unified_se_ss.data.manifest import Item, Manifest
    >>> from unified_se_ss.spatial import spherical_head_hrirs
    >>> folder, items = getfixture("tmpdir"), []
    >>> for speaker in ("Ann", "Bob"):
    ...     path = str(folder / f"{speaker}.wav")
    ...     audio.write(path, np.sin(np.arange(16000) / 5) / 2, 8000)
    ...     told = {"speaker": speaker, "loudness": "-12.0"}
    ...     items.append(Item(f"{speaker}/1.wav", 2.0, 8000, {"speech": path}, told))
    >>> speech = Manifest("speech.csv", tuple(items), ("speech",), 8000)
    >>> heads = spherical_head_hrirs(3, 8000)
    >>> data = BinauralDynamicMixing(speech, None, heads, 2, 10, 0, 1.0, 8000)
    >>> example = data[3]
    >>> example.mixture.shape, example.sources.shape, example.directions.shape
    (torch.Size([2, 8000]), torch.Size([2, 2, 8000]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        speech_manifest,
        noise_manifest,
        heads,
        n_speakers,
        n_items,
        seed,
        segment_seconds,
        sample_rate,
        speed_percents=None,
        resample=False,
        min_seconds=0.0,
        least_angle=0.0,
    ):
        super().__init__(
            speech_manifest,
            noise_manifest,
            n_speakers,
            n_items,
            seed,
            segment_seconds,
            sample_rate,
            speed_percents,
            resample,
            min_seconds,
        )
        self.bank = HRTFBank(heads)
        self.least_angle = least_angle
        if self.bank.sample_rate != sample_rate:
            raise UserError(
                f"the heads have {self.bank.sample_rate} Hz, but sample_rate is "
                f"{sample_rate}; load them at this rate"
            )
        self.bank.place(np.random.default_rng(0), n_speakers, least_angle)

    def _mixed(self, name, sources, noise, rng):
        placement = self.bank.place(rng, self.n_speakers, self.least_angle)
        mixture = mix_binaural(self.bank, placement, sources, noise, rng)
        return BinauralExample(
            f"{name}_{self.bank.heads[placement.head].name}",
            torch.from_numpy(mixture.mixture),
            torch.from_numpy(mixture.sources),
            torch.from_numpy(directions_of(self.bank, placement)),
        )


def mix_binaural(bank, placement, sources, noise, rng) -> BinauralMixture:
    """Puts talkers around a head, diffuse noise behind them, and sums what its ears hear.

    Arguments
    ---------
    bank : HRTFBank
        Heads.
    placement : Placement
        Who listens and where the talkers are.
    sources : np.ndarray
        float32 [J, T], at their levels.
    noise : np.ndarray or None
        float32 [T], at its level.
    rng : np.random.Generator
        For the noise.

    Returns
    -------
    BinauralMixture
        float32; one gain for all stems keeps them and the sums below 0.9 of full scale
        where they would exceed it. The sums are exact.

    Example
    -------
    >>> from unified_se_ss.spatial import spherical_head_hrirs
    >>> bank = HRTFBank(spherical_head_hrirs(1, 8000))
    >>> rng = np.random.default_rng(0)
    >>> sources = rng.standard_normal((2, 800)).astype(np.float32)
    >>> mixture = mix_binaural(bank, bank.place(rng, 2), sources, None, rng)
    >>> bool((mixture.mixture == mixture.sources.sum(axis=0)).all())
    True
    """
    pairs = zip(sources, placement.directions)
    heard = [
        bank.render_binaural(source, placement.head, direction)
        for source, direction in pairs
    ]
    around = None
    if noise is not None:
        around = bank.render_diffuse(noise, placement.head, rng).ravel()
    # Both ears in a row are one signal to the guard: they get the same gain.
    mixed = mix(np.stack(heard).reshape(len(sources), -1), around)
    ears = (2, -1)
    return BinauralMixture(
        mixed.mix_both.reshape(ears),
        mixed.sources.reshape(len(sources), *ears),
        mixed.noise.reshape(ears),
    )


def directions_of(bank: HRTFBank, placement: Placement) -> np.ndarray:
    """Azimuth and elevation of a placement's talkers in degrees, float32 [J, 2].

    Example
    -------
    >>> from unified_se_ss.spatial import spherical_head
    >>> bank = HRTFBank([spherical_head(8000, azimuth=[-30.0, 60.0])])
    >>> directions_of(bank, Placement(0, (1, 0))).tolist()
    [[60.0, 0.0], [-30.0, 0.0]]
    """
    told = [bank.direction(placement.head, index) for index in placement.directions]
    return np.array(told, dtype=np.float32)
