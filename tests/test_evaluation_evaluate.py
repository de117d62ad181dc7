"""Scoring in processes: the same rows in the same order, whatever happens to one."""

import numpy as np
import pytest
from fragile_scores import FragileScorers
from test_evaluation_perceptual import NO_PESQ, speech

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.evaluate import DIED, Utterance, evaluate
from unified_se_ss.evaluation.rows import evaluate_item, score_separation

RATE = 8000


def utterance(number):
    sources = 0.1 * np.stack([speech(2 * number, 1), speech(2 * number + 1, 1)])
    sources = sources.astype(np.float32)
    noise = 0.01 * np.random.default_rng(number).standard_normal(sources.shape[1])
    return Utterance(f"u{number}", sources.sum(0) + noise.astype(np.float32), sources)


def separate(mixture):
    """No separation worth the name, but sources, reversed, and an enhanced mixture."""
    smooth = np.convolve(mixture, [0.5, 0.5], mode="same")
    return {"estimates": np.stack([mixture - smooth, smooth]), "enhanced": smooth}


def test_rows_are_those_of_one_process_in_the_order_of_the_utterances():
    utterances = [utterance(number) for number in range(3)]
    rows = evaluate(utterances, separate, RATE, metrics=["stoi"], jobs=2)
    assert [row["ID"] for row in rows] == [u.id for u in utterances]
    for row, (_, mixture, sources, _) in zip(rows, utterances):
        expected = evaluate_item(
            mixture=mixture, targets=sources, sample_rate=RATE, **separate(mixture)
        )
        assert row["permutation"] == expected.pop("permutation")
        assert {key: row[key] for key in expected} == pytest.approx(expected)
        assert 0 < row["stoi_1"] < 100 and "why_empty" not in row


def test_utterances_are_read_when_it_is_their_turn():
    """Of a long manifest only a few utterances are in memory."""
    ahead, separated = [], []

    def reading():
        for number in range(6):
            ahead.append(number - len(separated))
            yield utterance(number)

    def one(mixture):
        separated.append(0)
        return separate(mixture)

    assert len(evaluate(reading(), one, RATE, jobs=1)) == 6
    assert set(ahead) == {0}


def test_a_silent_reference_is_empty_counted_and_named():
    quiet = utterance(1)
    quiet.sources[1] = 0
    signals = {"mixture": quiet.mixture, "targets": quiet.sources}
    row = score_separation("u1", signals | separate(quiet.mixture), (), RATE)
    assert row["si_snr_2"] is None and row["sdr"] == row["sdr_1"]
    assert row["why_empty"] == "the reference of source 2 is silent"


def test_an_output_that_is_not_finite_is_named():
    broken = utterance(5)
    broken.mixture[7] = np.nan
    with pytest.raises(UserError, match="u5: .*nan"):
        evaluate([utterance(1), broken, utterance(2)], separate, RATE, jobs=1)


def test_words_are_scored_in_the_order_of_the_sources():
    def oracle(mixture):
        return {"estimates": -1e-3 * utterance(3).sources[::-1]}

    def transcribe(signals):
        # A recogniser that knows the two voices at the level of the references.
        sources = utterance(3).sources
        distances = [[np.abs(s - source).max() for source in sources] for s in signals]
        assert np.min(distances, axis=1).max() < 0.2 * np.abs(sources).max()
        return [["one", "two three"][int(np.argmin(d))] for d in distances]

    transcripts = {"u3": ["One!", "two four"]}
    clean = utterance(3)._replace(mixture=utterance(3).sources.sum(0))
    rows = evaluate(
        [clean], oracle, RATE, jobs=1, transcribe=transcribe, transcripts=transcripts
    )
    assert rows[0]["permutation"] == (1, 0)
    assert (rows[0]["wer_1"], rows[0]["wer_2"], rows[0]["words"]) == (0.0, 50.0, 3)
    assert rows[0]["wer_reference"] == pytest.approx(100 / 3)


def test_a_process_that_dies_takes_only_its_utterance_with_it():
    rows = []
    with FragileScorers(("stoi",), RATE, jobs=2) as scorers:
        for number in range(4):
            _, mixture, sources, _ = utterance(number)
            signals = {"mixture": mixture, "targets": sources, **separate(mixture)}
            scorers.add(f"u{number}", signals, {"further": number})
            rows += scorers.done()
        rows += scorers.rest()
    assert [row["ID"] for row in rows] == [f"u{number}" for number in range(4)]
    assert [row["further"] for row in rows] == list(range(4))
    for row in rows:
        assert np.isfinite(row["sdr_i"]) and "stoi_i_2" in row
        if row["ID"] == "u1":
            assert row["stoi"] is None and row["why_empty"] == f"stoi: {DIED}"
        else:
            assert row["stoi"] > 0 and "why_empty" not in row


def test_what_pesq_dies_of_is_survived():
    pytest.importorskip("pesq", reason=NO_PESQ)
    rng = np.random.default_rng(0)
    bursts = np.tile(np.repeat([1.0, 0.0], [4000, 6000]), 60)
    source = (0.1 * bursts * rng.standard_normal(len(bursts))).astype(np.float32)
    many = Utterance("many", source, source[None])
    few = Utterance("few", source[:20000], source[None, :20000])

    def copy(mixture):
        return {"estimates": mixture[None]}

    rows = evaluate([few, many, few._replace(id="again")], copy, RATE, ["pesq"], jobs=1)
    assert rows[0]["pesq_nb"] == rows[2]["pesq_nb"] > 4
    # Where a build of the package can take so many bursts, it has a value.
    assert rows[1]["pesq_nb"] is not None or DIED in rows[1]["why_empty"]
    assert np.isfinite(rows[1]["sdr"])
