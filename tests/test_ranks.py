"""Processes that die, that differ, or that are another number than before."""

import os
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked_ranks import free_port, start_ranks
from speechbrain import Stage
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.epoch_loop import EpochCounter
from test_brain import Pair

from unified_se_ss import training
from unified_se_ss.data.batching import BucketBatchSampler
from unified_se_ss.data.dataset import ItemKey
from unified_se_ss.errors import UserError
from unified_se_ss.training import distributed
from unified_se_ss.training.checkpoints import AtomicCheckpointer
from unified_se_ss.training.distributed import (
    _check_agreement,
    _digest,
    _is_of_ranks,
    join,
)

LOST = "has lost another one and stops"
ITEMS = 24


class Batch:
    """Inputs [B, 4] with names, in the form that `Pair` takes."""

    def __init__(self, keys):
        generators = [torch.Generator().manual_seed(key.index) for key in keys]
        self.ids = [str(key.index) for key in keys]
        self.inputs = torch.stack([torch.randn(4, generator=g) for g in generators])

    def __getitem__(self, place):
        return (self.inputs, torch.ones(()), torch.ones(()))[place]

    def __len__(self):
        return len(self.ids)

    def to(self, _device):
        return self


class Items(torch.utils.data.Dataset):
    """Items that are their own keys."""

    def __len__(self):
        return ITEMS

    def __getitem__(self, key):
        return key


def make_brain(folder, epochs=1, divided=True):
    """A Brain, its data and its checkpoints, as a recipe makes them."""
    torch.manual_seed(0)
    modules = {"trunk": torch.nn.Linear(4, 5), "head": torch.nn.Linear(5, 2)}
    counter, checkpointer = EpochCounter(epochs), AtomicCheckpointer(folder)
    brain = Pair(
        modules,
        lambda p: torch.optim.Adam(p, lr=0.01),
        {"shared_modules": ["trunk"], "rule": "project"},
        {"device": "cpu", "noprogressbar": True, "distributed_backend": "gloo"},
        checkpointer,
    )
    place = training.rank_and_size() if divided else {"rank": 0, "world_size": 2}
    sampler = BucketBatchSampler([1.0] * ITEMS, batch_size=2, seed=0, **place)
    loader = SaveableDataLoader(Items(), batch_sampler=sampler, collate_fn=Batch)
    brain.train_sampler = sampler
    checkpointer.add_recoverable("dataloader-TRAIN", loader)
    checkpointer.add_recoverables({**modules, "counter": counter})
    checkpointer.optional_recoverables |= dict.fromkeys([*modules, "counter"], False)
    brain.on_stage_end = lambda *_: None
    return brain, counter, loader


def run(function, *arguments):
    """What a train.py does: join, do it, leave as `training.run` has it."""
    sys.argv = ["train.py", str(Path(__file__).parent.parent / "hparams/demo.yaml")]

    def main(options):
        join("gloo")
        function(*arguments)

    training.run(main, "")


def train(folder, epochs=1, change=None, save_at=None, slow=0.0, **options):
    """Train; `change(brain)` is called before; a checkpoint is kept of each epoch."""
    brain, counter, loader = make_brain(folder, epochs, **options)

    def on_stage_end(stage, *_):
        if stage == Stage.VALID:
            brain.checkpointer.save_and_keep_only()

    brain.on_stage_end = on_stage_end
    if change:
        on_fit_start = brain.on_fit_start
        brain.on_fit_start = lambda: (on_fit_start(), change(brain))

    def on_fit_batch_end(*_):
        print(f"epoch {counter.current}, batch {brain.step}", flush=True)
        time.sleep(slow)
        if brain.step == save_at:
            brain._save_intra_epoch_ckpt()
            print("saved", flush=True)

    brain.on_fit_batch_end = on_fit_batch_end
    valid = torch.utils.data.DataLoader([Batch([ItemKey(0, 0)])], batch_size=None)
    brain.fit(counter, loader, valid)
    torch.save(
        brain.modules.state_dict(), folder / f"trained.{training.rank_and_size()['rank']}"
    )
    print(f"trained, {brain.optimizer_step} steps", flush=True)


