"""Noisy speech with its clean counterpart and its words.

Axes: B batch, T samples, U tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data.augment import perturbed_frames, read_perturbed, speed_ratio
from unified_se_ss.data.dataset import as_item_key
from unified_se_ss.data.dynamic_mixing import read_noise
from unified_se_ss.errors import UserError

# Below this energy there is nothing to set a signal-to-noise ratio by.
SILENCE = 1e-12


class Utterance(NamedTuple):
    """One utterance.

    Arguments
    ---------
    id : str
        Its name.
    noisy, clean : torch.Tensor
        float32 [T].
    transcript : str
        Its words.
    has_clean : bool
        Whether `clean` is the clean speech (default True); else it is `noisy` again.
    """

    id: str
    noisy: torch.Tensor
    clean: torch.Tensor
    transcript: str
    has_clean: bool = True


@dataclass
class TranscribedBatch:
    """Utterances padded with zeros to the longest.

    Arguments
    ---------
    ids : list of str
        B names.
    noisy, clean : torch.Tensor
        [B, T]
    lengths : torch.Tensor
        int64 [B], samples without padding; stays on the CPU.
    transcripts : list of str
        B texts.
    tokens : torch.Tensor
        int64 [B, U], padded with 0.
    n_tokens : torch.Tensor
        int64 [B], tokens without padding; stays on the CPU.
    has_clean : torch.Tensor
        bool [B], whether there is a clean recording; stays on the CPU.
    """

    ids: list
    noisy: torch.Tensor
    clean: torch.Tensor
    lengths: torch.Tensor
    transcripts: list
    tokens: torch.Tensor
    n_tokens: torch.Tensor
    has_clean: torch.Tensor

    def __len__(self):
        return len(self.ids)

    def to(self, device):
        """Moves signals and tokens to a device, in place, and returns the batch."""
        for name in ("noisy", "clean", "tokens"):
            setattr(self, name, getattr(self, name).to(device, non_blocking=True))
        return self

    def pin_memory(self):
        """Moves them to page-locked memory, from which copies to a GPU are fast."""
        for name in ("noisy", "clean", "tokens"):
            setattr(self, name, getattr(self, name).pin_memory())
        return self


def collate_transcribed(utterances, encode) -> TranscribedBatch:
    """Pads utterances with zeros to the longest and stacks them.

    Arguments
    ---------
    utterances : list of Utterance
        At least one.
    encode : callable
        Takes a transcript, returns its tokens as a list of int.

    Returns
    -------
    TranscribedBatch

    Example
    -------
    >>> short = Utterance("a", torch.ones(2), torch.ones(2), "hi")
    >>> long = Utterance("b", torch.ones(3), torch.ones(3), "you")
    >>> batch = collate_transcribed([short, long], lambda text: [ord(c) for c in text])
    >>> batch.noisy, batch.tokens
    (tensor([[1., 1., 0.],
            [1., 1., 1.]]), tensor([[104, 105,   0],
            [121, 111, 117]]))
    """
    tokens = [torch.tensor(encode(u.transcript), dtype=torch.int64) for u in utterances]
    pad = torch.nn.utils.rnn.pad_sequence
    return TranscribedBatch(
        [u.id for u in utterances],
        pad([u.noisy for u in utterances], batch_first=True),
        pad([u.clean for u in utterances], batch_first=True),
        torch.tensor([len(u.noisy) for u in utterances]),
        [u.transcript for u in utterances],
        pad(tokens, batch_first=True),
        torch.tensor([len(t) for t in tokens]),
        torch.tensor([u.has_clean for u in utterances]),
    )


class PairedSpeechDataset(torch.utils.data.Dataset):
    """Utterances that were recorded or mixed beforehand.

    Arguments
    ---------
    manifest : Manifest
        With the stems noisy and clean, of the same length, and the column transcript.
        A column has_clean, if there is one, says with "no" that there is no clean
        recording (of speech that was recorded in noise); the stem clean is then the
        noisy one.
    sample_rate : int, optional
        Hz; recordings of other rates are resampled (default: none is).

    Raises
    ------
    UserError
        If the manifest lacks one of them.
    """

    def __init__(self, manifest, sample_rate=None):
        check_transcribed(manifest, ("noisy", "clean"))
        self.manifest, self.sample_rate = manifest, sample_rate

    @property
    def durations(self):
        """Seconds of each item."""
        return [item.duration for item in self.manifest.items]

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, key):
        item = self.manifest.items[as_item_key(key).index]
        ratio = speed_ratio(100, item.sample_rate, self.sample_rate or item.sample_rate)
        frames = perturbed_frames(item.frames, ratio)
        noisy, clean = (
            torch.from_numpy(read_perturbed(item, stem, 0, frames, ratio))
            for stem in ("noisy", "clean")
        )
        has_clean = item.attributes.get("has_clean", "yes") != "no"
        return Utterance(item.id, noisy, clean, item.attributes["transcript"], has_clean)


class NoisySpeechDataset(torch.utils.data.Dataset):
    """Clean utterances with noise that is drawn anew in every epoch.

    An item is a function of (seed, epoch, index) alone: its noise recording, the place
    in it, and the signal-to-noise ratio. Noise that is shorter is repeated. The clean
    speech keeps its level; a noisy signal beyond full scale is turned down with it.

    Arguments
    ---------
    speech : Manifest
        With the stem clean and the column transcript.
    noise : Manifest
        As `prepare_speech_folder` writes it with the kind "noise".
    snr_range : sequence of float
        Lowest and highest ratio in dB, of the powers over the whole utterance.
    sample_rate : int
        Hz; recordings of other rates are resampled.
    seed : int
        Default 0.
    epoch : int, optional
        The epoch that all items are taken from, whatever the key says: for evaluation
        (default: the key's).

    Raises
    ------
    UserError
        If a manifest lacks what is needed, or the range has no sense.
    """

    def __init__(self, speech, noise, snr_range, sample_rate, seed=0, epoch=None):
        check_transcribed(speech, ("clean",))
        if "noise" not in noise.stems:
            raise UserError(f"{noise.path}: has no column noise")
        low, high = _checked_range(snr_range)
        self.manifest, self.noise = speech, noise
        self.low, self.high = low, high
        self.sample_rate, self.seed, self.epoch = sample_rate, seed, epoch

    @property
    def durations(self):
        """Seconds of each item."""
        return [item.duration for item in self.manifest.items]

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, key):
        key = as_item_key(key)
        epoch = key.epoch if self.epoch is None else self.epoch
        rng = np.random.default_rng([self.seed, epoch, key.index])
        item = self.manifest.items[key.index]
        ratio = speed_ratio(100, item.sample_rate, self.sample_rate)
        frames = perturbed_frames(item.frames, ratio)
        clean = read_perturbed(item, "clean", 0, frames, ratio)
        source = self.noise.items[rng.integers(len(self.noise))]
        noise = read_noise(source, len(clean), self.sample_rate, rng)
        noisy = clean + noise * _gain(clean, noise, rng.uniform(self.low, self.high))
        peak = max(1.0, float(np.abs(noisy).max()))
        noisy, clean = (
            torch.from_numpy((signal / peak).astype(np.float32))
            for signal in (noisy, clean)
        )
        return Utterance(item.id, noisy, clean, item.attributes["transcript"])


def _gain(clean, noise, snr) -> float:
    """Factor of the noise for a signal-to-noise ratio in dB; 1 where either is silent."""
    speech, disturbance = (
        float(np.square(x, dtype=np.float64).mean()) for x in (clean, noise)
    )
    if min(speech, disturbance) < SILENCE:
        return 1.0
    return float(np.sqrt(speech / disturbance / 10 ** (snr / 10)))


def _checked_range(snr_range):
    """Lowest and highest ratio."""
    try:
        low, high = (float(value) for value in snr_range)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not -100 <= low <= high <= 100:
        raise UserError(
            f"snr_range: is {snr_range}; expected two numbers in dB, the lower one first, "
            "such as [-5, 10]"
        )
    return low, high


def check_transcribed(manifest, stems) -> None:
    """Raises a UserError if a manifest lacks stems or transcripts.

    Arguments
    ---------
    manifest : Manifest
        The manifest.
    stems : sequence of str
        Columns of recordings that it must have.
    """
    there = (*manifest.stems, *manifest.items[0].attributes)
    missing = [column for column in (*stems, "transcript") if column not in there]
    if missing:
        raise UserError(
            f"{manifest.path}: has no column {missing[0]} (there are {', '.join(there)})"
        )
