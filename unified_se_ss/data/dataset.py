"""Items of a manifest or mixed anew, their examples, and padded batches of them.

Axes: B batch, J sources, T samples, U tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data.mixing import checked_range, draw_levels, mix, snr_gain
from unified_se_ss.data.pools import NoisePool, Recording, SpeechPool, draw_crop, short_name
from unified_se_ss.errors import UserError

# 16-bit rounding of all stems stays below -60 dB of any mixture worth separating.
NOISE_FREE = 1e-3
SPEEDS = (50, 200)


class ItemKey(NamedTuple):
    """Key that an item follows from, beside the data set's seed."""

    epoch: int
    index: int

    @classmethod
    def of(cls, key):
        """Makes one of what a sampler gave; a whole number is an index in epoch 0."""
        return cls(*key) if isinstance(key, tuple) else cls(0, int(key))


class Example(NamedTuple):
    """One mixture: id, mixture [T], sources [J, T], both float32 tensors."""

    id: str
    mixture: torch.Tensor
    sources: torch.Tensor


class TranscribedExample(NamedTuple):
    """One utterance.

    id; noisy and clean, float32 [T]; transcript : its words; has_clean : whether `clean`
    is the clean speech, else it is `noisy` again.
    """

    id: str
    noisy: torch.Tensor
    clean: torch.Tensor
    transcript: str
    has_clean: bool = True


class Batch:
    """Examples of one kind, padded with zeros to the longest.

    Its attributes are those of the examples: signals [B, ..., T], other tensors and
    numbers [B, ...], lists of all else.

    Arguments
    ---------
    ids : list of str
        B names.
    lengths : torch.Tensor
        int64 [B], samples without padding.
    signals : dict
        Tensors [B, ..., T] by name, or None; alone they go to a device. All else stays on
        the CPU: whoever asks for it there need not wait for a GPU.
    others
        Further attributes.

    Example
    -------
    >>> batch = collate([Example("a", torch.ones(3), torch.ones(2, 3))])
    >>> batch.mixture.shape, batch.clean_mixture
    (torch.Size([1, 3]), tensor([[2., 2., 2.]]))
    """

    def __init__(self, ids, lengths, signals, **others):
        self.ids, self.lengths = ids, lengths
        self._signals = tuple(signals)
        vars(self).update(signals, **others)

    def __len__(self):
        return len(self.ids)

    @property
    def clean_mixture(self):
        """Sum of the sources, without noise, in the mixture's shape."""
        return self.sources.sum(dim=1)

    def to(self, device):
        """Moves the signals to a device, in place, and returns the batch."""
        return self._with_each(lambda signal: signal.to(device, non_blocking=True))

    def pin_memory(self):
        """Moves the signals to page-locked memory, from which copies to a GPU are fast."""
        return self._with_each(torch.Tensor.pin_memory)

    def _with_each(self, change):
        for name in self._signals:
            signal = getattr(self, name)
            setattr(self, name, None if signal is None else change(signal))
        return self


def collate(examples):
    """Pads examples of any kind with zeros to the longest and stacks them.

    Arguments
    ---------
    examples : list of NamedTuple
        At least one, all of one kind. Their signals are the tensors as long as the first.

    Returns
    -------
    Batch
        A field that one of the examples lacks (None), or has in another shape, is None.

    Example
    -------
    >>> short = Example("a", torch.ones(2), torch.ones(1, 2))
    >>> long = Example("b", torch.ones(3), torch.ones(1, 3))
    >>> batch = collate([short, long])
    >>> batch.mixture, batch.lengths
    (tensor([[1., 1., 0.],
            [1., 1., 1.]]), tensor([2, 3]))
    """
    columns = {
        name: [getattr(example, name) for example in examples]
        for name in examples[0]._fields
    }
    ids = columns.pop("id")
    names = list(signals_of(examples[0]._asdict()))
    lengths = torch.tensor([signal.shape[-1] for signal in columns[names[0]]])
    signals = {name: padded(columns.pop(name)) for name in names}
    others = {name: _stacked(values) for name, values in columns.items()}
    return Batch(ids, lengths, signals, **others)


def signals_of(fields):
    """Of fields by name the signals: the arrays [..., T] that are as long as the first."""
    arrays = {
        name: field
        for name, field in fields.items()
        if isinstance(field, (torch.Tensor, np.ndarray)) and field.ndim
    }
    length = next((array.shape[-1] for array in arrays.values()), 0)
    return {name: array for name, array in arrays.items() if array.shape[-1] == length}


