"""The benchmarks of the second gradient: they run, and measure what they say."""

import json

import pytest
import torch

from benchmarks import two_gradient_fronts as fronts
from benchmarks import two_gradients

CPU = torch.device("cpu")
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


def test_peak_of_known_cases():
    x = torch.randn(100, 100)
    one = x.numel() * x.element_size()
    assert fronts.peak_bytes(lambda: x @ x, CPU) == one
    # Both products and their sum at once; scalars take a few bytes.
    assert 0 <= fronts.peak_bytes(lambda: (x * 2) + (x * 3), CPU) - 3 * one < 100
    # Each is gone before the next comes.
    assert fronts.peak_bytes(lambda: [(x @ x).shape for _ in range(3)], CPU) == one


def test_peak_leaves_out_what_was_there_before():
    there = [torch.randn(100, 100)]

    def run():
        there.clear()
        return torch.empty(10)

    assert fronts.peak_bytes(run, CPU) == 40


def test_peak_of_one_backward_is_at_least_the_gradients():
    tasks = tiny_tasks("BLSTM")
    size = sum(p.numel() * p.element_size() for p in tasks.network.parameters())
    assert fronts.peak_of_kind("one backward", tasks) >= size


@pytest.mark.parametrize("name", fronts.FRONTS)
def test_project_here_is_the_published_loop(name):
    tasks = tiny_tasks(name)
    here = gradients_of("project (here)", tasks)
    published = gradients_of("published loop", tasks)
    for module_here, module_published in zip(here, published):
        torch.testing.assert_close(module_here, module_published, rtol=1e-4, atol=1e-7)


def test_the_kinds_agree_where_they_must():
    tasks = tiny_tasks("Transformer")
    found = {kind: gradients_of(kind, tasks) for kind in ALONE}
    both, back = found["one backward"]
    for _, back_of_kind in found.values():
        torch.testing.assert_close(back_of_kind, back)
    # The sum of both, less the main task's alone, is the auxiliary task's.
    main, _ = found["bare passes"]
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


def test_fronts_print_one_table(capsys, tmp_path):
    written = tmp_path / "out.json"
    fronts.main(
        "--tiny --fronts BLSTM --backs gain --seconds 0.1 --repeats 1 "
        f"--device cpu --clock cpu --json {written}".split()
    )
    printed = capsys.readouterr().out
    rows = json.loads(written.read_text())["rows"]
    assert [row["kind"] for row in rows][: len(ALONE)] == ALONE
    for row in rows:
        assert fronts.as_line(row) in printed
        assert row["peak_bytes"] > 0 and row["seconds"] > 0
        if row["kind"] == "one backward":
            assert row["time_ratio"] == row["memory_ratio"] == 1
            assert row["gradients_more"] == 0


def test_without_torchjd_its_steps_are_left_out(capsys, monkeypatch):
    monkeypatch.setattr(fronts.importlib.util, "find_spec", lambda name: None)
    steps = fronts._running_steps(tiny_tasks("Transformer"))
    assert list(steps) == ALONE


def test_a_way_through_torchjd_that_fails_is_said_and_left_out(capsys, monkeypatch):
    def fails(tasks):
        def step():
            raise RuntimeError("no vmap here")

        return step

    pytest.importorskip("torchjd")
    monkeypatch.setitem(fronts.KINDS, "torchjd", fails)
    steps = fronts._running_steps(tiny_tasks("Transformer"))
    assert list(steps) == [*ALONE, "torchjd, lean"]
    assert "torchjd does not run: no vmap here" in capsys.readouterr().err


def test_recipes_print_one_table(capsys, tmp_path):
    written = tmp_path / "out.json"
    arguments = [
        "hparams/demo.yaml",
        "--seconds",
        "0.3",
        "--repeats",
        "1",
        "--device",
        "cpu",
    ]
    two_gradients.main([*arguments, "--json", str(written)])
    (row,) = json.loads(written.read_text())["rows"]
    assert row["recipe"] in capsys.readouterr().out
    assert row["two_gradients_s"] > 0
