"""precision: auto: bf16 where the hardware has it and it is measured to be faster."""

import pytest
import torch
from toy_recipe import ToyBrain, fit, toy

from unified_se_ss.errors import UserError
from unified_se_ss.training import autotune, run_folder
from unified_se_ss.training.options import parse_options

DEMO = "hparams/demo.yaml"


class Noting(ToyBrain):
    """Notes in which type its products are computed."""

    def compute_forward(self, batch, stage):
        output = super().compute_forward(batch, stage)
        self.seen.append((stage.name, output.dtype))
        return output


def make(tmp_path, monkeypatch, fp32=2.0, bf16=1.0, there=True, **hparams):
    """A Brain of the toy on a pretended processor."""
    keys = {"granularity": "parameter", "batch_size": 2, "auto_precision": True, **hparams}
    brain, _ = toy(tmp_path, Noting, **keys)
    brain.seen = []
    monkeypatch.setattr(autotune, "_has_bf16", lambda device: there)

    def seconds(steps, batch):
        steps.forward_and_backward(batch)  # for its traces
        return bf16 if steps.brain.precision == "bf16" else fp32

    monkeypatch.setattr(autotune, "_fastest", seconds)
    return brain


def trained_in(brain):
    """The types of training's products, without those of the measurement."""
    (found,) = {dtype for stage, dtype in brain.seen[-12:] if stage == "TRAIN"}
    return found


def test_bf16_is_taken_where_it_is_faster(tmp_path, monkeypatch, capsys):
    brain = make(tmp_path, monkeypatch)
    fit(brain)
    assert trained_in(brain) == torch.bfloat16
    assert all(dtype == torch.float32 for stage, dtype in brain.seen if stage == "VALID")
    said = "precision: bf16 (auto: a step takes 2 s in fp32 and 1 s in bf16 here)"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("given", [{"bf16": 1.9}, {"bf16": 3.0}, {"there": False}])
def test_else_it_is_fp32_and_the_measurement_leaves_no_trace(tmp_path, monkeypatch, given):
    for name in ("auto", "plain"):
        (tmp_path / name).mkdir()
    auto = make(tmp_path / "auto", monkeypatch, **given)
    found = fit(auto)
    plain = make(tmp_path / "plain", monkeypatch, auto_precision=False)
    assert all(map(torch.equal, found, fit(plain)))
    assert trained_in(auto) == torch.float32


def test_a_run_that_is_resumed_keeps_what_was_chosen(tmp_path, monkeypatch, capsys):
    first = make(tmp_path, monkeypatch)
    first.hparams.epoch_counter.limit = 1
    fit(first)
    again = make(tmp_path, monkeypatch, bf16=9.0)  # a busy machine
    fit(again)
    assert trained_in(again) == torch.bfloat16
    assert capsys.readouterr().out.count("precision:") == 1


def test_batches_by_seconds_are_measured_too(tmp_path, monkeypatch):
    brain = make(tmp_path, monkeypatch, batch_size=None, batch_seconds=4.0)
    brain.on_fit_start()
    assert brain.precision == "bf16"


def test_the_real_measurement_ends_in_one_of_both(tmp_path, monkeypatch):
    measured = autotune._fastest
    brain = make(tmp_path, monkeypatch)
    monkeypatch.setattr(autotune, "_fastest", measured)
    fit(brain)
    assert brain.chosen_precision.name in ("fp32", "bf16")


@pytest.mark.parametrize(
    "words, yaml, expected",
    [
        ([], "auto", (None, True)),
        ([], "bf16", ("bf16", False)),
        (["--precision", "auto"], "fp32", ("fp32", True)),
        (["--precision", "fp32"], "auto", (None, False)),
        (["--precision", "bf16"], "auto", (None, False)),
    ],
)
def test_the_command_line_comes_before_the_yaml_file(words, yaml, expected):
    options, hparams = parse_options([DEMO, *words], ""), {"precision": yaml}
    run_folder._resolve_precision(options, hparams)
    assert (hparams.get("precision"), hparams["auto_precision"]) == expected


def test_an_unknown_precision_is_told_which_there_are():
    with pytest.raises(UserError, match="expected one of: fp32, fp16, bf16, auto"):
        parse_options([DEMO, "--precision", "fp8"], "")