def padded(signals):
    """Tensors [..., T] of any lengths as [B, ..., T]; None unless all are of one kind."""
    if len({None if signal is None else signal.shape[:-1] for signal in signals}) > 1:
        return None
    longest = max(signal.shape[-1] for signal in signals)
    batch = signals[0].new_zeros(len(signals), *signals[0].shape[:-1], longest)
    for row, signal in zip(batch, signals):
        row[..., : signal.shape[-1]] = signal
    return batch


def _stacked(values):
    if any(value is None for value in values):
        return None
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    return torch.tensor(values) if isinstance(values[0], (bool, int, float)) else values


def collate_transcribed(utterances, encode) -> Batch:
    """Pads utterances and their tokens to the longest and stacks them.

    Arguments
    ---------
    utterances : list of TranscribedExample
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


class SeededDataset(torch.utils.data.Dataset, ABC):
    """Items each of which is a function of (seed, epoch, index) alone.

    Neither the worker nor the rank changes one, nor what was read before.

    Arguments
    ---------
    durations : list of float
        Seconds of each item at most.
    seed : int
    """

    def __init__(self, durations, seed):
        self.durations, self.seed = durations, seed

    def __len__(self):
        return len(self.durations)

    def __getitem__(self, key):
        key = ItemKey.of(key)
        if not 0 <= key.index < len(self):
            raise IndexError(key.index)
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        return self._example(rng, key.index)

    @abstractmethod
    def _example(self, rng, index):
        """The item of an index that follows from a generator."""


class SimulatedDataset(SeededDataset):
    """Items of one length (seconds, at most) that are made anew in every epoch."""

    def __init__(self, n_items, segment_seconds, sample_rate, seed=0):
        if segment_seconds is None:
            raise UserError("segment_seconds: must be set where items are mixed anew")
        _check_segment(segment_seconds)
        if n_items < 1:
            raise UserError(f"n_items: is {n_items}, but a whole number from 1 is expected")
        super().__init__([float(segment_seconds)] * n_items, seed)
        self.segment_seconds = float(segment_seconds)
        self.sample_rate = sample_rate

    @property
    def length(self):
        """Samples T of an item at most."""
        return round(self.segment_seconds * self.sample_rate)


class ManifestDataset(SeededDataset):
    """Items of a manifest, cropped where asked for.

    Arguments
    ---------
    manifest : Manifest
    columns : sequence of str
        Stems and attributes that it must have.
    segment_seconds : float, optional
        Length of a random crop; shorter items are taken whole. By default all are.
    seed : int
        Default 0.
    sample_rate : int, optional
        Hz of the items (default: the manifest's).
    """

    def __init__(self, manifest, columns, segment_seconds=None, seed=0, sample_rate=None):
        _check_segment(segment_seconds)
        there = (*manifest.stems, *manifest.items[0].attributes)
        missing = [column for column in columns if column not in there]
        if missing:
            what = f"has no column {missing[0]} (there are {', '.join(there)})"
            raise UserError(f"{manifest.path}: {what}; {', '.join(columns)} are needed")
        self.sample_rate = sample_rate or manifest.sample_rate
        if self.sample_rate is None:
            raise UserError(f"{manifest.path}: the items have different sampling rates")
        longest = segment_seconds or float("inf")
        super().__init__([min(i.duration, longest) for i in manifest.items], seed)
        self.manifest, self.segment_seconds = manifest, segment_seconds

    def _crop(self, read, frames, rng):
        longest = self.segment_seconds and round(self.segment_seconds * self.sample_rate)
        return draw_crop(read, frames, min(frames, longest or frames), rng)


class MixtureDataset(ManifestDataset):
    """Mixtures of a manifest, cropped and perturbed where asked for.

    Without speed perturbation the mixture and the sources are those of the files. With
    it, each source is perturbed on its own, the noise is not, all are cut to the
    shortest, and the mixture is their sum (as the published recipe does; source:
    github.com/YUCHEN005/Unified-Enhance-Separation, arXiv 2302.11131).

    Arguments
    ---------
    manifest : Manifest
        With the stems mixture, s1, ..., and noise where the mixture has noise.
    n_speakers : int
        Number of sources J.
    segment_seconds, seed
        As for `ManifestDataset`; the crop is the same for all stems.
    speed_percents : sequence of int, optional
        Speeds of which one is drawn for each source, such as (95, 100, 105).

    Raises
    ------
    UserError
        If the manifest lacks stems, or an argument has no sense.

    Example
    -------
    >>> from unified_se_ss.data import audio
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

    channels, default_speeds = 1, None

    def __init__(
        self, manifest, n_speakers, segment_seconds=None, speed_percents=None, seed=0
    ):
        self.source_stems = [f"s{j}" for j in range(1, n_speakers + 1)]
        columns = ("mixture", *self.source_stems)
        super().__init__(manifest, columns, segment_seconds, seed)
        if f"s{n_speakers + 1}" in manifest.stems:
            what = f"has a column s{n_speakers + 1}, but n_speakers is {n_speakers}"
            raise UserError(f"{manifest.path}: {what}; set n_speakers to match the data")
        self.speed_percents = _check_speeds(speed_percents) or self.default_speeds
        if self.speed_percents is not None and "noise" not in manifest.stems:
            self._check_noise_free(manifest.items[0])

    def _example(self, rng, index):
        item = self.manifest.items[index]
        made = self._as_recorded if self.speed_percents is None else self._perturbed
        return Example(item.id, *map(torch.from_numpy, made(item, rng)))

    def _as_recorded(self, item, rng):
        recordings = [self._recording(item, stem) for stem in self.source_stems]
        start, sources = self._crop(_read_all(recordings), item.frames, rng)
        stop = start + sources[0].shape[-1]
        return self._recording(item, "mixture").read(start, stop), np.stack(sources)

    def _perturbed(self, item, rng):
        """Sources of other speeds, cropped, and their sum with the noise."""
        percents = rng.choice(self.speed_percents, len(self.source_stems)).tolist()
        pairs = zip(self.source_stems, percents)
        recordings = [self._recording(item, stem, percent) for stem, percent in pairs]
        lengths = [recording.frames for recording in recordings]
        frames = min(lengths + [item.frames] * ("noise" in item.paths))
        start, sources = self._crop(_read_all(recordings), frames, rng)
        sources = np.stack(sources)
        mixture = sources.sum(axis=0)
        if "noise" in item.paths:
            stop = start + sources.shape[-1]
            mixture += self._recording(item, "noise").read(start, stop)
        return mixture, sources

    def _recording(self, item, stem, percent=100):
        return Recording(item, stem, percent=percent, channels=self.channels)

    def _is_sum(self, mixture, sources):
        error = np.linalg.norm(mixture - sum(sources))
        return error <= NOISE_FREE * np.linalg.norm(mixture)

    def _check_noise_free(self, item):
        """Raises a UserError if a mixture has noise that no stem holds."""
        stems = ("mixture", *self.source_stems)
        mixture, *sources = (self._recording(item, stem).read() for stem in stems)
        if not self._is_sum(mixture, sources):
            raise UserError(
                f"{self.manifest.path}: speed_percents mixes anew, but without a column "
                f"noise the mixture of {item.id} is not the sum of its sources; provide the "
                "folder noise, or set mixture: mix_clean or speed_percents: null"
            )


def _read_all(recordings):
    return lambda *region: [recording.read(*region) for recording in recordings]


class DynamicMixingDataset(SimulatedDataset):
    """Mixtures of utterances drawn at random, each a function of (seed, epoch, index).

    The statistics are those of LibriMix (arXiv 2005.11262): loudness of sources uniform in
    -33...-25 LUFS and of noise in -38...-30 LUFS, distinct speakers, everything cut to the
    shortest source, one common gain if a peak exceeds 0.9. Levels follow from the loudness of the
    whole utterance, kept in the manifest. Noise that is shorter is repeated.

    Arguments
    ---------
    speech_manifest : Manifest
        As `prepare_speech_folder` writes it: stem speech, speaker, loudness.
    noise_manifest : Manifest or None
        Likewise for noise; None for mixtures without noise.
    n_speakers : int
        Sources J in a mixture.
    n_items : int
        Mixtures in an epoch.
    seed : int
        From 0.
    segment_seconds : float
        Longest mixture.
    sample_rate : int
        Hz of the mixtures.
    speed_percents : sequence of int, optional
        Speeds of which one is drawn for each source, such as (95, 100, 105).
    resample : bool
        Whether recordings of other rates are resampled (default False: an error).
    min_seconds : float
        Utterances that are shorter are not used (default 0; LibriMix: 3).

    Example
    -------
    >>> from unified_se_ss.data import audio
    >>> from unified_se_ss.data.manifest import Item, Manifest
    >>> folder, items = getfixture("tmpdir"), []
    >>> for speaker in ("Ann", "Bob"):
    ...     path = str(folder / f"{speaker}.wav")
    ...     audio.write(path, np.sin(np.arange(16000) / 5) / 2, 8000)
    ...     known = {"speaker": speaker, "loudness": "-12.0"}
    ...     items.append(Item(f"{speaker}/1.wav", 2.0, 8000, {"speech": path}, known))
    >>> speech = Manifest("speech.csv", tuple(items), ("speech",), 8000)
    >>> data = DynamicMixingDataset(speech, None, 2, 10, 0, 1.0, 8000)
    >>> example = data[3]
    >>> example.mixture.shape, sorted(example.id.split("_"))
    (torch.Size([8000]), ['Ann-1', 'Bob-1'])
    """

    def __init__(
        self,
        speech_manifest,
        noise_manifest,
        n_speakers,
        n_items,
        seed,
        segment_seconds,
        sample_rate,
        speed_percents=None,
        resample=False,
        min_seconds=0.0,
    ):
        super().__init__(n_items, segment_seconds, sample_rate, seed)
        if n_speakers < 1:
            raise UserError(f"n_speakers: is {n_speakers}, but has to be from 1")
        self.n_speakers = n_speakers
        self.speed_percents = _check_speeds(speed_percents) or (100,)
        self.speech = SpeechPool(
            speech_manifest, sample_rate, resample, n_speakers, min_seconds
        )
        self.noise = noise_manifest and NoisePool(noise_manifest, sample_rate, resample)

    def _example(self, rng, index):
        return self._mixed(*self._draw_stems(rng), rng)

    def _mixed(self, name, sources, noise, rng):
        mixture = mix(sources, noise)
        signals = mixture.mix_both, mixture.sources
        return Example(name, *map(torch.from_numpy, signals))

    def _draw_stems(self, rng):
        """A name, sources [J, T] and noise [T] or None, all at their levels."""
        speakers = self.speech.draw_speakers(rng, self.n_speakers)
        utterances = [self.speech.draw_utterance(rng, speaker) for speaker in speakers]
        *levels, noise_level = draw_levels(rng, self.n_speakers)
        sources = self._read_sources(utterances, levels, rng)
        names, noise = [short_name(utterance) for utterance in utterances], None
        if self.noise is not None:
            (noise,), name = self.noise.sample(rng, sources.shape[1], noise_level)
            names.append(name)
        return "_".join(names), sources, noise

    def _read_sources(self, utterances, levels, rng):
        percents = rng.choice(self.speed_percents, self.n_speakers).tolist()
        recordings = list(map(self.speech.recording, utterances, percents))
        length = min(self.length, *(recording.frames for recording in recordings))
        pairs = zip(recordings, levels)
        return np.stack([recording.crop(length, rng, level) for recording, level in pairs])


class PairedSpeechDataset(ManifestDataset):
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
        columns = ("noisy", "clean", "transcript")
        super().__init__(manifest, columns, sample_rate=sample_rate)

    def _example(self, rng, index):
        item = self.manifest.items[index]
        noisy, clean = (
            torch.from_numpy(Recording(item, stem, self.sample_rate).read())
            for stem in ("noisy", "clean")
        )
        has_clean = item.attributes.get("has_clean", "yes") != "no"
        words = item.attributes["transcript"]
        return TranscribedExample(item.id, noisy, clean, words, has_clean)


class NoisySpeechDataset(ManifestDataset):
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
        columns = ("clean", "transcript")
        super().__init__(speech, columns, seed=seed, sample_rate=sample_rate)
        self.noise = NoisePool(noise, sample_rate, resample=True, needs=())
        self.snr_range = checked_range("snr_range", snr_range)
        self.epoch = epoch

    def __getitem__(self, key):
        key = ItemKey.of(key)
        return super().__getitem__(key if self.epoch is None else (self.epoch, key.index))

    def _example(self, rng, index):
        item = self.manifest.items[index]
        clean = Recording(item, "clean", self.sample_rate).read()
        (noise,), _ = self.noise.sample(rng, len(clean))
        noisy = clean + noise * snr_gain(clean, noise, rng.uniform(*self.snr_range))
        peak = max(1.0, float(np.abs(noisy).max()))
        noisy, clean = (
            torch.from_numpy((signal / peak).astype(np.float32))
            for signal in (noisy, clean)
        )
        return TranscribedExample(item.id, noisy, clean, item.attributes["transcript"])


def _check_speeds(speed_percents) -> tuple[int, ...] | None:
    """The speeds to draw from, in percent; None if nothing is to be perturbed."""
    slowest, fastest = SPEEDS
    for percent in speed_percents or ():
        if percent != int(percent) or not slowest <= percent <= fastest:
            expected = f"whole percents from {slowest} to {fastest} were expected"
            raise UserError(f"speed_percents: holds {percent}, but {expected}")
    return tuple(map(int, speed_percents)) if speed_percents else None


def _check_segment(segment_seconds):
    if segment_seconds is not None and not 0 < segment_seconds < float("inf"):
        expected = "seconds above 0 (or null for whole items) were expected"
        raise UserError(f"segment_seconds: is {segment_seconds}, but {expected}")