def outcome(function, count, *arguments):
    """Exit codes of all processes, and what they have printed."""
    started = start_ranks(run, count, function, *arguments)
    codes = started.codes()
    return codes, [started.said(rank) for rank in range(count)]


def weights(folder, count):
    return [torch.load(folder / f"trained.{r}", weights_only=True) for r in range(count)]


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """Import here what the first step imports, which takes seconds, before all forks."""
    train(tmp_path_factory.mktemp("warm"))


# ------------------------------------------------------------------ a rank that dies


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_other(tmp_path, victim, number):
    started = start_ranks(run, 2, train, tmp_path, 50, None, None, 0.02)
    started.until(victim, "batch 3")
    started.kill(victim, number)
    codes = started.codes()
    assert codes[victim] == -number
    assert codes[1 - victim] == 75, started.said(1 - victim)
    said = started.said(1 - victim)
    assert f"error: process {1 - victim} of 2 {LOST}" in said
    assert "Traceback" not in said and "--max-restarts" in said


def test_a_rank_that_fails_says_why_and_the_other_that_it_is_gone(tmp_path):
    def fail(brain):
        if torch.distributed.get_rank() == 1:
            raise UserError("this rank's disk is gone")

    codes, said = outcome(train, 2, tmp_path, 3, fail)
    assert codes == [75, 2]
    assert "error: this rank's disk is gone" in said[1] and LOST in said[0]


def test_a_rank_that_hangs_is_given_up(tmp_path):
    """It lives, but takes no part: after the timeout the other leaves."""

    def main():
        join("gloo", timeout_minutes=1 / 60)
        if torch.distributed.get_rank() == 1:
            time.sleep(300)
            return
        with distributed.report_lost_rank():
            torch.distributed.all_reduce(torch.ones(1))

    started = start_ranks(main, 2)
    started.until(0, LOST)
    started.kill(1)
    assert started.codes()[0] == 75
    assert re.search("[Tt]imed out", started.said(0))


def test_what_was_trained_until_then_is_gone_on_with(tmp_path):
    """Killed in the second epoch, and started again: as if nothing had happened."""
    codes, _ = outcome(train, 2, tmp_path / "whole", 3)
    assert codes == [0, 0]
    started = start_ranks(run, 2, train, tmp_path / "killed", 3, None, 4, 0.02)
    started.until(1, "epoch 2, batch 5")
    started.kill(1)
    assert started.codes()[1] == -9
    codes, said = outcome(train, 2, tmp_path / "killed", 3)
    assert codes == [0, 0], said
    assert "trained, 18 steps" in said[0]
    for one, other in zip(weights(tmp_path / "whole", 2), weights(tmp_path / "killed", 2)):
        assert all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------ another number of ranks


@pytest.mark.parametrize("before, after", [(2, 2), (2, 1), (1, 2)])
def test_another_number_says_what_changes(tmp_path, before, after):
    assert outcome(train, before, tmp_path, 1)[0] == [0] * before
    codes, said = outcome(train, after, tmp_path, 2)
    assert codes == [0] * after, said
    line = f"Trained by {before} process(es) so far, by {after} from now on: a step takes"
    assert said[0].count(line) == (before != after)
    assert (f"{after / before:.3g} times as many" in said[0]) == (before != after)
    assert all(line not in text for text in said[1:])
    assert f"trained, {12 // before + 12 // after} steps" in said[0]


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_within_an_epoch_another_number_is_refused(tmp_path, before, after):
    assert outcome(train, before, tmp_path, 1)[0] == [0] * before
    started = start_ranks(run, before, train, tmp_path, 3, None, 4, 0.02)
    started.until(0, "saved")
    for rank in range(before):
        started.kill(rank)
    started.codes()
    codes, said = outcome(train, after, tmp_path, 3)
    assert codes == [2] * after
    told = re.search(r"error: (\S+): was saved within an epoch by (\d)", said[0])
    assert int(told[2]) == before and "would divide otherwise" in said[0]
    # What the message says does help.
    os.rename(told[1], tmp_path / "moved away")
    codes, said = outcome(train, after, tmp_path, 3)
    assert codes == [0] * after and "process(es) so far" in said[0]


# ------------------------------------------------------------------ the first step


