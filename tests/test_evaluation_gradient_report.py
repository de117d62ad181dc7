"""gradients.csv: written, resumed, read, summed up and drawn; events for TensorBoard."""

import csv

import numpy as np
import pytest
from test_evaluation_plots import image

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.gradient_report import (
    GradientLog,
    _conflicts_png,
    _summary,
    gradients_section,
    plot_conflicts,
)
from unified_se_ss.training.log import check_tensorboard, write_events

COSINES = "cosine_from_-1_to_1"
RATIOS = "log10_ratio_from_-4_to_4"

pytestmark = pytest.mark.pictures


def window(step, modules=(), steps=10, **columns):
    """A window's rows as the monitor gives them."""
    rng = np.random.default_rng(step)
    rows = []
    for scope in ("all", *modules):
        values = {
            key: float(rng.uniform()) for key in ("conflict_rate", "removed", "stretch")
        }
        row = {"step": step, "scope": scope, "steps": steps, "compared": 40, **values}
        row |= {"cosine": float(rng.uniform(-0.5, 0.5)), "mean_cosine": None, "added": 0.0}
        rows.append(row | {"largest_stretch": 3.0, "rescaled": 0.1, "log10_ratio": 0.2})
    rows[0] |= {"main_nonfinite": 0, COSINES: [1] * 20, RATIOS: [0] * 15 + [9] * 17}
    return [row | columns for row in rows]


def log_of(folder, epochs, modules=(), windows=3):
    log = GradientLog(folder)
    for epoch in range(1, epochs + 1):
        steps = [10 * (windows * (epoch - 1) + n + 1) for n in range(windows)]
        log.add(epoch, [row for step in steps for row in window(step, modules)])
    return log


# ------------------------------------------------------------------ the file


def test_what_is_written_is_read(tmp_path):
    rows = window(10, ["net.a", "net.b"])
    log = GradientLog(tmp_path)
    assert log.rows == []
    log.add(3, rows)
    for row, read in zip(rows, log.rows, strict=True):
        expected = {"epoch": 3, **{k: v for k, v in row.items() if v is not None}}
        assert read.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, float):
                assert read[key] == pytest.approx(value, rel=1e-4)
            else:
                assert read[key] == value and type(read[key]) is type(value)
    assert [path.name for path in tmp_path.iterdir()] == ["gradients.csv"]


def test_a_resumed_run_replaces_the_rows_from_there_on(tmp_path):
    log = log_of(tmp_path, 2, ["net.a"])
    before = log.path.read_text()
    log.add(3, window(99, ["net.a"]))
    assert log.path.read_text().startswith(before)  # to the letter
    log.add(4, window(103))
    log.add(3, window(102, main_zero=5))
    assert [row["step"] for row in log.rows[::2]] == [10, 20, 30, 40, 50, 60, 102]
    assert log.rows[-1]["main_zero"] == 5 and "main_zero" not in log.rows[0]


def test_an_epoch_without_windows_is_a_file(tmp_path):
    log = GradientLog(tmp_path)
    log.add(1, [])
    assert log.rows == [] and log.path.is_file()


@pytest.mark.parametrize(
    "text", ["step,scope\n1,all\n", "epoch,step,scope,cosine\n1,2,all,far\n"]
)
def test_a_file_that_is_none_is_named(tmp_path, text):
    path = tmp_path / "gradients.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="gradients.csv.*move it away"):
        GradientLog(tmp_path).add(1, [])


# ------------------------------------------------------------------ in numbers


def test_the_summary_is_computed_from_the_rows():
    """Weighted by what was compared, the cosine by the steps; modules do not count."""
    row = {"epoch": 1, "step": 10, "scope": "all", "steps": 10, "compared": 100}
    row |= {"conflict_rate": 0.5, "cosine": -0.25, "removed": 0.1, "stretch": 1.5}
    later = {**row, "compared": 300, "steps": 30, "conflict_rate": 0.1, "cosine": 0.75}
    module = {**row, "scope": "net.a", "conflict_rate": 1.0}
    missing = {"auxiliary_zero": 10, "main_zero": 0, "main_nonfinite": 1}
    assert _summary([row, module, {**later, **missing}], "module") == [
        "20 % of the modules' gradients conflict",
        "0.5 mean cosine",
        "10 % of the auxiliary gradient removed",
        "1.5 times the sum's length",
        "1 steps skipped, as the main gradient was not finite",
        "10 modules without an auxiliary gradient",
    ]


