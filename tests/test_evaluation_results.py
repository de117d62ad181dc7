"""Rows, summary and their files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.results import (
    bootstrap_interval,
    read_results,
    result_columns,
    summarise,
    summarise_values,
    write_results,
)


def example_rows(count=20):
    rng = np.random.default_rng(0)
    return [
        {
            "sdr_1": rng.normal(),
            "si_snr_i": rng.normal(10, 3),
            "si_snr_1": None if i == 4 else rng.normal(),
            "permutation": (1, 0),
            "ID": f"utterance, {i}",
            "si_snr": rng.normal(9, 3),
            "duration": 3.5,
        }
        for i in range(count)
    ]


def test_csv_round_trip(tmp_path):
    rows = example_rows()
    write_results(rows, tmp_path)
    back = read_results(tmp_path / "results.csv")
    for row, other in zip(rows, back, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            close = isinstance(value, float)
            assert other[key] == (pytest.approx(value, abs=1e-6) if close else value)


def test_columns_have_a_fixed_order(tmp_path):
    write_results(example_rows(), tmp_path)
    head = (tmp_path / "results.csv").read_text().splitlines()[0]
    assert head == "ID,si_snr,si_snr_i,si_snr_1,sdr_1,permutation,duration"
    assert result_columns([{"sdr_2": 1, "si_snr_2": 1, "sdr_1": 1}]) == [
        "sdr_1",
        "si_snr_2",
        "sdr_2",
    ]


def test_summary_files_say_the_same(tmp_path):
    rows = example_rows()
    summary = write_results(rows, tmp_path)
    numbers = json.loads((tmp_path / "summary.json").read_text())
    values = [row["si_snr"] for row in rows]
    assert numbers["utterances"] == 20
    metric = numbers["metrics"]["si_snr"]
    assert metric["mean"] == pytest.approx(np.mean(values))
    assert metric["median"] == pytest.approx(np.median(values))
    assert metric["standard_deviation"] == pytest.approx(np.std(values, ddof=1))
    assert numbers["metrics"]["si_snr_1"]["count"] == 19
    assert numbers["metrics"]["si_snr_1"]["empty"] == 1
    assert "permutation" not in numbers["metrics"]
    mean = f"{np.mean(values):.2f} dB"
    assert mean in (tmp_path / "summary.md").read_text() and mean in summary.table()
    assert summary == summarise(rows)


def test_table_is_aligned():
    lines = summarise(example_rows()).table().splitlines()
    assert len({len(line) for line in lines}) == 1
    # Conditions, such as the duration, are no metric.
    assert [line.split("  ")[0] for line in lines[2:]] == ["SI-SNR", "SI-SNRi"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-60, 60), min_size=2, max_size=40))
def test_mean_lies_in_its_interval(values):
    found = summarise_values(values)
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    assert min(values) - 1e-9 <= found.low and found.high <= max(values) + 1e-9
    assert found == summarise_values(values)
    assert (found.low, found.high) == bootstrap_interval(np.array(values))


def test_few_or_no_values():
    one = summarise_values([2.0, None, float("nan"), float("inf")])
    assert (one.mean, one.low, one.count, one.empty) == (2.0, None, 1, 3)
    none = summarise_values([None])
    assert (none.mean, none.count, none.empty) == (None, 0, 1)
    assert "–" in summarise([{"ID": "a", "sdr": None}]).table()


def test_bad_rows_are_named(tmp_path):
    for rows, words in (
        ([], "nothing was evaluated"),
        ([{"ID": "a"}, {"ID": "a"}], "'a' is there twice"),
        ([{"sdr": 1.0}], "no ID"),
    ):
        with pytest.raises(UserError, match=words):
            write_results(rows, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["", "ID,sdr\n", "name,sdr\na,1\n", "ID,sdr\na,1,2\n", f"ID,sdr\n{'a' * 200_000},1\n"],
)
def test_bad_results_file_is_named(tmp_path, text):
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="results.csv"):
        read_results(path)
    with pytest.raises(UserError, match="other.csv"):
        read_results(tmp_path / "other.csv")
