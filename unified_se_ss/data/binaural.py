"""Binaural mixtures with their sources, as examples and as padded batches.

Every stem is a file of two channels: the left ear, then the right one. The mixture is
always the sum of the stems. For what this project makes, that is the file of the mixture
to the last bit; in the public Binaural-WSJ0Mix most files of mixtures are not the sum
of theirs, as its generator lets 16 bits wrap around.

Axes: B batch, J sources, E ears (left, right), T samples.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.augment import read_perturbed
from unified_se_ss.data.dataset import Batch, MixtureDataset, as_item_key, padded
from unified_se_ss.errors import UserError

EARS = 2
UNCHANGED = (100,)
# 16 bits wrap around after this; full scale is 1.
WRAP = 2.0
# What the public generator's 16 bits cut off stays below -40 dB of a mixture.
UNEXPLAINED = 1e-2
# What a wav's header calls 32-bit floats.
FLOATS = 3


class BinauralExample(NamedTuple):
    """One mixture as both ears hear it.

    id; mixture [E, T] and sources [J, E, T], float32 tensors; directions [J, 2], float32:
    azimuth (+ = left) and elevation of each source in degrees, nan where not known.
    """

    id: str
    mixture: torch.Tensor
    sources: torch.Tensor
    directions: torch.Tensor


@dataclass
class BinauralBatch(Batch):
    """Binaural mixtures padded with zeros to the longest.

    Arguments
    ---------
    ids : list of str
        B names.
    mixture : torch.Tensor
        [B, E, T]
    sources : torch.Tensor
        [B, J, E, T]
    lengths : torch.Tensor
        int64 [B], samples without padding; stays on the CPU.
    directions : torch.Tensor
        [B, J, 2], azimuth and elevation in degrees, nan where not known; stays on the
        CPU.

    Example
    -------
    >>> from unified_se_ss.data.binaural import collate_binaural
    >>> sources, unknown = torch.ones(2, 2, 3), torch.full((2, 2), torch.nan)
    >>> batch = collate_binaural([BinauralExample("a", sources.sum(0), sources, unknown)])
    >>> batch.clean_mixture
    tensor([[[2., 2., 2.],
             [2., 2., 2.]]])
    """

    directions: torch.Tensor


def collate_binaural(examples):
    """Pads binaural examples with zeros to the longest and stacks them.

    Arguments
    ---------
    examples : list of BinauralExample
        At least one, all with the same number of sources.

    Returns
    -------
    BinauralBatch

    Example
    -------
    >>> left = torch.tensor([[90.0, 0.0]])
    >>> short = BinauralExample("a", torch.ones(2, 2), torch.ones(1, 2, 2), left)
    >>> long = BinauralExample("b", torch.ones(2, 3), torch.ones(1, 2, 3), left)
    >>> batch = collate_binaural([short, long])
    >>> batch.mixture[:, 0], batch.lengths
    (tensor([[1., 1., 0.],
            [1., 1., 1.]]), tensor([2, 3]))
    """
    directions = torch.stack([example.directions for example in examples])
    return BinauralBatch(*padded(examples), directions)


class BinauralDataset(MixtureDataset):
    """Binaural mixtures of a manifest, cropped and perturbed where asked for.

    An item is a function of (seed, epoch, index) alone. A source's speed is that of both
    its ears; each source has its own (as the published recipe does; the ITD changes by as
    many percent), the noise keeps its speed, and all are cut to the shortest.

    Arguments
    ---------
    manifest : Manifest
        With the stems mixture, s1, ..., and noise where the mixture has noise; with the
        attributes azimuth_1, elevation_1, ... where the directions are known.
    n_speakers : int
        Number of sources J.
    segment_seconds : float, optional
        Length of a random crop, the same for all stems; by default all is taken.
    speed_percents : sequence of int, optional
        Speeds of which one is drawn for each source, such as (95, 100, 105).
    seed : int
        Default 0.

    Raises
    ------
    UserError
        If the manifest lacks stems, a mixture has noise that no stem holds, files do not
        have two channels, or an argument has no sense.

    Example
    -------
    >>> from unified_se_ss.data.manifest import Item, Manifest
    >>> folder = getfixture("tmpdir")
    >>> paths = {stem: str(folder / f"{stem}.wav") for stem in ("mixture", "s1", "s2")}
    >>> for stem, level in (("mixture", 0.75), ("s1", 0.5), ("s2", 0.25)):
    ...     write_ears(paths[stem], np.full((2, 8000), level, dtype=np.float32), 8000)
    >>> manifest = Manifest("m.csv", (Item("a", 1.0, 8000, paths),), tuple(paths), 8000)
    >>> example = BinauralDataset(manifest, n_speakers=2, segment_seconds=0.5)[0]
    >>> example.mixture.shape, example.sources.shape
    (torch.Size([2, 4000]), torch.Size([2, 2, 4000]))
    """

    def __init__(
        self, manifest, n_speakers, segment_seconds=None, speed_percents=None, seed=0
    ):
        super().__init__(
            manifest, n_speakers, segment_seconds, speed_percents or UNCHANGED, seed
        )

    def __getitem__(self, key):
        key = as_item_key(key)
        item = self.manifest.items[key.index]
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        mixture, sources = self._perturbed(item, rng)
        return BinauralExample(
            item.id,
            torch.from_numpy(mixture),
            torch.from_numpy(sources),
            torch.from_numpy(true_directions(item, len(sources))),
        )

    def _read(self, item, stem, start, stop, ratio=1):
        """The samples [start, stop) of a stem's perturbed version, [E, T]."""
        if ratio == 1:
            return read_ears(item.paths[stem], start, stop)
        ears = [replace(item, attributes={"channel": ear}) for ear in range(EARS)]
        return np.stack([read_perturbed(ear, stem, start, stop, ratio) for ear in ears])

    def _check_noise_free(self, item):
        """Raises a UserError if a mixture has noise that no stem holds."""
        mixture, *sources = (
            self._read(item, stem, 0, item.frames)
            for stem in ("mixture", *self.source_stems)
        )
        if unexplained(mixture, sum(sources)) > UNEXPLAINED:
            raise UserError(
                f"{self.manifest.path}: has no column noise, but the mixture of {item.id}"
                " is not the sum of its sources; provide the folder noise, or choose the"
                " mixture without noise"
            )