# ------------------------------------------------------------------ as a picture


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "modules, epochs, windows, granularity",
    [
        (0, 1, 1, "global"),
        (2, 30, 4, "module"),
        (40, 3, 4, "parameter"),
    ],
)
def test_pictures_of_few_and_many_rows(tmp_path, modules, epochs, windows, granularity):
    names = [f"network.enhancer.blocks.{n}.intra.layers.0" for n in range(modules)]
    log = log_of(tmp_path, epochs, names, windows)
    path = plot_conflicts(log.rows, tmp_path / "gradients.png", "project", granularity)
    picture = image(path.read_bytes())
    assert picture.shape[1] > 1000 and picture.std() > 0
    assert (picture.shape[0] > 1200) == (modules == 40)


def test_red_is_where_the_tasks_fight(tmp_path):
    """The map's rows are the modules: one all against, one all with. Same rows, same bytes."""
    rows, pictures = log_of(tmp_path, 1, ["net.a", "net.b"]).rows, []
    for cosine in (-0.4, 0.4, 0.4):
        given = [
            row if row["scope"] == "all" else {**row, "cosine": cosine} for row in rows
        ]
        pictures.append(_conflicts_png(given))
    assert pictures[1] == pictures[2]
    counts = []
    for picture in pictures[:2]:
        red, _, blue, _ = np.moveaxis(image(picture), -1, 0)
        counts.append(((red > blue + 0.2).sum(), (blue > red + 0.2).sum()))
    against, with_ = counts
    assert against[0] > 2 * with_[0] and with_[1] > 2 * against[1]


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")
def test_holes_are_left_out():
    rows = [
        {"epoch": 1, "step": 5, "scope": "all", "steps": 5, "compared": 0},
        {"epoch": 1, "step": 5, "scope": "net.a", "steps": 5, "compared": 0},
        {"epoch": 1, "step": 9, "scope": "all", "steps": 4, "compared": 3},
        {"epoch": 1, "step": 9, "scope": "net.a", "steps": 4, "compared": 3},
    ]
    for key in ("conflict_rate", "cosine", "stretch"):
        for row in rows[2:]:
            row[key] = 0.5
    assert image(_conflicts_png(rows)).std() > 0


def test_nothing_is_drawn_where_nothing_was_compared(tmp_path):
    for rows in ([], [row | {"compared": 0} for row in window(10)]):
        assert plot_conflicts(rows, tmp_path / "gradients.png") is None
        assert not (tmp_path / "gradients.png").exists()


# ------------------------------------------------------------------ in the report


def test_the_reports_section(tmp_path):
    rows = log_of(tmp_path, 2, ["net.a"]).rows
    note, picture = gradients_section(rows, "sum").parts
    assert picture.png[1:4] == b"PNG"
    assert picture.alt == "; ".join(_summary(rows))
    assert gradients_section([]) is None
    nothing = gradients_section([{**row, "compared": 0} for row in rows]).parts
    assert nothing != [note, picture] and "no two gradients" in nothing[0]


# ------------------------------------------------------------------ TensorBoard


def test_events_are_read_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    check_tensorboard()
    for epoch, steps in ((1, (10, 20)), (2, (30, 40)), (2, (30, 40))):  # 2 is resumed
        rows = [row for step in steps for row in window(step, ["net.a"])]
        write_events(tmp_path, {"epoch": epoch, "train_loss": -3.0 * epoch}, rows)
    found = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    rates = found.Scalars("gradients/conflict_rate")
    assert [event.step for event in rates] == [10, 20, 30, 40]
    assert rates[0].value == pytest.approx(window(10)[0]["conflict_rate"], rel=1e-6)
    assert [(e.step, e.value) for e in found.Scalars("epoch/train_loss")] == [
        (20, -3.0),
        (40, -6.0),
    ]
    histogram = found.Histograms("gradients/log10_ratio_of_each_group")[0].histogram_value
    assert histogram.num == 9 * 17 and list(histogram.bucket)[-17:] == [9.0] * 17
    assert not any("net.a" in tag for tag in found.Tags()["scalars"])


def test_a_missing_package_is_one_clear_message(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"tensorboard: .*unified_se_ss\[tensorboard\]"):
        check_tensorboard()


def test_the_columns_are_those_of_the_monitor(tmp_path):
    """What is drawn is what is measured: no column is read that nobody writes."""
    import torch

    from unified_se_ss.gradients import CombinedGradients, ConflictMonitor

    monitor = ConflictMonitor(["net.a.w", "net.b.w"])
    one, yes = torch.ones(2).double(), torch.tensor(True)
    product = torch.tensor([-0.5, 0.25]).double()
    monitor.update(CombinedGradients(one, one, product, one, one, one[0], yes, yes))
    log = GradientLog(tmp_path)
    log.add(1, monitor.windows())
    with open(log.path, newline="") as file:
        columns = set(next(csv.reader(file)))
    assert columns >= set(window(1)[0]) | {"epoch", "lost", "auxiliary_nonfinite"}
    assert [len(log.rows[0][key]) for key in (COSINES, RATIOS)] == [20, 32]
