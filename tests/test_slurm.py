"""scripts/train.slurm, with stand-ins for Slurm's commands, torchrun's own and two ranks."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_ranks import free_port

SCRIPT = Path(__file__).parent.parent / "scripts" / "train.slurm"
# Both ranks do what the first argument says; "wait" is a run that saves when it is asked to.
TRAIN = """
import os, signal, sys, time
def leave(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGUSR1, leave)
os.write(1, f"rank {os.environ['RANK']} {sys.argv[1:]}\\n".encode())  # in one piece
if sys.argv[1] == "wait":
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""
JOB = f"{os.getpid()}{free_port()}"  # no other job of this machine gets its signals
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo localhost
[ "$1" = requeue ] && echo "$2" >> requeued
exit 0
"""


@pytest.fixture
def cluster(tmp_path):
    """A folder with a train.py, and Slurm's commands before all others."""
    commands = tmp_path / "bin"
    commands.mkdir()
    torchrun = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    scripts = {"srun": SRUN, "scontrol": SCONTROL, "torchrun": torchrun}
    for name, text in scripts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


def start(folder, what):
    """The script as a job of one node with two ranks."""
    slurm = {"JOB_NODELIST": "localhost", "NNODES": 1, "GPUS_ON_NODE": 2, "JOB_ID": JOB}
    variables = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    variables |= {"PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    variables["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", SCRIPT, what, "--lr", "0.1"],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=open(folder / "log", "w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def ended(job, folder):
    """The exit code, what was said, and which jobs were put into the queue again."""
    code = job.wait(120)
    requeued = folder / "requeued"
    again = requeued.read_text().split() if requeued.exists() else []
    return code, (folder / "log").read_text(), again


@pytest.mark.parametrize(
    "what, code, again", [("0", 0, []), ("75", 75, [JOB]), ("2", 1, [])]
)
def test_only_what_shall_be_tried_again_is_queued_again(cluster, what, code, again):
    left, said, requeued = ended(start(cluster, what), cluster)
    assert (left, requeued) == (code, again), said
    # The launcher ends the other rank, perhaps before it said anything, when one fails.
    assert said.count(f"['{what}', '--lr', '0.1']") >= (1 if code else 2)


@pytest.mark.skipif(shutil.which("pkill") is None, reason="there is no pkill")
def test_before_the_time_limit_training_is_asked_to_save(cluster):
    job = start(cluster, "wait")
    for _ in range(600):
        if (cluster / "log").read_text().count("rank") == 2:
            break
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    left, said, requeued = ended(job, cluster)
    assert (left, requeued) == (75, [JOB]), said
    assert "saved" in said
