"""PESQ, STOI and ESTOI: the packages' own values, and what happens without one."""

import numpy as np
import pytest
from test_evaluation_metrics import voice

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation import metrics
from unified_se_ss.evaluation.metrics import (
    PERCEPTUAL,
    check_metrics,
    empty_scores,
    installed_metrics,
    perceptual_score,
    perceptual_scores,
)

NO_PESQ = "pesq is not installed (it has no wheels and needs a C compiler)"


def speech(seed, seconds=2):
    return np.concatenate([voice(100 * seed + i) for i in range(2 * seconds)])


def item():
    rng = np.random.default_rng(0)
    targets = np.stack([speech(1), speech(2)])
    mixture = targets.sum(axis=0) + 0.1 * rng.standard_normal(targets.shape[1])
    estimates = targets + 0.2 * rng.standard_normal(targets.shape)
    return mixture, estimates, targets


@pytest.mark.parametrize("name, extended", [("stoi", False), ("estoi", True)])
def test_stoi_is_that_of_pystoi(name, extended):
    from pystoi import stoi

    mixture, estimates, targets = item()
    row = perceptual_scores([name], mixture, estimates, targets, 8000)
    for j in (0, 1):
        expected = stoi(targets[j], estimates[j], 8000, extended=extended)
        before = stoi(targets[j], mixture, 8000, extended=extended)
        assert row[f"{name}_{j + 1}"] == pytest.approx(100 * expected, abs=1e-6)
        gain = 100 * (expected - before)
        assert row[f"{name}_i_{j + 1}"] == pytest.approx(gain, abs=1e-6)
    for key in (name, f"{name}_i"):
        assert row[key] == pytest.approx((row[f"{key}_1"] + row[f"{key}_2"]) / 2)
    assert "why_empty" not in row


@pytest.mark.parametrize("rate, mode", [(8000, "nb"), (16000, "wb")])
def test_pesq_is_that_of_its_package(rate, mode):
    pesq = pytest.importorskip("pesq", reason=NO_PESQ)
    mixture, estimates, targets = item()
    row = perceptual_scores(["pesq"], mixture, estimates, targets, rate)
    expected = pesq.pesq(rate, targets[0], estimates[0], mode)
    assert row[f"pesq_{mode}_1"] == pytest.approx(expected, abs=1e-4)
    before = pesq.pesq(rate, targets[0], mixture, mode)
    assert row[f"pesq_{mode}_i_1"] == pytest.approx(expected - before, abs=1e-4)


@pytest.mark.parametrize("name", [n for n in PERCEPTUAL if PERCEPTUAL[n].column(8000)])
def test_scale_and_sign_of_the_network_do_not_matter(name):
    if name == "pesq":
        pytest.importorskip("pesq", reason=NO_PESQ)
    mixture, estimates, targets = item()
    row = perceptual_scores([name], mixture, estimates, targets, 8000)
    scales = np.array([[-1e-6], [1e6]])
    other = perceptual_scores([name], mixture, scales * estimates, targets, 8000)
    for key, value in row.items():
        assert other[key] == pytest.approx(value, abs=1e-3)


def test_no_value_is_an_empty_cell_and_says_why():
    mixture, estimates, targets = item()
    targets[1] = 0
    row = perceptual_scores(["stoi"], mixture, estimates, targets, 8000)
    assert row["stoi_2"] is None and row["stoi_i_2"] is None
    assert row["stoi"] == row["stoi_1"] > 0
    assert row["why_empty"] == "stoi of source 2: the reference is silent"
    row = perceptual_scores(["stoi"], mixture, 0 * estimates, targets, 8000)
    assert row["stoi"] is None and "source 1: the estimate is silent" in row["why_empty"]
    short = (signal[..., :2000] for signal in item())
    row = perceptual_scores(["estoi"], *short, 8000)
    assert row["estoi"] is None and "less than 0.4 s of speech" in row["why_empty"]


def test_what_pesq_refuses_is_an_empty_cell():
    pytest.importorskip("pesq", reason=NO_PESQ)
    mixture, estimates, targets = (signal[..., :1500] for signal in item())
    row = perceptual_scores(["pesq"], mixture, estimates, targets, 8000)
    assert row["pesq_nb"] is None and row["pesq_nb_i_2"] is None
    assert "pesq of source 1: buffer needs to be at least 1/4" in row["why_empty"]


def test_empty_scores_have_the_columns_of_scores():
    mixture, estimates, targets = item()
    row = perceptual_scores(["stoi", "estoi"], mixture, estimates, targets, 8000)
    empty = empty_scores(["stoi", "estoi"], 2, 8000, "why not")
    assert set(empty) == {*row, "why_empty"}
    assert empty["why_empty"] == "stoi, estoi: why not"
    assert not any(value for key, value in empty.items() if key != "why_empty")


def test_a_missing_package_is_one_clear_error(monkeypatch):
    found = metrics.importlib.util.find_spec
    monkeypatch.setattr(
        metrics.importlib.util,
        "find_spec",
        lambda name: None if name in ("pesq", "pystoi") else found(name),
    )
    with pytest.raises(UserError, match=r"pesq, estoi needs .* pesq, pystoi.*\[metrics\]"):
        check_metrics(["pesq", "estoi"], 8000)


def test_a_rate_that_pesq_does_not_have_is_told(monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: True)
    check_metrics(["pesq", "stoi"], 16000)
    with pytest.raises(UserError, match="8000 or 16000 Hz, but the model works at 44100"):
        check_metrics(["pesq"], 44100)
    check_metrics(["stoi", "estoi"], 44100)


@pytest.mark.skipif(bool(PERCEPTUAL["dnsmos"].missing()), reason="extra dnsmos")
def test_dnsmos_hears_noise_and_needs_no_reference():
    rng = np.random.default_rng(0)
    speech = np.sin(np.arange(32000) / 20) * (rng.random(32000) < 0.5)
    noisy = speech + rng.standard_normal(32000)
    clean = perceptual_score("dnsmos", speech, speech, 16000)
    assert 1 <= perceptual_score("dnsmos", noisy, speech, 16000) <= 5
    assert perceptual_score("dnsmos", speech, 2 * speech, 16000) == pytest.approx(
        clean, abs=0.2
    )


def test_what_a_package_needs_beside_it_is_asked_for(monkeypatch):
    there = {"speechmos": object(), "onnxruntime": object()}
    monkeypatch.setattr("importlib.util.find_spec", there.get)
    assert PERCEPTUAL["dnsmos"].missing() == ["librosa"]
    assert "dnsmos" not in installed_metrics(16000)
    with pytest.raises(UserError, match=r"package\(s\) librosa.*unified_se_ss\[dnsmos\]"):
        check_metrics(["dnsmos"], 16000)
    there["librosa"] = object()
    assert "dnsmos" in installed_metrics(16000)
    assert "dnsmos" not in installed_metrics(8000)
