"""Cells compared: the intervals against closed forms, scipy and simulations; the tables."""

import csv
import io

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.comparison import (
    _Estimate,
    _paired_interval,
    compare,
    write_comparison,
)
from unified_se_ss.evaluation.results import bootstrap_interval

# Standard deviations of what seeds, utterances, and both together bring, in dB.
NOISES = [(0, 0.7, 0.7), (0.1, 0.7, 0.7), (0.3, 0.7, 0.7), (1, 0.7, 0.7), (0, 0, 1)]

pytestmark = pytest.mark.pictures


def crossed(rng, noise, seeds=3, utterances=60):
    """Scores without a true difference: seeds and utterances as crossed random effects."""
    by_seed, by_item, both = (
        sd * rng.standard_normal(shape)
        for sd, shape in zip(noise, ((seeds, 1), (1, utterances), (seeds, utterances)))
    )
    return by_seed + by_item + both


def misses(interval, truth=0.0):
    low, high = interval
    return not low <= truth <= high


# ------------------------------------------------------------------ paired intervals


@pytest.mark.parametrize("noise", NOISES)
def test_one_in_twenty_intervals_misses_where_there_is_no_difference(noise):
    rng = np.random.default_rng(0)
    wrong = np.mean([misses(_paired_interval(crossed(rng, noise))) for _ in range(2000)])
    assert 0.035 < wrong < 0.065  # 0.05, with three standard errors of this simulation


def test_a_bootstrap_would_often_see_a_difference_where_there_is_none():
    """Why the differences are not judged by it: three seeds are too few to resample."""
    rng = np.random.default_rng(1)
    draws = [crossed(rng, (1, 0.7, 0.7)) for _ in range(300)]
    assert (
        np.mean([misses(bootstrap_interval(draw, resamples=200)) for draw in draws]) > 0.12
    )
    assert np.mean([misses(_paired_interval(draw)) for draw in draws]) < 0.09


def test_true_differences_are_found():
    rng = np.random.default_rng(2)
    draws = [0.5 + crossed(rng, (0.05, 0.7, 0.7)) for _ in range(300)]
    assert np.mean([misses(_paired_interval(draw)) for draw in draws]) > 0.9


@pytest.mark.parametrize("utterances", [1, 40])
def test_utterances_that_are_all_alike_leave_the_t_interval_over_seeds(utterances):
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((4, utterances))
    scores = rng.standard_normal((4, 1)) + noise - noise.mean(axis=0)
    expected = stats.ttest_1samp(scores.mean(axis=1), 0).confidence_interval(0.95)
    assert _paired_interval(scores) == pytest.approx(tuple(expected))


def test_seeds_that_are_all_alike_leave_the_normal_interval_over_utterances():
    items = np.random.default_rng(4).standard_normal(50)
    expected = stats.norm.interval(0.95, items.mean(), items.std(ddof=1) / np.sqrt(50))
    # Rounding makes seeds differ a little where the sums are not exact.
    items = np.round(items * 1024) / 1024
    assert _paired_interval(np.tile(items, (4, 1))) == pytest.approx(expected, abs=1e-3)


def test_mean_squares_are_those_of_an_analysis_of_variance():
    """A table by hand: M_S = 6/2, M_U = 96/2, M_SU = (106 - 6 - 96)/4."""
    scores = np.array([[0.0, 4.0, 8.0], [1.0, 4.0, 10.0], [2.0, 7.0, 9.0]])
    freedom = 2 * ((3 + 48 - 1) / 3) ** 2
    half = stats.t.ppf(0.975, freedom) * np.sqrt((3 + 48 - 1) / 9)
    assert _paired_interval(scores) == pytest.approx((5 - half, 5 + half))


matrices = st.tuples(st.integers(2, 5), st.integers(1, 8)).flatmap(
    lambda shape: arrays(float, shape, elements=st.integers(-64, 64).map(lambda x: x / 8))
)


@settings(deadline=None, max_examples=60)
@given(matrices, st.integers(-8, 8), st.randoms(use_true_random=False))
def test_intervals_move_with_the_scores_and_know_no_order(scores, shift, random):
    low, high = _paired_interval(scores)
    assert low <= scores.mean() <= high
    assert _paired_interval(scores + shift) == pytest.approx((low + shift, high + shift))
    assert _paired_interval(-2 * scores) == pytest.approx((-2 * high, -2 * low))
    rows, columns = (random.sample(range(n), n) for n in scores.shape)
    assert _paired_interval(scores[rows][:, columns]) == pytest.approx((low, high))


