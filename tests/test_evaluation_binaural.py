"""Binaural utterances judged: one order for all metrics, levels kept, results by angle."""

import json

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation_report import Page, sounds

from unified_se_ss import losses
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.audio_examples import level_ears
from unified_se_ss.evaluation.breakdown import (
    _by_angle,
    _perceived_azimuth,
    _sources_of,
    _top_view_png,
    interaural_section,
    write_angles,
)
from unified_se_ss.evaluation.interaural import interaural_errors
from unified_se_ss.evaluation.metrics import FLOOR, snr
from unified_se_ss.evaluation.report import publish
from unified_se_ss.evaluation.results import read_results, summarise
from unified_se_ss.evaluation.rows import score_binaural
from unified_se_ss.spatial import spherical_head

RATE = 8000


def scene(azimuths, seed=0, samples=8000):
    """Noises from azimuths, [J, E, T], as an average sphere hears them."""
    rng = np.random.default_rng([11, seed])
    head = spherical_head(RATE, np.array(azimuths, dtype=float))
    noises = 0.1 * rng.standard_normal((len(head), samples))
    return np.stack([head.render(noise, place) for place, noise in enumerate(noises)])


def evaluate(mixture, estimates, targets, directions=None, protocol="default"):
    """The row of an utterance, without its ID."""
    signals = {"mixture": mixture, "estimates": estimates, "targets": targets}
    signals["directions"] = directions
    row = score_binaural("a", signals, (), RATE, protocol)
    del row["ID"]
    return row


def test_snr_is_that_of_the_loss():
    rng = np.random.default_rng(0)
    target = rng.standard_normal((5, 2000))
    estimate = target + rng.standard_normal((5, 1)) * rng.standard_normal((5, 2000)) + 0.3
    expected = losses.snr(*map(torch.from_numpy, (estimate, target)))
    found = [snr(e, t, True, FLOOR) for e, t in zip(estimate, target)]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert snr(target[0], target[0], True, FLOOR) == pytest.approx(80, abs=1e-3)
    assert snr(1e9 * target[1], target[0], True, FLOOR) == pytest.approx(-80, abs=0.1)


@settings(deadline=None, max_examples=6)
@given(st.permutations(range(3)), st.integers(0, 100))
def test_one_order_for_every_metric(order, seed):
    """Estimates in any order give the row of estimates in the right one."""
    targets = scene([-60, 10, 80], seed, 2000)
    rng = np.random.default_rng(seed)
    estimates = targets + 0.02 * rng.standard_normal(targets.shape)
    mixture = targets.sum(0)
    row = evaluate(mixture, estimates, targets)
    other = evaluate(mixture, estimates[list(order)], targets)
    assert [order[i] for i in other.pop("permutation")] == [0, 1, 2]
    row.pop("permutation")
    assert set(other) == set(row)
    for key, value in row.items():
        same = value is None or isinstance(value, str)
        assert other[key] == (value if same else pytest.approx(value, rel=1e-9, abs=1e-9))


def test_the_order_is_that_of_the_best_mean_over_ears_and_agrees_with_the_loss():
    rng = np.random.default_rng(3)
    targets = rng.standard_normal((3, 2, 1000))
    mixing = rng.standard_normal((3, 3))
    estimates = np.einsum("ij,jet->iet", mixing, targets)
    row = evaluate(targets.sum(0), estimates, targets)
    score, order = losses.permutation_invariant_snr(
        torch.from_numpy(estimates)[None], torch.from_numpy(targets)[None]
    )
    assert list(row["permutation"]) == order[0].tolist()
    assert row["snr"] == pytest.approx(score.item(), abs=1e-5)
    cues = interaural_errors(estimates, targets, RATE, order[0].tolist())
    assert {key: row[key] for key in cues} == cues


def test_silent_sources_and_ears_are_no_numbers():
    targets = scene([-60, 60])
    targets[1, 0] = 0  # not heard on the left
    row = evaluate(targets.sum(0), 0.9 * targets, targets)
    assert row["cues_1"] == "measured" and row["cues_2"] == "monaural"
    assert row["snr_2"] == pytest.approx(20, abs=1e-3) and row["itd_2"] is None
    targets[1] = 0
    row = evaluate(targets.sum(0), 0.9 * targets, targets)
    assert row["snr_2"] is row["snr_i_2"] is row["si_snr_2"] is None
    assert row["snr"] == row["snr_1"] and row["cues_2"] == "silent"


def test_what_is_not_finite_or_does_not_fit_is_refused():
    targets = scene([-60, 60], samples=500)
    broken = targets.copy()
    broken[0, 0, 3] = np.nan
    with pytest.raises(UserError, match="estimates: .*diverged"):
        evaluate(targets.sum(0), broken, targets)
    with pytest.raises(ValueError, match="shapes differ"):
        evaluate(targets.sum(0)[:, 1:], targets, targets)


def test_protocol_of_speechbrain():
    targets = scene([-60, 60])
    row = evaluate(targets.sum(0), targets, targets, protocol="speechbrain")
    assert row["delta_itd"] == row["delta_ild"] == 0 and "cues_1" not in row
    table = interaural_section([{"ID": "a", **row}], "speechbrain").parts[1]
    assert ["delta_itd_mean", "0.00"] in table.rows


