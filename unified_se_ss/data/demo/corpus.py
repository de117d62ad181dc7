"""The demo corpus: mixtures in LibriMix's own folder shape, made on first use.

    {folder}/Libri2Mix/wav8k/min/train-360|dev|test/
        mix_both|mix_clean|s1|s2|noise/ID.wav         16-bit, mode min
    {folder}/transcripts.csv                           who says what in which item
    {folder}/fingerprint.json                          all that the corpus follows from

Item i of a subset follows from (seed, subset, i) alone: a larger corpus begins with
the items of a smaller one.
"""

from __future__ import annotations

import csv
import functools
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.data import mixing
from unified_se_ss.data.cache import (
    atomic_folder,
    fingerprint_of,
    is_made_from,
    process_map,
)
from unified_se_ss.data.corpora import check_choice, list_audio
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.demo import espeak, noises
from unified_se_ss.data.demo.espeak import Voice
from unified_se_ss.data.demo.speakers import SUBSETS, Cast, cast_voices, say_sentences
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.data.pools import NoisePool, SpeechPool
from unified_se_ss.data.write import write_stems
from unified_se_ss.errors import UserError
from unified_se_ss.files import csv_text

# To be raised with every change that changes a sample of the corpus; the second one where
# only corpora of own recordings change.
RECIPE, RECORDINGS_RECIPE = 2, 2

TRANSCRIPTS = "transcripts.csv"
RATES = (8000, 16000)
N_SPEAKERS = (1, 2, 3)
# Earlier versions wrote metadata.json, too.
OURS = {TRANSCRIPTS, "metadata.json", *(f"Libri{n}Mix" for n in N_SPEAKERS)}
# Whole sentences fit into this.
SHORTEST_SECONDS = 2.0
# Items last between `seconds` and this many times as long.
LONGEST_RATIO = 1.6

_TALKER_SENTENCES, _BABBLER_SENTENCES = 24, 8
_PAUSE_SECONDS = (0.05, 0.2)
_ORDERS_TRIED = 64
_LENGTHS_TRIED = 8
_FILLED = 0.97
_ITEMS_AT_ONCE = 20


class _Choices(NamedTuple):
    """All that a corpus follows from, but for the recordings' contents."""

    n_speakers: int
    sample_rate: int
    counts: dict[str, int]
    seconds: float
    seed: int


def prepare_demo_corpus(
    folder: str | Path,
    *,
    n_speakers: int = 2,
    sample_rate: int = 8000,
    n_train: int = 2000,
    n_dev: int = 60,
    n_test: int = 60,
    seconds: float = 3.0,
    seed: int = 1234,
    speech_folder: str | Path | None = None,
    noise_folder: str | Path | None = None,
    workers: int | None = None,
) -> Path:
    """Build the demo corpus, unless it is there already.

    The speech is spoken by espeak-ng: 126 voices of 48 timbres, no voice and no timbre
    in two of train, dev and test. The noise is made here: coloured, hum, modulated, and
    babble of other voices. Loudness follows LibriMix (arXiv 2005.11262). A corpus of
    the same fingerprint is left as it is, one of another is replaced as a whole.

    Arguments
    ---------
    folder : str or Path
        The corpus's folder; made, or replaced if it is a demo corpus itself.
    n_speakers : int
        Speakers in a mixture, 1 to 3 (default 2).
    sample_rate : int
        8000 (default) or 16000 Hz.
    n_train, n_dev, n_test : int
        Items in each subset (default 2000, 60, 60).
    seconds : float
        Items last between this and 1.6 times as long (default 3.0, at least 2.0).
    seed : int
        Everything follows from it (default 1234).
    speech_folder : str or Path, optional
        Own recordings instead of espeak-ng, one folder for each speaker as
        `prepare_speech_folder` takes them, split 80/10/10 by speaker. Their words are not
        known, and there is no babble in the noise.
    noise_folder : str or Path, optional
        Own noise recordings instead of made ones, split 80/10/10 by file.
    workers : int, optional
        Processes (default: one for each core). The corpus does not depend on it.

    Returns
    -------
    Path
        The folder to give to a recipe: {folder}/Libri{n_speakers}Mix.

    Raises
    ------
    UserError
        If an argument or a recording cannot be used, or if the folder holds anything
        that is not a demo corpus.

    Example
    -------
    >>> folder = prepare_demo_corpus(
    ...     Path(getfixture("tmpdir")) / "demo", n_train=2, n_dev=1, n_test=1, workers=1
    ... )
    >>> sorted(path.name for path in (folder / "wav8k/min/train-360").iterdir())
    ['mix_both', 'mix_clean', 'noise', 's1', 's2']
    """
    folder = Path(folder)
    counts = dict(zip(SUBSETS, (n_train, n_dev, n_test)))
    choices = _Choices(n_speakers, sample_rate, counts, float(seconds), int(seed))
    _check(choices, workers)
    fingerprint = {
        "recipe": RECIPE,
        **choices._asdict(),
        "espeak": espeak.version() if speech_folder is None else None,
        "speech": _fingerprint_recordings(speech_folder),
        "noise": _fingerprint_recordings(noise_folder),
    }
    if not is_made_from(folder, fingerprint):
        with (
            atomic_folder(folder, fingerprint, "demo corpus", OURS) as building,
            tempfile.TemporaryDirectory(prefix="parts-", dir=building) as parts,
        ):
            casts = cast_voices(choices.seed) if speech_folder is None else {}
            speech = _own_pools(Path(parts), speech_folder, "speech", choices)
            noise = _own_pools(Path(parts), noise_folder, "noise", choices)
            pools = (casts, speech, noise)
            sounds = {s: _Sounds(*(of.get(s) for of in pools)) for s in SUBSETS}
            _build(building, Path(parts), choices, sounds, workers)
    return folder / f"Libri{n_speakers}Mix"


