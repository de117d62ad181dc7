"""Checkpoints: whole or not there, damage noticed, nothing executed, disk full."""

import os
import pickle
import random
import re
import subprocess
import time

import numpy as np
import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

import unified_se_ss.training.checkpoints as module
from unified_se_ss.errors import UserError
from unified_se_ss.gradients import TaskLoss, TwoTaskGradients, TwoTaskLosses
from unified_se_ss.training.checkpoints import AtomicCheckpointer, RandomStates, _fault_of


@pytest.fixture()
def network():
    return torch.nn.Linear(50, 40)


@pytest.fixture()
def checkpointer(tmp_path, network):
    return made(tmp_path / "save", network)


def made(folder, network):
    return AtomicCheckpointer(folder, {"network": network, "random": RandomStates()})


def save(checkpointer, value, **meta):
    """A checkpoint whose weights all have a value."""
    torch.nn.init.constant_(checkpointer.recoverables["network"].weight, value)
    return checkpointer.save_checkpoint(meta=meta)


def recovered(folder, width=50):
    """What a new start goes on from: the checkpoint's path and the weights' value."""
    network = torch.nn.Linear(width, 40)
    checkpointer = made(folder, network)
    checkpointer.tidy()
    found = checkpointer.recover_if_possible()
    return found and found.path, network.weight[0, 0].item()


def test_saved_and_kept_as_by_speechbrain(checkpointer):
    for epoch, score in enumerate([1.0, 3.0, 2.0], 1):
        torch.nn.init.constant_(checkpointer.recoverables["network"].weight, epoch)
        checkpointer.save_and_keep_only(
            {"epoch": epoch, "score": score}, max_keys=["score"]
        )
    epochs = {c.meta["epoch"] for c in checkpointer.list_checkpoints()}
    assert epochs == {2, 3}
    assert checkpointer.recover_if_possible(max_key="score").meta["epoch"] == 2
    assert (checkpointer.recoverables["network"].weight == 2).all()
    stock = Checkpointer(checkpointer.checkpoints_dir, checkpointer.recoverables)
    assert stock.recover_if_possible().meta["epoch"] == 3


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "has .* bytes of": ("network.ckpt", truncate),
    "another checksum": ("network.ckpt", flip_a_bit),
    "No such file": ("random.ckpt", os.unlink),
    "CKPT.yaml cannot be read": ("CKPT.yaml", lambda path: path.write_bytes(b"\xff: [")),
    "CKPT.yaml cannot": ("CKPT.yaml", lambda path: path.write_text("unixtime: 1")),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_what_is_damaged_is_passed_over_and_said(checkpointer, caplog, words):
    older, newer = save(checkpointer, 1.0), save(checkpointer, 2.0)
    name, damage = DAMAGES[words]
    damage(newer.path / name)
    path, value = recovered(checkpointer.checkpoints_dir)
    assert (path, value) == (older.path, 1.0)
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert str(newer.path) in said and "passed over" in said
    assert re.search(words, said)


def test_what_is_left_unfinished_is_removed(checkpointer):
    saved = save(checkpointer, 1.0)
    name = ".unfinished+CKPT+x"
    (checkpointer.checkpoints_dir / name).mkdir()
    (checkpointer.checkpoints_dir / name / "CKPT.yaml").write_text("unixtime: 9e9")
    assert recovered(checkpointer.checkpoints_dir) == (saved.path, 1.0)
    assert [p.name for p in checkpointer.checkpoints_dir.iterdir()] == [saved.path.name]


def test_nothing_whole_is_a_new_beginning(checkpointer):
    save(checkpointer, 7.0).path.joinpath("network.ckpt").unlink()
    path, value = recovered(checkpointer.checkpoints_dir)
    assert path is None and value != 7.0


@pytest.mark.parametrize("order", ["max_key", "min_key"])
def test_a_score_that_is_no_number_is_the_worst_and_the_newest_stays(checkpointer, order):
    for score in (1.0, float("nan"), float("nan")):
        checkpointer.save_and_keep_only({"score": score}, **{f"{order}s": ["score"]})
    first, last = sorted(checkpointer.list_checkpoints(), key=lambda c: c.meta["unixtime"])
    assert first.meta["score"] == 1.0 and last.meta["score"] != 1.0
    assert checkpointer.find_checkpoint(**{order: "score"}).path == first.path


def test_a_clock_that_was_set_back_does_not_make_it_older(checkpointer, monkeypatch):
    save(checkpointer, 1.0)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    checkpointer.save_and_keep_only()
    assert recovered(checkpointer.checkpoints_dir)[1] == 1.0
    (left,) = checkpointer.list_checkpoints()
    assert left.meta["unixtime"] > 1e9


