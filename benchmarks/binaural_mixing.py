"""Binaural dynamic mixing: items per second of one process, beside a plain way to do it.

    python benchmarks/binaural_mixing.py [--speakers 2] [--noise] [--seconds 4] [--rounds 20]

Items of 4 s at 8 kHz on one thread. `here` is `BinauralDynamicMixing`. `plain` reads whole
files and calls `scipy.signal.convolve` once for each source and ear in float64, with
filters that lie in memory; `recipe` does what dynamic mixing of public recipes does as
well: it opens the filters of each source and ear as files for every item and resamples
them from 44.1 kHz. The kinds take turns, a block of items each, so that what else the
machine does meets all of them; ratios are medians over the rounds.

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

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from unified_se_ss.data import (  # noqa: E402
    BinauralDynamicMixing,
    Item,
    ItemKey,
    Manifest,
    audio,
)
from unified_se_ss.data.binaural_heads import binaural_heads  # noqa: E402
from unified_se_ss.spatial import spherical_head  # noqa: E402

RATE = 8000
CIPIC_RATE = 44100
VOICES = 20
FILES_PER_VOICE = 5


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


def rate_of(data, epoch, count):
    """Items per second of a block of items, by wall clock and by processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    for index in range(count):
        data[ItemKey(epoch, index)]
    return (
        count / (time.perf_counter() - wall),
        count / (time.process_time() - processor),
    )


def main(arguments=None):
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--speakers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--noise", action="store_true", help="diffuse noise, too")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--items", type=int, default=30, help="in each block")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    heads = binaural_heads()["train"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        speech, noise = write_voices(folder, options.seconds)
        noise = noise if options.noise else None
        write_filters(folder)
        shared = (heads, options.speakers)
        kinds = {
            "here": BinauralDynamicMixing(
                speech, noise, *shared, options.items, 0, options.seconds, RATE
            ),
            "plain": Plain(speech, noise, *shared, options.seconds),
            "recipe": Plain(speech, noise, *shared, options.seconds, folder),
        }
        rates = {name: [] for name in kinds}
        for data in kinds.values():
            rate_of(data, 0, min(5, options.items))
        for epoch in range(1, options.rounds + 1):
            for name, data in kinds.items():
                rates[name].append(rate_of(data, epoch, options.items))
    rates = {name: np.array(values) for name, values in rates.items()}
    print(
        f"numpy {np.__version__}, scipy {scipy.__version__}, one thread; {options.speakers} "
        f"speakers, {'diffuse noise' if options.noise else 'no noise'}, {options.seconds:g} s "
        f"at {RATE} Hz; {options.rounds} rounds of {options.items} items\n\n"
        f"{'':<8} {'items/s':>8} {'items/s of processor':>21} {'here is':>10}"
    )
    rows = []
    for name, values in rates.items():
        wall, processor = np.median(values, axis=0)
        ratio = float(np.median(rates["here"][:, 1] / values[:, 1]))
        row = {"kind": name, "items": wall, "processor_items": processor, "ratio": ratio}
        rows.append(row)
        print(f"{name:<8} {wall:>8.0f} {processor:>21.0f} {ratio:>8.1f} x")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
