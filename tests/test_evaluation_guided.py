"""Guided enhancement: its metrics against mir_eval's, its table, plot and levels."""

import mir_eval
import numpy as np
import pytest

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.audio_examples import PEAK, level_guided
from unified_se_ss.evaluation.breakdown import (
    _by_condition,
    _guided_png,
    guided_markdown,
    guided_section,
)
from unified_se_ss.evaluation.metrics import LEAD, WHY_EMPTY, sir_sar
from unified_se_ss.evaluation.rows import score_guided

RATE = 16000


def signals(seed=0, samples=8000):
    """Target, interferer and noise, and what three systems make of them."""
    rng = np.random.default_rng(seed)
    target, interferer, noise = rng.standard_normal((3, samples))
    room = rng.standard_normal(20) * np.exp(-np.arange(20) / 4)
    heard = np.convolve(interferer, room)[:samples]
    return {
        "target": target,
        "interference": np.stack([heard, noise]),
        "raw": target + heard + noise + 0.01 * np.abs(target),
        "beamformed": target + 0.3 * np.roll(heard, -3) + 0.5 * noise,
        "enhanced": 0.9 * target + 0.1 * heard + 0.05 * np.abs(target),
    }


@pytest.mark.filterwarnings("ignore:mir_eval.separation:FutureWarning")
@pytest.mark.parametrize("lead", [0, LEAD])
def test_sir_and_sar_are_those_of_mir_eval(lead):
    given = signals(samples=3000)
    references = np.stack([given["target"], *given["interference"]])
    estimates = np.stack([given[name] for name in ("raw", "beamformed", "enhanced")])
    sir, sar = sir_sar(estimates, references, lead=lead)
    ours = np.pad(references, ((0, 0), (0, lead)))
    for k, estimate in enumerate(np.pad(estimates, ((0, 0), (lead, 0)))):
        _, sirs, sars, _ = mir_eval.separation.bss_eval_sources(
            ours, np.stack([estimate] * 3), compute_permutation=False
        )
        assert sir[k] == pytest.approx(sirs[0], abs=1e-5)
        assert sar[k] == pytest.approx(sars[0], abs=1e-5)


def test_an_interferer_that_is_not_there_changes_nothing():
    given = signals()
    references = np.stack([given["target"], given["interference"][1]])
    with_silence = np.insert(references, 1, 0.0, axis=0)
    estimates = given["raw"][None]
    assert sir_sar(estimates, with_silence) == sir_sar(estimates, references)


def test_a_row_holds_what_went_in_and_what_came_out():
    row = score_guided("a", signals(), (), RATE)
    assert row["ID"] == "a" and row["duration"] == 8000 / RATE
    assert row["raw_si_snr"] < row["beamformed_si_snr"] < row["si_snr"]
    assert row["raw_sir"] < row["beamformed_sir"] < row["sir"]
    assert row["sar"] < row["raw_sar"]  # it distorts most
    assert row["si_snr_i"] == pytest.approx(row["si_snr"] - row["raw_si_snr"])
    assert WHY_EMPTY not in row


def test_without_components_there_is_no_sir():
    given = signals()
    del given["interference"]
    assert not {"sir", "sar", "raw_sir"} & set(score_guided("a", given, (), RATE))


def test_a_silent_target_has_empty_cells():
    given = {**signals(), "target": np.zeros(8000)}
    row = score_guided("a", given, ("stoi",), RATE)
    assert row["si_snr"] is None and row["snr"] is None and row["stoi"] is None
    assert "silent" in row[WHY_EMPTY]


def test_an_output_that_is_not_finite_is_said():
    given = {**signals(), "enhanced": np.full(8000, np.nan)}
    with pytest.raises(UserError, match="b: enhanced: .* diverged"):
        score_guided("b", given, (), RATE)


def rows():
    """Rows of two guides over angles and SIRs."""
    made = []
    for k in range(12):
        for guide, gain in (("mvdr", 3.0), ("delay_and_sum", 1.0)):
            raw = -5.0 + k
            row = {"ID": f"{k}_{guide}", "guide": guide, "angle": 10.0 * k}
            row.update(input_sir=k - 6.0, raw_si_snr=raw, beamformed_si_snr=raw + gain)
            made.append({**row, "si_snr": raw + 2 * gain, "si_snr_i": 2 * gain})
    return made


def test_the_table_has_a_line_for_each_guide():
    lines = guided_markdown(rows()).splitlines()
    assert lines[2] == "| mvdr | SI-SDR (dB) | 0.50 | 3.50 | 6.50 |"
    assert lines[3] == "| delay_and_sum | SI-SDR (dB) | 0.50 | 1.50 | 2.50 |"
    assert len(lines) == 4


def test_classes_are_of_about_equally_many_items():
    mvdr = [row for row in rows() if row["guide"] == "mvdr"]
    classes = _by_condition(mvdr, "angle")
    ends = [(0.0, 20.0), (30.0, 50.0), (60.0, 80.0), (90.0, 110.0)]
    assert [(part.low, part.high) for part in classes] == ends
    means = {key: metric.mean for key, metric in classes[0].metrics.items()}
    assert means == {"raw_si_snr": -4.0, "beamformed_si_snr": -1.0, "si_snr": 2.0}
    assert _by_condition(mvdr[:4], "angle") == []
    assert _by_condition([{**row, "angle": 1.0} for row in mvdr], "angle") == []


def test_the_report_shows_table_and_plot():
    table, _, picture = guided_section(rows()).parts
    assert table.rows[0] == ["mvdr", "SI-SDR (dB)", "0.50", "3.50", "6.50"]
    assert picture.png == _guided_png(rows()) and picture.png[1:4] == b"PNG"
    assert _guided_png(rows()[:2]) is None


def test_levels_are_kept_unless_they_would_clip():
    signal = np.full(4, 0.5)
    levelled = level_guided(signal, 2 * signal[None], signal, signal[None])
    assert levelled["beamformed"].max() == pytest.approx(PEAK)
    assert levelled["raw"].max() == pytest.approx(PEAK / 2)
