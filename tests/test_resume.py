"""Nothing lost: a run that is killed or told to leave ends with the same bits."""

import math
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from faults import install, interrupt, kill, kill_after, terminate, truncate_and_kill
from forked_ranks import start_ranks
from librimix import make_tree
from running import fork, rows, run_here
from test_train import command

from unified_se_ss.errors import UserError
from unified_se_ss.training.run_folder import lock_folder

NAME = "hparams/libri2mix_noisy_dprnn.yaml"
FORWARD = "unified_se_ss.networks:UnifiedNetwork.forward"
LOGS = ("train_log.csv", "train_log.txt", "gradients.csv", "results.csv", "summary.json")
FLAGS = ("--grad_accumulation_factor", "3", "--ckpt_interval_steps", "2")
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny tree, and folders of single utterances and noises to mix on the fly."""
    folder = tmp_path_factory.mktemp("data")
    tree = make_tree(folder, counts=(7, 3, 3))
    for speaker in range(3):
        place = folder / "speech" / f"speaker{speaker}"
        place.mkdir(parents=True)
        for number in range(2):
            stem = f"s{1 + speaker % 2}/train-360-{number + speaker}.wav"
            shutil.copy(tree / "wav8k/min/train-360" / stem, place / f"{number}.wav")
    (folder / "noise").mkdir()
    shutil.copy(tree / "wav8k/min/dev/noise/dev-0.wav", folder / "noise")
    return tree


def mixing(tree):
    """Overrides that mix on the fly, with speed perturbation, in crops."""
    return {
        "dynamic_mixing": True,
        "dynamic_speech_folder": tree.parent / "speech",
        "dynamic_noise_folder": tree.parent / "noise",
        "dynamic_items": 7,
        "segment_seconds": 0.3,
        "save_waves": 1,
    }


class Runs:
    """Runs of one experiment in one folder, started again and again."""

    def __init__(self, tree, folder, *flags, **overrides):
        self.tree, self.folder = tree, folder
        self.flags, self.overrides = (*FLAGS, *flags), overrides
        self.log = folder.with_suffix(".log")

    def __call__(self, *fault):
        """Run train.py in this process, with a fault."""
        if fault:
            install(*fault)
        run_here(*command(NAME, self.tree, self.folder, *self.flags, **self.overrides))

    def start(self, fault=(), kill_after=math.inf, **overrides):
        """The exit code of a run in a process of its own, killed after so many CPU seconds."""
        self.overrides |= overrides
        pid, self.seconds = fork(lambda: self(*fault), self.log), 0.0
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.seconds = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
            if self.seconds >= kill_after:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def printed(self):
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]


def fault(where, what=kill, call=1):
    if where == FORWARD:
        call += 2  # the look at an item each of validation and test, before all else
    return where, what, call


def bits(folder):
    """All that a run leaves which follows from its settings: files, and states' checksums."""
    found = {name: (folder / name).read_bytes() for name in LOGS}
    for path in sorted((folder / "wavs").rglob("*.wav")):
        found[str(path.relative_to(folder))] = path.read_bytes()
    metas = {
        p: yaml.safe_load(p.read_text()) for p in (folder / "save").glob("*/CKPT.yaml")
    }
    newest = max(metas, key=lambda path: metas[path]["unixtime"])
    for path in newest.parent.glob("*.ckpt"):
        if path.name != "budget.ckpt":  # the time that training took
            found[path.name] = path.read_bytes()
    return found


def lock_elsewhere(folder, log):
    """Lock a folder in another process, which runs on; its number."""
    pid = fork(lambda: (lock_folder(folder), print("locked"), time.sleep(100)), log)
    while not (log.is_file() and "locked" in log.read_text()):
        time.sleep(0.01)
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def assert_same_bits(one, other):
    a, b = bits(one), bits(other)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == b[name], name
    hidden = [p.name for p in other.rglob(".*") if p.is_file() and p.name != ".lock"]
    assert not hidden and not list((other / "save").glob(".*"))


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """A run that nothing has disturbed."""
    runs = Runs(data, tmp_path_factory.mktemp("whole") / "run", **mixing(data))
    assert runs.start() == 0, runs.printed()
    assert len(rows(runs.folder / "train_log.csv")) == 2
    assert "data_wait" in rows(runs.folder / "timing.csv")[0]
    return runs.folder


