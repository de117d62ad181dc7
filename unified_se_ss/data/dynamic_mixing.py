"""Mixtures made anew for every item, from single utterances and noise.

The statistics are those of LibriMix (arXiv 2005.11262): loudness of sources uniform in
-33...-25 LUFS and of noise in -38...-30 LUFS, distinct speakers, everything cut to the
shortest source, one common gain if a peak exceeds 0.9.

Axes: J sources, T samples.
"""

from __future__ import annotations

import numpy as np
import torch

from unified_se_ss.data.dataset import Example, SimulatedDataset
from unified_se_ss.data.mixing import draw_levels, mix
from unified_se_ss.data.pools import NoisePool, SpeechPool, check_speeds, short_name
from unified_se_ss.errors import UserError


class DynamicMixingDataset(SimulatedDataset):
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
            raise UserError(
                f"n_speakers: is {n_speakers}, whole numbers from 1 are expected"
            )
        self.n_speakers = n_speakers
        self.speed_percents = check_speeds(speed_percents) or (100,)
        self.speech = SpeechPool(
            speech_manifest, sample_rate, resample, n_speakers, min_seconds
        )
        self.noise = None
        if noise_manifest is not None:
            self.noise = NoisePool(noise_manifest, sample_rate, resample)

    def _example(self, rng, index):
        return self._mixed(*self._draw_stems(rng), rng)

    def _mixed(self, name, sources, noise, rng):
        mixture = mix(sources, noise)
        return Example(
            name, torch.from_numpy(mixture.mix_both), torch.from_numpy(mixture.sources)
        )

    def _draw_stems(self, rng):
        """A name, sources [J, T] and noise [T] or None, all at their levels."""
        speakers = self.speech.draw_speakers(rng, self.n_speakers)
        utterances = [self.speech.draw_utterance(rng, speaker) for speaker in speakers]
        levels = draw_levels(rng, self.n_speakers)
        sources = self._read_sources(utterances, levels.sources, rng)
        names, noise = [short_name(utterance) for utterance in utterances], None
        if self.noise is not None:
            (noise,), name = self.noise.sample(rng, sources.shape[1], levels.noise)
            names.append(name)
        return "_".join(names), sources, noise

    def _read_sources(self, utterances, levels, rng):
        percents = rng.choice(self.speed_percents, self.n_speakers).tolist()
        recordings = list(map(self.speech.recording, utterances, percents))
        length = min(self.length, *(recording.frames for recording in recordings))
        pairs = zip(recordings, levels)
        return np.stack([recording.crop(length, rng, level) for recording, level in pairs])
