"""The frame of the benchmarks: command line, turns, memory, tables, pages of results."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.frame import Table, Timing, alternate, compared, machine, peak_bytes, shown
from benchmarks.results import record
from unified_se_ss.errors import UserError

CPU = torch.device("cpu")


def test_functions_are_called_in_turn_and_the_warm_up_is_apart():
    called = []
    functions = {name: (lambda n=name: called.append(n)) for name in "abc"}
    timings = alternate(functions, 2, CPU, between=lambda: called.append("-"))
    assert "".join(called) == "-a-b-c" + "-c-b-a" + "-a-b-c" + "-"
    assert all(len(t.wall) == len(t.processor) == 2 for t in timings.values())


def test_speed_is_the_median_of_the_rounds_ratios():
    slow = Timing((2.0, 40.0, 3.0), (1.0, 1.0, 1.0))
    fast = Timing((1.0, 10.0, 1.0), (2.0, 2.0, 2.0))
    rows = compared({"theirs": slow, "here": fast}, "theirs")
    assert [row["speed"] for row in rows] == [1.0, 3.0]
    assert [row["processor speed"] for row in rows] == [1.0, 0.5]
    assert rows[1]["seconds"] == rows[1]["low"] == 1 and rows[1]["high"] == 10


def test_peak_of_known_cases():
    x = torch.randn(100, 100)
    one = x.numel() * x.element_size()
    assert peak_bytes(lambda: x @ x, CPU) == one
    # Both products and their sum at once; scalars take a few bytes.
    assert 0 <= peak_bytes(lambda: (x * 2) + (x * 3), CPU) - 3 * one < 100
    # Each is gone before the next comes.
    assert peak_bytes(lambda: [(x @ x).shape for _ in range(3)], CPU) == one


def test_a_table_as_text():
    rows = [{"way": "a|b", "seconds": 0.25, "hidden": 1}, {"way": "c", "seconds": None}]
    text = Table("two", ["way", "seconds"], rows, "A note.").as_markdown()
    assert text.split("\n") == [
        "**two**",
        "",
        "| way  | seconds |",
        "| ---- | ------: |",
        "| a\\|b |   0.250 |",
        "| c    |       - |",
        "",
        "A note.",
    ]


@pytest.mark.parametrize("value", [0.5, 12.34, 123.4, 1234.5, 1e-4, 2.5e7, -3.25])
def test_a_shown_number_is_the_number(value):
    assert float(shown(value)) == pytest.approx(value, rel=0.05 if value < 1e-3 else 5e-3)


# ------------------------------------------------------------------ command line


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command; of three benchmarks one lacks a package and one breaks."""

    def works(options):
        yield Table(f"quick: {options.quick}", ["x"], [{"x": options.repeats}])

    def lacks(options):
        raise UserError("nothing to compare with")

    def breaks(options):
        raise RuntimeError("broken")

    modules = {run.__name__: SimpleNamespace(run=run) for run in (works, lacks, breaks)}
    known = dict.fromkeys(modules, "Words.")
    monkeypatch.setattr(command, "known_benchmarks", lambda: known)
    load = lambda name: modules[name.split(".")[1]]  # noqa: E731
    monkeypatch.setattr(command.importlib, "import_module", load)
    options = ["--device", "cpu", "--output", str(tmp_path)]
    return lambda *words: command.main([*options, *words])


def test_tables_are_printed_and_written_once(run, tmp_path, capsys):
    assert run("works", "--quick") == 0
    assert "**quick: True**" in capsys.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["results"]["works"][0]["rows"] == [{"x": 1}]
    assert written["machine"]["device"] == "cpu"
    with pytest.raises(UserError, match="holds a results.json already"):
        run("works")


def test_one_that_fails_does_not_take_the_others_along(run, tmp_path, capsys):
    assert run() == 1
    told = capsys.readouterr().err
    assert "lacks: nothing to compare with" in told and "breaks failed" in told
    assert list(json.loads((tmp_path / "results.json").read_text())["results"]) == ["works"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["work"], "no benchmark 'work'; did you mean 'works'"),
        (["works", "--quick", "--record"], "mean nothing"),
        (["works", "--device", "cuda:0"], "no CUDA device"),
        (["works", "--device", "gpu"], "expected cpu, cuda, or cuda:NUMBER"),
        (["works", "--device", "cpu:"], "expected cpu, cuda, or cuda:NUMBER"),
    ],
)
def test_what_is_asked_for_in_vain_is_told(run, monkeypatch, words, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=message):
        run(*words)


def test_every_benchmark_has_a_line_of_its_own():
    known = command.known_benchmarks()
    assert "rule_accuracy" in known
    assert all(words.endswith(".") and len(words) < 100 for words in known.values())
    assert len(set(known.values())) == len(known)


# ------------------------------------------------------------------ page of results


def test_only_what_was_measured_anew_is_replaced(tmp_path):
    page = tmp_path / "RESULTS.md"

    def write(kind, date, **values):
        facts = {**machine(), "kind": kind, "date": date, "commit": "abc"}
        tables = {n: [Table("times", ["x"], [{"x": v}])] for n, v in values.items()}
        record(page, facts, tables)
        return page.read_text()

    write("chip A", "monday", one=1, two=2)
    before = write("chip B", "tuesday", one=3)
    text = write("chip A", "sunday", two=4)
    lines = [line for line in text.split("\n") if line[:2] in ("##", "| ")]
    cells = [line.strip("| ") for line in lines if "-" not in line and "x" not in line]
    chip_a = ["## chip A", "### one", "1", "### two", "4"]
    assert cells == [*chip_a, "## chip B", "### one", "3"]
    assert text.count("monday") == text.count("sunday") == text.count("tuesday") == 1
    assert write("chip A", "monday", two=2) == before  # the same again, the same page