# ------------------------------------------------------------------ means


@pytest.mark.parametrize("axis", [0, 1])
def test_along_one_axis_it_is_the_bootstrap_of_scipy(axis):
    values = np.random.default_rng(5).gamma(2.0, size=40)
    ours = bootstrap_interval(np.expand_dims(values, axis), resamples=20000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", random_state=6
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.02 * values.std())


def test_along_both_axes_the_variances_of_seeds_and_utterances_add_up():
    """Var = var(a)/S + var(b)/U + var(e)/SU of the two-way parts of the scores."""
    scores = crossed(np.random.default_rng(7), (0.4, 2.0, 0.7), seeds=8)
    a, b = (scores.mean(axis=axis) for axis in (1, 0))
    both = scores - a[:, None] - b + scores.mean()
    variance = a.var() / 8 + b.var() / 60 + both.var() / 480
    low, high = bootstrap_interval(scores, resamples=20000)
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.04)


def test_intervals_of_means_cover_what_they_claim_where_utterances_decide():
    """Of the size of the demo: 60 utterances spread by 2.2 dB, three seeds by 0.15."""
    rng = np.random.default_rng(8)
    draws = [crossed(rng, (0.15, 2.2, 0.7)) for _ in range(250)]
    missed = np.mean([misses(bootstrap_interval(draw, resamples=200)) for draw in draws])
    assert 0.02 < missed < 0.1


def test_an_estimate_is_of_the_means_of_the_seeds():
    values = [[1.0, 2.0, 6.0], [2.0, 3.0, 7.0], [5.0, 5.0, 5.0]]
    found = compare({"sum": dict(enumerate(map(rows, values)))}).estimates
    found = found["si_snr_i"]["sum"]
    assert found.per_seed == (3.0, 4.0, 5.0)
    assert (found.mean, found.standard_deviation, found.utterances) == (4.0, 1.0, 3)
    assert found.low < 4.0 < found.high
    alone = compare({"sum": {1: rows([2.0])}}).estimates["si_snr_i"]["sum"]
    assert (alone.standard_deviation, alone.low, alone.high) == (None, None, None)


# ------------------------------------------------------------------ cells


def rows(values, se=None):
    """Rows of results.csv with the IDs a, b, c …"""
    made = [{"ID": chr(97 + i), "si_snr_i": v} for i, v in enumerate(values)]
    return [{**row, "se_si_snr_i": s} for row, s in zip(made, se)] if se else made


def several(shift, seeds=3, se=True, first=1):
    """The runs of a cell whose scores are 0 … 9 dB, all moved by the same."""
    rng = np.random.default_rng(9)
    runs = {}
    for seed in range(first, first + seeds):
        values = (np.arange(10) + shift + 0.01 * rng.standard_normal(10)).tolist()
        runs[seed] = rows(values, [v / 2 for v in values] if se else None)
    return runs


def test_better_worse_and_within_the_noise():
    noisy = {s: rows((np.arange(10) + (-1) ** s).tolist()) for s in (1, 2, 3)}
    cells = {"sum": several(0), "up": several(1), "down": several(-2), "noisy": noisy}
    found = compare(cells)
    words = {c: d.verdict for c, d in found.differences["si_snr_i"].items()}
    assert words == {"up": "better", "down": "worse", "noisy": "within the noise"}
    assert found.differences["si_snr_i"]["down"].mean == pytest.approx(-2)
    lines = found.table().splitlines()
    assert lines[2].endswith("baseline")
    assert lines[3].endswith("better by 1.00 dB") and lines[4].endswith("worse by 2.00 dB")
    assert lines[5].endswith("within the noise")


def test_pairs_are_by_utterance_and_seed():
    """Order does not matter; what one run lacks is left out of all."""
    one = {1: rows([1.0, 2.0, 3.0]), 2: rows([1.0, 2.0, 4.0])}
    other = {2: rows([2.0, 3.0, None]), 1: rows([2.0, 3.0, 9.0])[::-1], 3: rows([0.0] * 3)}
    found = compare({"one": one, "other": other})
    difference = found.differences["si_snr_i"]["other"]
    assert difference.utterances == 2 and set(difference.seeds) == {"1", "2"}
    assert difference.per_seed == (1.0, 1.0)
    assert (difference.low, difference.high) == (1.0, 1.0)
    assert found.estimates["si_snr_i"]["other"].utterances == 2


