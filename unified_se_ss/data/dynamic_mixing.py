"""Mixtures made anew for every item, from single utterances and noise.

The statistics are those of LibriMix (arXiv 2005.11262): loudness of sources uniform in
-33...-25 LUFS and of noise in -38...-30 LUFS, distinct speakers, everything cut to the
shortest source, one common gain if a peak exceeds 0.9.

Axes: J sources, T samples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import PurePosixPath

import numpy as np
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.augment import perturbed_frames, read_perturbed, speed_ratio
from unified_se_ss.data.dataset import (
    CROP_ATTEMPTS,
    Example,
    as_item_key,
    check_segment,
    check_speeds,
)
from unified_se_ss.data.mixing import draw_levels, gain_to, mix
from unified_se_ss.errors import UserError


class DynamicMixingDataset(torch.utils.data.Dataset):
    """Mixtures of utterances drawn at random, each a function of (seed, epoch, index).

    Only the segments that are used are read. Levels follow from the loudness of the
    whole utterance, kept in the manifest. Utterances shorter than the segment cut the
    mixture to the shortest, as LibriMix does; noise that is shorter is repeated.

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

    Raises
    ------
    UserError
        If there are too few speakers, or a manifest lacks what is needed.

    Example
    -------
    >>> from unified_se_ss.data.manifest import Item, Manifest
    >>> folder, items = getfixture("tmpdir"), []
    >>> for speaker in ("Ann", "Bob"):
    ...     path = str(folder / f"{speaker}.wav")
    ...     audio.write(path, np.sin(np.arange(16000) / 5) / 2, 8000)
    ...     told = {"speaker": speaker, "loudness": "-12.0"}
    ...     items.append(Item(f"{speaker}/1.wav", 2.0, 8000, {"speech": path}, told))
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
        if segment_seconds is None:
            raise UserError("segment_seconds: must be set for dynamic mixing")
        check_segment(segment_seconds)
        if n_speakers < 1 or n_items < 1:
            raise UserError(
                f"n_speakers is {n_speakers} and n_items is {n_items}; "
                "whole numbers from 1 were expected"
            )
        self.n_speakers = n_speakers
        self.n_items = n_items
        self.seed = seed
        self.segment_seconds = segment_seconds
        self.sample_rate = sample_rate
        self.speed_percents = check_speeds(speed_percents) or (100,)
        check_mixing_manifest(speech_manifest, "speech", sample_rate, resample)
        self.utterances = by_speaker(speech_manifest, min_seconds)
        if len(self.utterances) < n_speakers:
            raise UserError(
                f"{speech_manifest.path}: has utterances of {len(self.utterances)} "
                f"speaker(s) that last {min_seconds} s, {n_speakers} are needed "
                "(n_speakers)"
            )
        self.noises = ()
        if noise_manifest is not None:
            check_mixing_manifest(noise_manifest, "noise", sample_rate, resample)
            self.noises = noise_manifest.items

    @property
    def durations(self):
        """Seconds of each mixture at most."""
        return [float(self.segment_seconds)] * self.n_items

    def __len__(self):
        return self.n_items

    def __getitem__(self, key):
        key = as_item_key(key)
        if not 0 <= key.index < self.n_items:
            raise IndexError(key.index)
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        return self._mixed(*self._draw_stems(rng), rng)

    def _mixed(self, name, sources, noise, rng):
        """The item that drawn stems make."""
        mixture = mix(sources, noise)
        return Example(
            name, torch.from_numpy(mixture.mix_both), torch.from_numpy(mixture.sources)
        )

    def _draw_stems(self, rng):
        """A name, sources [J, T] and noise [T] or None, all at their levels."""
        utterances = self._draw_utterances(rng)
        levels = draw_levels(rng, self.n_speakers)
        sources = self._read_sources(utterances, levels.sources, rng)
        name, noise = "_".join(map(short_name, utterances)), None
        if self.noises:
            item = self.noises[rng.integers(len(self.noises))]
            noise = read_noise(item, sources.shape[1], self.sample_rate, rng)
            noise *= gain_to(levels.noise, float(item.attributes["loudness"]))
            name = f"{name}_{short_name(item)}"
        return name, sources, noise

    def _draw_utterances(self, rng):
        """One utterance each of distinct speakers."""
        speakers = rng.choice(len(self.utterances), self.n_speakers, replace=False)
        return [
            self.utterances[speaker][rng.integers(len(self.utterances[speaker]))]
            for speaker in speakers
        ]

    def _read_sources(self, utterances, levels, rng):
        """Segments of the utterances at their levels: float32 [J, T]."""
        percents = rng.choice(self.speed_percents, self.n_speakers)
        ratios = [
            speed_ratio(int(percent), item.sample_rate, self.sample_rate)
            for percent, item in zip(percents, utterances)
        ]
        lengths = [perturbed_frames(u.frames, r) for u, r in zip(utterances, ratios)]
        length = min(round(self.segment_seconds * self.sample_rate), *lengths)
        sources = [
            read_segment(item, "speech", ratio, length, rng)
            for item, ratio in zip(utterances, ratios)
        ]
        for source, item, level in zip(sources, utterances, levels):
            source *= gain_to(level, float(item.attributes["loudness"]))
        return np.stack(sources)


