"""Voices and noises of the demos that simulate their scenes, each signal for itself.

    {folder}/speech/train|dev|test/VOICE/1.wav    sentences of a voice, 16-bit
    {folder}/noise/train|dev|test/KIND-NUMBER.wav
    {folder}/speech_train|dev|test.csv            manifests, and noise_*.csv
    {folder}/fingerprint.json                     all that the sounds follow from

No voice, no timbre and no noise is in two subsets.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.data import audio
from unified_se_ss.data.cache import (
    atomic_folder,
    is_made_from,
    process_pool,
)
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.demo import espeak, noises
from unified_se_ss.data.demo.speakers import SUBSETS as CAST_SUBSETS
from unified_se_ss.data.demo.speakers import SpeakerSplit, SpokenVoice, cast_voices
from unified_se_ss.data.manifest import Manifest, read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.progress import progress_bar

# To be raised with every change that changes a sample of the sounds.
RECIPE = 1

SUBSETS = ("train", "dev", "test")
KINDS = ("speech", "noise")
NOISE_KINDS = (*noises.MADE_NOISES, "babble")

_PAUSE_SECONDS = (0.1, 0.35)
_NOISE_SECONDS = 12.0
# Only the proportions of a noise count, its level is given by the scene.
_NOISE_PEAK = 0.5
_SPEECH_PEAK = 0.7
_BABBLERS = (noises.BABBLE_VOICES, 8)
_BABBLE_SENTENCES = 4


class Sounds(NamedTuple):
    """What one subset may use."""

    speech: Manifest
    noise: Manifest


def prepare_demo_sounds(
    folder: str | Path,
    sample_rate: int = 16000,
    n_noises: tuple = (48, 12, 16),
    sentences: int = 8,
    seed: int = 1234,
    workers: int | None = None,
) -> dict[str, Sounds]:
    """Make voices and noises with their manifests, unless they are there already.

    The 126 voices of the demo corpus (78 train, 24 each dev and test, no timbre in two)
    say some sentences each; the noises are coloured, hum, modulated and babble of
    others.

    Arguments
    ---------
    folder : str or Path
        Made, or replaced if it holds such sounds made from something else.
    sample_rate : int
        Hz (default 16000).
    n_noises : tuple of 3 int
        Noises of 12 s for train, dev and test (default 48, 12, 16); every fourth is
        babble.
    sentences : int
        Of every voice (default 8, about 18 s).
    seed : int
        Everything follows from it (default 1234).
    workers : int, optional
        Processes (default: one for each core). What is made does not depend on it.

    Returns
    -------
    dict of str to Sounds
        For train, dev and test.

    Raises
    ------
    UserError
        If an argument cannot be used, espeak-ng is missing, or the folder holds
        anything else.
    """
    _check_counts("n_noises", n_noises)
    if sentences < 1:
        raise UserError(f"sentences: is {sentences}, but at least 1 is needed")
    folder = Path(folder)
    fingerprint = {
        "recipe": RECIPE,
        "sample_rate": sample_rate,
        "n_noises": list(n_noises),
        "sentences": int(sentences),
        "seed": int(seed),
        "espeak": espeak.version(),
    }
    if not is_made_from(folder, fingerprint):
        with atomic_folder(folder, fingerprint, "demo's sounds", _entries()) as building:
            _make_sounds(building, sample_rate, n_noises, sentences, seed, workers)
    return {
        subset: Sounds(
            *(
                read_manifest(folder / f"{kind}_{subset}.csv", folder / kind / subset)
                for kind in KINDS
            )
        )
        for subset in SUBSETS
    }


def _entries() -> set[str]:
    """Names of all that is in a folder of sounds."""
    manifests = {f"{kind}_{subset}.csv" for kind in KINDS for subset in SUBSETS}
    return {*KINDS, *manifests, *(f"{name}.fingerprint" for name in manifests)}


def _make_sounds(folder, sample_rate, n_noises, sentences, seed, workers) -> None:
    """Make voices, noises and their manifests in an empty folder."""
    casts = cast_voices(seed)
    voices = _voices(casts, sentences)
    numbers = [
        (subset, number)
        for subset, count in zip(SUBSETS, n_noises, strict=True)
        for number in range(count)
    ]
    common = {"sample_rate": sample_rate, "seed": seed}
    make_voice = functools.partial(_make_voice, folder, **common)
    make_noise = functools.partial(_make_noise, folder, casts, **common)
    with process_pool(workers) as run:
        list(progress_bar(run(make_voice, voices), "demo voices", len(voices), "voice"))
        list(progress_bar(run(make_noise, numbers), "demo noises", len(numbers), "noise"))
    for kind in KINDS:
        for subset in SUBSETS:
            manifest = folder / f"{kind}_{subset}.csv"
            prepare_speech_folder(folder / kind / subset, manifest, sample_rate, kind)


def _check_counts(name: str, counts) -> None:
    """Raise a UserError unless there are three numbers from 1."""
    if len(counts) != len(SUBSETS) or min(counts) < 1:
        raise UserError(
            f"{name}: is {list(counts)}, but numbers from 1 for train, dev and test are "
            "expected"
        )


def _voices(
    casts: dict[str, SpeakerSplit], sentences: int
) -> list[tuple[str, SpokenVoice]]:
    """Subset and voice of everybody who talks."""
    return [
        (subset, SpokenVoice(voice.voice, sentences))
        for subset, cast_subset in zip(SUBSETS, CAST_SUBSETS, strict=True)
        for voice in sum(casts[cast_subset].talkers, ())
    ]


def _make_voice(
    folder: Path, job: tuple[str, SpokenVoice], *, sample_rate: int, seed: int
) -> None:
    """Write the sentences of a voice, with pauses, into one file."""
    subset, voice = job
    rng = np.random.default_rng([seed, 2, *voice.name.encode()])
    pieces = []
    for sentence in voice.utterances(seed, sample_rate).samples:
        pause = round(rng.uniform(*_PAUSE_SECONDS) * sample_rate)
        pieces += [sentence, np.zeros(pause, dtype=np.float32)]
    speech = np.concatenate(pieces[:-1])
    path = folder / "speech" / subset / voice.name / "1.wav"
    audio.write(path, _with_peak(speech, _SPEECH_PEAK), sample_rate)


def _make_noise(
    folder: Path,
    casts: dict[str, SpeakerSplit],
    job: tuple[str, int],
    *,
    sample_rate: int,
    seed: int,
) -> None:
    """Write one noise of a subset; its number tells which kind."""
    subset, number = job
    kind = NOISE_KINDS[number % len(NOISE_KINDS)]
    which = SUBSETS.index(subset)
    rng = np.random.default_rng([seed, 3, which, number])
    n_samples = round(_NOISE_SECONDS * sample_rate)
    if kind == "babble":
        babble_speakers = casts[CAST_SUBSETS[which]].babble_speakers
        count = min(int(rng.integers(*_BABBLERS, endpoint=True)), len(babble_speakers))
        voices = [
            SpokenVoice(babble_speakers[i].voice, _BABBLE_SENTENCES).utterances(
                seed, sample_rate
            )
            for i in rng.choice(len(babble_speakers), count, replace=False)
        ]
        spoken = [np.concatenate(voice.samples) for voice in voices]
        noise = noises.babble(rng, spoken, n_samples)
    else:
        noise = noises.MADE_NOISES[kind](rng, n_samples, sample_rate)
    path = folder / "noise" / subset / f"{kind}-{number:03d}.wav"
    audio.write(path, _with_peak(noise, _NOISE_PEAK), sample_rate)


def _with_peak(signal: np.ndarray, peak: float) -> np.ndarray:
    """A signal with that largest absolute sample."""
    return signal * (peak / np.abs(signal).max())