def _check(choices: _Choices, workers: int | None) -> None:
    check_choice("n_speakers", choices.n_speakers, N_SPEAKERS)
    check_choice("sample_rate", choices.sample_rate, RATES)
    counts = {**choices.counts, "workers": 1 if workers is None else workers}
    least = {**dict.fromkeys(counts, 1), "seconds": SHORTEST_SECONDS}
    for name, value in {**counts, "seconds": choices.seconds}.items():
        if not value >= least[name]:
            raise UserError(f"{name}: is {value}, but at least {least[name]} is needed")


def read_transcripts(folder: Path) -> list[dict[str, str]]:
    """A line for each item of a demo corpus: ID, subset, noise, speaker_1, transcript_1...

    Raises a UserError if they are not there.
    """
    path = folder / TRANSCRIPTS
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        remedy = "remove the demo corpus' folder to have it made again"
        raise UserError(f"{path}: does not tell who speaks ({error}); {remedy}") from error


def _build(folder, parts, choices, sounds, workers):
    """Let everybody speak, and write all items and their transcripts."""
    scenes = [
        _draw_scene(choices, subset, index, sounds[subset])
        for subset, count in choices.counts.items()
        for index in range(count)
    ]
    voices = {v: _TALKER_SENTENCES for scene in scenes for v in scene.talkers}
    voices |= {v: _BABBLER_SENTENCES for scene in scenes for v in scene.babblers}
    voices = [(v, count) for v, count in voices.items() if isinstance(v, Voice)]
    speak = functools.partial(_store_voice, parts, choices)
    stored = process_map(speak, voices, "demo voices", "voice", workers)
    stored = {utterances.voice: utterances for utterances in stored}
    place = folder / f"Libri{choices.n_speakers}Mix/wav{choices.sample_rate // 1000}k/min"
    write = functools.partial(_write_item, place, sounds, stored, choices)
    rows = process_map(write, scenes, "demo mixtures", "item", workers, _ITEMS_AT_ONCE)
    (folder / TRANSCRIPTS).write_text(csv_text(rows), encoding="utf-8")


# ------------------------------------------------------------------ speech and noise


class _Sounds(NamedTuple):
    """What a subset's items are made of: voices or own speech, and own noise, if any."""

    cast: Cast | None
    speech: SpeechPool | None
    noise: NoisePool | None


def _own_pools(place: Path, folder, kind: str, choices: _Choices) -> dict:
    """Pools of own recordings, 80/10/10 percent by chance: by speaker, of noise by file."""
    if folder is None:
        return {}
    make, what = (SpeechPool, "speakers") if kind == "speech" else (NoisePool, "recordings")
    path = place / f"{kind}.csv"
    prepare_speech_folder(folder, path, choices.sample_rate, kind, resample=True)
    manifest = read_manifest(path, folder, one_rate=False)
    owners = {item.id: item.attributes.get("speaker", item.id) for item in manifest.items}
    names = sorted(set(owners.values()))
    least = choices.n_speakers if kind == "speech" else 1
    if len(names) < least * len(SUBSETS):
        needed = f"{least * len(SUBSETS)} are needed, {least} in each subset"
        raise UserError(f"{folder}: has {len(names)} {what} of {kind}, but {needed}")
    rng = np.random.default_rng([choices.seed, zlib.crc32(b"split")])
    held_out = max(least, round(0.1 * len(names)))
    dev, test, train = np.split(rng.permutation(names), (held_out, 2 * held_out))
    pools = {}
    for subset, share in zip(SUBSETS, map(set, (train, dev, test))):
        items = tuple(item for item in manifest.items if owners[item.id] in share)
        pools[subset] = make(replace(manifest, items=items), choices.sample_rate, True)
    return pools


