"""Word errors: counted as by SpeechBrain, normalised as stated."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.results import summarise
from unified_se_ss.evaluation.wer import (
    _word_errors,
    find_transcripts,
    normalise_text,
    recognition_scores,
)

WORDS = st.lists(st.sampled_from("abcd"), max_size=8)


@settings(deadline=None, max_examples=100)
@given(words=WORDS.filter(bool), recognised=WORDS)
def test_word_errors_are_those_of_speechbrain(words, recognised):
    from speechbrain.utils.edit_distance import accumulatable_wer_stats

    stats = accumulatable_wer_stats([words], [recognised])
    kinds = ("insertions", "deletions", "substitutions")
    assert _word_errors(words, recognised) == sum(stats[kind] for kind in kinds)


@settings(deadline=None, max_examples=50)
@given(a=WORDS, b=WORDS, c=WORDS)
def test_word_errors_are_a_distance(a, b, c):
    assert _word_errors(a, b) == _word_errors(b, a) and _word_errors(a, a) == 0
    assert _word_errors(a, c) <= _word_errors(a, b) + _word_errors(b, c)
    assert _word_errors(a, []) == len(a)


@pytest.mark.parametrize(
    "text, words",
    [
        ("Hello, World!", "hello world"),
        ("don’t 'quote' rock 'n' roll", "don't quote rock n roll"),
        ("ﬁrst—second…", "first second"),
        ("CAFÉ cafe\u0301", "café café"),
        ("42 snake_case", "42 snake case"),
        ("नमस्ते दुनिया", "नमस्ते दुनिया"),
        (" ' -- ", ""),
    ],
)
def test_normalisation(text, words):
    assert normalise_text(text) == words.split()
    assert normalise_text(" ".join(normalise_text(text))) == words.split()


def test_scores_are_of_all_words_together():
    row = recognition_scores(
        ["a b", "a b c d e f x h"], ["a b", "a b c d e f g h"], ["a x", "a b c d e f g h"]
    )
    assert (row["words"], row["word_errors"], row["word_errors_reference"]) == (10, 2, 1)
    assert (row["wer"], row["wer_1"], row["wer_2"]) == (20.0, 50.0, 12.5)
    assert (row["wer_reference"], row["wer_reference_2"]) == (10.0, 0.0)


def test_a_source_without_words_has_no_wer():
    row = recognition_scores(["noise", "b"], ["", "b"], ["", "b"])
    assert row["wer_1"] is None and row["wer"] == 0.0 and row["words"] == 1
    row = recognition_scores(["x"], ["x"], ["--"])
    assert row["wer"] is None and row["words"] == 0


def test_the_summary_is_not_the_mean_of_the_utterances():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        words = int(rng.integers(1, 30))
        errors = int(rng.integers(0, words + 1))
        said, heard = ["w"] * words, ["w"] * (words - errors) + ["x"] * errors
        scores = recognition_scores([" ".join(heard)], [" ".join(said)], [" ".join(said)])
        rows.append({"ID": str(i), **scores})
    total = 100 * sum(r["word_errors"] for r in rows) / sum(r["words"] for r in rows)
    found = summarise(rows).metrics["wer"]
    assert found.mean == pytest.approx(total)
    assert found.mean != pytest.approx(np.mean([r["wer"] for r in rows]), abs=0.1)
    assert found.low < found.mean < found.high
    names = [column.key for column, _ in summarise(rows).headlines()]
    assert names == ["wer", "wer_reference"]


def test_the_interval_of_a_rate_is_that_of_scipy():
    import scipy.stats

    rng = np.random.default_rng(1)
    words = rng.integers(1, 30, 60)
    errors = rng.binomial(words, 0.3)
    rows = [
        {"ID": str(i), "wer": 100 * e / w, "word_errors": int(e), "words": int(w)}
        for i, (e, w) in enumerate(zip(errors, words))
    ]
    other = scipy.stats.bootstrap(
        (errors, words),
        lambda e, w, axis: 100 * e.sum(axis) / w.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20000,
        method="percentile",
        random_state=np.random.default_rng(2),
    ).confidence_interval
    found = summarise(rows).metrics["wer"]
    width = other.high - other.low
    assert found.low == pytest.approx(other.low, abs=0.1 * width)
    assert found.high == pytest.approx(other.high, abs=0.1 * width)


def manifest(attributes, stems=("mixture", "s1", "s2")):
    items = [SimpleNamespace(id=name, attributes=row) for name, row in attributes.items()]
    return SimpleNamespace(items=items, stems=stems, path="m.csv")


def test_transcripts_are_found(tmp_path):
    path = tmp_path / "transcripts.csv"
    path.write_text(
        "ID,noise,transcript_1,transcript_2\na,hum,one two,three\nb,hum,,four\n"
    )
    expected = {"a": ["one two", "three"], "b": ["", "four"]}
    of_file = manifest({"a": {}, "b": {}})
    assert find_transcripts(of_file, path) == expected
    assert find_transcripts(of_file, data_folder=tmp_path) == expected
    assert find_transcripts(of_file, data_folder=tmp_path / "inner") == expected
    one = manifest({"a": {"transcript": "one"}}, ("noisy", "clean"))
    assert find_transcripts(one) == {"a": ["one"]}
    with pytest.raises(UserError, match="m.csv has none of a"):
        find_transcripts(manifest({"a": {"transcript_1": "one"}}))


@pytest.mark.parametrize("text", [None, "", "ID,text\na,b\n", "transcript_1\na\n"])
def test_bad_transcripts_are_named(tmp_path, text):
    path = tmp_path / "words.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="words.csv"):
        find_transcripts(manifest({"a": {}}), path)
