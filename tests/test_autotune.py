"""--batch_seconds auto: the largest that fits, found without a trace, and kept."""

import json
import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from forked_ranks import start_ranks
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from toy_recipe import ToyBrain, ToyData, toy

from unified_se_ss import training
from unified_se_ss.data.dataset import Example, collate
from unified_se_ss.errors import UserError
from unified_se_ss.training import autotune
from unified_se_ss.training.autotune import (
    TrialSteps,
    find_batch_seconds,
    load_batch_seconds,
    restoring,
)
from unified_se_ss.training.distributed import join
from unified_se_ss.training.hparams import load_hparams
from unified_se_ss.training.sanity_check import full_check

LONGEST, SAMPLES = 1.0 + 0.1 * 7, 136  # of the items of the toy, at 80 Hz
AUTO = {"batch_size": None, "batch_seconds": "auto", "valid_batch_size": 2, "seed": 7}


class Cramped(ToyBrain):
    """Has no room for more than so many samples, and a few for each item."""

    room, item_costs = 500, 0

    def compute_forward(self, batch, stage):
        self.modules.network.needed = batch.mixture.numel() + self.item_costs * len(batch)
        if self.modules.network.needed > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")
        return super().compute_forward(batch, stage)


class Pretended:
    """A GPU whose bytes are what Cramped says that it needs."""

    limit = 10**6

    def __init__(self, brain):
        self.network = brain.modules.network

    def now(self):
        return 0

    def peak(self, run):
        try:
            run()
        except torch.OutOfMemoryError:
            return None
        return self.network.needed


class ManyShort(ToyData):
    """Three items of 1.7 s, twelve of half a second."""

    def __init__(self, subset):
        super().__init__(subset)
        self.durations = 3 * [LONGEST] + 12 * [0.5]

    def __len__(self):
        return 15

    def __getitem__(self, key):
        samples = round(80 * self.durations[key[1]])
        mixture = torch.ones(samples)
        return Example(f"{self.subset}-{key[1]}", mixture, mixture[None] / 2)


def make(
    folder, monkeypatch, brain_class=Cramped, memory=Pretended, data=ToyData, **hparams
):
    """A Brain of the toy recipe whose batches shall be as large as fits."""
    hparams = {"sample_rate": 80, "granularity": "parameter", **hparams}
    brain, _ = toy(folder, brain_class, batch_seconds="auto", **hparams)
    datasets = {"train": data("train"), **{s: ToyData(s) for s in ("dev", "test")}}
    brain.loaders = training.make_loaders(datasets, collate, {**AUTO, "num_workers": 0})
    brain.train_sampler = brain.loaders["train"].batch_sampler
    brain.checkpointer.add_recoverable("dataloader-TRAIN", brain.loaders["train"])
    monkeypatch.setattr(autotune, "memory_of", lambda device: memory(brain))
    return brain


def fit(brain):
    load_batch_seconds(brain)
    brain.fit(brain.hparams.epoch_counter, brain.loaders["train"], brain.loaders["dev"])
    return {name: tensor.clone() for name, tensor in brain.modules.state_dict().items()}


# ------------------------------------------------------------------ how much fits


@pytest.mark.parametrize("room, items", [(271, 1), (272, 2), (9999, 6)])
def test_as_many_of_the_longest_items_as_fit(tmp_path, monkeypatch, capsys, room, items):
    monkeypatch.setattr(Cramped, "room", room)
    brain = make(tmp_path, monkeypatch)
    brain.on_fit_start()
    # The eight items last 10.8 s: more than six of the longest would be no batch.
    assert brain.hparams.batch_seconds == brain.train_sampler.batch_seconds
    assert brain.train_sampler.batch_seconds == items * LONGEST
    kept = json.loads((tmp_path / "batch_seconds.json").read_text())
    assert kept["longest_items"] == items
    assert f"batch_seconds: {items * LONGEST:g}" in capsys.readouterr().out
    for keys in brain.loaders["train"].batch_sampler:
        longest = max(80 + 8 * key.index for key in keys)
        assert longest * len(keys) <= room


def test_what_many_short_items_cost_is_tried_too(tmp_path, monkeypatch):
    """Three long ones fit; the ten short ones that last no longer would not."""
    monkeypatch.setattr(Cramped, "room", 3 * (SAMPLES + 40))  # ten short: 10 * (40 + 40)
    monkeypatch.setattr(Cramped, "item_costs", 40)
    brain = make(tmp_path, monkeypatch, data=ManyShort)
    brain.on_fit_start()
    assert brain.train_sampler.batch_seconds == 2 * LONGEST  # six short ones: 480
    fit(brain)  # and so no batch of the run is too large