def shift_a_weight(brain):
    if torch.distributed.get_rank() == 1:
        with torch.no_grad():
            brain.modules["head"].weight[0, 0] += 1e-6


def change_the_rate(brain):
    if torch.distributed.get_rank() == 1:
        brain.optimizer.param_groups[0]["lr"] = 0.02


def change_a_moment(brain):
    if torch.distributed.get_rank() == 1:
        for state in brain.optimizer.state.values():
            state["exp_avg"] += 1e-6


def change_accumulation(brain):
    if torch.distributed.get_rank() == 1:
        brain.grad_accumulation_factor = 3


DIFFERENCES = {
    "a weight": (shift_a_weight, r"differ before the first step: head.weight\."),
    "the rate": (change_the_rate, r"opt_class's learning rate \(0.01 and 0.02\)"),
    "accumulation": (change_accumulation, r"grad_accumulation_factor \(1 and 3\)"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_ranks_that_differ_are_named(tmp_path, difference):
    change, message = DIFFERENCES[difference]
    codes, said = outcome(train, 2, tmp_path, 1, change)
    assert codes == [2, 2], said
    for text in said:  # each process says the same
        assert "error: processes 0 and 1 differ" in text
        assert re.search(message, text), text
        assert "batch 1" not in text


def test_an_optimizer_that_was_resumed_differently_is_named(tmp_path):
    assert outcome(train, 2, tmp_path, 1)[0] == [0, 0]
    codes, said = outcome(train, 2, tmp_path, 2, change_a_moment)
    assert codes == [2, 2] and "exp_avg of parameter 0" in said[0], said


def test_data_that_are_not_divided_are_named(tmp_path):
    def train_undivided(folder):
        train(folder, divided=False)

    codes, said = outcome(train_undivided, 2, tmp_path)
    assert codes == [2, 2]
    for text in said:
        assert "processes 0 and 1 have the same items in their first batch" in text


def test_epochs_of_another_length_are_named():
    """They would make one process wait for ever at the end of the epoch."""

    def compare():
        rank = torch.distributed.get_rank()
        _check_agreement(
            {"batches of the epoch": 10 + rank // 2, "lr": 0.1}, [f"item {rank}"]
        )

    started = start_ranks(lambda: run(compare), 3)
    assert started.codes() == [2, 2, 2]
    for rank in range(3):
        said = started.said(rank)
        assert "processes 0 and 2 differ" in said
        assert "batches of the epoch (10 and 11)" in said and "lr" not in said


def test_what_agrees_is_looked_at_once(monkeypatch):
    calls = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "_check_agreement", lambda *given: calls.append(given))
    module, parameter = torch.nn.Linear(2, 1), torch.nn.Parameter(torch.ones(1))
    brain = SimpleNamespace(
        modules=module,
        optimizers_dict={"opt": torch.optim.SGD([parameter], lr=0.1)},
        step=0,
        optimizer_step=0,
        grad_accumulation_factor=1,
        precision="fp32",
    )
    distributed.check_first_step(brain, SimpleNamespace(id=["a"]))
    assert brain.ranks_agree  # and so it is not looked at again
    assert len(calls) == 1 and calls[0][1] == ["a"]
    assert {"weight", "bias", "opt's learning rate"} < set(calls[0][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_fingerprints_see_every_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
    same = tensor.t().contiguous().t()  # other strides
    assert _digest(tensor) == _digest(same)
    for place in range(15):
        changed = tensor.clone()
        changed.view(-1)[place] = 1 - changed.view(-1)[place].to(torch.int64)
        assert _digest(tensor) != _digest(changed)
    assert _digest(tensor) != _digest(tensor.reshape(5, 3))
    assert _digest(torch.tensor(1.0)) != _digest(torch.empty(0))


# ------------------------------------------------------------------ joining


def test_what_cannot_join_is_said(monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(UserError, match="rank_timeout_minutes: is 0; expected more than 0"):
        join("gloo", 0)
    with pytest.raises(UserError, match="process 1 cannot join the others"):
        join("gloo", 0.01)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="has no GPU: there are 1; .*--nproc_per_node=1"):
        join("nccl")


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes"), distributed.report_lost_rank():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (gloo)")
    assert not _is_of_ranks(torch.OutOfMemoryError("CUDA out of memory"))
