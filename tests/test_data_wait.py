"""The share of training that waited for data, as the log tells it, on a clock of our own."""

import csv
from types import SimpleNamespace

import pytest
from toy_recipe import ToyBrain, ToyData, toy

from unified_se_ss import training
from unified_se_ss.data.dataset import collate
from unified_se_ss.training import brain as brain_module
from unified_se_ss.training.brain import Progress


@pytest.fixture
def clock(monkeypatch):
    """Goes on when it is told to."""
    clock = SimpleNamespace(seconds=0.0)
    clock.perf_counter = lambda: clock.seconds
    monkeypatch.setattr(brain_module, "time", clock)
    return clock


@pytest.mark.parametrize("reads, steps", [(3.0, 1.0), (0.0, 2.0), (5.0, 0.0), (0.5, 4.5)])
def test_reading_counts_and_stepping_does_not(clock, reads, steps):
    class Slow:
        def __len__(self):
            return 4

        def __iter__(self):
            for number in range(4):
                clock.seconds += reads
                yield number

    progress = Progress(Slow(), dict, "", show=False)
    for _ in progress:
        clock.seconds += steps
    timing = progress.timing()
    assert timing["data_wait"] == pytest.approx(reads / (reads + steps), abs=1e-4)
    assert timing["minutes"] == pytest.approx(4 * (reads + steps) / 60, abs=1e-3)


def test_an_epoch_without_batches_has_waited_for_nothing(clock):
    progress = Progress([], dict, "", show=False)
    assert list(progress) == [] and progress.timing() == {"minutes": 0.0, "data_wait": 0.0}


def test_a_slow_data_set_shows_in_the_log_of_a_run(clock, tmp_path, capsys):
    """Eight items of 3 s each in batches of two, and steps of 2 s: 24 of 32 s."""

    class Slow(ToyData):
        def __getitem__(self, key):
            clock.seconds += 3.0 * self.subset.startswith("train")
            return super().__getitem__(key)

    class Timed(ToyBrain):
        def compute_forward(self, batch, stage):
            clock.seconds += 2.0 * (stage.name == "TRAIN")
            return super().compute_forward(batch, stage)

    brain, loaders = toy(tmp_path, Timed, granularity="parameter")
    keys = {"batch_size": 2, "batch_seconds": None, "valid_batch_size": 2, "seed": 7}
    slow = training.make_loaders(
        {"train": Slow("train")}, collate, {**keys, "num_workers": 0}
    )
    brain.train_sampler = slow["train"].batch_sampler
    brain.fit(brain.hparams.epoch_counter, slow["train"], loaders["dev"])
    with open(tmp_path / "timing.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["data_wait"]) for row in rows] == [0.75, 0.75]
    assert [float(row["minutes"]) for row in rows] == [0.533, 0.533]
    assert "75 % of 0.5 min waited for data" in capsys.readouterr().out