def test_places_of_talkers():
    targets = scene([-60, 10, 50])
    directions = [[-60, 0], [10, 0], [50, 0]]
    row = evaluate(targets.sum(0), targets, targets, directions)
    assert [row[f"min_separation_deg_{j}"] for j in (1, 2, 3)] == pytest.approx(
        [70, 40, 40]
    )
    assert row["angle"] == pytest.approx(40) and row["azimuth_1"] == -60
    unknown = evaluate(targets.sum(0), targets, targets, [[np.nan] * 2] * 3)
    assert "azimuth_1" not in unknown and "angle" not in unknown


def test_one_gain_for_all_signals_of_an_utterance():
    sources = 8 * scene([-90, 90])
    signals = level_ears(sources.sum(0), sources, sources=sources)
    peak = max(np.abs(x).max() for x in signals.values())
    assert peak == pytest.approx(0.99)
    gains = signals["s1_estimate"] / sources[0]
    assert np.ptp(gains[np.isfinite(gains)]) < 1e-9
    assert np.ptp(gains - signals["mixture"] / sources.sum(0)) < 1e-9
    quiet = level_ears(0.01 * sources.sum(0), 0.01 * sources)
    np.testing.assert_array_equal(quiet["s2_estimate"], 0.01 * sources[1])


def test_itd_of_the_average_sphere_is_heard_at_its_azimuth():
    azimuths = np.array([-80, -30, 0, 45, 75, 120, -150])
    itds = [evaluate(x, x[None], x[None])["itd_1"] for x in scene(azimuths, 1, 16000)]
    np.testing.assert_allclose(
        _perceived_azimuth(np.array(itds), azimuths), azimuths, atol=1
    )
    assert _perceived_azimuth(-5000.0) == -90


def test_by_angle_puts_every_source_into_one_class_of_each_kind(tmp_path):
    rows = results([(-90, 0), (-29.9, 30), (180, 45), (150, -150)])
    table = {column.key: classes for column, classes in _by_angle(rows).items()}
    for by in ("azimuth", "min_separation_deg"):
        assert sum(part.count for part in table[by]) == 8
    found = {part.low: part for part in table["azimuth"]}
    assert found[150.0].count == 3 and found[90.0].count == 1
    values = [s["snr_i"] for s in _sources_of(rows) if abs(s["azimuth"]) >= 150]
    assert found[150.0].metrics["snr_i"].mean == pytest.approx(np.mean(values))
    assert _by_angle([{"ID": "a", "snr_i_1": 1.0}]) == {}
    names = [path.name for path in write_angles(rows, tmp_path)]
    assert names == ["interaural.json", "by_angle.csv"]
    lines = (tmp_path / "by_angle.csv").read_text().splitlines()
    assert lines[0].startswith("by,low,high,sources,snr_i,")
    assert len(lines) == sum(map(len, table.values())) + 1
    assert json.loads((tmp_path / "interaural.json").read_text())["measured"] == 8


def results(pairs):
    """Rows of two talkers each from pairs of azimuths."""
    rows = []
    for number, azimuths in enumerate(pairs):
        targets = scene(azimuths, number, 2000)
        rng = np.random.default_rng(number)
        estimates = targets + 0.01 * rng.standard_normal(targets.shape)
        directions = [[azimuth, 0] for azimuth in azimuths]
        row = evaluate(targets.sum(0), estimates, targets, directions)
        rows.append({"ID": str(number), **row})
    return rows


def test_results_report_and_stereo_wavs(tmp_path):
    azimuths = [(-60, 30), (20, 80), (-80, 0)]
    rows = results(azimuths)
    signals = {}
    for row, pair in zip(rows, azimuths):
        targets = 4 * scene(pair, int(row["ID"]), 2000)
        given = {"mixture": targets.sum(0), "estimates": targets[::-1]}
        signals[row["ID"]] = {**given, "targets": targets}
        row["permutation"] = (1, 0)
    how = {"keep_waves": 1, "level": level_ears, "findings": [interaural_section]}
    published = publish(tmp_path, "binaural", rows, signals.get, RATE, **how)
    assert "ΔITD" in published.summary.table() and "itd_1" not in published.summary.table()
    assert read_results(tmp_path / "results.csv")[0]["cues_1"] == "measured"
    assert summarise(rows).metrics["delta_itd"].count == 3
    for name in ("mixture", "s1_estimate", "s2_reference"):
        sound, _ = soundfile.read(tmp_path / "wavs" / "0" / f"{name}.wav")
        assert sound.shape == (2000, 2)
    levels = level_ears(signals["0"]["mixture"], signals["0"]["targets"])
    heard, _ = soundfile.read(tmp_path / "wavs" / "0" / "s1_estimate.wav")
    np.testing.assert_allclose(heard.T, levels["s1_estimate"], atol=1e-4)

    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "Where the talkers are heard" in text and "By angle" in text
    assert page.count("audio") == 5 * 3
    assert sounds(page)[0][0].shape == (2000, 2)
    assert any("from above" in a.get("alt", "") for tag, a in page.tags if tag == "img")


def test_no_view_where_nothing_was_measured():
    targets = np.zeros((1, 2, 100))
    row = evaluate(targets[0], targets, targets)
    assert row["snr"] is None and _top_view_png([{"ID": "a", **row}]) is None
    table = interaural_section([{"ID": "a", **row}]).parts[1]
    assert table.rows[-3:] == [["measured", "0"], ["silent", "1"], ["monaural", "0"]]
