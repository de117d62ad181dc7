"""Data: dynamic mixing from wav and flac against whole files and their loudness.

Mixtures of 2 sources and noise, 4 s at 16 kHz, from utterances of 12 to 15 s and noise of 30
to 40 s in 16-bit files, made here from a seed (filtered noise: content does not change the
work, but for flac, which compresses it less than speech and so reads it more slowly).
Baseline: what dynamic mixing of public recipes does, built here of the same parts: whole files
by soundfile, their loudness by pyloudnorm, the same gains, segments and sum. Both draw the same
mixtures from the same seed, and the largest difference of their samples is in the table.

Fixed mixtures are a manifest of mixture, two sources and noise, a segment of which is read by
start and stop; baseline: whole files, cut afterwards. The mixture is read, not summed: of
noisy mixtures the noise would have to be read in its place, and 16-bit files of mixtures are
rounded once more than the sum. With other speeds it is the sum.

The loader is the recipes' own with 0, 1, 2 and 4 workers and batches of 16; what it gives is
what a training step may use up, whatever makes the step.

Aim: 5 times the baseline's items/s on one core.
"""

from __future__ import annotations

import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch

from benchmarks.frame import Options, Table, alternate, compared
from unified_se_ss.data.batching import BucketBatchSampler
from unified_se_ss.data.dataset import (
    DynamicMixingDataset,
    Example,
    ItemKey,
    MixtureDataset,
    collate,
)
from unified_se_ss.data.manifest import Item, Manifest
from unified_se_ss.data.mixing import draw_levels, loudness_gain, measure_loudness, mix
from unified_se_ss.training import make_loader

RATE = 16000
SEGMENT = 4.0
N_SPEAKERS = 2
BATCH = 16
WORKERS = (0, 1, 2, 4)
SECONDS = 8.0  #: That a loader is watched.
ENDINGS = ("wav", "flac")


class Corpus:
    """Utterances, noises and ready mixtures in files of one kind, with their manifests.

    Arguments
    ---------
    folder : pathlib.Path
        Where the files go.
    ending : str
        ``"wav"`` or ``"flac"``.
    voices : int
        Speakers, of four utterances each.
    seconds : tuple of float
        Shortest and longest utterance; noises are 2.5 times as long.
    """

    def __init__(self, folder: Path, ending: str, voices: int = 20, seconds=(12.0, 15.0)):
        self.folder, self.ending, self.seconds = folder, ending, seconds
        self.rng = np.random.default_rng(0)
        speech, noises, mixtures = [], [], []
        for number in range(4 * voices):
            told = {"speaker": f"v{number // 4:02d}"}
            speech.append(self._item(f"{told['speaker']}-{number}", "speech", 1.0, told))
        for number in range(10):
            noises.append(self._item(f"noise-{number}", "noise", 2.5, {}))
        for number in range(voices):
            mixtures.append(self._mixture(f"mixture-{number}"))
        self.speech = Manifest("speech.csv", tuple(speech), ("speech",), RATE)
        self.noise = Manifest("noise.csv", tuple(noises), ("noise",), RATE)
        self.mixtures = Manifest("mixtures.csv", tuple(mixtures), tuple(STEMS), RATE)

    def _signal(self, factor: float) -> np.ndarray:
        """Filtered noise of some seconds, at half of full scale."""
        samples = int(factor * self.rng.uniform(*self.seconds) * RATE)
        signal = scipy.signal.lfilter([0.1], [1, -0.9], self.rng.standard_normal(samples))
        return signal / (2 * np.abs(signal).max())

    def _write(self, name: str, signal: np.ndarray) -> str:
        path = self.folder / f"{name}.{self.ending}"
        soundfile.write(path, signal, RATE, "PCM_16")
        return str(path)

    def _item(self, name, stem, factor, told) -> Item:
        """A recording, and its loudness as `prepare_speech_folder` keeps it."""
        path = self._write(name, self._signal(factor))
        signal, _ = soundfile.read(path, dtype="float32")
        told = {**told, "loudness": repr(measure_loudness(signal, RATE))}
        return Item(name, len(signal) / RATE, RATE, {stem: path}, told)

    def _mixture(self, name) -> Item:
        """Two sources, noise and their sum."""
        s1, s2, noise = (0.5 * self._signal(1.0) for _ in range(3))
        length = min(map(len, (s1, s2, noise)))
        s1, s2, noise = s1[:length], s2[:length], 0.2 * noise[:length]
        signals = dict(zip(STEMS, (s1 + s2 + noise, s1, s2, noise)))
        paths = {stem: self._write(f"{name}-{stem}", x) for stem, x in signals.items()}
        return Item(name, length / RATE, RATE, paths)