def true_directions(item, n_sources):
    """Azimuth and elevation of an item's sources in degrees, as its manifest says.

    Arguments
    ---------
    item : Item
        With the attributes azimuth_1, elevation_1, azimuth_2, ..., or without.
    n_sources : int
        J

    Returns
    -------
    np.ndarray
        float32 [J, 2], nan where the manifest says nothing.

    Example
    -------
    >>> from unified_se_ss.data.manifest import Item
    >>> item = Item("a", 1.0, 8000, {}, {"azimuth_1": "-30", "elevation_1": "0"})
    >>> true_directions(item, 2)
    array([[-30.,   0.],
           [ nan,  nan]], dtype=float32)
    """
    told = np.full((n_sources, 2), np.nan, dtype=np.float32)
    for j in range(n_sources):
        for column, name in enumerate(("azimuth", "elevation")):
            text = item.attributes.get(f"{name}_{j + 1}")
            if text:
                told[j, column] = _degrees(text, f"{name}_{j + 1}", item)
    return told


def unexplained(mixture, total):
    """How much of a mixture is neither the sum of its stems nor 16 bits' wrapping around.

    Arguments
    ---------
    mixture, total : np.ndarray
        A file's mixture and the sum of its stems, [..., T].

    Returns
    -------
    float
        rms of the difference, apart from whole turns of 16 bits, over that of the sum.

    Example
    -------
    >>> unexplained(np.array([0.5, -0.75]), np.array([0.5, 1.25]))
    0.0
    """
    difference = mixture - total
    difference = difference - WRAP * np.round(difference / WRAP)
    return float(np.linalg.norm(difference) / max(np.linalg.norm(total), 1e-12))


def read_ears(path, start=0, stop=None):
    """Reads the samples [start, stop) of a file of two channels, and no others.

    Arguments
    ---------
    path : str or Path
        Left and right ear.
    start, stop : int
        The region; by default the whole file.

    Returns
    -------
    np.ndarray
        float32 [E, T]

    Raises
    ------
    UserError
        If the file is missing, corrupt, too short, or has not two channels.

    Example
    -------
    >>> path = getfixture("tmpdir") / "two.wav"
    >>> write_ears(path, np.array([[0.5, 0.25], [1.5, 0.0]]), 8000)
    >>> read_ears(path, 0, 1)
    array([[0.5],
           [1.5]], dtype=float32)
    """
    with audio.opened(path) as file:
        if file.channels != EARS:
            raise UserError(
                f"{path}: has {file.channels} channel(s), two were expected (the left "
                "ear, then the right one); is it a mono corpus?"
            )
        stop = file.frames if stop is None else stop
        if stop > file.frames:
            raise UserError(
                f"{path}: has {file.frames} samples, but samples up to {stop} are asked"
                " for; if it changed after its manifest was made, delete the manifest"
            )
        file.seek(start)
        signal = file.read(stop - start, dtype="float32")
        if len(signal) != stop - start:
            raise UserError(
                f"{path}: is corrupt; its header promises {file.frames} samples, but "
                f"only {start + len(signal)} could be read; get the file again"
            )
    return np.ascontiguousarray(signal.T)


def write_ears(path, signal, sample_rate):
    """Writes both ears as a wav of 32-bit floats, which holds what exceeds full scale.

    The same signal gives the same bytes.

    Arguments
    ---------
    path : str or Path
        The file, in a folder that exists; one of the same name is replaced.
    signal : np.ndarray
        [E, T]
    sample_rate : int
        Hz.

    Example
    -------
    >>> path = getfixture("tmpdir") / "loud.wav"
    >>> write_ears(path, np.full((2, 3), -1.5), 8000)
    >>> float(read_ears(path).min())
    -1.5
    """
    signal = np.asarray(signal)
    if signal.ndim != 2 or len(signal) != EARS or not np.isfinite(signal).all():
        raise ValueError(f"finite signals [{EARS}, T] expected, not {signal.shape}")
    samples = np.ascontiguousarray(signal.T, dtype="<f4").tobytes()
    frame = 4 * EARS
    form = struct.pack(
        "<HHIIHHH", FLOATS, EARS, sample_rate, sample_rate * frame, frame, 32, 0
    )
    fact = struct.pack("<I", signal.shape[1])
    body = b"WAVE"
    for name, content in ((b"fmt ", form), (b"fact", fact), (b"data", samples)):
        body += name + struct.pack("<I", len(content)) + content
    Path(path).write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def _degrees(text, name, item):
    """The finite number that an attribute holds."""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise UserError(f"{item.id}: the {name} is {text!r}; degrees were expected")
    return value