def test_names_that_are_given_are_kept_and_can_be_used_again(checkpointer):
    checkpointer.save_checkpoint(name="latest")
    save(checkpointer, 5.0).path.rename(checkpointer.checkpoints_dir / "elsewhere")
    again = checkpointer.save_checkpoint(name="latest")
    assert again.path.name == "CKPT+latest"
    assert recovered(checkpointer.checkpoints_dir) == (again.path, 5.0)


def test_numbers_of_numpy_and_torch_are_plain_in_the_meta(checkpointer):
    saved = save(checkpointer, 1.0, a=np.float64(0.5), b=torch.tensor(2))
    assert _fault_of(saved.path, thorough=True) is None
    assert checkpointer.find_checkpoint(max_key="a").meta["b"] == 2


def test_one_of_speechbrains_own_is_taken_as_it_is(tmp_path, network):
    stock = Checkpointer(tmp_path, {"network": network})
    saved = stock.save_checkpoint()
    whole = AtomicCheckpointer.of(stock)
    whole.tidy()
    assert type(whole) is AtomicCheckpointer and whole.recoverables is stock.recoverables
    assert whole.recover_if_possible().path == saved.path
    assert AtomicCheckpointer.of(whole) is whole


class Malicious:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_nothing_is_executed_even_if_the_environment_allows_it(
    checkpointer, tmp_path, monkeypatch
):
    checkpointer.add_recoverable(
        "careless",
        object(),
        custom_save_hook=lambda _, path: path.write_bytes(
            pickle.dumps(Malicious(tmp_path / "executed"))
        ),
        custom_load_hook=lambda _, path, end_of_epoch: torch.load(path, weights_only=False),
    )
    save(checkpointer, 1.0)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match="cannot be loaded"):
        checkpointer.recover_if_possible()
    assert not (tmp_path / "executed").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_another_network_is_one_clear_error(checkpointer):
    save(checkpointer, 1.0)
    other = made(checkpointer.checkpoints_dir, torch.nn.Linear(5, 4))
    with pytest.raises(UserError, match="cannot be loaded.*same network"):
        other.recover_if_possible()


@pytest.mark.parametrize("place", ["torch", "flush", "meta"])
def test_a_full_disk_is_told_and_costs_no_checkpoint(checkpointer, monkeypatch, place):
    last = save(checkpointer, 1.0)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    owner, name = {
        "torch": (torch, "save"),
        "flush": (module, "_flush"),
        "meta": (module.Path, "write_text"),
    }[place]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(UserError, match="the disk is full.*MB are free") as told:
            checkpointer.save_and_keep_only()
    assert str(last.path) in str(told.value)
    assert recovered(checkpointer.checkpoints_dir) == (last.path, 1.0)
    assert [p.name for p in checkpointer.checkpoints_dir.iterdir()] == [last.path.name]


@pytest.fixture()
def small_disk(tmp_path):
    """A file system of one megabyte; where none can be mounted, the test is skipped."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    width = 2000  # 320 kB of weights
    checkpointer = made(small_disk / "save", torch.nn.Linear(width, 40))
    last = save(checkpointer, 1.0)
    (small_disk / "other").write_bytes(b"x" * 500_000)
    with pytest.raises(
        UserError, match="the disk is full.* MB are free.*goes on from .*CKPT"
    ):
        save(checkpointer, 2.0)
    (small_disk / "other").unlink()
    assert recovered(small_disk / "save", width) == (last.path, 1.0)
    save(checkpointer, 3.0)
    assert recovered(small_disk / "save", width)[1] == 3.0


def test_all_random_generators_go_on_from_where_they_were(checkpointer):
    checkpointer.save_checkpoint()
    first = random.random(), np.random.rand(), float(torch.rand(()))
    checkpointer.recover_if_possible()
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == first


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_gradients_of_half_a_step_are_in_the_state(tmp_path, scale):
    data = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))

    def new():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 2))
        return network, TwoTaskGradients(network.named_parameters(), shared=["0"])

    def accumulate(network, gradients, batches):
        for number, batch in enumerate(batches):
            hidden = network[0](batch)
            main = TaskLoss.of(network[1](hidden).square().sum(1))
            auxiliary = TaskLoss.of(hidden.square().sum(1)) if number % 2 else None
            losses = TwoTaskLosses(main, auxiliary)
            gradients.accumulate(losses, lambda loss: loss * scale)

    network, whole = new()
    accumulate(network, whole, data)
    whole.combine()

    before, halfway = new()
    accumulate(before, halfway, data[:2])
    torch.save(halfway.state_dict(), tmp_path / "state")
    after, resumed = new()
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for parameter in after.parameters():  # as an epoch begins
        parameter.grad = None
    accumulate(after, resumed, data[2:])
    resumed.combine()
    for a, b in zip(network.parameters(), after.parameters()):
        assert torch.equal(a.grad, b.grad)
    assert whole.state_dict()["buffer"] is None
