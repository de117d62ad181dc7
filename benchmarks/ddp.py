"""Several processes against one: bytes and time of communication, step time and items per second.

The baseline is one process alone with the batch of one rank; all are started by this
program, each with as many threads. On a CPU there are two, joined by gloo; with --device
cuda all GPUs of the machine, joined by NCCL, and half as many, and so on. What is counted
are the collectives that the recipe's Brain really issues within its steps.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.frame import ROOT, Options, Table
from benchmarks.networks import recipe
from benchmarks.scaling import bytes_per_step
from benchmarks.steps import SHARED, WEIGHT, Batch
from unified_se_ss.errors import UserError

COLLECTIVES = (
    "all_reduce",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "broadcast_object_list",
    "reduce",
    "reduce_scatter",
    "barrier",
)
RATE = 8000
MINUTES = 30  #: After which a process that says nothing is ended.


class Watch:
    """Counts what is communicated, and takes the time that it took.

    Arguments
    ---------
    device : torch.device
        What is waited for.
    timed : bool
        Whether to take times: ranks then wait for each other before each exchange, so that
        waiting for the slowest is told from exchanging.
    """

    def __init__(self, device, timed: bool):
        self.device, self.timed = device, timed
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.calls, self.bytes = 0, 0
        self.waiting = self.exchanging = 0.0

    def watched(self, name: str):
        """A function of torch.distributed, watched."""
        original = getattr(torch.distributed, name)
        barrier = torch.distributed.barrier

        def call(*args, **kwargs):
            self.calls += 1
            self.bytes += sum(
                x.numel() * x.element_size() for x in args if isinstance(x, torch.Tensor)
            )
            began = self._now()
            if self.timed:
                barrier()
            ready = self._now()
            result = original(*args, **kwargs)
            self.exchanging += self._now() - ready
            self.waiting += ready - began
            return result

        return call

    def _now(self) -> float:
        if self.timed and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def ranks_to_try(device: torch.device) -> list[int]:
    """Numbers of processes, beginning with 1."""
    if device.type == "cpu":
        return [1, 2]
    count = torch.cuda.device_count()
    counts = {1, count}
    while count > 1:
        count //= 2
        counts.add(count)
    return sorted(counts)


def run(options: Options) -> list[Table]:
    """Start the processes in turn, and compare what they say."""
    rows = []
    kinds = ["DPRNN"] if options.quick else ["DPRNN", "SepFormer"]
    for kind in kinds:
        expected = bytes_per_step(recipe(kind, small=options.quick)["network"])
        alone = None
        for ranks in ranks_to_try(options.device):
            found = started(kind, ranks, options)
            step = max(one["step"] for one in found)
            alone = alone or step
            rows.append(
                {
                    "network": kind,
                    "ranks": ranks,
                    "step s": step,
                    "items/s": ranks / step,
                    "speed": ranks * alone / step,
                    "collectives a step": found[0]["calls"],
                    "MB a step": found[0]["bytes"] / 1e6,
                    "expected MB": expected / 1e6 if ranks > 1 else 0.0,
                    "exchange s": max(one["exchanging"] for one in found),
                    "share of time": max(
                        one["exchanging"] / one["watched"] for one in found
                    ),
                    "ranks equal": len({one["digest"] for one in found}) == 1,
                    "loss": sum(one["loss"] for one in found) / ranks,
                }
            )
    seconds = _seconds(options)
    columns = [column for column in rows[0] if column != "loss"]
    note = (
        f"One item of {seconds:g} s for each rank. `exchange s`: of one step, once all ranks "
        "are there, in steps of their own; waiting for the slower of two processes that share "
        "a machine is not in it. `speed`: items per second as a multiple of one process."
    )
    if options.device.type == "cuda" and len(ranks_to_try(options.device)) == 1:
        note += " One GPU: there is nothing to scale to."
    backend = "NCCL" if options.device.type == "cuda" else "gloo"
    return [Table(f"Ranks joined by {backend}", columns, rows, note)]


def _seconds(options: Options) -> float:
    """Length of the items: on a CPU short, so that the whole takes minutes."""
    if options.quick:
        return 0.1
    return 4.0 if options.device.type == "cuda" else 1.0


def started(kind: str, ranks: int, options: Options) -> list[dict]:
    """What each of so many processes found; started here and awaited."""
    with tempfile.TemporaryDirectory() as place:
        settings = {
            "kind": kind,
            "device": options.device.type,
            "quick": options.quick,
            "threads": options.threads,
            "seconds": _seconds(options),
            "steps": 2 if options.quick else 1 + min(options.repeats, 3),
            "place": place,
        }
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ddp", json.dumps(settings)],
                cwd=ROOT,
                env=_environment(rank, ranks, port, options.threads),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for port in [_free_port()]
            for rank in range(ranks)
        ]
        _await(processes)
        return [
            json.loads((Path(place) / f"{rank}.json").read_text(encoding="utf-8"))
            for rank in range(ranks)
        ]


def _environment(rank: int, ranks: int, port: int, threads: int) -> dict:
    """What torchrun would set; for one process, nothing."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    kept["OMP_NUM_THREADS"] = str(threads)
    if ranks == 1:
        return kept
    return kept | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _await(processes) -> None:
    """Wait for all; where one fails or says nothing, end the others and tell its last words."""
    try:
        for process in processes:
            _, said = process.communicate(timeout=60 * MINUTES)
            if process.returncode:
                raise UserError(f"a process failed: {said.strip()[-2000:]}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


# ------------------------------------------------------------------ one process


def worker(settings: dict) -> None:
    """Take steps as the recipe's Brain does, and write down what they took."""
    from unified_se_ss.training import distributed

    torch.set_num_threads(settings["threads"])
    distributed.join("nccl" if settings["device"] == "cuda" else "gloo")
    rank = int(os.environ.get("RANK", 0))
    device = torch.device(
        settings["device"], rank if settings["device"] == "cuda" else None
    )
    steps = settings["steps"]
    brain, batches = _brain(settings, device, rank)
    timed, plain = Watch(device, timed=True), Watch(device, timed=False)
    taken = _fit(brain, batches, plain, steps, device)
    watched = _fit(brain, batches, timed, steps, device)
    weights = torch.cat([p.detach().flatten() for p in brain.modules.parameters()])
    found = {
        "step": taken,
        "watched": watched,
        "calls": plain.calls / (steps - 1),
        "bytes": plain.bytes / (steps - 1),
        "exchanging": timed.exchanging / (steps - 1),
        "waiting": timed.waiting / (steps - 1),
        "digest": weights.double().square().sum().item().hex(),
        "loss": brain.means.read()["main"],
    }
    path = Path(settings["place"]) / f"{rank}.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _brain(settings: dict, device, rank: int):
    """The recipe's Brain about to train, and its batches; each rank has items of its own."""
    sys.path.insert(0, str(ROOT))
    from train import UnifiedBrain
    from unified_se_ss.data.dataset import Example, collate

    hparams = recipe(settings["kind"], small=settings["quick"])
    samples = int(settings["seconds"] * RATE)
    mixture, sources = Batch.of(8, samples, torch.device("cpu"))
    batches = [
        collate([Example(f"{rank}-{number}", mixture[rank % 8], sources[rank % 8])])
        for number in range(2 * settings["steps"])
    ]
    hparams |= {"shared_modules": [f"network.{name}" for name in SHARED]}
    hparams |= {"weight_se": WEIGHT, "log_interval": 1000}
    nccl = settings["device"] == "cuda"
    run_opts = {
        "device": str(device),
        "noprogressbar": True,
        "distributed_backend": "nccl" if nccl else "gloo",
    }
    brain = UnifiedBrain(hparams["modules"], hparams["optimizer"], hparams, run_opts)
    brain.on_fit_start()
    brain._epoch, brain._batches, brain.step = 1, 2 * settings["steps"] + 1, 0
    brain.modules.train()
    return brain, iter(batches)


def _fit(brain, batches, watch: Watch, steps: int, device) -> float:
    """Mean seconds of so many steps, but for the first, as Brain takes them."""
    patches = [
        patch.object(torch.distributed, name, watch.watched(name)) for name in COLLECTIVES
    ]
    for patched in patches:
        patched.start()
    began = 0.0
    try:
        for number in range(steps):
            if number == 1:  # the first is warm-up, and has the ranks compare what they are
                watch.reset()
                _settle(device)
                began = time.perf_counter()
            brain.step += 1
            brain.fit_batch(next(batches))
            brain._should_save_intra_epoch_ckpt(time.time(), 0)
        _settle(device)
        return (time.perf_counter() - began) / (steps - 1)
    finally:
        for patched in patches:
            patched.stop()


def _settle(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    worker(json.loads(sys.argv[1]))