STEMS = ("mixture", "s1", "s2", "noise")


class WholeFiles:
    """The baseline of dynamic mixing: as the data set draws, from whole files.

    Arguments
    ---------
    data : DynamicMixingDataset
        Whose mixtures it makes: the same draws in the same order.
    """

    def __init__(self, data: DynamicMixingDataset):
        self.data, self.length = data, round(data.segment_seconds * RATE)

    def __getitem__(self, key):
        data = self.data
        rng = np.random.default_rng([data.seed, key.epoch, key.index])
        voices = data.speech.draw_speakers(rng, data.n_speakers)
        items = [data.speech.draw_utterance(rng, voice) for voice in voices]
        *levels, noise_level = draw_levels(rng, data.n_speakers)
        rng.choice(data.speed_percents, data.n_speakers)
        sources = [
            self._segment(item.paths["speech"], level, rng)
            for item, level in zip(items, levels)
        ]
        noise = data.noise.draw_recording(rng)
        noise = self._segment(noise.paths["noise"], noise_level, rng)
        mixture = mix(np.stack(sources), noise)
        tensors = map(torch.from_numpy, (mixture.mix_both, mixture.sources))
        return Example("", *tensors)

    def _segment(self, path, level, rng) -> np.ndarray:
        """A segment of a whole file, at a level."""
        signal, rate = soundfile.read(path, dtype="float32")
        signal = signal * np.float32(loudness_gain(level, measure_loudness(signal, rate)))
        start = int(rng.integers(0, len(signal) - self.length + 1))
        return signal[start : start + self.length]


class CutAfterwards:
    """The baseline of fixed mixtures: whole files, of which a segment is kept."""

    def __init__(self, data: MixtureDataset):
        self.data, self.length = data, round(data.segment_seconds * RATE)

    def __getitem__(self, key):
        item = self.data.manifest.items[key.index]
        rng = np.random.default_rng([self.data.seed, key.epoch, key.index])
        start = int(rng.integers(0, item.frames - self.length + 1))
        mixture, *sources = (
            soundfile.read(item.paths[stem], dtype="float32")[0] for stem in STEMS[:3]
        )
        cut = slice(start, start + self.length)
        tensors = map(torch.from_numpy, (mixture[cut], np.stack(sources)[:, cut]))
        return Example(item.id, *tensors)


