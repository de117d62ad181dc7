"""RecipeBrain: a recipe of one task, from its rows to the log and the best checkpoint."""

from pathlib import Path

import pytest
import torch
from speechbrain import Stage
from speechbrain.nnet.schedulers import LinearScheduler
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch.utils.data import DataLoader

from unified_se_ss.gradients import TaskLoss
from unified_se_ss.training import RecipeBrain, TrainLog


class OneTask(RecipeBrain):
    """Least squares."""

    best = "fit"

    def compute_forward(self, batch, stage):
        return self.modules.network(batch)

    def compute_objectives(self, predictions, batch, stage):
        losses = (predictions - 1).square().sum(1)
        if stage != Stage.TRAIN:
            self.rows += [{"loss": loss, "fit": -loss} for loss in losses.tolist()]
        return TaskLoss.of(losses)


@pytest.fixture()
def brain(tmp_path):
    network, counter = torch.nn.Linear(3, 2), EpochCounter(3)
    hparams = {
        "output_folder": str(tmp_path),
        "lr_scheduler": LinearScheduler(0.1, 0.01, 3),
        "epoch_counter": counter,
        "rule": "project",
        "granularity": "parameter",
    }
    recoverables = {"network": network, "counter": counter}
    return OneTask(
        {"network": network},
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        hparams,
        {"device": "cpu", "noprogressbar": True},
        Checkpointer(str(tmp_path / "save"), recoverables),
    )


def test_a_recipe_of_one_task_learns_logs_and_keeps_its_best(brain, capsys):
    data = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    train, valid = DataLoader(data, batch_size=4), DataLoader(data, batch_size=5)
    brain.fit(brain.hparams.epoch_counter, train, valid)
    rows = TrainLog(brain.hparams.output_folder).rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"]
    assert rows[-1]["valid_fit"] == -rows[-1]["valid_loss"]
    assert rows[0]["lr"] == 0.1 and rows[2]["lr"] < 0.1
    assert "conflict_rate" not in rows[0]
    best = brain.checkpointer.find_checkpoint(max_key="fit")
    assert best.meta["fit"] == max(row["valid_fit"] for row in rows)
    assert "Epoch 3: validation fit" in capsys.readouterr().out
    assert (Path(brain.hparams.output_folder) / "curves.png").stat().st_size
