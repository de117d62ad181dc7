"""Benchmarks of growth and of several processes: they run, and fit and count what they say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import ddp, growth
from benchmarks.frame import Options

CPU = torch.device("cpu")
QUICK = Options(CPU, quick=True, repeats=1)


@given(
    factor=st.floats(1e-6, 1e6),
    exponent=st.floats(-3, 3),
    sizes=st.lists(st.integers(1, 10**6), min_size=2, max_size=8, unique=True),
)
def test_a_power_law_is_found_again(factor, exponent, sizes):
    law = growth.power_law(sizes, [factor * size**exponent for size in sizes])
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law(sizes[0]) == pytest.approx(factor * sizes[0] ** exponent, rel=1e-6)


def test_an_exponent_that_is_too_large_is_said():
    sizes = [1, 2, 4, 8]
    made = [
        growth.Series("x", "s", 1.0, sizes, [s**power for s in sizes], [None] * 4)
        for power in (1.1, 1.5)
    ]
    assert [series.fits()["holds"] for series in made] == [True, False]
    assert "memory" not in made[0].fits()


def test_what_would_take_too_long_is_left_out_and_said(monkeypatch):
    series = growth.Series("x", "s", 1.0, [1, 2], [2.0, 4.0], [0, 0])
    monkeypatch.setitem(growth.SECONDS, "cpu", 6.0)
    assert growth._too_much(series, 2.5, CPU) == ""
    assert "about 8 s a step" in growth._too_much(series, 4, CPU)
    monkeypatch.setitem(growth.SECONDS, "cpu", 0.0)
    made = growth.measured(QUICK, "x", "items", [1, 2, 3], lambda n: lambda: None)
    assert made.sizes == [1, 2] and "x from 3 items on" in made.left_out
    assert made.left_out in growth.table("t", [made]).note


def test_two_gradients_of_about_so_many_parameters():
    for size in (1e4, 1e6):
        accumulate, combine = growth.two_gradients(CPU, size)
        accumulate()
        combined = combine()
        assert bool(combined.main_finite)
        count = sum(p.numel() for p in combine.__self__.shared.parameters.values())
        assert 0.9 < 2 * count / size < 1.2


@pytest.mark.slow
@pytest.mark.pictures
def test_growth_prints_fits_and_draws(tmp_path):
    tables = growth.run(Options(CPU, quick=True, repeats=1, output=tmp_path))
    fits, points = tables[0], tables[1]
    assert {row["what"] for row in points.rows} < {row["what"] for row in fits.rows}
    rows = [row for table in tables for row in table.rows]
    assert all(row.get("seconds", 1) > 0 for row in rows)
    assert 0 < tables[2].rows[-1]["share"] < 1
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_ranks_exchange_one_buffer_and_stay_equal():
    (table,) = ddp.run(QUICK)
    one, two = table.rows
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert one["collectives a step"] == one["MB a step"] == 0
    assert two["collectives a step"] == 1
    assert two["MB a step"] == two["expected MB"] > 0
    assert two["ranks equal"] and 0 < two["share of time"] < 1


@pytest.mark.parametrize("count, ranks", [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8])])
def test_gpus_are_tried_by_halves(monkeypatch, count, ranks):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert ddp.ranks_to_try(torch.device("cuda")) == ranks
    assert ddp.ranks_to_try(CPU) == [1, 2]
