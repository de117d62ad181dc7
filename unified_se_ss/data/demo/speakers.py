"""Who speaks in the demos, and what: voices of espeak-ng, and sentences of a small grammar.

No speaker is in two subsets, and no timbre (variant of espeak-ng) either, so that a
subset's voices are as new as new people. The English grammar is this project's own: sixty
words, so that a word recogniser can learn the demo's language in minutes.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from unified_se_ss.data import audio
from unified_se_ss.data.demo.espeak import ACCENTS, Voice, speak

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
# Fewer voices would be a third speaker rather than a noise.
_BABBLERS = (5, 8)
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


class Cast(NamedTuple):
    """The voices of one subset.

    `talkers` holds groups of voices that sound alike (a timbre with its accents); a mixture
    takes one of a group at most. `babble_speakers` speak in the noise alone.
    """

    talkers: tuple[tuple[Voice, ...], ...]
    babble_speakers: tuple[Voice, ...]

    def draw_babblers(self, rng: np.random.Generator) -> tuple[Voice, ...]:
        """Five to eight of those who speak in the noise."""
        count = int(rng.integers(*_BABBLERS, endpoint=True))
        chosen = rng.choice(len(self.babble_speakers), count, replace=False)
        return tuple(self.babble_speakers[i] for i in chosen)


def cast_voices(seed: int) -> dict[str, Cast]:
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


def _cast_timbres(rng, timbres) -> Cast:
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
        babble_speakers.append(voices.pop())
        talkers.append(tuple(voices))
    return Cast(tuple(talkers), tuple(babble_speakers))


def say_sentences(
    voice: Voice, count: int, seed: int, sample_rate: int
) -> tuple[list[np.ndarray], list[str]]:
    """Samples [T] and words of sentences that follow from the seed and the voice's name."""
    rng = np.random.default_rng([seed, zlib.crc32(voice.name.encode())])
    texts = [_sentence(rng) for _ in range(count)]
    spoken = (audio.resample(*speak(text, voice), sample_rate) for text in texts)
    return [_trim_silence(speech, sample_rate) for speech in spoken], texts


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


def _sentence(rng: np.random.Generator) -> str:
    """Draw a sentence of 4 to 9 words."""
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
