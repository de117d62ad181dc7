"""Sentences of the demo: a small English grammar of this project's own.

Sixty words, so that a word recogniser can learn the demo's language in minutes.
"""

from __future__ import annotations

import numpy as np

_ARTICLES = ("the", "a", "my", "our")
_PEOPLE_ADJECTIVES = ("old", "young", "small", "happy", "quiet", "big")
_THING_ADJECTIVES = ("old", "small", "big", "green", "red", "cold", "warm")
_PEOPLE = (
    "man",
    "woman",
    "boy",
    "girl",
    "teacher",
    "farmer",
    "doctor",
    "dog",
    "cat",
    "bird",
)
_THINGS = ("book", "letter", "apple", "boat", "chair", "lamp", "coat", "basket")
_PLACES = ("house", "garden", "river", "window", "table", "door")
_DOING = ("walks", "sleeps", "waits", "sings", "runs")
_HANDLING = ("sees", "finds", "brings", "wants", "likes")
_WHERE = ("near", "behind", "beside", "by")
_WHITHER = (*_WHERE, "towards")
_WHEN = ("today", "often", "slowly", "again")
_JOINING = ("and", "is", "an")

VOCABULARY = tuple(
    sorted(
        {
            word
            for words in (
                _ARTICLES,
                _PEOPLE_ADJECTIVES,
                _THING_ADJECTIVES,
                _PEOPLE,
                _THINGS,
                _PLACES,
                _DOING,
                _HANDLING,
                _WHITHER,
                _WHEN,
                _JOINING,
            )
            for word in words
        }
    )
)


def sentence(rng: np.random.Generator) -> str:
    """Draw a sentence of 4 to 9 words, all of them in `VOCABULARY`.

    Arguments
    ---------
    rng : np.random.Generator
        Where the choices come from.

    Returns
    -------
    sentence : str
        Lower case words, one space apart, without punctuation.

    Example
    -------
    >>> words = sentence(np.random.default_rng(0)).split()
    >>> 4 <= len(words) <= 9, set(words) <= set(VOCABULARY)
    (True, True)
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


def _phrase(
    rng: np.random.Generator,
    adjectives: tuple[str, ...],
    nouns: tuple[str, ...],
    article: str | None = None,
) -> list[str]:
    """Article, in half of the cases an adjective, noun."""
    words = [_one(rng, adjectives)] * int(rng.integers(2)) + [_one(rng, nouns)]
    article = article or _one(rng, _ARTICLES)
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return [article, *words]


def _one(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """One of the words, each as likely as any other."""
    return words[rng.integers(len(words))]
