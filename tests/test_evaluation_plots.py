"""The learning curves: what is drawn, and that nothing global is touched."""

import io
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from unified_se_ss.evaluation.plots import curves_png

KEYS = (
    "lr train_loss train_si_snr train_se_loss conflict_rate valid_loss valid_si_snr "
    "valid_si_snr_i valid_se_si_snr_i"
).split()

pytestmark = pytest.mark.pictures


def log_rows(epochs, keys=KEYS):
    rng = np.random.default_rng(0)
    return [
        {"epoch": e, **{key: float(rng.uniform(0, 1)) for key in keys}}
        for e in range(1, epochs + 1)
    ]


def image(png):
    return matplotlib.image.imread(io.BytesIO(png), format="png")


@pytest.mark.parametrize("key", ["lr", "valid_loss", "conflict_rate"])
def test_any_key_may_stand_alone_and_be_missing(key):
    alone = curves_png(log_rows(3, [key]))
    assert alone == curves_png(log_rows(3, [key]))  # the same bytes each time
    without = curves_png(log_rows(3, [k for k in KEYS if k != key]))
    assert alone != without != curves_png(log_rows(3))


def test_what_another_recipe_logs_is_drawn_too():
    few, many = (["train_snr"] + [f"valid_{c}" for c in "abcdefgh"[:n]] for n in (1, 8))
    one, two, nine = (curves_png(log_rows(3, k)) for k in (["train_snr"], few, many))
    assert image(one).std() > 0 and one != two
    assert len(image(nine)) > len(image(two))
    assert curves_png(log_rows(3, ["skipped_steps"])) == curves_png([])


def test_holes_and_infinite_values_are_left_out():
    rows = log_rows(40)
    rows[2]["train_loss"] = float("inf")
    rows[3]["valid_loss"] = None
    del rows[4]["epoch"]
    assert image(curves_png(rows)).std() > 0
    nothing = [{"epoch": 1, "train_loss": float("nan")}]
    assert curves_png(nothing) == curves_png([])


def test_no_global_state_is_touched():
    code = (
        "import sys\n"
        "import unified_se_ss.evaluation.comparison, unified_se_ss.evaluation.report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from unified_se_ss.evaluation.comparison import compare\n"
        "from unified_se_ss.evaluation.plots import curves_png\n"
        "curves_png([{'epoch': 1, 'lr': 0.1}])\n"
        "compare({'sum': {1: [{'ID': 'a', 'si_snr_i': 1.0}]}}).png()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
