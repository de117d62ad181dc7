"""Batches that are not finite are named in the log, without waiting for the device."""

import pytest
from toy_recipe import ToyBrain, toy


def train(folder, interval=1, **options):
    """Two epochs over the toy's items."""
    brain, loaders = toy(folder, **options)
    brain.log_interval, brain.nonfinite_patience = interval, 1000
    brain.fit(brain.hparams.epoch_counter, loaders["train"])


@pytest.mark.parametrize("interval", [1, 50])
def test_a_batch_that_overflows_is_named(tmp_path, interval, caplog):
    train(tmp_path, interval, wild=(5,))
    lines = [line for line in caplog.messages if "not finite" in line]
    assert len(lines) == 2  # one an epoch
    for epoch, line in enumerate(lines, 1):
        assert line.startswith(f"epoch {epoch}, batch ")
        assert ": not finite: main loss; its items: " in line and "train-5" in line


def test_gradients_that_are_not_finite_are_named_too(tmp_path, caplog):
    class Steep(ToyBrain):
        def compute_objectives(self, output, batch, stage):
            loss = super().compute_objectives(output, batch, stage)
            zero = (output[:, 0] - output[:, 0]).abs().sum()
            return loss._replace(total=loss.total + zero.sqrt())  # 0, with slope inf * 0

    train(tmp_path, brain_class=Steep)
    assert "epoch 1, batch 1: not finite: main gradient; its items: " in caplog.text
