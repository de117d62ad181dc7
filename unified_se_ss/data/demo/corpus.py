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
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.data import mixing
from unified_se_ss.data.cache import atomic_folder, fingerprint_of, is_made_from
from unified_se_ss.data.demo import espeak, noises
from unified_se_ss.data.demo.speakers import (
    SUBSETS,
    cast_recordings,
    cast_voices,
    list_recordings,
    split_noises,
)
from unified_se_ss.data.write import make_items, write_stems
from unified_se_ss.errors import UserError

# To be raised with every change that changes a sample of the corpus.
RECIPE = 2

TRANSCRIPTS = "transcripts.csv"
RATES = (8000, 16000)
N_SPEAKERS = (1, 2, 3)
# Earlier versions wrote metadata.json, too.
OURS = {TRANSCRIPTS, "metadata.json", *(f"Libri{n}Mix" for n in N_SPEAKERS)}
# Whole sentences fit into this.
SHORTEST_SECONDS = 2.0
# Items last between `seconds` and this many times as long.
LONGEST_RATIO = 1.6

_PAUSE_SECONDS = (0.05, 0.2)
_ORDERS_TRIED = 64
_LENGTHS_TRIED = 8
_FILLED = 0.97
_CROPS_TRIED = 4
_ITEMS_AT_ONCE = 20


class _CachedUtterances(NamedTuple):
    """A speaker's utterances in a file, one after the other."""

    name: str
    path: Path
    offsets: tuple[int, ...]
    texts: tuple[str, ...]

    def utterances(self) -> list[np.ndarray]:
        """The samples [T] of every utterance, read when they are used."""
        samples = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return [samples[a:b] for a, b in zip(self.offsets, self.offsets[1:])]


class _Scene(NamedTuple):
    """Who is in one item: drawn first, so that only these have to speak."""

    subset: str
    index: int
    talkers: tuple[str, ...]
    noise_kind: str
    noise_makers: tuple[str, ...]


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
        Own recordings instead of espeak-ng, one folder for each speaker
        (SPEAKER/**/*.wav or *.flac), split 80/10/10 by speaker. Their words are not
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
    speech = None if speech_folder is None else Path(speech_folder)
    noise = None if noise_folder is None else Path(noise_folder)
    counts = dict(zip(SUBSETS, (n_train, n_dev, n_test)))
    choices = _Choices(n_speakers, sample_rate, counts, float(seconds), int(seed))
    _check(choices, workers)
    fingerprint = {
        "recipe": RECIPE,
        **choices._asdict(),
        "espeak": espeak.version() if speech is None else None,
        "speech": _fingerprint_folder(speech),
        "noise": _fingerprint_folder(noise),
    }
    if not is_made_from(folder, fingerprint):
        if speech is None:
            casts = cast_voices(seed)
        else:
            casts = cast_recordings(speech, seed, n_speakers)
        recorded = {} if noise is None else split_noises(noise, seed)
        casts = {s: cast._replace(noises=recorded.get(s, ())) for s, cast in casts.items()}
        with atomic_folder(folder, fingerprint, "demo corpus", OURS) as building:
            _build(building, choices, casts, workers)
    return folder / f"Libri{n_speakers}Mix"