def read_segment(item, stem, ratio, length, rng):
    """A random segment of a recording, drawn again if it is silent.

    Arguments
    ---------
    item : Item
        The manifest's line.
    stem : str
        Which of its recordings.
    ratio : Fraction
        As `speed_ratio` gives it.
    length : int
        Samples at the new speed and rate; no more than the recording then has.
    rng : np.random.Generator

    Returns
    -------
    np.ndarray
        float32, [length]
    """
    frames = perturbed_frames(item.frames, ratio)
    for _ in range(CROP_ATTEMPTS if length < frames else 1):
        start = int(rng.integers(0, frames - length + 1))
        signal = read_perturbed(item, stem, start, start + length, ratio)
        if not audio.is_silent(signal):
            break
    return signal


def read_noise(item, length, sample_rate, rng):
    """A random segment of a noise recording, which is repeated if it is shorter.

    Arguments
    ---------
    item : Item
        The manifest's line, with the stem noise.
    length : int
        Samples wanted.
    sample_rate : int
        Hz of what is given.
    rng : np.random.Generator
        Where it is cut, or where the repetition begins.

    Returns
    -------
    np.ndarray
        float32 [T].
    """
    ratio = speed_ratio(100, item.sample_rate, sample_rate)
    frames = perturbed_frames(item.frames, ratio)
    noise = read_segment(item, "noise", ratio, min(frames, length), rng)
    if frames >= length:
        return noise
    return np.resize(np.roll(noise, rng.integers(frames)), length)


def by_speaker(manifest, min_seconds):
    """The utterances of each speaker that are long enough, in the manifest's order.

    Arguments
    ---------
    manifest : Manifest
        With the attribute speaker.
    min_seconds : float
        Shorter ones are left out.

    Returns
    -------
    list of list of Item
        One list for each speaker, sorted by the speakers' names.
    """
    utterances = defaultdict(list)
    for item in manifest.items:
        if item.duration >= min_seconds:
            utterances[item.attributes["speaker"]].append(item)
    return [utterances[speaker] for speaker in sorted(utterances)]


def short_name(item):
    """Name of a recording without folders, which begins with its speaker.

    Example
    -------
    >>> from unified_se_ss.data.manifest import Item
    >>> short_name(Item("Ann/1.wav", 1.0, 8000, {}, {"speaker": "Ann"}))
    'Ann-1'
    """
    name = PurePosixPath(item.id).stem
    speaker = item.attributes.get("speaker", "")
    return name if name.startswith(speaker) else f"{speaker}-{name}"


def check_mixing_manifest(manifest, stem, sample_rate, resample):
    """Raises a UserError if a manifest cannot serve for mixing.

    Arguments
    ---------
    manifest : Manifest
    stem : str
        "speech" or "noise".
    sample_rate : int
        Hz of the mixtures.
    resample : bool
        Whether recordings of other rates are allowed.
    """
    needed = ("speaker", "loudness") if stem == "speech" else ("loudness",)
    if stem not in manifest.stems:
        raise UserError(
            f"{manifest.path}: has no column {stem} (there are "
            f"{', '.join(manifest.stems)}); make it with prepare_speech_folder"
        )
    for item in manifest.items:
        place = f"{manifest.path}, ID {item.id}"
        for name in needed:
            if not item.attributes.get(name):
                raise UserError(f"{place}: has no {name}; delete it to make it again")
        if not _is_finite(item.attributes["loudness"]):
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
    """Tells whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
