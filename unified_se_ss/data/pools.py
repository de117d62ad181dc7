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
from unified_se_ss.errors import UserError

# Whoever speaks longer than a recording pauses so long before the next one.
PAUSE_SECONDS = (0.1, 0.5)
CROP_ATTEMPTS = 8
SPEEDS = (50, 200)
CONTEXT = 512
"""Samples of the output made and dropped at each inner edge of a region: with these,
a region differs from the same samples of the whole by less than 1e-8 of full scale
(measured for changes of rate up to 2 times up and 5.5 times down)."""


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

    Raises
    ------
    UserError
        If the manifest lacks what is needed, or has too few speakers.
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
        self._speakers = [utterances[speaker] for speaker in sorted(utterances)]
        if len(self) < least:
            raise UserError(
                f"{manifest.path}: has utterances of {len(self)} speaker(s) that last "
                f"{min_seconds} s, but {least} are needed; add recordings of others"
            )

    def __len__(self) -> int:
        return len(self._speakers)

    def draw_speakers(self, rng: np.random.Generator, count: int) -> list[int]:
        """Numbers of so many different speakers."""
        return rng.choice(len(self), count, replace=False).tolist()

    def draw_utterance(self, rng: np.random.Generator, speaker: int) -> Item:
        """One of a speaker's utterances."""
        utterances = self._speakers[speaker]
        return utterances[rng.integers(len(utterances))]

    def ratio(self, utterance: Item, percent: int = 100) -> Fraction:
        """As `speed_ratio` gives it, to a speed and to the pool's rate."""
        return speed_ratio(percent, utterance.sample_rate, self.sample_rate)

    def crop(
        self,
        rng: np.random.Generator,
        utterance: Item,
        length: int,
        loudness: float,
        ratio: Fraction,
    ) -> np.ndarray:
        """A random segment of an utterance that is brought to a loudness in LUFS."""
        segment = _read_segment(utterance, "speech", ratio, length, rng)
        segment *= loudness_gain(loudness, float(utterance.attributes["loudness"]))
        return segment

    def sample(
        self, rng: np.random.Generator, speaker: int, length: int, loudness: float
    ) -> tuple[np.ndarray, str]:
        """Speech of a speaker, of any length.

        A recording that is longer is cut at random; shorter ones follow each other with
        pauses of 0.1 to 0.5 s, drawn anew each time.

        Arguments
        ---------
        rng : np.random.Generator
            All that is drawn follows from it.
        speaker : int
            A number below the number of speakers.
        length : int
            Samples.
        loudness : float
            LUFS that every recording is brought to.

        Returns
        -------
        speech : np.ndarray
            float32, [length].
        name : str
            Of the first recording.
        """
        speech = np.zeros(length, dtype=np.float32)
        at, name = 0, ""
        while at < length:
            utterance = self.draw_utterance(rng, speaker)
            name = name or short_name(utterance)
            ratio = self.ratio(utterance)
            frames = min(perturbed_frames(utterance.frames, ratio), length - at)
            speech[at : at + frames] = self.crop(rng, utterance, frames, loudness, ratio)
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

    Raises
    ------
    UserError
        If the manifest lacks what is needed.
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
        """So many stretches of one recording, each from another place.

        Arguments
        ---------
        rng : np.random.Generator
            All that is drawn follows from it.
        length : int
            Samples; a recording that is shorter is repeated.
        loudness : float, optional
            LUFS that the recording is brought to (default: as loud as recorded).
        count : int
            Stretches (default 1).

        Returns
        -------
        noise : np.ndarray
            float32, [count, length].
        name : str
            Of the recording.
        """
        item = self.draw_recording(rng)
        ratio = speed_ratio(100, item.sample_rate, self.sample_rate)
        frames = perturbed_frames(item.frames, ratio)
        noise = np.empty((count, length), dtype=np.float32)
        for stretch in noise:
            segment = _read_segment(item, "noise", ratio, min(frames, length), rng)
            if frames < length:
                segment = np.resize(np.roll(segment, rng.integers(frames)), length)
            stretch[:] = segment
        if loudness is not None:
            noise *= loudness_gain(loudness, float(item.attributes["loudness"]))
        return noise, short_name(item)


def check_speakers_apart(manifests: dict[str, Manifest]) -> None:
    """Refuses speech of which the same speaker is in two subsets.

    Arguments
    ---------
    manifests : dict of str to Manifest
        As `prepare_speech_folder` writes them, by the name of the subset.

    Raises
    ------
    UserError
        Naming the first speakers that are in two.
    """
    seen = {}
    for subset, manifest in manifests.items():
        speakers = {item.attributes.get("speaker", "") for item in manifest.items}
        for name, others in seen.items():
            twice = sorted(speakers & others)
            if twice:
                raise UserError(
                    f"{manifest.path}: {len(twice)} speaker(s) of {subset} are in {name}, "
                    f"too: {', '.join(twice[:5])}; move their recordings into one of the two"
                )
        seen[subset] = speakers


def short_name(item: Item) -> str:
    """Name of a recording without folders, which begins with its speaker.

    Example
    -------
    >>> short_name(Item("Ann/1.wav", 1.0, 8000, {}, {"speaker": "Ann"}))
    'Ann-1'
    """
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


