"""torchrun, with a process that is killed: others end, and a new life goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from librimix import make_tree
from running import rows
from test_train import command

HERE = Path(__file__).parent
NAME = "hparams/libri2mix_noisy_dprnn.yaml"
KILLED_AT = 5  # a step of the second epoch: there are three in each


def launch(tree, out, kill_at, restarts):
    """Run a recipe on two processes, of which one is killed in its first life."""
    arguments = command(NAME, tree, out, batch_size=1, number_of_epochs=3)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = [f"--max-restarts={restarts}", str(HERE / "mortal_train.py"), str(kill_at)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])
    return subprocess.run(
        [sys.executable, *torchrun, *script, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
        check=False,
    )


def results(out):
    """What a run leaves, but for the times that it took."""
    log = [{k: v for k, v in row.items() if k != "data_wait"} for row in rows(out / LOG)]
    return log, rows(out / "results.csv")


LOG = "train_log.csv"


@pytest.mark.slow
def test_a_killed_process_ends_all_and_max_restarts_goes_on(tmp_path):
    """With the numbers of a run that nothing happened to."""
    tree = make_tree(tmp_path)
    whole = launch(tree, tmp_path / "whole", kill_at=10**9, restarts=0)
    assert whole.returncode == 0, whole.stderr[-3000:]
    restarted = launch(tree, tmp_path / "restarted", KILLED_AT, restarts=1)
    assert restarted.returncode == 0, restarted.stderr[-3000:]
    assert "error: process 0 of 2 has lost another one and stops" in restarted.stderr
    assert "goes on from the last checkpoint" in restarted.stderr
    assert [row["epoch"] for row in rows(tmp_path / "restarted" / LOG)] == ["1", "2", "3"]
    assert results(tmp_path / "restarted") == results(tmp_path / "whole")
