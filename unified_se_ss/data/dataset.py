"""Mixtures with their sources, as examples and as padded batches.

Axes: B batch, J sources, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.augment import perturbed_frames, read_perturbed, speed_ratio
from unified_se_ss.errors import UserError

CROP_ATTEMPTS = 8
SPEEDS = (50, 200)
# 16-bit rounding of all stems stays below -60 dB of any mixture worth separating.
NOISE_FREE = 1e-3


class ItemKey(NamedTuple):
    """What an item follows from, beside the data set's seed."""

    epoch: int
    index: int


class Example(NamedTuple):
    """One mixture: id, mixture [T], sources [J, T], both float32 tensors."""

    id: str
    mixture: torch.Tensor
    sources: torch.Tensor


@dataclass
class Batch:
    """Mixtures padded with zeros to the longest.

    Arguments
    ---------
    ids : list of str
        B names.
    mixture : torch.Tensor
        [B, T]
    sources : torch.Tensor
        [B, J, T]
    lengths : torch.Tensor
        int64 [B], samples without padding.

    Example
    -------
    >>> batch = collate([Example("a", torch.ones(3), torch.ones(2, 3))])
    >>> batch.clean_mixture
    tensor([[2., 2., 2.]])
    """

    ids: list
    mixture: torch.Tensor
    sources: torch.Tensor
    lengths: torch.Tensor

    def __len__(self):
        return len(self.ids)

    @property
    def clean_mixture(self):
        """Sum of the sources, without noise, in the mixture's shape."""
        return self.sources.sum(dim=1)

    def to(self, device):
        """Moves the signals to a device, in place, and returns the batch.

        The lengths stay on the CPU: whoever asks for them there need not wait for a
        GPU.
        """
        self.mixture = self.mixture.to(device, non_blocking=True)
        self.sources = self.sources.to(device, non_blocking=True)
        return self

    def pin_memory(self):
        """Moves the signals to page-locked memory, from which copies to a GPU are fast."""
        self.mixture = self.mixture.pin_memory()
        self.sources = self.sources.pin_memory()
        return self


def collate(examples):
    """Pads examples with zeros to the longest and stacks them.

    Arguments
    ---------
    examples : list of Example
        At least one, all with the same number of sources.

    Returns
    -------
    Batch

    Example
    -------
    >>> short = Example("a", torch.ones(2), torch.ones(1, 2))
    >>> long = Example("b", torch.ones(3), torch.ones(1, 3))
    >>> batch = collate([short, long])
    >>> batch.mixture, batch.lengths
    (tensor([[1., 1., 0.],
            [1., 1., 1.]]), tensor([2, 3]))
    """
    return Batch(*padded(examples))


def padded(examples):
    """The fields of a batch, for examples of one channel or of several.

    Arguments
    ---------
    examples : list of Example or BinauralExample
        At least one, all with the same number of sources.

    Returns
    -------
    tuple
        ids, mixture, sources, lengths: see `Batch`.
    """
    lengths = torch.tensor([example.mixture.shape[-1] for example in examples])
    longest, first = int(lengths.max()), examples[0]
    mixture = torch.zeros(len(examples), *first.mixture.shape[:-1], longest)
    sources = torch.zeros(len(examples), *first.sources.shape[:-1], longest)
    for b, example in enumerate(examples):
        mixture[b, ..., : lengths[b]] = example.mixture
        sources[b, ..., : lengths[b]] = example.sources
    return [example.id for example in examples], mixture, sources, lengths