def _fingerprint_recordings(folder) -> dict | None:
    if folder is None:
        return None
    files, choices = list_audio(Path(folder)), {"recipe": RECORDINGS_RECIPE}
    return fingerprint_of(folder, files, choices)


class _Utterances(NamedTuple):
    """A voice's sentences in a file, one after the other."""

    voice: Voice
    path: Path
    offsets: tuple[int, ...]
    texts: list[str]

    def read(self) -> list[np.ndarray]:
        """The samples [T] of every sentence, from the disk when they are used."""
        samples = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return [samples[a:b] for a, b in zip(self.offsets, self.offsets[1:])]


def _store_voice(folder, choices, job) -> _Utterances:
    voice, count = job
    samples, texts = say_sentences(voice, count, choices.seed, choices.sample_rate)
    path = folder / f"{voice.name}.npy"
    np.save(path, np.concatenate(samples).astype(np.float32))
    return _Utterances(voice, path, (0, *np.cumsum([*map(len, samples)])), texts)


# ------------------------------------------------------------------ items


class _Scene(NamedTuple):
    """Who is in one item: drawn first, so that only these have to speak.

    talkers : voices, or numbers of speakers in the pool of own speech.
    """

    subset: str
    index: int
    talkers: tuple
    noise: str
    babblers: tuple[Voice, ...] = ()


def _draw_scene(choices, subset, index, sounds) -> _Scene:
    """Draw who talks in an item, and what makes its noise."""
    rng = np.random.default_rng([choices.seed, SUBSETS.index(subset), index, 0])
    if sounds.speech:
        talkers = sounds.speech.draw_speakers(rng, choices.n_speakers)
    else:
        groups = sounds.cast.talkers
        chosen = rng.choice(len(groups), size=choices.n_speakers, replace=False)
        talkers = [groups[i][rng.integers(len(groups[i]))] for i in chosen]
    if sounds.noise:
        return _Scene(subset, index, tuple(talkers), "recorded")
    kinds = [*noises.MADE_NOISES] + ["babble"] * (sounds.speech is None)
    kind = kinds[rng.integers(len(kinds))]
    babblers = sounds.cast.draw_babblers(rng) if kind == "babble" else ()
    return _Scene(subset, index, tuple(talkers), kind, babblers)


def _write_item(folder, sounds, stored, choices, scene) -> dict[str, str]:
    """Write the stems and mixtures of one item; give its row of transcripts."""
    key = [choices.seed, SUBSETS.index(scene.subset), scene.index, 1]
    rng, sample_rate = np.random.default_rng(key), choices.sample_rate
    sounds = sounds[scene.subset]
    if sounds.speech:
        names = [sounds.speech.speakers[number] for number in scene.talkers]
        sources, texts = _cut_speech(rng, sounds.speech, scene.talkers, choices)
    else:
        names = [voice.name for voice in scene.talkers]
        sources, texts = _talk(rng, [stored[voice] for voice in scene.talkers], choices)
    noise = _make_noise(rng, scene, sounds, stored, sources.shape[1], sample_rate)
    mixture = _level(rng, [*sources, noise], sample_rate)
    stems = mixture._asdict()
    stems |= {f"s{j}": source for j, source in enumerate(stems.pop("sources"), start=1)}
    stems = {name: (32768 * stem).astype("<i2") for name, stem in stems.items()}
    identity = f"{scene.subset.split('-')[0]}-{scene.index:06d}"
    write_stems(folder / scene.subset, identity, stems, sample_rate)
    row = {"ID": identity, "subset": scene.subset, "noise": scene.noise}
    for j, (name, text) in enumerate(zip(names, texts), start=1):
        row |= {f"speaker_{j}": name, f"transcript_{j}": text}
    return row


def _cut_speech(rng, pool, speakers, choices) -> tuple[np.ndarray, list[str]]:
    """Sources [J, T] from own recordings, whose words are not known."""
    seconds = choices.seconds * rng.uniform(1.0, LONGEST_RATIO)
    n_samples = int(seconds * choices.sample_rate)
    loudness = mixing.SOURCE_LUFS[0]
    speech = [pool.sample(rng, speaker, n_samples, loudness)[0] for speaker in speakers]
    return np.stack(speech), [""] * len(speakers)


