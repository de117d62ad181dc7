"""Batches that are not finite: kept without waiting for the device, and run again alone."""

import argparse
from pathlib import Path

import pytest
import soundfile
import torch
from librimix import make_tree
from test_preflight import listing, run_here
from test_train import command
from toy_recipe import Square, ToyBrain, toy

from unified_se_ss.errors import UserError
from unified_se_ss.training import parse_options
from unified_se_ss.training.nonfinite import load_suspect
from unified_se_ss.training.replay import replay


def train(folder, interval=1, **options):
    """Two epochs over items of which number 5 overflows; the files that are left."""
    brain, loaders = toy(folder, wild=(5,), **options)
    brain.log_interval = interval
    brain.fit(brain.hparams.epoch_counter, loaders["train"])
    return brain, sorted((folder / "nonfinite").glob("*.pt"))


@pytest.mark.parametrize("interval", [1, 50])
def test_a_batch_that_overflows_is_kept_with_all_that_it_needs(tmp_path, interval, caplog):
    brain, files = train(tmp_path, interval)
    assert len(files) == 2  # one an epoch
    kept = load_suspect(files[0])
    assert kept["epoch"] == 1 and kept["found"] == ["main loss"]
    assert "train-5" in kept["ids"] and kept["seed"] == 7
    brain.train_sampler.set_epoch(1)
    assert kept["keys"] == [tuple(k) for k in list(brain.train_sampler)[kept["batch"] - 1]]
    assert kept["tensors"]["mixture"].max() == torch.tensor(1e25)
    assert {"network.0.weight", "network.3.bias"} <= set(kept["weights"])
    assert (kept["steps_later"] == 0) == (interval == 1)
    assert f"--replay {files[0]}" in caplog.text


def test_the_weights_are_those_that_the_batch_met(tmp_path):
    seen = []

    class Watching(ToyBrain):
        def compute_forward(self, batch, stage):
            state = self.modules.state_dict()
            seen.append((batch.ids, {k: v.clone() for k, v in state.items()}))
            return super().compute_forward(batch, stage)

    _, files = train(tmp_path, brain_class=Watching)
    kept = load_suspect(files[1])
    ids, state = [entry for entry in seen if "train-5" in entry[0]][1]
    assert kept["ids"] == ids
    for name, tensor in state.items():
        assert torch.equal(kept["weights"][name], tensor)


def test_no_more_files_than_that(tmp_path, caplog):
    brain, loaders = toy(tmp_path, wild=range(8), nonfinite_patience=1000)
    brain.nonfinite_patience = 1000
    brain.fit(brain.hparams.epoch_counter, loaders["train"])
    assert len(list((tmp_path / "nonfinite").glob("*.pt"))) == 5
    assert "not saved" in caplog.text


def test_replay_says_where_it_went_wrong(tmp_path, capsys):
    _, files = train(tmp_path)
    brain, loaders = toy(tmp_path, wild=(5,))
    assert replay(brain, loaders, files[0]) == 1
    printed = capsys.readouterr().out
    assert "those that the batch met" in printed
    assert "not finite first behind network.1 (Square); its input: finite" in printed
    assert "main gradient" in printed and "norm of network" in printed
    lines = {x.split()[0]: x for x in printed.splitlines() if x.startswith("  train-")}
    assert lines.pop("train-5").split()[-1] in ("inf", "nan") and lines
    assert not any("inf" in line or "nan" in line for line in lines.values())


def test_replay_of_a_cured_network_is_finite(tmp_path, capsys, monkeypatch):
    _, files = train(tmp_path)
    monkeypatch.setattr(Square, "forward", lambda self, x: x.tanh())
    brain, loaders = toy(
        tmp_path, wild=(5,), gone=(5,)
    )  # the file is gone, the batch is not

    class Bounded(ToyBrain):
        def compute_objectives(self, output, batch, stage):
            batch.sources = batch.sources.clamp(-1, 1)
            return super().compute_objectives(output, batch, stage)

    brain.__class__ = Bounded
    assert replay(brain, loaders, files[0]) == 0
    assert "all is finite this time" in capsys.readouterr().out


def test_gradients_that_are_not_finite_are_kept_too(tmp_path):
    class Steep(ToyBrain):
        def compute_objectives(self, output, batch, stage):
            loss = super().compute_objectives(output, batch, stage)
            zero = (output[:, 0] - output[:, 0]).abs().sum()
            return loss._replace(total=loss.total + zero.sqrt())  # 0, with slope inf * 0

    brain, loaders = toy(tmp_path, Steep)
    brain.nonfinite_patience = 1000
    brain.fit(brain.hparams.epoch_counter, loaders["train"])
    files = sorted((tmp_path / "nonfinite").glob("*.pt"))
    assert load_suspect(files[0])["found"] == ["main gradient"]


@pytest.mark.parametrize("content", [None, b"", b"no batch", "code"])
def test_another_file_is_refused_and_nothing_in_it_runs(tmp_path, content):
    path = tmp_path / "file.pt"
    if content == "code":
        torch.save({"format": 1, "run": argparse.Namespace(x=1)}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="--replay: "):
        load_suspect(path)


NAME = "hparams/libri2mix_noisy_dprnn.yaml"


def test_the_command_line_takes_one_file():
    yaml = str(Path(__file__).parent.parent / NAME)
    assert parse_options([yaml, "--replay", "a b.pt"], "").replay == Path("a b.pt")
    assert parse_options([yaml], "").replay is None
    with pytest.raises(UserError, match="--replay: expected one file"):
        parse_options([yaml, "--replay"], "")


@pytest.mark.slow
def test_train_py_keeps_a_batch_and_runs_it_again(tmp_path, monkeypatch, capsys):
    tree, out = make_tree(tmp_path, counts=(3, 2, 2)), tmp_path / "run"
    for stem in ("s1", "mix_both"):  # finite, but its energy is not
        path = tree / "wav8k/min/train-360" / stem / "train-360-1.wav"
        signal, rate = soundfile.read(path)
        signal[9] = 1e30
        soundfile.write(path, signal, rate, "FLOAT")
    arguments = command(NAME, tree, out, number_of_epochs=1, speed_percents="null")
    run_here(monkeypatch, capsys, arguments)
    (file,) = (out / "nonfinite").glob("*.pt")
    (out / "log.txt").unlink()  # to which the first run's handler still writes
    before = listing(out)
    code, printed = run_here(monkeypatch, capsys, [*arguments, "--replay", str(file)])
    assert code == 1
    assert "main loss" in printed and "train-360-1" in printed
    assert "not finite, as above" in printed
    (out / "log.txt").unlink(missing_ok=True)
    assert listing(out) == before
