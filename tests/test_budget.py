"""budget_minutes: the schedule follows the share of the time that is used, also when resumed."""

from types import SimpleNamespace

import pytest
import torch
from forked_ranks import start_ranks
from speechbrain.nnet.schedulers import (
    LinearScheduler,
    LinearWarmupScheduler,
    ReduceLROnPlateau,
)
from toy_recipe import ToyBrain, fit, toy

from unified_se_ss.training import TrainLog, recipe_brain
from unified_se_ss.training.distributed import join

EPOCHS, BATCHES = 4, 4  # of the toy, eight items in batches of two
RATES = [0.4, 0.3, 0.2, 0.1]


class Clock:
    """A clock that only batches move on."""

    def __init__(self, now=1000.0):
        self.now = now

    def monotonic(self):
        return self.now


class Killed(Exception):
    """A run that was killed."""


class Timed(ToyBrain):
    """Each batch takes ten seconds; notes the learning rates, and is killed where asked."""

    killed_at = killed_in_validation = None

    def on_fit_batch_start(self, batch, should_step):
        super().on_fit_batch_start(batch, should_step)
        self.seen.append(round(self.optimizer.param_groups[0]["lr"], 6))

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.clock.now += self.batch_seconds
        if len(self.seen) == self.killed_at:
            self._save_intra_epoch_ckpt()
            self.clock.now += 5000  # after the checkpoint, so it is no time of the run
            raise Killed

    def evaluate_batch(self, batch, stage):
        if self.killed_in_validation:
            self.step = self._batches  # as a signal in validation has it
            self._save_intra_epoch_ckpt()
            raise Killed
        return super().evaluate_batch(batch, stage)


def make(folder, monkeypatch, seconds, clock=None, batch_seconds=10, **changes):
    """A Brain of the toy with a budget, and what it needs to be run."""
    clock = clock or Clock()
    monkeypatch.setattr(recipe_brain, "time", SimpleNamespace(monotonic=clock.monotonic))
    keys = {
        "lr_scheduler": LinearScheduler(RATES[0], RATES[-1], EPOCHS),
        "number_of_epochs": EPOCHS,
        "granularity": "parameter",
        "budget_minutes": None if seconds is None else seconds / 60,
        **changes,
    }
    brain, loaders = toy(folder, Timed, **keys)
    brain.hparams.epoch_counter.limit = EPOCHS
    brain.clock, brain.batch_seconds, brain.seen = clock, batch_seconds, []
    brain.checkpointer.add_recoverable("dataloader-TRAIN", loaders["train"])
    opt_class = brain.opt_class
    brain.opt_class = lambda parameters: _with_rate(opt_class(parameters), RATES[0])
    return brain


def _with_rate(optimizer, rate):
    optimizer.param_groups[0]["lr"] = rate
    return optimizer


def epochs(folder):
    return [row["epoch"] for row in TrainLog(folder).rows]


def rates(shares):
    """The learning rates that belong to some shares of the budget."""
    return [RATES[min(EPOCHS - 1, int(EPOCHS * share))] for share in shares]


def test_a_machine_that_is_fast_enough_trains_as_without_a_budget(tmp_path, monkeypatch):
    for name in ("limited", "free"):
        (tmp_path / name).mkdir()
    brain = make(tmp_path / "limited", monkeypatch, seconds=161)
    limited = fit(brain)
    free = fit(make(tmp_path / "free", monkeypatch, seconds=None))
    assert all(map(torch.equal, limited, free))
    assert brain.seen == [rate for rate in RATES for _ in range(BATCHES)]
    assert TrainLog(tmp_path / "limited").rows == TrainLog(tmp_path / "free").rows


def test_on_a_slow_one_the_learning_rate_follows_the_time(tmp_path, monkeypatch, capsys):
    brain = make(tmp_path, monkeypatch, seconds=60)
    fit(brain)
    assert brain.seen == rates(k / 6 for k in range(6))
    assert epochs(tmp_path) == [1, 2]
    printed = capsys.readouterr().out
    assert "1.0 of 1 minutes" in printed
    assert "budget_minutes: used up in epoch 2 of 4" in printed


def test_one_batch_may_be_all_that_there_is_time_for(tmp_path, monkeypatch):
    brain = make(tmp_path, monkeypatch, seconds=3)
    fit(brain)
    assert len(brain.seen) == 1 and epochs(tmp_path) == [1]


@pytest.mark.parametrize("killed_at", (1, 3, 5))
def test_a_run_that_is_resumed_goes_on_with_the_time_it_had(
    tmp_path, monkeypatch, killed_at
):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = make(tmp_path / "whole", monkeypatch, seconds=60)
    expected = fit(whole)
    first = make(tmp_path / "killed", monkeypatch, seconds=60)
    first.killed_at = killed_at
    with pytest.raises(Killed):
        fit(first)
    again = make(tmp_path / "killed", monkeypatch, seconds=60, clock=Clock(3e6))
    assert all(map(torch.equal, fit(again), expected))
    assert first.seen + again.seen == whole.seen
    assert TrainLog(tmp_path / "killed").rows == TrainLog(tmp_path / "whole").rows


def test_the_last_epoch_is_validated_after_a_kill_in_its_validation(tmp_path, monkeypatch):
    first = make(tmp_path, monkeypatch, seconds=20)
    first.killed_in_validation = True
    with pytest.raises(Killed):
        fit(first)
    again = make(tmp_path, monkeypatch, seconds=20)
    fit(again)
    assert again.seen == [] and epochs(tmp_path) == [1]


def test_what_is_spent_trains_no_more_and_more_minutes_go_on(tmp_path, monkeypatch):
    fit(make(tmp_path, monkeypatch, seconds=60))
    spent = make(tmp_path, monkeypatch, seconds=60)
    fit(spent)
    assert spent.seen == [] and epochs(tmp_path) == [1, 2]
    more = make(tmp_path, monkeypatch, seconds=1e6)
    fit(more)
    assert epochs(tmp_path) == [1, 2, 3, 4]


def test_gradients_that_wait_for_their_step_are_not_lost(tmp_path, monkeypatch):
    brain = make(tmp_path, monkeypatch, seconds=20)
    brain.grad_accumulation_factor = 3
    fit(brain)
    assert len(brain.seen) == 3 and not brain.gradients.pending


def test_a_schedule_of_steps_follows_and_one_of_the_validation_does_not(
    tmp_path, monkeypatch
):
    steps = LinearWarmupScheduler(0.4, 2, EPOCHS * BATCHES)
    brain = make(tmp_path / "..", monkeypatch, seconds=80, lr_scheduler=steps)
    brain._epoch, brain._batches = 1, BATCHES
    brain.budget.used = 40.0
    assert not brain.ends_early()
    assert steps.current_step == 2 * BATCHES
    brain.hparams.lr_scheduler = ReduceLROnPlateau()
    assert not brain.ends_early()  # goes on as it is


def of_a_rank(folder):
    """Each rank has a clock of its own; the first one's counts."""
    join("gloo")
    rank = torch.distributed.get_rank()
    patch = pytest.MonkeyPatch()
    brain = make(folder, patch, seconds=60, batch_seconds=(20, 1)[rank])
    brain.distributed_launch = True
    fit(brain)
    print("rates", brain.seen)


def test_all_ranks_go_by_the_first_ones_clock(tmp_path):
    ranks = start_ranks(of_a_rank, 2, tmp_path)
    assert ranks.codes() == [0, 0], ranks.said(0) + ranks.said(1)
    expected = f"rates {rates(k / 3 for k in range(3))}"
    assert expected in ranks.said(0) and expected in ranks.said(1)