def block(data, count: int, indices: int):
    """A function that makes `count` further items at each call."""
    made = iter(range(10**9))

    def make():
        for _ in range(count):
            number = next(made)
            data[ItemKey(number // indices, number % indices)]

    return make


def compare(title: str, here, baseline, indices: int, items: dict, options) -> Table:
    """Items per second of two data sets that give the same."""
    key = ItemKey(1, 1)
    ours, theirs = here[key], baseline[key]
    difference = max(
        float((ours.mixture - theirs.mixture).abs().max()),
        float((ours.sources - theirs.sources).abs().max()),
    )
    ways = {
        "whole files": block(baseline, items["whole files"], indices),
        "here": block(here, items["here"], indices),
    }
    timings = alternate(ways, options.repeats, torch.device("cpu"))
    rows = []
    for row in compared(timings, "whole files"):
        share = items[row["way"]] / items["whole files"]
        rows.append(
            {
                **row,
                "items/s": items[row["way"]] / row["seconds"],
                "items/s of processor": items[row["way"]] / row["processor s"],
                "speed": share * row["speed"],
                "processor speed": share * row["processor speed"],
                "largest difference": difference if row["way"] == "here" else None,
            }
        )
    columns = ["way", "items/s", "items/s of processor", "speed", "processor speed"]
    return Table(title, [*columns, "largest difference"], rows)


def watched_loader(data, workers: int, seconds: float) -> dict:
    """What the recipes' loader gives from its second batch on, and what that costs."""
    sampler = BucketBatchSampler(data.durations, batch_size=BATCH, seed=0)
    sampler.set_epoch(1)
    loader = make_loader(data, sampler, collate, workers)
    of_workers = _processor_of_children()
    batches = iter(loader)
    next(batches)
    began, processor, items = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        items += len(batch)
        took = time.perf_counter() - began
        if took > seconds:
            break
    processor = time.process_time() - processor
    found = {"workers": workers, "items/s": items / took, "ms an item, here": None}
    here = 1000 * processor / items
    if workers:
        batches._shutdown_workers()
        made = items + BATCH * (1 + loader.prefetch_factor * workers)
        of_workers = 1000 * (_processor_of_children() - of_workers) / made
        found |= {"ms an item, here": here, "ms an item, worker": of_workers}
        found["items/s, a core each"] = 1000 / max(here, of_workers / workers)
    else:
        found |= {"ms an item, here": here, "items/s, a core each": 1000 / here}
    return found


def _processor_of_children() -> float:
    """Processor seconds of all processes that this one has started and that are gone."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def loaders(corpora: dict, options: Options) -> Table:
    """What loaders of 0, 1, 2 and 4 workers give."""
    rows = []
    for kind, corpus in corpora.items():
        data = dynamic(corpus)
        for workers in (0, 1) if options.quick else WORKERS:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This DataLoader will create")
                found = watched_loader(data, workers, 0.1 if options.quick else SECONDS)
            step = 1000 * BATCH / found["items/s, a core each"]
            rows.append({"files": kind, **found, "shortest step, ms": step})
    return Table(
        f"Dynamic mixing through the recipes' loader, batches of {BATCH} x {SEGMENT:g} s",
        [
            *("files", "workers", "items/s", "ms an item, worker", "ms an item, here"),
            *("items/s, a core each", "shortest step, ms"),
        ],
        rows,
        "Items/s on the clock, workers sharing this machine's cores; this process takes the "
        "batches and does nothing else. Milliseconds are the processor's, of the workers "
        "together and of this process. From them: items/s where each process has a core of "
        "its own, and the shortest step that so many workers feed.",
    )


def dynamic(corpus: Corpus, items: int = 10**5) -> DynamicMixingDataset:
    """Dynamic mixing of a corpus."""
    given = (corpus.speech, corpus.noise, N_SPEAKERS, items, 0)
    return DynamicMixingDataset(*given, SEGMENT, RATE)


def run(options: Options) -> Iterator[Table]:
    """Dynamic mixing and fixed mixtures by kind of file, then loaders."""
    sizes = {"voices": 3, "seconds": (4.5, 5.0)} if options.quick else {}
    few = {"whole files": 1, "here": 2}
    items = few if options.quick else {"whole files": 10, "here": 200}
    with tempfile.TemporaryDirectory() as place:
        corpora = {}
        for ending in ENDINGS:
            folder = Path(place) / ending
            folder.mkdir()
            corpora[ending] = Corpus(folder, ending, **sizes)
        for ending, corpus in corpora.items():
            data = dynamic(corpus)
            title = f"Dynamic mixing of 2 sources and noise, {SEGMENT:g} s from {ending}"
            yield compare(title, data, WholeFiles(data), len(data), items, options)
        for ending, corpus in corpora.items():
            data = MixtureDataset(corpus.mixtures, N_SPEAKERS, segment_seconds=SEGMENT)
            title = f"Fixed mixtures of 2 sources, {SEGMENT:g} s from {ending}"
            fixed = items if options.quick else {"whole files": 50, "here": 200}
            yield compare(title, data, CutAfterwards(data), len(data), fixed, options)
        yield loaders(corpora, options)
