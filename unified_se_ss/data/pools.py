"""Speech and noise to draw from: who, which recording, where it is cut, how fast and loud.

Axes: T samples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import PurePosixPath

import numpy as np

from unified_se_ss.data import audio
from unified_se_ss.data.manifest import Item, Manifest
from unified_se_ss.data.mixing import loudness_gain
from unified_se_ss.errors import UserError, first_names

# Whoever speaks longer than a recording pauses so long before the next one.
PAUSE_SECONDS = (0.1, 0.5)
CROP_ATTEMPTS = 8
CONTEXT = 512
"""Samples of the output made and dropped at each inner edge of a region: with these,
a region differs from the same samples of the whole by less than 1e-8 of full scale
(measured for changes of rate up to 2 times up and 5.5 times down)."""


class Recording:
    """A recording of a manifest, at another speed and rate where asked for.

    A region is made from the samples around it alone, so that a short crop of a long
    recording costs no more than the crop.

    Arguments
    ---------
    item : Item
        The manifest's line. If it has an attribute `channel`, that one is taken from a
        recording of several.
    stem : str
        Which of the item's recordings.
    sample_rate : int, optional
        Hz of what is read (default: as recorded).
    percent : int
        Speed: 95 is 5 % slower, so longer, and lower in pitch (default 100).
    channels : int
        1 (default) gives signals [T]; 2 two ears, [2, T].

    Example
    -------
    >>> path = getfixture("tmpdir") / "tone.wav"
    >>> audio.write(path, 0.5 * np.sin(np.arange(9500) / 10), 8000)
    >>> item = Item("tone", 9500 / 8000, 8000, {"speech": path})
    >>> slower = Recording(item, "speech", percent=95)
    >>> whole = audio.resample(audio.read(path)[0], 95, 100)
    >>> slower.frames, bool(np.abs(slower.read(4000, 4800) - whole[4000:4800]).max() < 1e-4)
    (10000, True)
    """

    def __init__(self, item, stem, sample_rate=None, percent=100, channels=1):
        self.item, self.path, self.channels = item, item.paths[stem], channels
        # Samples of the recording that go into one of those that are read.
        rate = sample_rate or item.sample_rate
        self.ratio = Fraction(percent * item.sample_rate, 100 * rate)
        self.frames = round(item.frames / self.ratio)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The samples [start, stop), counted after the change of speed and rate.

        Raises a UserError if the file cannot be read, or is not as the manifest says.
        """
        stop = self.frames if stop is None else stop
        if self.ratio == 1:
            return self._read(start, stop)
        # Only at multiples of the denominator do samples of both versions coincide.
        grid = self.ratio.denominator
        first = max(0, start - CONTEXT) // grid * grid
        last = -(-(stop + CONTEXT) // grid) * grid
        end = min(self.item.frames, int(last * self.ratio))
        block = self._read(int(first * self.ratio), end)
        rates = self.ratio.numerator, self.ratio.denominator
        channels = [
            audio.fitted(audio.resample(channel, *rates)[start - first :], stop - start)
            for channel in np.atleast_2d(block)
        ]
        return channels[0] if block.ndim == 1 else np.stack(channels)

    def crop(self, length: int, rng, loudness: float | None = None) -> np.ndarray:
        """A random segment, at a loudness in LUFS where one is given."""
        _, (segment,) = draw_crop(lambda *at: [self.read(*at)], self.frames, length, rng)
        if loudness is not None:
            segment *= loudness_gain(loudness, float(self.item.attributes["loudness"]))
        return segment

    def _read(self, start, stop):
        channel, channels = self.item.attributes.get("channel"), self.channels
        channel = None if channel is None else int(channel)
        signal, rate = audio.read(self.path, start, stop, channel, channels)
        if rate != self.item.sample_rate:
            what = f"has {rate} Hz, but its manifest says {self.item.sample_rate} Hz"
            raise UserError(f"{self.path}: {what}; if it changed, delete the manifest")
        return signal


class SpeechPool:
    """The speakers of a manifest and their utterances.

    Arguments
    ---------
    manifest : Manifest
        As `prepare_speech_folder` writes it: stem speech, speaker, loudness.
    sample_rate : int
        Hz of what is given.
    resample : bool
        Whether recordings of other rates are resampled (default False: an error).
    least : int
        So many speakers are needed (default 1).
    min_seconds : float
        Utterances that are shorter are not used (default 0).
    """

    def __init__(
        self,
        manifest: Manifest,
        sample_rate: int,
        resample: bool = False,
        least: int = 1,
        min_seconds: float = 0.0,
    ):
        needs = ("speaker", "loudness")
        _check_manifest(manifest, "speech", sample_rate, resample, needs)
        self.sample_rate = sample_rate
        utterances = defaultdict(list)
        for item in manifest.items:
            if item.duration >= min_seconds:
                utterances[item.attributes["speaker"]].append(item)
        self.speakers = sorted(utterances)
        self._utterances = [utterances[speaker] for speaker in self.speakers]
        if len(self) < least:
            what = f"has utterances of {len(self)} speaker(s) that last {min_seconds} s"
            raise UserError(
                f"{manifest.path}: {what}, but {least} are needed; add recordings"
            )

    def __len__(self) -> int:
        return len(self.speakers)

    def draw_speakers(self, rng: np.random.Generator, count: int) -> list[int]:
        """Numbers of so many different speakers."""
        return rng.choice(len(self), count, replace=False).tolist()

    def draw_utterance(self, rng: np.random.Generator, speaker: int) -> Item:
        """One of a speaker's utterances."""
        utterances = self._utterances[speaker]
        return utterances[rng.integers(len(utterances))]

    def recording(self, utterance: Item, percent: int = 100) -> Recording:
        """An utterance at a speed and at the pool's rate."""
        return Recording(utterance, "speech", self.sample_rate, percent)

    def sample(
        self, rng: np.random.Generator, speaker: int, length: int, loudness: float
    ) -> tuple[np.ndarray, str]:
        """Speech of a speaker, float32 [length], and the name of its first recording.

        A recording that is longer is cut at random; shorter ones follow each other with
        pauses of 0.1 to 0.5 s, drawn anew each time. Each is brought to the loudness in
        LUFS.
        """
        speech = np.zeros(length, dtype=np.float32)
        at, name = 0, ""
        while at < length:
            utterance = self.draw_utterance(rng, speaker)
            name = name or short_name(utterance)
            recording = self.recording(utterance)
            frames = min(recording.frames, length - at)
            speech[at : at + frames] = recording.crop(frames, rng, loudness)
            at += frames + round(rng.uniform(*PAUSE_SECONDS) * self.sample_rate)
        return speech, name


class NoisePool:
    """The noises of a manifest, each for as long as is asked.

    Arguments
    ---------
    manifest : Manifest
        As `prepare_speech_folder` writes it with kind "noise".
    sample_rate : int
        Hz of what is given.
    resample : bool
        Whether recordings of other rates are resampled (default False: an error).
    needs : tuple of str
        Attributes that each must have (default the loudness).
    """

    def __init__(
        self,
        manifest: Manifest,
        sample_rate: int,
        resample: bool = False,
        needs: tuple = ("loudness",),
    ):
        _check_manifest(manifest, "noise", sample_rate, resample, needs)
        self.sample_rate = sample_rate
        self._items = manifest.items

    def draw_recording(self, rng: np.random.Generator) -> Item:
        """One of the recordings."""
        return self._items[rng.integers(len(self._items))]

    def sample(
        self,
        rng: np.random.Generator,
        length: int,
        loudness: float | None = None,
        count: int = 1,
    ) -> tuple[np.ndarray, str]:
        """Stretches of one recording from several places, [count, length], and its name.

        A recording that is shorter than the length is repeated. It is brought to the
        loudness in LUFS, or is as loud as recorded.
        """
        item = self.draw_recording(rng)
        recording = Recording(item, "noise", self.sample_rate)
        frames = recording.frames
        noise = np.empty((count, length), dtype=np.float32)
        for stretch in noise:
            segment = recording.crop(min(frames, length), rng, loudness)
            if frames < length:
                segment = np.resize(np.roll(segment, rng.integers(frames)), length)
            stretch[:] = segment
        return noise, short_name(item)


def check_speakers_apart(manifests: dict[str, Manifest]) -> None:
    """Refuses speech (manifests by subset) of which the same speaker is in two subsets."""
    seen = {}
    for subset, manifest in manifests.items():
        speakers = {item.attributes.get("speaker", "") for item in manifest.items}
        for name, others in seen.items():
            twice = sorted(speakers & others)
            if twice:
                what = f"{len(twice)} speaker(s) of {subset} are in {name}, too"
                names = first_names(twice)
                raise UserError(f"{manifest.path}: {what}: {names}; keep them in one")
        seen[subset] = speakers


def short_name(item: Item) -> str:
    """Name of a recording without folders, which begins with its speaker: Ann-1."""
    name = PurePosixPath(item.id).stem
    speaker = item.attributes.get("speaker", "")
    return name if name.startswith(speaker) else f"{speaker}-{name}"


def draw_crop(
    read: Callable, frames: int, length: int, rng: np.random.Generator
) -> tuple[int, list[np.ndarray]]:
    """A random crop, drawn again (up to 8 times) if one of its signals is silent.

    Arguments
    ---------
    read : callable
        Takes the first sample and the one after the last, gives a list of signals.
    frames, length : int
        Samples that there are, and that are wanted.
    rng : np.random.Generator

    Returns
    -------
    tuple
        First sample, and what `read` gave.
    """
    for _ in range(CROP_ATTEMPTS if length < frames else 1):
        start = int(rng.integers(0, frames - length + 1))
        signals = read(start, start + length)
        if not any(audio.is_silent(signal) for signal in signals):
            break
    return start, signals


def _check_manifest(manifest, stem, sample_rate, resample, needs):
    """Raises a UserError if a manifest cannot serve for mixing."""
    if stem not in manifest.stems:
        there = f"has no column {stem} (there are {', '.join(manifest.stems)})"
        raise UserError(f"{manifest.path}: {there}; make it with prepare_speech_folder")
    for item in manifest.items:
        place = f"{manifest.path}, ID {item.id}"
        for name in needs:
            if not item.attributes.get(name):
                raise UserError(f"{place}: has no {name}; delete it to make it again")
        loudness = item.attributes.get("loudness")
        if "loudness" in needs and not _is_finite(loudness):
            raise UserError(f"{place}: the loudness is {loudness!r}, expected LUFS")
        if item.sample_rate != sample_rate and not resample:
            rates = f"has {item.sample_rate} Hz, {sample_rate} Hz was expected"
            raise UserError(f"{place}: {rates}; resample the files, or set resample")


def _is_finite(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
