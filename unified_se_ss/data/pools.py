"""Speech and noise of any length, drawn from manifests: the raw material of scenes.

Axes: T samples.
"""

from __future__ import annotations

import numpy as np

from unified_se_ss.data.augment import perturbed_frames, speed_ratio
from unified_se_ss.data.dynamic_mixing import (
    by_speaker,
    check_mixing_manifest,
    read_segment,
    short_name,
)
from unified_se_ss.data.manifest import Manifest
from unified_se_ss.data.mixing import gain_to
from unified_se_ss.errors import UserError

# Whoever speaks longer than a recording pauses so long before the next one.
PAUSE_SECONDS = (0.1, 0.5)


class SpeechPool:
    """The speakers of a manifest, each of whom talks for as long as is asked.

    A recording that is longer is cut at random; shorter ones follow each other with
    pauses of 0.1 to 0.5 s, drawn anew each time. All are brought to one loudness.

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
    ):
        check_mixing_manifest(manifest, "speech", sample_rate, resample)
        self.path = manifest.path
        self.sample_rate = sample_rate
        self._speakers = by_speaker(manifest, 0.0)
        if len(self._speakers) < least:
            raise UserError(
                f"{manifest.path}: has {len(self._speakers)} speaker(s), but {least} "
                "are needed, a target and an interferer; add recordings of others"
            )

    def __len__(self) -> int:
        return len(self._speakers)

    @property
    def names(self) -> list[str]:
        """Names of the speakers, in the order of their numbers."""
        return [items[0].attributes["speaker"] for items in self._speakers]

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Numbers of so many different speakers."""
        return rng.choice(len(self), count, replace=False).tolist()

    def speak(
        self, rng: np.random.Generator, speaker: int, length: int, loudness: float
    ) -> tuple[np.ndarray, str]:
        """Let a speaker talk.

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
        at, name = 0, None
        recordings = self._speakers[speaker]
        while at < length:
            item = recordings[rng.integers(len(recordings))]
            name = name or short_name(item)
            ratio = speed_ratio(100, item.sample_rate, self.sample_rate)
            frames = min(perturbed_frames(item.frames, ratio), length - at)
            piece = read_segment(item, "speech", ratio, frames, rng)
            gain = gain_to(loudness, float(item.attributes["loudness"]))
            speech[at : at + frames] = gain * piece
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

    Raises
    ------
    UserError
        If the manifest lacks what is needed.
    """

    def __init__(self, manifest: Manifest, sample_rate: int, resample: bool = False):
        check_mixing_manifest(manifest, "noise", sample_rate, resample)
        self.sample_rate = sample_rate
        self._items = manifest.items

    def __len__(self) -> int:
        return len(self._items)

    def draw(self, rng: np.random.Generator, count: int, length: int) -> tuple:
        """So many stretches of one recording.

        Arguments
        ---------
        rng : np.random.Generator
            All that is drawn follows from it.
        count : int
            Stretches, each from another place.
        length : int
            Samples; a recording that is shorter is repeated.

        Returns
        -------
        noise : np.ndarray
            float32, [count, length], as loud as recorded.
        name : str
            Of the recording.
        """
        item = self._items[rng.integers(len(self._items))]
        ratio = speed_ratio(100, item.sample_rate, self.sample_rate)
        frames = perturbed_frames(item.frames, ratio)
        stretches = []
        for _ in range(count):
            stretch = read_segment(item, "noise", ratio, min(frames, length), rng)
            if frames < length:
                stretch = np.resize(np.roll(stretch, rng.integers(frames)), length)
            stretches.append(stretch)
        return np.stack(stretches), short_name(item)


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

    Example
    -------
    >>> from unified_se_ss.data.manifest import Item
    >>> ann = Item("1", 1.0, 8000, {}, {"speaker": "Ann"})
    >>> manifest = Manifest("speech.csv", (ann,), ("speech",), 8000)
    >>> check_speakers_apart({"train": manifest})
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
