"""The benchmarks of training: they run, and what is compared computes the same."""

import dataclasses
from functools import partial

import pytest
import torch

from benchmarks import dual_path, loss, training_step, two_gradients
from benchmarks import two_gradient_fronts as fronts
from benchmarks.frame import Options
from benchmarks.networks import RECIPES, recipe
from benchmarks.steps import Batch, ProjectStep, SingleBackwardStep, published

CPU = torch.device("cpu")
QUICK = Options(quick=True, repeats=1)
ALONE = ["one backward", "bare passes", "project (here)", "published loop"]


def tiny_tasks(name):
    """A small front of a kind with a back of its size, the same at each call."""
    torch.manual_seed(1)
    front, network, data = fronts.FRONTS[name](fronts.TINY)
    return fronts.TwoTasks(front, fronts.BACKS["as front"](network), data(0.1))


def gradients_of(kind, tasks):
    """What a kind of step leaves: gradients of the front and of the back."""
    tasks.clear()
    fronts.KINDS[kind](tasks)()
    modules = (tasks.front, tasks.back)
    return [[p.grad.clone() for p in module.parameters()] for module in modules]


@pytest.mark.parametrize(
    "name, millions", [("DPRNN", 5.07), ("BLSTM", 47.30), ("Transformer", 25.22)]
)
def test_the_fronts_have_the_stated_size(name, millions):
    front, _, _ = fronts.FRONTS[name]()
    size = sum(parameter.numel() for parameter in front.parameters())
    assert round(size / 1e6, 2) == millions


@pytest.mark.parametrize("name", fronts.FRONTS)
def test_the_kinds_agree_where_they_must(name):
    """Here as the published loop; the sum less the main task's alone is the auxiliary's."""
    tasks = tiny_tasks(name)
    found = {kind: gradients_of(kind, tasks) for kind in ALONE}
    for here, theirs in zip(found["project (here)"], found["published loop"]):
        torch.testing.assert_close(here, theirs, rtol=1e-4, atol=1e-7)
    (both, back), (main, _) = found["one backward"], found["bare passes"]
    for _, back_of_kind in found.values():
        torch.testing.assert_close(back_of_kind, back, rtol=1e-4, atol=1e-6)
    _, auxiliary, _ = tasks.losses()
    alone = torch.autograd.grad(auxiliary.mean(), list(tasks.front.parameters()))
    for of_both, of_main, of_auxiliary in zip(both, main, alone):
        torch.testing.assert_close(of_both - of_main, of_auxiliary, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_both_ways_through_torchjd_are_one():
    pytest.importorskip("torchjd")
    tasks = tiny_tasks("Transformer")
    documented, lean = (gradients_of(kind, tasks) for kind in ("torchjd", "torchjd, lean"))
    torch.testing.assert_close(documented, lean, rtol=1e-4, atol=1e-7)


def fails():
    raise RuntimeError("no vmap here")


def test_fronts_give_a_row_for_each_kind_of_step_that_runs(capsys, monkeypatch):
    monkeypatch.setitem(fronts.KINDS, "torchjd", lambda tasks: fails)
    rows = fronts.measure("BLSTM", "gain", QUICK)
    steps = [row["step"] for row in rows]
    assert steps[: len(ALONE)] == ALONE and "torchjd" not in steps
    assert all(row["peak bytes"] > 0 and row["seconds"] > 0 for row in rows)
    assert rows[0]["ratio"] == rows[0]["memory ratio"] == 1 and rows[0]["gradients"] == 0
    if "torchjd, lean" in steps:
        assert "torchjd does not run: no vmap here" in capsys.readouterr().err


# ------------------------------------------------------------------ steps


@pytest.mark.parametrize("kind", RECIPES)
def test_all_steps_compute_the_same(kind):
    """The published one, this project's, and one backward pass, in fp32."""
    batch = Batch.of(2, 800, CPU)
    theirs, ours, alone = (
        make(recipe(kind, small=True)["network"], batch)
        for make in (partial(published, kind), ProjectStep, SingleBackwardStep)
    )
    assert [x.item() for x in alone.losses()] == [x.item() for x in ours.losses()]
    alone()
    assert alone.losses()[0] < ours.losses()[0]
    for _ in range(3):
        losses = [torch.stack(step.losses()).detach() for step in (theirs, ours)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
        theirs()
        ours()


def test_training_steps_quickly(monkeypatch):
    monkeypatch.setattr(training_step, "RECIPES", ["DPRNN"])
    tables = training_step.run(dataclasses.replace(QUICK, profile=True))
    times, counts, *profiles = tables
    ways = ["published", "here", "here, bf16"]
    assert [row["step"] for row in times.rows] == ways
    theirs, ours = times.rows[:2]
    for name in ("SS loss", "SE loss"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-4)
    theirs, ours = counts.rows[:2]
    assert theirs["waits for the host"] > 10 and ours["waits for the host"] == 0
    assert 0 < ours["modulation share"] < 1
    assert ours["operations"] < theirs["operations"]
    assert len(profiles) == len(ways)
    for top in profiles:
        assert 0.3 < sum(row["share"] for row in top.rows) <= 1


def test_what_a_forward_pass_keeps():
    weight = torch.randn(30, 10, requires_grad=True)
    x, y = torch.randn(20, 30), torch.randn(20, 10)

    def forward():
        return ((x @ weight).exp() * y).sum()

    # The exponential keeps its result; x, y and the weight are there anyway.
    assert training_step.kept_by(forward, [weight, x, y]) == 20 * 10 * 4
    assert training_step.kept_by(forward, [weight, y]) == (20 * 10 + 20 * 30) * 4


def test_batches_that_do_not_fit_are_left_out_and_said(monkeypatch):
    bench = training_step.Bench("DPRNN", QUICK)
    monkeypatch.setattr(bench, "bytes_of_one", lambda: dict.fromkeys(bench.ways(), 2**30))
    monkeypatch.setattr(training_step, "free_bytes", lambda device: 2.0**29)
    table = bench.times()
    assert table.rows == [] and "batch 1, published (about 1 GiB)" in table.note


def test_price_of_two_gradients_quickly(monkeypatch):
    monkeypatch.setattr(two_gradients, "RECIPES", ["DPRNN"])
    (table,) = two_gradients.run(QUICK)
    assert len(table.rows) == 2
    assert all(row["ratio"] > 0 and row["above"] > -1 for row in table.rows)


def test_dual_path_modules_quickly():
    (table,) = dual_path.run(QUICK)
    found = {row["network"]: row for row in table.rows if row["modules"] == "here"}
    assert set(found) == set(RECIPES)
    assert all(row["difference of the masks"] < 1e-5 for row in found.values())


# ------------------------------------------------------------------ loss


@pytest.mark.parametrize("sources", [2, 3])
def test_the_losses_are_one_loss(sources):
    pairs = loss.signals(3, sources, 500, 10, CPU)
    here = loss.of_project(*pairs)
    for way in (loss.of_speechbrain, loss.of_gram):
        torch.testing.assert_close(way(*pairs), here, rtol=1e-6, atol=1e-6)
    assert (here - 10).abs().max() < 1


def test_loss_quickly():
    two, exact, *_ = loss.run(QUICK)
    waits = {row["loss"]: row["waits for the host"] for row in two.rows}
    assert waits["here"] == 0 < waits["SpeechBrain"]
    worst = exact.rows[-1]
    assert worst["here, error in dB"] < 1e-3 < worst["Gram, error in dB"]
