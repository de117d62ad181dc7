"""Binaural dynamic mixing: items per second of one process, beside plain ways to do it.

Items of 4 s at 8 kHz on one thread. `here` is `BinauralDynamicMixing`. Baselines, built here:
`plain` reads whole files and calls `scipy.signal.convolve` once for each source and ear in
float64, with filters that lie in memory; `recipe` does what dynamic mixing of public recipes
does as well: it opens the filters of each source and ear as files for every item and
resamples them from 44.1 kHz. The kinds take turns, a block of items each, so that what else
the machine does meets all of them; ratios are medians over the rounds.

The files are written by this program: voices are filtered noise, as neither content nor
format changes the work.

How many items a GPU can use up, by count: a training step of the published network takes
about 28 GFLOP for an item of 4 s (two ears, 0.57 million weights, 4000 frames, three times
the forward pass), and moves some 2.4 GB of activations in float32 (32 blocks, 128
channels, about 6 tensors each). At the 4.8 TB/s of an H200 that is 2000 items/s if
nothing else took time, at the 2 TB/s of an A100 800; with the published batch of one item,
thousands of small kernels make it less than 100. Twice the first column is what two
workers give.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch

from benchmarks.data import block
from benchmarks.frame import Options, Table, alternate, compared
from unified_se_ss.data import audio
from unified_se_ss.data.binaural import BinauralDynamicMixing
from unified_se_ss.data.hrtf_bank import binaural_heads
from unified_se_ss.data.manifest import Item, Manifest
from unified_se_ss.spatial import spherical_head

RATE = 8000
CIPIC_RATE = 44100
VOICES = 20
FILES_PER_VOICE = 5
SECONDS = 4.0
ITEMS = 30  #: Of each kind in a round.
N_SPEAKERS = 2


def write_voices(folder, seconds):
    """A manifest of utterances in 16-bit files, and one of a noise."""
    rng, items = np.random.default_rng(0), []
    for voice in range(VOICES):
        for number in range(FILES_PER_VOICE):
            path = folder / f"{voice}-{number}.wav"
            frames = int(rng.uniform(1.0, 2.0) * seconds * RATE)
            noise = scipy.signal.lfilter([0.1], [1, -0.9], rng.standard_normal(frames))
            audio.write(path, noise / (2 * np.abs(noise).max()), RATE)
            told = {"speaker": f"v{voice:02d}", "loudness": "-20.0"}
            speech = {"speech": str(path)}
            items.append(Item(path.name, frames / RATE, RATE, speech, told))
    path, frames = folder / "noise.wav", 60 * RATE
    audio.write(path, rng.uniform(-0.1, 0.1, frames), RATE)
    noise = Item("noise", 60.0, RATE, {"noise": str(path)}, {"loudness": "-25.0"})
    return (
        Manifest("speech.csv", tuple(items), ("speech",), RATE),
        Manifest("noise.csv", (noise,), ("noise",), RATE),
    )


class Plain:
    """Whole files, float64, one convolution for each source and ear."""

    def __init__(self, speech, noise, heads, n_speakers, seconds, folder=None):
        self.speech, self.noise, self.heads = speech.items, noise, heads
        self.n_speakers, self.samples = n_speakers, int(seconds * RATE)
        self.folder = folder

    def __getitem__(self, key):
        rng = np.random.default_rng([key.epoch, key.index])
        head = self.heads[rng.integers(len(self.heads))]
        sources = []
        for item in rng.choice(len(self.speech), self.n_speakers, replace=False):
            signal, _ = soundfile.read(self.speech[item].paths["speech"])
            start = rng.integers(max(1, len(signal) - self.samples + 1))
            signal = signal[start : start + self.samples]
            filters = head.filters[rng.integers(len(head))]
            ears = []
            for ear in range(2):
                taps = filters[ear] if self.folder is None else self._from_file(ear)
                ears.append(scipy.signal.convolve(signal, taps)[: len(signal)])
            ears = np.stack(ears)
            sources.append(ears * np.sqrt(2 * np.sum(signal**2) / np.sum(ears**2)))
        length = min(source.shape[1] for source in sources)
        sources = np.stack([source[:, :length] for source in sources])
        mixture = sources.sum(axis=0)
        if self.noise is not None:
            signal, _ = soundfile.read(self.noise.items[0].paths["noise"])
            start = rng.integers(len(signal) - length + 1)
            # Copied to both ears, as the public set does: diffuse noise would cost more.
            mixture = mixture + signal[start : start + length]
        return (
            torch.from_numpy(mixture.astype(np.float32)),
            torch.from_numpy(sources.astype(np.float32)),
        )

    def _from_file(self, ear):
        """An ear's filter as a file at 44.1 kHz holds it, resampled."""
        taps, rate = soundfile.read(self.folder / f"ear{ear}.wav")
        return scipy.signal.resample_poly(taps, RATE, rate)


def write_filters(folder):
    """One file for each ear, at the rate of CIPIC."""
    filters = spherical_head(CIPIC_RATE, azimuth=30.0).filters[0]
    for ear in range(2):
        soundfile.write(folder / f"ear{ear}.wav", filters[ear], CIPIC_RATE, "FLOAT")


def kinds_of(speech, noise, heads, items: int, seconds: float, folder) -> dict:
    """Here, plain, and as public recipes do it."""
    shared = (heads, N_SPEAKERS)
    here = BinauralDynamicMixing(speech, noise, *shared, items, 0, seconds, RATE)
    return {
        "recipe": Plain(speech, noise, *shared, seconds, folder),
        "plain": Plain(speech, noise, *shared, seconds),
        "here": here,
    }


def compare(speech, noise, heads, folder, options: Options) -> Table:
    """All kinds, with noise or without."""
    items, seconds = (2, 0.5) if options.quick else (ITEMS, SECONDS)
    kinds = kinds_of(speech, noise, heads, items, seconds, folder)
    ways = {name: block(data, items, items) for name, data in kinds.items()}
    timings = alternate(ways, options.repeats, torch.device("cpu"))
    rows = [
        {
            "items/s": items / row["seconds"],
            "items/s of processor": items / row["processor s"],
            **row,
        }
        for row in compared(timings, "recipe", "kind")
    ]
    what = "no noise" if noise is None else "diffuse noise"
    return Table(
        f"Binaural mixtures of {N_SPEAKERS} talkers and {what}, {seconds:g} s at 8 kHz",
        ["kind", "items/s", "items/s of processor", "speed", "processor speed"],
        rows,
    )


def run(options: Options) -> Iterator[Table]:
    """Without noise and with it."""
    heads = binaural_heads()["train"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        speech, noise = write_voices(folder, 0.5 if options.quick else SECONDS)
        write_filters(folder)
        for given in (None, noise):
            yield compare(speech, given, heads, folder, options)