class MixtureDataset(torch.utils.data.Dataset):
    """Mixtures of a manifest, cropped and perturbed where asked for.

    An item is a function of (seed, epoch, index) alone: not of the worker, the rank,
    or what was read before. Without speed perturbation the mixture and the sources are
    those of the files. With it, each source is perturbed on its own, the noise is not,
    all are cut to the shortest, and the mixture is their sum (as the published recipe
    does; source: github.com/YUCHEN005/Unified-Enhance-Separation, arXiv 2302.11131).

    Arguments
    ---------
    manifest : Manifest
        With the stems mixture, s1, ..., and noise where the mixture has noise.
    n_speakers : int
        Number of sources J.
    segment_seconds : float, optional
        Length of a random crop, the same for all stems; items that are shorter are
        taken whole. By default all are.
    speed_percents : sequence of int, optional
        Speeds of which one is drawn for each source, such as (95, 100, 105).
    seed : int
        Default 0.

    Raises
    ------
    UserError
        If the manifest lacks stems, or an argument has no sense.

    Example
    -------
    >>> from unified_se_ss.data.manifest import Item, Manifest
    >>> folder = getfixture("tmpdir")
    >>> paths = {stem: str(folder / f"{stem}.wav") for stem in ("mixture", "s1", "s2")}
    >>> for stem, level in (("mixture", 0.75), ("s1", 0.5), ("s2", 0.25)):
    ...     audio.write(paths[stem], np.full(8000, level), 8000)
    >>> manifest = Manifest("m.csv", (Item("a", 1.0, 8000, paths),), tuple(paths), 8000)
    >>> data = MixtureDataset(manifest, n_speakers=2, segment_seconds=0.5)
    >>> example = data[ItemKey(epoch=3, index=0)]
    >>> example.id, example.mixture.shape, example.sources.shape
    ('a', torch.Size([4000]), torch.Size([2, 4000]))
    """

    def __init__(
        self, manifest, n_speakers, segment_seconds=None, speed_percents=None, seed=0
    ):
        check_segment(segment_seconds)
        self.manifest = manifest
        self.source_stems = [f"s{j}" for j in range(1, n_speakers + 1)]
        self.segment_seconds = segment_seconds
        self.speed_percents = check_speeds(speed_percents)
        self.seed = seed
        self._check_stems(n_speakers)

    @property
    def sample_rate(self):
        """Hz."""
        return self.manifest.sample_rate

    @property
    def durations(self):
        """Seconds of each item after cropping (with other speeds: at most these)."""
        longest = self.segment_seconds or float("inf")
        return [min(item.duration, longest) for item in self.manifest.items]

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, key):
        key = as_item_key(key)
        item = self.manifest.items[key.index]
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        if self.speed_percents is None:
            mixture, sources = self._as_recorded(item, rng)
        else:
            mixture, sources = self._perturbed(item, rng)
        return Example(item.id, torch.from_numpy(mixture), torch.from_numpy(sources))

    def _as_recorded(self, item, rng):
        """Mixture and sources of the files, cropped."""
        one = speed_ratio(100)
        ratios = [one] * len(self.source_stems)
        start, stop, sources = self._cropped_sources(item, ratios, item.frames, rng)
        return self._read(item, "mixture", start, stop), sources

    def _perturbed(self, item, rng):
        """Sources of other speeds, cropped, and their sum with the noise."""
        percents = rng.choice(self.speed_percents, len(self.source_stems))
        ratios = [speed_ratio(int(percent)) for percent in percents]
        frames = min(perturbed_frames(item.frames, ratio) for ratio in ratios)
        if "noise" in item.paths:
            frames = min(frames, item.frames)
        start, stop, sources = self._cropped_sources(item, ratios, frames, rng)
        mixture = sources.sum(axis=0)
        if "noise" in item.paths:
            mixture += self._read(item, "noise", start, stop)
        return mixture, sources

    def _cropped_sources(self, item, ratios, frames, rng):
        """Draws where to crop, again if a source is silent there, and reads."""
        length = frames
        if self.segment_seconds is not None:
            length = min(frames, round(self.segment_seconds * self.sample_rate))
        attempts = CROP_ATTEMPTS if length < frames else 1
        for _ in range(attempts):
            start = int(rng.integers(0, frames - length + 1))
            stop = start + length
            sources = [
                self._read(item, stem, start, stop, ratio)
                for stem, ratio in zip(self.source_stems, ratios)
            ]
            if not any(audio.is_silent(source) for source in sources):
                break
        return start, stop, np.stack(sources)

    def _read(self, item, stem, start, stop, ratio=1):
        """The samples [start, stop) of a stem's perturbed version, [T]."""
        return read_perturbed(item, stem, start, stop, ratio)

    def _check_stems(self, n_speakers):
        """Raises a UserError if the manifest cannot serve."""
        path, stems = self.manifest.path, self.manifest.stems
        missing = [s for s in ("mixture", *self.source_stems) if s not in stems]
        if missing:
            raise UserError(
                f"{path}: has no column {missing[0]} (there are {', '.join(stems)}), "
                f"but n_speakers is {n_speakers}"
            )
        if f"s{n_speakers + 1}" in stems:
            raise UserError(
                f"{path}: has a column s{n_speakers + 1}, but n_speakers is"
                f" {n_speakers}; set n_speakers to match the data"
            )
        if self.manifest.sample_rate is None:
            raise UserError(f"{path}: the items have different sampling rates")
        if self.speed_percents is not None and "noise" not in stems:
            self._check_noise_free(self.manifest.items[0])

    def _check_noise_free(self, item):
        """Raises a UserError if a mixture has noise that no stem holds."""
        mixture, *sources = (
            self._read(item, stem, 0, item.frames)
            for stem in ("mixture", *self.source_stems)
        )
        clean = sum(sources)
        if np.linalg.norm(mixture - clean) > NOISE_FREE * np.linalg.norm(mixture):
            raise UserError(
                f"speed_percents: {self.manifest.path} has no column noise, but the"
                f" mixture of {item.id} is not the sum of its sources; speed"
                " perturbation mixes anew and needs the noise: provide the folder"
                " noise, choose mixture mix_clean, or set speed_percents to null"
            )


def as_item_key(key):
    """Makes an ItemKey of what a sampler gave.

    Arguments
    ---------
    key : ItemKey or int
        A whole number stands for that index in epoch 0.

    Returns
    -------
    ItemKey

    Example
    -------
    >>> as_item_key(7)
    ItemKey(epoch=0, index=7)
    """
    return ItemKey(*key) if isinstance(key, tuple) else ItemKey(0, int(key))


def check_segment(segment_seconds):
    """Raises a UserError for a length of crop that is none.

    Arguments
    ---------
    segment_seconds : float, optional
        Seconds; None stands for no crop.

    Example
    -------
    >>> check_segment(4.0)
    """
    if segment_seconds is not None and not 0 < segment_seconds < float("inf"):
        raise UserError(
            f"segment_seconds: is {segment_seconds}, but seconds above 0 were expected "
            "(or null for whole items)"
        )


def check_speeds(speed_percents):
    """Checks the speeds to draw from.

    Arguments
    ---------
    speed_percents : sequence of int, optional
        Speeds in percent.

    Returns
    -------
    tuple of int, or None if nothing is to be perturbed

    Example
    -------
    >>> check_speeds([95, 100, 105]), check_speeds(None)
    ((95, 100, 105), None)
    """
    if not speed_percents:
        return None
    slowest, fastest = SPEEDS
    for percent in speed_percents:
        if percent != int(percent) or not slowest <= percent <= fastest:
            raise UserError(
                f"speed_percents: holds {percent}, but whole percents from {slowest} to"
                f" {fastest} were expected"
            )
    return tuple(int(percent) for percent in speed_percents)
