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
from unified_se_ss.data.cache import atomic_folder, is_made_from, process_map
from unified_se_ss.data.corpora.speech_folder import KINDS, prepare_speech_folder
from unified_se_ss.data.demo import espeak, noises
from unified_se_ss.data.demo.speakers import cast_voices, say_sentences
from unified_se_ss.data.manifest import Manifest, read_manifest
from unified_se_ss.errors import UserError

# To be raised with every change that changes a sample of the sounds.
RECIPE = 1

SUBSETS = ("train", "dev", "test")
NOISE_KINDS = (*noises.MADE_NOISES, "babble")
MANIFESTS = [f"{kind}_{subset}.csv" for kind in KINDS for subset in SUBSETS]

_PAUSE_SECONDS = (0.1, 0.35)
_NOISE_SECONDS = 12.0
# Only the proportions of a noise count, its level is given by the scene.
_NOISE_PEAK = 0.5
_SPEECH_PEAK = 0.7
_BABBLE_SENTENCES = 4


class Sounds(NamedTuple):
    """The manifests of one subset."""

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
    """
    if len(n_noises) != len(SUBSETS) or min(n_noises) < 1:
        expected = "numbers from 1 for train, dev and test are expected"
        raise UserError(f"n_noises: is {list(n_noises)}, but {expected}")
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
        entries = {*KINDS, *MANIFESTS, *(f"{name}.fingerprint" for name in MANIFESTS)}
        with atomic_folder(folder, fingerprint, "demo's sounds", entries) as building:
            _make_sounds(building, sample_rate, n_noises, sentences, seed, workers)

    def manifest(kind, subset):
        return read_manifest(folder / f"{kind}_{subset}.csv", folder / kind / subset)

    return {s: Sounds(manifest("speech", s), manifest("noise", s)) for s in SUBSETS}


def _make_sounds(folder, sample_rate, n_noises, sentences, seed, workers) -> None:
    """Make voices, noises and their manifests in an empty folder."""
    casts = dict(zip(SUBSETS, cast_voices(seed).values()))
    voices = [(s, voice) for s in SUBSETS for voice in sum(casts[s].talkers, ())]
    numbers = [(s, n) for s, count in zip(SUBSETS, n_noises) for n in range(count)]
    say = functools.partial(say_sentences, seed=seed, sample_rate=sample_rate)
    make_voice = functools.partial(_make_voice, folder, say, sentences, seed, sample_rate)
    make_noise = functools.partial(_make_noise, folder, say, casts, seed, sample_rate)
    process_map(make_voice, voices, "demo voices", "voice", workers)
    process_map(make_noise, numbers, "demo noises", "noise", workers)
    for kind in KINDS:
        for subset in SUBSETS:
            manifest = folder / f"{kind}_{subset}.csv"
            prepare_speech_folder(folder / kind / subset, manifest, sample_rate, kind)


def _make_voice(folder, say, sentences, seed, sample_rate, job):
    """Write the sentences of a voice, with pauses, into one file."""
    subset, voice = job
    rng = np.random.default_rng([seed, 2, *voice.name.encode()])
    pieces = []
    for sentence in say(voice, sentences)[0]:
        pause = round(rng.uniform(*_PAUSE_SECONDS) * sample_rate)
        pieces += [sentence, np.zeros(pause, dtype=np.float32)]
    path = folder / "speech" / subset / voice.name / "1.wav"
    _write(path, np.concatenate(pieces[:-1]), _SPEECH_PEAK, sample_rate)


def _make_noise(folder, say, casts, seed, sample_rate, job):
    """Write one noise of a subset; its number says which kind."""
    subset, number = job
    kind = NOISE_KINDS[number % len(NOISE_KINDS)]
    rng = np.random.default_rng([seed, 3, SUBSETS.index(subset), number])
    n_samples = round(_NOISE_SECONDS * sample_rate)
    if kind == "babble":
        babblers = casts[subset].draw_babblers(rng)
        spoken = [np.concatenate(say(v, _BABBLE_SENTENCES)[0]) for v in babblers]
        noise = noises.babble(rng, spoken, n_samples)
    else:
        noise = noises.MADE_NOISES[kind](rng, n_samples, sample_rate)
    path = folder / "noise" / subset / f"{kind}-{number:03d}.wav"
    _write(path, noise, _NOISE_PEAK, sample_rate)


def _write(path, signal, peak, sample_rate):
    audio.write(path, signal * (peak / np.abs(signal).max()), sample_rate)