def _read_segment(item, stem, ratio, length, rng) -> np.ndarray:
    """A random segment of a recording's perturbed version, [length]."""

    def read(start, stop):
        return [read_perturbed(item, stem, start, stop, ratio)]

    _, (signal,) = draw_crop(read, perturbed_frames(item.frames, ratio), length, rng)
    return signal


def check_speeds(speed_percents) -> tuple[int, ...] | None:
    """The speeds to draw from, in percent; None if nothing is to be perturbed.

    Example
    -------
    >>> check_speeds([95, 100, 105]), check_speeds(None)
    ((95, 100, 105), None)
    """
    slowest, fastest = SPEEDS
    for percent in speed_percents or ():
        if percent != int(percent) or not slowest <= percent <= fastest:
            raise UserError(
                f"speed_percents: holds {percent}, but whole percents from {slowest} to"
                f" {fastest} were expected"
            )
    return tuple(map(int, speed_percents)) if speed_percents else None


def speed_ratio(percent: int, from_rate: int = 1, to_rate: int = 1) -> Fraction:
    """Samples of a recording that go into one sample of its perturbed version.

    Arguments
    ---------
    percent : int
        Speed: 95 is 5 % slower, so longer, and lower in pitch.
    from_rate, to_rate : int
        Sampling rates of the recording and of the result, in Hz.

    Example
    -------
    >>> speed_ratio(95), speed_ratio(105, 16000, 8000)
    (Fraction(19, 20), Fraction(21, 10))
    """
    return Fraction(percent * from_rate, 100 * to_rate)


def perturbed_frames(frames: int, ratio: Fraction) -> int:
    """Samples of a recording after a change of speed and rate by `speed_ratio`."""
    return round(frames / ratio)


def read_perturbed(item: Item, stem: str, start: int, stop: int, ratio=Fraction(1)):
    """Reads the samples [start, stop) of a recording's perturbed version.

    They are made from the samples around them alone, so that a short crop of a long
    recording costs no more than the crop.

    Arguments
    ---------
    item : Item
        The manifest's line that holds the recording. If it has an attribute `channel`,
        that one is taken from a recording of several.
    stem : str
        Which of the item's recordings.
    start, stop : int
        The region, counted in samples of the perturbed version.
    ratio : Fraction
        As `speed_ratio` gives it; 1 (default) reads the recording as it is.

    Returns
    -------
    np.ndarray
        float32, [stop - start]

    Raises
    ------
    UserError
        If the recording cannot be read, or is not as the manifest says.

    Example
    -------
    >>> path = getfixture("tmpdir") / "tone.wav"
    >>> audio.write(path, 0.5 * np.sin(np.arange(9500) / 10), 8000)
    >>> item = Item("tone", 9500 / 8000, 8000, {"speech": path})
    >>> region = read_perturbed(item, "speech", 4000, 4800, speed_ratio(95))
    >>> whole = audio.resample(audio.read(path)[0], 95, 100)
    >>> bool(np.abs(region - whole[4000:4800]).max() < 1e-4)
    True
    """
    if ratio == 1:
        return _read(item, stem, start, stop)
    # Only at multiples of the denominator do samples of both versions coincide.
    grid = ratio.denominator
    first = max(0, start - CONTEXT) // grid * grid
    last = -(-(stop + CONTEXT) // grid) * grid
    block = _read(item, stem, int(first * ratio), min(item.frames, int(last * ratio)))
    block = audio.resample(block, ratio.numerator, ratio.denominator)
    return audio.fitted(block[start - first :], stop - start)


def _read(item, stem, start, stop):
    """The samples [start, stop) of a recording, whose rate must be the item's."""
    path, channel = item.paths[stem], item.attributes.get("channel")
    channel = None if channel is None else int(channel)
    signal, sample_rate = audio.read(path, start, stop, channel)
    if sample_rate != item.sample_rate:
        raise UserError(
            f"{path}: has a sampling rate of {sample_rate} Hz, but its manifest says"
            f" {item.sample_rate} Hz; if it changed since, delete the manifest"
        )
    return signal


def _check_manifest(manifest, stem, sample_rate, resample, needs):
    """Raises a UserError if a manifest cannot serve for mixing."""
    if stem not in manifest.stems:
        raise UserError(
            f"{manifest.path}: has no column {stem} (there are "
            f"{', '.join(manifest.stems)}); make it with prepare_speech_folder"
        )
    for item in manifest.items:
        place = f"{manifest.path}, ID {item.id}"
        for name in needs:
            if not item.attributes.get(name):
                raise UserError(f"{place}: has no {name}; delete it to make it again")
        if "loudness" in needs and not _is_finite(item.attributes["loudness"]):
            raise UserError(
                f"{place}: the loudness is {item.attributes['loudness']!r}, a number of"
                " LUFS was expected"
            )
        if item.sample_rate != sample_rate and not resample:
            raise UserError(
                f"{place}: has a sampling rate of {item.sample_rate} Hz, {sample_rate}"
                " Hz was expected; resample the files, or allow it while reading"
                " (resample)"
            )


def _is_finite(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
