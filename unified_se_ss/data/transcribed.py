"""Noisy speech with its clean counterpart and its words.

Axes: B batch, T samples, U tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data.dataset import (
    Batch,
    ItemKey,
    ManifestDataset,
    collate,
    padded,
)
from unified_se_ss.data.mixing import checked_range, snr_gain
from unified_se_ss.data.pools import NoisePool, Recording


class Utterance(NamedTuple):
    """One utterance.

    id; noisy and clean, float32 [T]; transcript : its words; has_clean : whether `clean`
    is the clean speech, else it is `noisy` again.
    """

    id: str
    noisy: torch.Tensor
    clean: torch.Tensor
    transcript: str
    has_clean: bool = True


def collate_transcribed(utterances, encode) -> Batch:
    """Pads utterances and their tokens to the longest and stacks them.

    Arguments
    ---------
    utterances : list of Utterance
        At least one.
    encode : callable
        Takes a transcript, returns its tokens as a list of int.

    Returns
    -------
    Batch
        Of noisy and clean [B, T]; has_clean, bool [B]; transcripts, B texts; tokens, int64
        [B, U] padded with 0, and n_tokens, int64 [B], which stays on the CPU.
    """
    batch = collate(utterances)
    tokens = [torch.tensor(encode(text), dtype=torch.int64) for text in batch.transcript]
    return Batch(
        batch.ids,
        batch.lengths,
        {"noisy": batch.noisy, "clean": batch.clean, "tokens": padded(tokens)},
        transcripts=batch.transcript,
        n_tokens=torch.tensor([len(t) for t in tokens]),
        has_clean=batch.has_clean,
    )


class _TranscribedDataset(ManifestDataset):
    """Utterances of a manifest, whole and at one rate."""

    def __init__(self, manifest, stems, sample_rate, seed=0):
        columns = (*stems, "transcript")
        super().__init__(manifest, columns, seed=seed, sample_rate=sample_rate)

    def _read(self, item, stem):
        return Recording(item, stem, self.sample_rate).read()


class PairedSpeechDataset(_TranscribedDataset):
    """Utterances that were recorded or mixed beforehand.

    Arguments
    ---------
    manifest : Manifest
        With the stems noisy and clean, of the same length, and the column transcript.
        A column has_clean, if there is one, says with "no" that there is no clean
        recording (of speech that was recorded in noise); the stem clean is then the
        noisy one.
    sample_rate : int, optional
        Hz; recordings of other rates are resampled (default: the manifest's).
    """

    def __init__(self, manifest, sample_rate=None):
        super().__init__(manifest, ("noisy", "clean"), sample_rate)

    def _example(self, rng, index):
        item = self.manifest.items[index]
        signals = (torch.from_numpy(self._read(item, stem)) for stem in ("noisy", "clean"))
        has_clean = item.attributes.get("has_clean", "yes") != "no"
        return Utterance(item.id, *signals, item.attributes["transcript"], has_clean)


class NoisySpeechDataset(_TranscribedDataset):
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
    """

    def __init__(self, speech, noise, snr_range, sample_rate, seed=0, epoch=None):
        super().__init__(speech, ("clean",), sample_rate, seed)
        self.noise = NoisePool(noise, sample_rate, resample=True, needs=())
        self.snr_range = checked_range("snr_range", snr_range)
        self.epoch = epoch

    def __getitem__(self, key):
        key = ItemKey.of(key)
        return super().__getitem__(key if self.epoch is None else (self.epoch, key.index))

    def _example(self, rng, index):
        item = self.manifest.items[index]
        clean = self._read(item, "clean")
        (noise,), _ = self.noise.sample(rng, len(clean))
        noisy = clean + noise * snr_gain(clean, noise, rng.uniform(*self.snr_range))
        peak = max(1.0, float(np.abs(noisy).max()))
        signals = (
            torch.from_numpy((signal / peak).astype(np.float32))
            for signal in (noisy, clean)
        )
        return Utterance(item.id, *signals, item.attributes["transcript"])