def test_cells_may_lack_runs_seeds_and_metrics():
    cells = {
        "sum": several(0, seeds=2),
        "alone": several(1, se=False),
        "one": several(1, seeds=1),
        "elsewhere": several(1, seeds=2, first=7),
        "none": {},
    }
    found = compare(cells)
    assert set(found.estimates["se_si_snr_i"]) == {"sum", "one", "elsewhere"}
    separation, enhancement = (
        {line.split("  ")[0]: line for line in block.splitlines()}
        for block in found.table().split("\n\n")
    )
    assert separation["one"].endswith("one seed cannot tell")
    assert separation["none"].endswith("no finished run")
    assert separation["elsewhere"].endswith("no run in common with the baseline")
    assert "better" in separation["alone"] and enhancement["alone"].split() == [
        "alone",
        "3",
    ]
    assert found.png().startswith(b"\x89PNG")


def test_another_baseline_turns_the_sign():
    cells = {"sum": several(0), "project": several(0.5), "again": several(0)}
    forth = compare(cells).differences["si_snr_i"]
    back = compare(cells, "project").differences["si_snr_i"]["sum"]
    assert (back.low, back.high) == pytest.approx(
        (-forth["project"].high, -forth["project"].low)
    )
    same = forth["again"]
    assert (same.low, same.mean, same.high) == (0, 0, 0)
    assert same.verdict == "within the noise"


@pytest.mark.parametrize(
    ("cells", "baseline", "metrics", "message"),
    [
        ({}, None, ["si_snr_i"], "no finished run"),
        ({"sum": {}}, None, ["si_snr_i"], "no finished run"),
        ({"sum": several(0)}, "project", ["si_snr_i"], "expected one of the cells: sum"),
        (
            {"sum": several(0)},
            None,
            ["wer"],
            "none of the columns wer; it has: ID, si_snr_i",
        ),
        (
            {"sum": {1: rows([1.0]), 2: [{"ID": "z", "si_snr_i": 1.0}]}},
            None,
            ["si_snr_i"],
            "sum: its runs have no test utterance in common",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(cells, baseline, metrics, message):
    with pytest.raises(UserError, match=message):
        compare(cells, baseline, metrics)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (None, None, "one seed cannot tell"),
        (0.0, 1.0, "within the noise"),
        (-0.1, 1.1, "within the noise"),
        (0.1, 0.9, "better"),
    ],
)
def test_verdicts(low, high, verdict):
    assert _Estimate(("1",), (0.5,), 0.5, low, high, 9).verdict == verdict
    error = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert _Estimate(("1",), (0.5,), 0.5, low, high, 9, True).verdict == error


def test_of_errors_less_is_better():
    rows = {
        cell: {
            seed: [{"ID": str(i), "delta_itd": level + i + 0.01 * seed} for i in range(9)]
            for seed in (1, 2, 3)
        }
        for cell, level in (("variant=mimo", 5.0), ("variant=independent", 50.0))
    }
    found = compare(rows)
    assert list(found.estimates) == ["delta_itd"]
    assert "worse by 45.00 µs" in found.table()


# ------------------------------------------------------------------ files


def test_files_say_the_same(tmp_path):
    found = compare({"sum": several(0), "a|b": several(1), "alone": several(1, se=False)})
    paths = write_comparison(found, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    table = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    assert [row["cell"] for row in table] == ["sum", "a|b", "alone"]
    assert table[1]["seeds"] == "1 2 3"
    assert float(table[1]["si_snr_i_difference"]) == pytest.approx(1.0)
    assert table[1]["si_snr_i_verdict"] == "better by 1.00 dB"
    assert table[2]["se_si_snr_i_mean"] == "" and table[0]["si_snr_i_difference"] == ""
    per_seed = [float(x) for x in table[0]["si_snr_i_per_seed"].split()]
    assert np.mean(per_seed) == pytest.approx(float(table[0]["si_snr_i_mean"]), abs=1e-6)

    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 10 and {line.replace("\\|", "").count("|") for line in lines} == {
        9
    }
    assert "within the noise: it holds 0" in text.lower() and "on average" in text


def picture(comparison):
    return matplotlib.image.imread(io.BytesIO(comparison.png()), format="png")


def test_the_picture_grows_with_the_cells_and_is_the_same_each_time():
    small = compare({"sum": several(0)})
    large = picture(compare({f"cell {i}": several(i / 9) for i in range(7)}))
    assert picture(small).shape[0] < large.shape[0]
    assert large.shape[1] > 1000 and large.std() > 0
    assert small.png() == small.png()