KILLS = [
    fault(FORWARD, call=5),  # between the micro-batches of a step
    fault("torch:save", call=3),  # between two files of a checkpoint
    fault("torch:save", truncate_and_kill, 2),  # in the middle of a file
    fault("shutil:rmtree"),  # before the old checkpoint is deleted
    fault("unified_se_ss.training.log:atomic_write", kill_after),  # between two logs
    fault("unified_se_ss.evaluation.rows:evaluate_item", call=2),
    fault("unified_se_ss.evaluation.report:_write_report"),
]


def test_kills_at_every_kind_of_step_change_no_bit(data, tmp_path, reference):
    """Also: one process that reads, or two, makes no difference."""
    runs = Runs(data, tmp_path / "run", **mixing(data))
    for number, fault_ in enumerate(KILLS):
        workers = 2 * (number == 1)
        assert runs.start(fault_, num_workers=workers) == KILLED, (fault_, runs.printed())
    assert runs.start(num_workers=2) == 0, runs.printed()
    assert_same_bits(reference, runs.folder)


def test_signals_save_and_leave_with_a_code(data, tmp_path, reference):
    runs = Runs(data, tmp_path / "run", **mixing(data))
    assert runs.start(fault(FORWARD, terminate, 2)) == 75
    assert "saved at epoch 1, batch 2 of 7" in runs.printed()
    # Five micro-batches are left of the epoch, then comes the validation.
    assert runs.start(fault(FORWARD, terminate, 7)) == 75
    assert "saved at epoch 1, before its validation" in runs.printed()
    plots = "unified_se_ss.training.recipe_brain:curves_png"
    assert runs.start(fault(plots, terminate)) == 75
    assert "saved at epoch 1, at its end" in runs.printed()
    assert runs.start(fault(FORWARD, interrupt, 2)) == 130
    holder = lock_elsewhere(runs.folder, tmp_path / "holder.log")
    assert runs.start() == 2
    assert f"in use by process {holder} on " in runs.printed()
    end(holder)
    assert runs.start(fault(FORWARD, terminate, 10)) == 75  # in the test
    assert "SIGTERM: stopped" in runs.printed()
    assert runs.start() == 0, runs.printed()
    assert_same_bits(reference, runs.folder)


def test_a_folder_in_use_is_refused_until_its_process_is_gone(tmp_path):
    holder = lock_elsewhere(tmp_path, tmp_path / "holder.log")
    with pytest.raises(UserError, match=f"in use by process {holder} on ") as told:
        lock_folder(tmp_path)
    assert "--output_folder" in str(told.value)
    end(holder)
    lock_folder(tmp_path)
    lock_folder(tmp_path)  # its own


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_fifty_kills_at_random_change_no_bit(data, tmp_path, workers):
    """25 for each number of processes that read, each after a random time."""
    overrides = mixing(data) if workers else {"save_waves": 1}
    overrides.update(num_workers=workers, number_of_epochs=12)
    whole = Runs(data, tmp_path / "whole", **overrides)
    assert whole.start() == 0, whole.printed()
    seconds = whole.seconds
    rng = np.random.default_rng(workers)
    runs, kills = Runs(data, tmp_path / "run", **overrides), 0
    while kills < 25:
        after = float(rng.uniform(0, seconds / 2))
        code = runs.start(kill_after=after)
        assert code in (0, KILLED), runs.printed()
        kills += code == KILLED
        if code == 0:  # to the end: once more from the beginning
            assert_same_bits(whole.folder, runs.folder)
            shutil.rmtree(runs.folder)
    assert runs.start() == 0, runs.printed()
    assert_same_bits(whole.folder, runs.folder)


@pytest.mark.slow
def test_a_signal_to_one_rank_is_obeyed_by_all(data, tmp_path):
    """Two ranks: the second gets SIGTERM; both save, leave, and go on to the same end."""

    def run(folder, *fault):
        def of_a_rank():
            Runs(data, folder, **mixing(data))(*fault if os.environ["RANK"] == "1" else ())

        ranks = start_ranks(of_a_rank, 2)
        return ranks.codes(), ranks.said(0) + ranks.said(1)

    codes, printed = run(tmp_path / "whole")
    assert codes == [0, 0], printed[-3000:]
    codes, printed = run(tmp_path / "run", *fault(FORWARD, terminate, 2))
    assert 0 not in codes
    assert printed.count("SIGTERM: saved at epoch 1, batch 3") == 2, printed[-3000:]
    assert run(tmp_path / "run")[0] == [0, 0]
    assert_same_bits(tmp_path / "whole", tmp_path / "run")