def test_the_margin_is_left(tmp_path, monkeypatch):
    """What fits, but not into the limit, is too much."""
    monkeypatch.setattr(Pretended, "limit", 400)
    brain = make(tmp_path, monkeypatch)
    brain.on_fit_start()
    assert brain.train_sampler.batch_seconds == 2 * LONGEST


def test_one_item_that_does_not_fit_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(Cramped, "room", 100)
    brain = make(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"longest item \(1.7 s\) alone does not fit"):
        brain.on_fit_start()
    assert not (tmp_path / "batch_seconds.json").exists()


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    class Wrong(ToyBrain):
        def compute_forward(self, batch, stage):
            raise RuntimeError("shapes cannot be multiplied")

    brain = make(tmp_path, monkeypatch, Wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        brain.on_fit_start()


def test_what_a_gpu_is_asked(monkeypatch):
    """The limit is nine tenths of what is free or ours; too much is None, not an error."""
    reserved = {"now": 30, "peak": 0}
    answers = {
        "empty_cache": lambda: None,
        "synchronize": lambda device: None,
        "mem_get_info": lambda device: (70, 200),
        "memory_reserved": lambda device: reserved["now"],
        "reset_peak_memory_stats": lambda device: reserved.update(peak=reserved["now"]),
        "max_memory_reserved": lambda device: reserved["peak"],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    memory = autotune.memory_of("cuda:0")
    assert memory.limit == 90
    assert memory.peak(lambda: reserved.update(peak=55)) == 55

    def fails(error):
        raise error

    assert memory.peak(lambda: fails(torch.OutOfMemoryError("CUDA out of memory"))) is None
    with pytest.raises(RuntimeError, match="shapes"):
        memory.peak(lambda: fails(RuntimeError("shapes differ")))


def test_shorter_recordings_than_promised_are_reckoned_with(tmp_path, monkeypatch):
    """Items that come out at half their length count as whole ones."""
    monkeypatch.setattr(Pretended, "limit", 500)
    brain = make(tmp_path, monkeypatch, sample_rate=160)
    brain.on_fit_start()
    assert brain.train_sampler.batch_seconds == 1 * LONGEST


# ------------------------------------------------------------------ no trace


class Moved(ToyBrain):
    """Draws from every generator, keeps a buffer, and has a schedule by steps."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.modules.network.register_buffer("seen", torch.zeros(()))
        self.opt_class = lambda parameters: torch.optim.Adam(parameters, lr=0.01)
        self.checkpointer.add_recoverable("schedule", Schedule())

    def compute_forward(self, batch, stage):
        if stage.name == "TRAIN":
            self.modules.network.seen += 1
            random.random(), np.random.rand()
        return super().compute_forward(batch, stage)

    def on_fit_batch_start(self, batch, should_step):
        super().on_fit_batch_start(batch, should_step)
        schedule = self.checkpointer.recoverables["schedule"]
        schedule.count += should_step
        self.optimizer.param_groups[0]["lr"] = 0.01 / (1 + schedule.count)


@register_checkpoint_hooks
class Schedule:
    def __init__(self):
        self.count = 0

    @mark_as_saver
    def save(self, path):
        path.write_text(str(self.count))

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.count = int(path.read_text())


def states_of(brain):
    """All that a later step depends on, as text, which shows every bit."""
    values = {
        "brain": {k: v for k, v in vars(brain).items() if isinstance(v, (int, float, str))},
        "weights": brain.modules.state_dict(),
        "optimizer": brain.optimizer.state_dict(),
        "gradients": brain.gradients.state_dict(),
        "monitor": brain.monitor.state_dict(),
        "means": brain.means.read(),
        "schedule": brain.checkpointer.recoverables["schedule"].count,
        "random": (
            random.getstate(),
            np.random.get_state(),
            torch.get_rng_state().tolist(),
        ),
        "training": [module.training for module in brain.modules.modules()],
        "gradient": [p.grad for p in brain.modules.parameters()],
    }
    torch.set_printoptions(precision=17)
    try:
        return repr(values)
    finally:
        torch.set_printoptions(profile="default")


@pytest.mark.parametrize("fails", [False, True])
def test_trial_steps_leave_no_trace(tmp_path, monkeypatch, fails):
    brain = make(tmp_path, monkeypatch, Moved)
    monkeypatch.setattr(
        "unified_se_ss.training.recipe_brain.find_batch_seconds", lambda brain: None
    )
    brain.on_fit_start()
    brain.rows, brain.stage = ["mine"], "mine"
    before = states_of(brain)
    with suppress(KeyError), restoring(brain):
        steps = TrialSteps(brain)
        steps.optimizer_step(steps.batch(2)[0])
        assert brain.optimizer.state_dict()["state"] and brain.optimizer_step == 1
        moved = states_of(brain)
        if fails:
            raise KeyError("stopped")
        steps.forward_and_backward(steps.batch(3)[0])
    assert moved != before
    assert states_of(brain) == before
    assert brain.rows == ["mine"] and brain.stage == "mine"
    assert not (tmp_path / ".trial").exists()


def test_a_run_has_the_bits_of_one_that_was_told_the_number(tmp_path, monkeypatch):
    (tmp_path / "auto").mkdir()
    (tmp_path / "told").mkdir()
    found = make(tmp_path / "auto", monkeypatch)
    trained = fit(found)
    told = make(tmp_path / "told", monkeypatch)
    told.hparams.batch_seconds = 3 * LONGEST
    told.train_sampler.set_batch_seconds(3 * LONGEST)
    for name, tensor in fit(told).items():
        assert torch.equal(tensor, trained[name]), name
    logs = [(tmp_path / n / "train_log.csv").read_text() for n in ("auto", "told")]
    assert logs[0] == logs[1]


# ------------------------------------------------------------------ kept


def test_the_same_command_goes_on_with_what_was_found(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = fit(make(tmp_path / "whole", monkeypatch))
    first = make(tmp_path / "parts", monkeypatch)
    first.hparams.epoch_counter.limit = 1
    fit(first)
    monkeypatch.setattr(Cramped, "room", 10**6)  # by now there would be more
    second = make(tmp_path / "parts", monkeypatch)

    def never(device):
        raise AssertionError("measured again")

    monkeypatch.setattr(autotune, "memory_of", never)
    for name, tensor in fit(second).items():
        assert torch.equal(tensor, whole[name]), name
    assert second.train_sampler.batch_seconds == 3 * LONGEST


def test_what_was_found_and_lost_is_missed(tmp_path, monkeypatch):
    fit(make(tmp_path, monkeypatch))
    path = tmp_path / "batch_seconds.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="does not hold batch_seconds"):
        load_batch_seconds(make(tmp_path, monkeypatch))
    path.unlink()
    with pytest.raises(UserError, match="is not there, but checkpoints are"):
        load_batch_seconds(make(tmp_path, monkeypatch))


# ------------------------------------------------------------------ what may be asked


def test_both_measures_of_a_batch_are_refused():
    datasets = {"train": ToyData("train")}
    with pytest.raises(UserError, match="batch_size is 8 and batch_seconds is auto"):
        training.make_loaders(
            datasets, collate, {**AUTO, "batch_size": 8, "num_workers": 0}
        )


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_another_device_than_a_gpu_is_refused(device):
    with pytest.raises(UserError, match=f"auto needs a GPU; on {device} set a number"):
        autotune.memory_of(device)


def test_a_check_finds_it_or_takes_what_the_run_has_found(tmp_path, monkeypatch, capsys):
    brain = make(tmp_path, monkeypatch)
    assert full_check(brain, brain.loaders) == 0
    told = capsys.readouterr().out
    assert "batch_seconds: 5.1 (3 of the longest items" in told
    assert "3 items, " in told.partition("longest batch")[2].partition("\n")[0]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "hyperparams.yaml").write_text("{}")
    (tmp_path / "own" / "batch_seconds.json").write_text('{"batch_seconds": 3.5}')
    folder = load_hparams(brain.hparams.options)["output_folder"]
    again = make(tmp_path, monkeypatch)
    again.hparams.output_folder = folder
    load_batch_seconds(again)
    assert again.train_sampler.batch_seconds == again.hparams.batch_seconds == 3.5


def test_nothing_is_looked_at_unless_asked_for(tmp_path, monkeypatch):
    brain = make(tmp_path, monkeypatch, memory=None)
    brain.hparams.batch_seconds = 4.0
    load_batch_seconds(brain)
    find_batch_seconds(brain)
    assert not (tmp_path / "batch_seconds.json").exists()


# ------------------------------------------------------------------ two ranks


def agree(folder, rooms):
    """What each rank does: it has a room of its own."""
    join("gloo")
    rank = torch.distributed.get_rank()
    Cramped.room = rooms[rank]
    patch = pytest.MonkeyPatch()
    brain = make(folder, patch)
    brain.on_fit_start()
    print(f"found {brain.train_sampler.batch_seconds / LONGEST:.3f}")
    brain.fit = None


@pytest.mark.parametrize(
    "rooms, items", [((300, 9999), 2), ((9999, 140), 1), ((9999, 9999), 3)]
)
def test_two_ranks_agree_on_the_least(tmp_path, rooms, items):
    ranks = start_ranks(agree, 2, tmp_path, rooms)
    codes = ranks.codes()
    assert codes == [0, 0], ranks.said(0) + ranks.said(1)
    for rank in range(2):
        assert f"found {items}.000" in ranks.said(rank)
    kept = json.loads((tmp_path / "batch_seconds.json").read_text())
    assert kept["longest_items"] == items
