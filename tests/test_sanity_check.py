"""--check, and the checks of every start: what is wrong is named before it costs time."""

import copy
import runpy
from types import SimpleNamespace

import pytest
import torch
from broken_data import broken_tree
from librimix import make_tree
from test_train import ROOT, command
from toy_recipe import ToyBrain, toy

from unified_se_ss.data.audit import KINDS
from unified_se_ss.data.dataset import Batch
from unified_se_ss.errors import UserError
from unified_se_ss.training import sanity_check as module
from unified_se_ss.training.sanity_check import center_crop, full_check, sanity_check

NAME = "hparams/libri2mix_noisy_dprnn.yaml"


def check(brain, loaders, capsys):
    """Exit code and the table's lines, by the name of the check."""
    code = full_check(brain, loaders)
    lines = capsys.readouterr().out.splitlines()
    table = {}
    for line in lines:
        name, status, found = line[:17].strip(), line[18:26].strip(), line[27:]
        if status in ("ok", "warning", "failed"):
            table.setdefault(name, (status, found))
    return code, table


def test_a_sound_recipe_passes(tmp_path, capsys):
    brain, loaders = toy(tmp_path)
    code, table = check(brain, loaders, capsys)
    assert code == 0
    assert {status for status, _ in table.values()} == {"ok"}
    names = "folder finite step gradients evaluation saving test time".split()
    assert {*names, "longest batch", "data: train", "items: test"} <= set(table)
    assert "2 items, 3.4 s" in table["longest batch"][1]
    assert "peak memory" in table["longest batch"][1]
    assert not (tmp_path / "own").exists()


class NotFinite(ToyBrain):
    def compute_objectives(self, output, batch, stage):
        loss = super().compute_objectives(output, batch, stage)
        return loss._replace(total=loss.total * torch.nan)


class Random(ToyBrain):
    def compute_forward(self, batch, stage):
        return super().compute_forward(batch, stage) + torch.randn(())


class Forgetful(ToyBrain):
    def compute_forward(self, batch, stage):
        return super().compute_forward(batch, stage) + self.modules.extra.bias


class NoScore(ToyBrain):
    def compute_objectives(self, output, batch, stage):
        loss = super().compute_objectives(output, batch, stage)
        self.rows = [{"loss": row.get("loss")} for row in self.rows]
        return loss


@pytest.mark.parametrize(
    "brain_class, extra, name, words",
    [
        (ToyBrain, True, "gradients", "warning no gradient: extra.weight, extra.bias"),
        (NotFinite, False, "finite", "failed the main loss or its gradient is not finite"),
        (Random, False, "evaluation", "failed twice: scores differ"),
        (Forgetful, True, "saving", "failed saved"),
        (NoScore, False, "evaluation", "failed compute_objectives appends no score"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(
    tmp_path, capsys, brain_class, extra, name, words
):
    modules = {"extra": torch.nn.Linear(1, 1)} if extra else {}
    code, table = check(*toy(tmp_path, brain_class, modules), capsys)
    assert " ".join(table[name]).startswith(words)
    assert code == (0 if words.startswith("warning") else 1)


def test_items_that_cannot_be_made_are_named(tmp_path, capsys):
    code, table = check(*toy(tmp_path, gone=(3,)), capsys)
    status, found = table["items: train"]
    assert (code, status) == (1, "failed") and "train-3.wav: does not exist" in found


def listing(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run_here(monkeypatch, capsys, arguments):
    """train.py in this process: exit code and what it printed."""
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.syspath_prepend(str(ROOT))
    code = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as left:
        code = left.code
    return code, capsys.readouterr().out


def run_check(monkeypatch, capsys, arguments):
    """train.py --check in this process."""
    return run_here(monkeypatch, capsys, [*arguments, "--check"])


def test_train_py_on_sound_data_leaves_no_folder(tmp_path, monkeypatch, capsys):
    tree, out = make_tree(tmp_path, counts=(3, 2, 2)), tmp_path / "run"
    code, printed = run_check(monkeypatch, capsys, command(NAME, tree, out))
    assert code == 0, printed
    assert "0 failed" in printed and "all 72 parameter tensors get one" in printed
    assert not out.exists()


def test_train_py_on_data_broken_in_many_ways(tmp_path, monkeypatch, capsys):
    tree, wanted = broken_tree(tmp_path)
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    before = listing(tmp_path)
    code, printed = run_check(monkeypatch, capsys, command(NAME, tree, out))
    assert code == 1
    for kind, subset, item in wanted:
        assert f"({subset} {item})" in printed
        (line,) = (x for x in printed.splitlines() if x.startswith(f"data: {kind}"[:17]))
        assert line[18:].startswith(KINDS[kind])
    folder = next(x for x in printed.splitlines() if x.startswith("folder"))
    assert "failed" in folder and "holds no run of this project" in folder
    assert listing(tmp_path) == before


# ------------------------------------------------------------------ every start


def test_the_check_of_every_start_changes_nothing(tmp_path):
    brain, loaders = toy(tmp_path)
    state = copy.deepcopy(brain.modules.state_dict())
    random, files = torch.get_rng_state(), listing(tmp_path)
    assert sanity_check(brain, loaders) > 0
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in brain.modules.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert listing(tmp_path) == files


def test_the_middle_of_a_batch():
    signal = torch.arange(10.0).reshape(1, 10)
    batch = Batch(
        ["a"],
        torch.tensor([10]),
        {"mixture": signal, "sources": torch.stack([signal, signal], 1)},
    )
    middle = center_crop(batch, 0.4)
    assert middle.mixture.tolist() == [[3.0, 4.0, 5.0, 6.0]]
    assert middle.sources.shape == (1, 2, 4) and middle.lengths.tolist() == [4]


def test_every_start_sees_what_would_end_the_run_later(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no score to self.rows"):
        sanity_check(*toy(tmp_path, NoScore))
    sanity_check(*toy(tmp_path, gone=(0, 1, 2)))  # bad items are left out later
    with pytest.raises(UserError, match="no item of the subset train.*does not exist"):
        sanity_check(*toy(tmp_path, gone=range(8)))
    monkeypatch.setattr("unified_se_ss.training.sanity_check.free_bytes", lambda folder: 10)
    with pytest.raises(UserError, match="output_folder: .*free space"):
        sanity_check(*toy(tmp_path))


def test_data_that_is_gone_is_found(tmp_path):
    from unified_se_ss.data.audit import items_of
    from unified_se_ss.data.corpora.mixtures import prepare_librimix
    from unified_se_ss.data.dataset import MixtureDataset
    from unified_se_ss.data.manifest import read_manifest

    tree = make_tree(tmp_path)
    path = prepare_librimix(tree, tmp_path / "manifests")["train"]
    items = items_of(MixtureDataset(read_manifest(path, tree), 2))
    assert len(items) == 6
    loaders = {"train": SimpleNamespace(dataset=items)}
    checks = module.SanityCheck(None, loaders)
    assert not list(checks.headers())
    (tree / "wav8k/min/train-360/s1/train-360-0.wav").unlink()
    (check,) = checks.headers()
    assert check.status == "warning" and "1 of 6 items of the subset train" in check.found
    (tree / "wav8k/min/train-360/s1").rename(tmp_path / "elsewhere")
    (check,) = checks.headers()
    assert check.status == "failed" and "6 of 6 items" in check.found
    assert "is the data in its place" in check.advice