def _build(folder, choices, casts, workers):
    """Let everybody speak, and write all items and their transcripts."""
    scenes = [
        _draw_scene(choices, subset, index, casts[subset])
        for subset, count in choices.counts.items()
        for index in range(count)
    ]
    inner = f"Libri{choices.n_speakers}Mix/wav{choices.sample_rate // 1000}k/min"
    with tempfile.TemporaryDirectory(prefix="utterances-", dir=folder) as place:
        store = functools.partial(_store_speaker, folder=Path(place), choices=choices)
        speakers = list(enumerate(_needed(scenes, casts)))
        stored = make_items(store, speakers, "demo voices", "voice", workers, at_once=1)
        write = functools.partial(
            _write_item,
            folder=folder / inner,
            stored={speaker.name: speaker for speaker in stored},
            choices=choices,
        )
        rows = make_items(
            write, scenes, "demo mixtures", workers=workers, at_once=_ITEMS_AT_ONCE
        )
    with open(folder / TRANSCRIPTS, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# What goes into an item


def _draw_scene(choices, subset, index, cast) -> _Scene:
    """Draw who talks in an item, and what makes its noise."""
    rng = np.random.default_rng([choices.seed, SUBSETS.index(subset), index, 0])
    chosen = rng.choice(len(cast.talkers), size=choices.n_speakers, replace=False)
    groups = [cast.talkers[i] for i in chosen]
    talkers = tuple(group[rng.integers(len(group))].name for group in groups)
    if cast.noises:
        maker = cast.noises[rng.integers(len(cast.noises))].name
        return _Scene(subset, index, talkers, "recorded", (maker,))
    kinds = [*noises.MADE_NOISES] + ["babble"] * bool(cast.babble_speakers)
    kind = kinds[rng.integers(len(kinds))]
    babblers = cast.draw_babblers(rng) if kind == "babble" else ()
    return _Scene(subset, index, talkers, kind, tuple(one.name for one in babblers))


def _needed(scenes, casts):
    """All speakers and noise recordings that some item uses."""
    by_name = {
        speaker.name: speaker
        for cast in casts.values()
        for speaker in (*sum(cast.talkers, ()), *cast.babble_speakers, *cast.noises)
    }
    names = {name for scene in scenes for name in scene.talkers + scene.noise_makers}
    return [by_name[name] for name in sorted(names)]


def _store_speaker(job, *, folder, choices) -> _CachedUtterances:
    number, speaker = job
    samples, texts = speaker.utterances(choices.seed, choices.sample_rate)
    path = folder / f"{number}.npy"
    np.save(path, np.concatenate(samples).astype(np.float32))
    offsets = np.cumsum([0, *map(len, samples)])
    return _CachedUtterances(speaker.name, path, tuple(offsets.tolist()), tuple(texts))


def _write_item(scene, *, folder, stored, choices) -> dict[str, str]:
    """Write the stems and mixtures of one item; give its row of transcripts."""
    key = [choices.seed, SUBSETS.index(scene.subset), scene.index, 1]
    rng, sample_rate = np.random.default_rng(key), choices.sample_rate
    talkers = [stored[name] for name in scene.talkers]
    sources, texts = _talk(rng, talkers, choices.seconds, sample_rate)
    noise = _make_noise(rng, scene, stored, sources.shape[1], sample_rate)
    mixture = _level(rng, [*sources, noise], sample_rate)
    sources = {f"s{j}": source for j, source in enumerate(mixture.sources, start=1)}
    stems = {**mixture._asdict(), **sources}
    del stems["sources"]
    stems = {name: (32768 * stem).astype("<i2") for name, stem in stems.items()}
    identity = f"{scene.subset.split('-')[0]}-{scene.index:06d}"
    write_stems(folder / scene.subset, identity, stems, sample_rate)
    row = {"ID": identity, "subset": scene.subset, "noise": scene.noise_kind}
    for number, (talker, text) in enumerate(zip(talkers, texts), start=1):
        row.update({f"speaker_{number}": talker.name, f"transcript_{number}": text})
    return row


def _talk(rng, talkers, seconds, sample_rate) -> tuple[np.ndarray, list[str]]:
    """All sources of an item [J, T], speaking nearly all the time, and their words."""
    speech = [talker.utterances() for talker in talkers]
    orders = [
        _draw_orders(rng, utterances, seconds, sample_rate)
        for utterances, talker in zip(speech, talkers)
        if all(talker.texts)
    ]
    ratios = rng.uniform(1.0, LONGEST_RATIO, size=_LENGTHS_TRIED)
    lengths = (ratios * seconds * sample_rate).astype(int)
    # Sentences are not cut, so some lengths would leave a speaker silent for long.
    filled = np.array([_worst_filled(orders, length) for length in lengths])
    enough = filled >= min(_FILLED, filled.max())
    n_samples = int(lengths[np.argmax(enough)])
    # If no sentence of somebody fits: the shortest one has to.
    n_samples = max([n_samples, *(int(order.ends.min()) for order in orders)])
    sources = np.zeros((len(talkers), n_samples), dtype=np.float32)
    texts = []
    for source, utterances, talker in zip(sources, speech, talkers):
        if all(talker.texts):
            said = _say_whole(rng, source, utterances, orders.pop(0))
            texts.append(" ".join(talker.texts[which] for which in said))
        else:
            _cut_from(rng, source, utterances, sample_rate)
            texts.append("")
    return sources, texts


class _Orders(NamedTuple):
    """Sentences one after the other, tried in many orders, a row each.

    which : index of the sentence; ends : its end in samples, if the first starts at 0.
    """

    which: np.ndarray
    ends: np.ndarray


def _draw_orders(rng, utterances, seconds, sample_rate) -> _Orders:
    """Random orders of a speaker's sentences, with short pauses between them."""
    lengths = np.array([len(utterance) for utterance in utterances])
    longest = int(LONGEST_RATIO * seconds * sample_rate)
    most = min(len(lengths), longest // lengths.min() + 1)
    which = np.tile(np.arange(len(lengths)), (_ORDERS_TRIED, 1))
    which = rng.permuted(which, axis=1)[:, :most]
    pauses = _draw_pause(rng, sample_rate, size=which.shape)
    pauses[:, 0] = 0
    return _Orders(which, np.cumsum(lengths[which] + pauses, axis=1))


def _worst_filled(orders: list[_Orders], n_samples: int) -> float:
    shares = [
        order.ends.max(where=order.ends <= n_samples, initial=0) / n_samples
        for order in orders
    ]
    return min(shares, default=1.0)


def _say_whole(rng, source, utterances, orders) -> list[int]:
    """Fill a source [T] with the order of sentences that fits best; give the order.

    What is left (a few hundredths of a second mostly) goes before and after by chance.
    """
    fitting = np.where(orders.ends <= len(source), orders.ends, 0)
    best = int(np.argmax(fitting.max(axis=1)))
    start = int(rng.integers(len(source) - fitting[best].max() + 1))
    said = []
    for which, end in zip(orders.which[best], fitting[best]):
        if end == 0:
            break
        utterance = utterances[which]
        source[start + end - len(utterance) : start + end] = utterance
        said.append(int(which))
    return said


def _cut_from(rng, source, utterances, sample_rate):
    """Fill a source [T] with the least silent of a few cuts from the recordings."""
    best = -1.0
    for _ in range(_CROPS_TRIED):
        cut = np.zeros_like(source)
        at = 0
        while at < len(cut):
            recording = utterances[rng.integers(len(utterances))]
            start = rng.integers(max(1, len(recording) - (len(cut) - at) + 1))
            piece = recording[start : start + len(cut) - at]
            cut[at : at + len(piece)] = piece
            at += len(piece) + int(_draw_pause(rng, sample_rate, size=None))
        activity = _activity(cut, sample_rate)
        if activity > best:
            best = activity
            source[:] = cut


def _draw_pause(rng: np.random.Generator, sample_rate: int, size):
    shortest, longest = (int(pause * sample_rate) for pause in _PAUSE_SECONDS)
    return rng.integers(shortest, longest, size=size)


def _activity(signal: np.ndarray, sample_rate: int) -> float:
    frame = sample_rate // 50
    whole = signal[: len(signal) // frame * frame].reshape(-1, frame)
    power = np.square(whole, dtype=np.float64).mean(axis=1)
    return float(np.mean(power > 1e-3 * power.max())) if power.any() else 0.0


def _make_noise(rng, scene, stored, n_samples, sample_rate) -> np.ndarray:
    """The noise of an item [T], of no particular level."""
    if scene.noise_kind in noises.MADE_NOISES:
        return noises.MADE_NOISES[scene.noise_kind](rng, n_samples, sample_rate)
    if scene.noise_kind == "babble":
        voices = []
        for name in scene.noise_makers:
            utterances = stored[name].utterances()
            order = rng.permutation(len(utterances))
            voices.append(np.concatenate([utterances[i] for i in order]))
        return noises.babble(rng, voices, n_samples)
    (recording,) = stored[scene.noise_makers[0]].utterances()
    start = int(rng.integers(max(1, len(recording) - n_samples + 1)))
    indices = np.arange(start, start + n_samples)
    return np.take(recording, indices, mode="wrap").astype(np.float64)


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


def _check(choices: _Choices, workers: int | None) -> None:
    """Raise a UserError for an argument that cannot be used."""
    if choices.n_speakers not in N_SPEAKERS:
        raise UserError(f"n_speakers: {choices.n_speakers}, but 1, 2 or 3 are expected")
    if choices.sample_rate not in RATES:
        raise UserError(
            f"sample_rate: {choices.sample_rate}, but 8000 or 16000 Hz are expected"
        )
    for subset, count in choices.counts.items():
        if count < 1:
            raise UserError(f"{subset}: {count} items, but at least 1 is needed")
    if not choices.seconds >= SHORTEST_SECONDS:
        raise UserError(
            f"seconds: {choices.seconds}, but whole sentences need at least "
            f"{SHORTEST_SECONDS}"
        )
    if workers is not None and workers < 1:
        raise UserError(f"workers: {workers}, but at least 1 is needed")


def _fingerprint_folder(folder: Path | None) -> dict | None:
    if folder is None:
        return None
    files = [str(file.relative_to(folder)) for file in list_recordings(folder)]
    return fingerprint_of(folder, files, {})