def _talk(rng, talkers, choices) -> tuple[np.ndarray, list[str]]:
    """All sources of an item [J, T], speaking nearly all the time, and their words."""
    speech = [talker.read() for talker in talkers]
    orders = [_draw_orders(rng, utterances, choices) for utterances in speech]
    ratios = rng.uniform(1.0, LONGEST_RATIO, size=_LENGTHS_TRIED)
    lengths = (ratios * choices.seconds * choices.sample_rate).astype(int)
    # Sentences are not cut, so some lengths would leave a speaker silent for long.
    filled = np.array([min(order.filled(n) / n for order in orders) for n in lengths])
    enough = filled >= min(_FILLED, filled.max())
    n_samples = int(lengths[np.argmax(enough)])
    # If no sentence of somebody fits: the shortest one has to.
    n_samples = max([n_samples, *(int(order.ends.min()) for order in orders)])
    sources = np.zeros((len(talkers), n_samples), dtype=np.float32)
    texts = []
    for source, talker, utterances, order in zip(sources, talkers, speech, orders):
        said = _fill(rng, source, utterances, order)
        texts.append(" ".join(talker.texts[which] for which in said))
    return sources, texts


class _Orders(NamedTuple):
    """Sentences one after the other, tried in many orders, a row each.

    which : index of the sentence; ends : its end in samples, if the first starts at 0.
    """

    which: np.ndarray
    ends: np.ndarray

    def filled(self, n_samples: int) -> int:
        """Samples up to the end of the last sentence that fits, in the best order."""
        return self.ends.max(where=self.ends <= n_samples, initial=0)


def _draw_orders(rng, utterances, choices) -> _Orders:
    """Random orders of a speaker's sentences, with short pauses between them."""
    lengths = np.array([len(utterance) for utterance in utterances])
    longest = int(LONGEST_RATIO * choices.seconds * choices.sample_rate)
    most = min(len(lengths), longest // lengths.min() + 1)
    which = np.tile(np.arange(len(lengths)), (_ORDERS_TRIED, 1))
    which = rng.permuted(which, axis=1)[:, :most]
    between = (int(pause * choices.sample_rate) for pause in _PAUSE_SECONDS)
    pauses = rng.integers(*between, size=which.shape)
    pauses[:, 0] = 0
    return _Orders(which, np.cumsum(lengths[which] + pauses, axis=1))


def _fill(rng, source, utterances, orders) -> list[int]:
    """Fill a source [T] with the order of sentences that fits best; give the order.

    What is left (a few hundredths of a second mostly) goes before and after by chance.
    """
    fitting = np.where(orders.ends <= len(source), orders.ends, 0)
    best = int(np.argmax(fitting.max(axis=1)))
    start = int(rng.integers(len(source) - fitting[best].max() + 1))
    said = orders.which[best][fitting[best] > 0]
    for which, end in zip(said, fitting[best]):
        source[start + end - len(utterances[which]) : start + end] = utterances[which]
    return said.tolist()


def _make_noise(rng, scene, sounds, stored, n_samples, sample_rate) -> np.ndarray:
    """The noise of an item [T], of no particular level."""
    if sounds.noise:
        return sounds.noise.sample(rng, n_samples)[0][0]
    if scene.noise in noises.MADE_NOISES:
        return noises.MADE_NOISES[scene.noise](rng, n_samples, sample_rate)
    voices = []
    for babbler in scene.babblers:
        utterances = stored[babbler].read()
        order = rng.permutation(len(utterances))
        voices.append(np.concatenate([utterances[i] for i in order]))
    return noises.babble(rng, voices, n_samples)


def _level(rng, stems, sample_rate) -> mixing.Mixture:
    """Bring sources and noise (the last) to drawn levels, and sum them."""
    levels = mixing.draw_levels(rng, len(stems) - 1)
    levelled = []
    for stem, level in zip(stems, levels):
        loudness = mixing.measure_loudness(stem, sample_rate)
        levelled.append(stem * mixing.loudness_gain(level, loudness))
    mixture = mixing.mix(np.stack(levelled[:-1]).astype(np.float64), levelled[-1])
    # Rounded before they are summed, so that the files add up to the last bit.
    sources, noise = (np.rint(part * 32768) / 32768 for part in mixture[2:])
    mix_clean = sources.sum(axis=0)
    return mixing.Mixture(mix_clean + noise, mix_clean, sources, noise)
