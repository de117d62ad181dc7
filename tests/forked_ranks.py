"""Processes of a run as forks of the test, which spare the seconds of an import each."""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
from running import fork


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_ranks(function, count, *arguments):
    """Call a function in `count` processes, which torchrun seems to have started.

    Returns
    -------
    Ranks
        Of processes that run.
    """
    folder = Path(tempfile.mkdtemp())
    port, pids = str(free_port()), []

    def of_a_rank():
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(count), "MASTER_PORT": port}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True)
        function(*arguments)

    for rank in range(count):
        pids.append(fork(of_a_rank, folder / f"{rank}.log"))
    return Ranks(folder, pids)


def of_ranks(function, count=2):
    """What ``function(rank)`` returns in each of several gloo ranks; tensors and plain values."""
    folder = Path(tempfile.mkdtemp())

    def of_a_rank():
        rank = int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
        torch.save(function(rank), folder / f"{rank}.pt")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    ranks = start_ranks(of_a_rank, count)
    codes = ranks.codes()
    assert codes == [0] * count, [ranks.said(rank) for rank in range(count)]
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(count)]


class Ranks:
    """Processes of one run."""

    def __init__(self, folder, pids):
        self.folder, self.pids = folder, pids

    def said(self, rank):
        """What a process has printed so far."""
        return (self.folder / f"{rank}.log").read_text(errors="replace")

    def until(self, rank, text, seconds=240):
        """Wait until a process has printed something."""
        for _ in range(int(seconds / 0.01)):
            if (self.folder / f"{rank}.log").exists() and text in self.said(rank):
                return
            time.sleep(0.01)
        raise AssertionError(f"rank {rank} did not print {text!r}:\n{self.said(rank)}")

    def kill(self, rank, number=signal.SIGKILL):
        """Send a signal to a process."""
        os.kill(self.pids[rank], number)

    def codes(self, seconds=240):
        """The exit codes of all, once they have ended; what hangs is killed."""
        left, codes, until = dict(enumerate(self.pids)), {}, time.monotonic() + seconds
        while left and time.monotonic() < until:
            for rank, pid in list(left.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                    del left[rank]
            time.sleep(0.01)
        for rank, pid in left.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            codes[rank] = "hung"
        return [codes[rank] for rank in range(len(self.pids))]
