"""Who speaks in the demos, and what: voices of espeak-ng, or a person's own recordings.

A cast names the speakers of one subset. No speaker is in two subsets, and no timbre
(variant of espeak-ng) either, so that a subset's voices are as new as new people. Voices
say sentences of a small English grammar of this project's own: sixty words, so that a
word recogniser can learn the demo's language in minutes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.data import audio
from unified_se_ss.data.demo.espeak import ACCENTS, Voice, speak
from unified_se_ss.data.demo.noises import BABBLE_VOICES
from unified_se_ss.errors import UserError

SUBSETS = ("train-360", "dev", "test")

# Timbres of espeak-ng that sound like people, one of each family of near copies;
# robots, whispers and voices without a clear pitch are left out.
HIGH_TIMBRES = """
    f1 f2 f3 f4 f5 aunty shelby steph belinda linda Annie Andrea Alicia anika grandma
""".split()
LOW_TIMBRES = """
    m1 m2 m3 m4 m5 m6 m7 m8 Mike Gene Andy Lee marcelo robert sandro Denis john norbert
    iven boris travis Alex michel Diogo gustave Michael Mario rob Henrique miguel pablo
    Reed victor
""".split()
# dev and test get these many timbres each of either list; train gets the others.
_HELD_OUT_HIGH = 3
_HELD_OUT_LOW = 6
# Every timbre talks with this many accents; with a further one it is in the babble.
# There are half as many high timbres as low ones, but as many high voices: LibriSpeech
# has about as many women as men.
_TALKERS_PER_TIMBRE = {True: 4, False: 2}
_SENTENCES_PER_TALKER = 24
_SENTENCES_PER_BABBLER = 8
_BABBLERS = (BABBLE_VOICES, 8)

_AUDIO_ENDINGS = (".wav", ".flac")
# More of one person's recordings would only cost time and memory.
_SECONDS_PER_PERSON = 300.0
_SECONDS_PER_NOISE = 60.0
_SECONDS_OF_NOISE = 1800.0
# Speech begins and ends where frames of 10 ms come within 40 dB of the loudest one.
_FRAME_SECONDS = 0.01
_SILENCE_DB = -40.0


# The words of the grammar.
_ARTICLES = "the a my our".split()
_PEOPLE_ADJECTIVES = "old young small happy quiet big".split()
_THING_ADJECTIVES = "old small big green red cold warm".split()
_PEOPLE = "man woman boy girl teacher farmer doctor dog cat bird".split()
_THINGS = "book letter apple boat chair lamp coat basket".split()
_PLACES = "house garden river window table door".split()
_DOING = "walks sleeps waits sings runs".split()
_HANDLING = "sees finds brings wants likes".split()
_WHERE = "near behind beside by".split()
_WHITHER = (*_WHERE, "towards")
_WHEN = "today often slowly again".split()


@dataclass(frozen=True)
class SpokenVoice:
    """A voice of espeak-ng that says so many sentences of the grammar."""

    voice: Voice
    n_sentences: int

    @property
    def name(self) -> str:
        """Name in the transcripts."""
        return self.voice.name

    def utterances(self, seed: int, sample_rate: int) -> tuple[list, list]:
        """Sentences that follow from the seed and this voice's name, and their words.

        Returns a list of samples [T] and a list of texts.
        """
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        texts = [_sentence(rng) for _ in range(self.n_sentences)]
        return [self._say(text, sample_rate) for text in texts], texts

    def _say(self, text: str, sample_rate: int) -> np.ndarray:
        speech, spoken_rate = speak(text, self.voice)
        return _trim_silence(audio.resample(speech, spoken_rate, sample_rate), sample_rate)


@dataclass(frozen=True)
class _RecordedPerson:
    """A folder of recordings, of a speaker or of noise.

    Arguments
    ---------
    name : str
        Name in the transcripts.
    files : tuple of Path
        Recordings, one channel each.
    seconds : float
        At most this much is read, from the first files on.
    """

    name: str
    files: tuple[Path, ...]
    seconds: float = _SECONDS_PER_PERSON

    def utterances(self, seed: int, sample_rate: int) -> tuple[list, list]:
        """Read the recordings; their words are not known."""
        samples: list[np.ndarray] = []
        wanted = int(self.seconds * sample_rate)
        for file in self.files:
            samples.append(self._read(file, sample_rate)[:wanted])
            wanted -= len(samples[-1])
            if wanted <= 0:
                break
        return samples, [""] * len(samples)

    def _read(self, file: Path, sample_rate: int) -> np.ndarray:
        """One recording at the wanted rate, without the silence around it."""
        details = audio.info(file)
        longest = int(self.seconds * details.sample_rate)
        signal, recorded_rate = audio.read(file, 0, min(details.frames, longest))
        if not np.isfinite(signal).all():
            raise UserError(f"{file}: holds samples that are not finite; remove it")
        if audio.is_silent(signal):
            raise UserError(f"{file}: is silent; remove it or record it again")
        resampled = audio.resample(signal, recorded_rate, sample_rate)
        return _trim_silence(resampled, sample_rate)


class _SpeakerSplit(NamedTuple):
    """The speakers of one subset, and its recordings of noise.

    `talkers` holds groups of speakers that sound alike (a timbre with its accents); a
    mixture takes one speaker of a group at most. `babble_speakers` speak in the noise alone.
    """

    talkers: tuple[tuple[SpokenVoice | _RecordedPerson, ...], ...]
    babble_speakers: tuple[SpokenVoice, ...] = ()
    noises: tuple[_RecordedPerson, ...] = ()

    def draw_babblers(self, rng: np.random.Generator) -> list[SpokenVoice]:
        """Five to eight of those who speak in the noise, or all if they are fewer."""
        there = len(self.babble_speakers)
        count = min(int(rng.integers(*_BABBLERS, endpoint=True)), there)
        chosen = rng.choice(there, count, replace=False)
        return [self.babble_speakers[i] for i in chosen]


def cast_voices(seed: int) -> dict[str, _SpeakerSplit]:
    """Give every subset its voices of espeak-ng.

    Which timbres are held out, and accent, pitch and rate of every voice, follow from the
    seed: 78 voices in train, 24 each in dev and test.

    Example
    -------
    >>> [sum(map(len, cast.talkers)) for cast in cast_voices(0).values()]
    [78, 24, 24]
    """
    rng = np.random.default_rng([seed, zlib.crc32(b"voices")])
    shares: dict[str, list[tuple[str, bool]]] = {subset: [] for subset in SUBSETS}
    for timbres, n_held_out, is_high in (
        (HIGH_TIMBRES, _HELD_OUT_HIGH, True),
        (LOW_TIMBRES, _HELD_OUT_LOW, False),
    ):
        shuffled = [(timbres[i], is_high) for i in rng.permutation(len(timbres))]
        shares["dev"] += shuffled[:n_held_out]
        shares["test"] += shuffled[n_held_out : 2 * n_held_out]
        shares["train-360"] += shuffled[2 * n_held_out :]
    return {subset: _cast_timbres(rng, share) for subset, share in shares.items()}


def _cast_timbres(rng, timbres) -> _SpeakerSplit:
    """Several talkers and one babbler of every timbre, each with another accent."""
    talkers, babble_speakers = [], []
    for timbre, is_high in timbres:
        accents = rng.permutation(list(ACCENTS))
        voices = [
            Voice(
                accent=str(accent),
                variant=timbre,
                # The scale is the timbre's own: these are 85 to 140 Hz for most low
                # timbres and 160 to 240 Hz for most high ones.
                pitch=int(rng.integers(30, 70) if is_high else rng.integers(25, 80)),
                pitch_range=int(rng.integers(35, 75)),
                rate=int(rng.integers(145, 200)),
            )
            for accent in accents[: _TALKERS_PER_TIMBRE[is_high] + 1]
        ]
        babble_speakers.append(SpokenVoice(voices.pop(), _SENTENCES_PER_BABBLER))
        talkers.append(tuple(SpokenVoice(v, _SENTENCES_PER_TALKER) for v in voices))
    return _SpeakerSplit(tuple(talkers), tuple(babble_speakers))


def cast_recordings(folder: Path, seed: int, n_speakers: int) -> dict[str, _SpeakerSplit]:
    """Split a folder of recordings, 80/10/10 and disjoint, into the subsets.

    There is one folder for each speaker, with wav or flac files anywhere below; no subset
    has fewer speakers than a mixture, or there is a UserError.
    """
    people = []
    for person in sorted(_existing(folder, "speech").iterdir()):
        files = list_recordings(person) if person.is_dir() else ()
        if files:
            people.append(_RecordedPerson(person.name, files))
    needed = n_speakers * len(SUBSETS)
    if len(people) < needed:
        raise UserError(
            f"{folder}: has recordings of {len(people)} speakers, but {needed} are "
            f"needed ({n_speakers} each in train, dev and test); expected one folder "
            "for each speaker, SPEAKER/**/*.wav or *.flac"
        )
    shares = _split(people, seed, n_speakers)
    return {
        subset: _SpeakerSplit(tuple((person,) for person in share))
        for subset, share in shares.items()
    }


def split_noises(folder: Path, seed: int) -> dict[str, tuple[_RecordedPerson, ...]]:
    """Split a folder of noise recordings, 80/10/10 and disjoint, into the subsets.

    Each file is on its own, half an hour in all; fewer than three are a UserError.
    """
    files = list_recordings(_existing(folder, "noise"))
    if len(files) < len(SUBSETS):
        raise UserError(
            f"{folder}: has {len(files)} noise recordings, but {len(SUBSETS)} are "
            "needed (one each in train, dev and test); expected *.wav or *.flac"
        )
    most = int(_SECONDS_OF_NOISE / _SECONDS_PER_NOISE)
    shares = _split(files, seed, 1)
    return {
        subset: tuple(
            _RecordedPerson(
                # With a stroke in it, so that it is no speaker's name.
                f"noise/{file.relative_to(folder)}",
                (file,),
                _SECONDS_PER_NOISE,
            )
            for file in share[:most]
        )
        for subset, share in shares.items()
    }


def list_recordings(folder: Path) -> tuple[Path, ...]:
    """Wav and flac files anywhere below a folder, sorted, without hidden ones."""
    return tuple(
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _AUDIO_ENDINGS
        and not path.name.startswith(".")
        and path.is_file()
    )


def _trim_silence(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """Cut off what is 40 dB below the loudest 10 ms at either end; silence stays as it is."""
    frame = int(_FRAME_SECONDS * sample_rate)
    n_frames = -(-len(signal) // frame)
    padded = np.zeros(n_frames * frame)
    padded[: len(signal)] = signal
    power = np.square(padded).reshape(n_frames, frame).mean(axis=1)
    (loud,) = np.nonzero(power > power.max() * 10 ** (_SILENCE_DB / 10))
    if len(loud) == 0:
        return signal
    return signal[loud[0] * frame : (loud[-1] + 1) * frame]


def _existing(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: the {what} folder does not exist or is no folder")
    return folder


def _split(everything: Sequence, seed: int, least: int) -> dict[str, list]:
    """Shares of 80/10/10 percent by chance, none with fewer than `least`."""
    rng = np.random.default_rng([seed, zlib.crc32(b"split")])
    shuffled = [everything[i] for i in rng.permutation(len(everything))]
    held_out = max(least, round(0.1 * len(everything)))
    return {
        "train-360": shuffled[2 * held_out :],
        "dev": shuffled[:held_out],
        "test": shuffled[held_out : 2 * held_out],
    }


def _sentence(rng: np.random.Generator) -> str:
    """Draw a sentence of 4 to 9 words.

    Example
    -------
    >>> _sentence(np.random.default_rng(0))
    'my farmer sleeps and the man walks'
    """
    patterns = (_going, _handling, _being, _two_at_once)
    return " ".join(patterns[rng.integers(len(patterns))](rng))


def _going(rng: np.random.Generator) -> list[str]:
    """The young farmer walks slowly towards the old house."""
    words = _phrase(rng, _PEOPLE_ADJECTIVES, _PEOPLE) + [_one(rng, _DOING)]
    has_time, has_place = ((True, True), (True, False), (False, True))[rng.integers(3)]
    words += [_one(rng, _WHEN)] * has_time
    if has_place:
        words.append(_one(rng, _WHITHER))
        words += _phrase(rng, _THING_ADJECTIVES, _PLACES, "the")
    return words


def _handling(rng: np.random.Generator) -> list[str]:
    """Our doctor often brings an apple."""
    words = _phrase(rng, _PEOPLE_ADJECTIVES, _PEOPLE)
    words += [_one(rng, _WHEN)] * int(rng.integers(2))
    return words + [_one(rng, _HANDLING)] + _phrase(rng, _THING_ADJECTIVES, _THINGS)


def _being(rng: np.random.Generator) -> list[str]:
    """The red boat near the house is small today."""
    words = _phrase(rng, _THING_ADJECTIVES, _THINGS, "the")
    words += [_one(rng, _WHERE), "the", _one(rng, _PLACES), "is"]
    words.append(_one(rng, _THING_ADJECTIVES))
    return words + ["today"] * int(rng.integers(2))


def _two_at_once(rng: np.random.Generator) -> list[str]:
    """The boy sings and the small dog sleeps."""
    words = [_one(rng, ("the", "my", "our")), _one(rng, _PEOPLE), _one(rng, _DOING)]
    words += ["and"] + _phrase(rng, _PEOPLE_ADJECTIVES, _PEOPLE, "the")
    return words + [_one(rng, _DOING)]


def _phrase(rng, adjectives, nouns, article=None) -> list[str]:
    words = [_one(rng, adjectives)] * int(rng.integers(2)) + [_one(rng, nouns)]
    article = article or _one(rng, _ARTICLES)
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return [article, *words]


def _one(rng, words) -> str:
    return words[rng.integers(len(words))]
