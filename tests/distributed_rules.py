"""Every rule, by one process and by two ranks: how far apart are the parameters?

python tests/distributed_rules.py        print the table: rule x largest relative difference

The two ranks are one launch, which goes through all cases; test_distributed_rules.py uses
the same functions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

sys.path.insert(0, str(Path(__file__).parent.parent))

from unified_se_ss.gradients import (
    GRANULARITIES,
    RULES,
    TaskLoss,
    TwoTaskGradients,
    TwoTaskLosses,
)

# Items of each rank at each step: uneven, and at the third, rank 0 drops all of its own.
ITEMS = [(5, 2), (1, 4), (3, 3), (2, 6)]
DROPPED = [({1}, {0}), (set(), {1, 2}), ({0, 1, 2}, {0}), ({0}, {2, 4})]

# What was trained: dtype and number of steps.
RUNS = [(torch.float32, 1), (torch.float64, 1), (torch.float64, 4)]


def cases() -> dict[str, dict]:
    """Options of TwoTaskGradients by name: every rule, and what else changes a step."""
    return {
        **{rule: {"rule": rule} for rule in RULES},
        "project, aux_scale ema": {"aux_scale": "ema", "aux_ratio": 0.7, "aux_decay": 0.5},
        **{f"project, {g}": {"granularity": g} for g in GRANULARITIES if g != "parameter"},
    }


class Network(torch.nn.Module):
    """A shared trunk, a head for the main task and one for the auxiliary."""

    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Tanh()
        )
        self.head = torch.nn.Linear(8, 3)
        self.enhancer = torch.nn.Linear(8, 6)

    def losses(self, clean, noise, target):
        """Main and auxiliary loss of each item, [B]."""
        hidden = self.trunk(clean + noise)
        main = (self.head(hidden) - target).square().sum(1)
        return main, (self.enhancer(hidden) - clean).square().sum(1)


def share(step: int, rank: int, dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """One rank's items at a step, and which of them count for the main task."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    items = ITEMS[step][rank]
    tensors = [
        torch.randn(items, size, generator=generator, dtype=torch.float64).to(dtype)
        for size in (6, 6, 3)
    ]
    keep = torch.tensor([item not in DROPPED[step][rank] for item in range(items)])
    return tensors, keep


def joined(step: int, dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The items of both ranks as one batch."""
    (mine, keep), (theirs, keep_theirs) = (share(step, rank, dtype) for rank in range(2))
    batch = [torch.cat(pair) for pair in zip(mine, theirs)]
    return batch, torch.cat([keep, keep_theirs])


def accumulate(gradients, network, batch, keep) -> None:
    """Add the gradients of one batch."""
    main, auxiliary = network.losses(*batch)
    gradients.accumulate(TwoTaskLosses(TaskLoss.of(main, keep), TaskLoss.of(auxiliary)))


def make(options: dict, dtype):
    """The network, its two gradients and an optimizer."""
    torch.manual_seed(5)  # at the first step, some tensors conflict and some do not
    network = Network().to(dtype)
    gradients = TwoTaskGradients(
        network.named_parameters(), ["trunk"], auxiliary=["enhancer"], **options
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return network, gradients, optimizer


def train(options: dict, dtype, steps: int, batches) -> list[torch.Tensor]:
    """Parameters after a few steps; ``batches(step, dtype)`` gives this process' items."""
    network, gradients, optimizer = make(options, dtype)
    for step in range(steps):
        accumulate(gradients, network, *batches(step, dtype))
        gradients.combine()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [parameter.detach() for parameter in network.parameters()]


def train_all(batches) -> dict[str, list[list[torch.Tensor]]]:
    """Parameters of every case, run by run."""
    return {
        name: [train(options, dtype, steps, batches) for dtype, steps in RUNS]
        for name, options in cases().items()
    }


def launch(folder: Path) -> list[dict]:
    """Go through all cases on two gloo ranks, and say what each rank ended with."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def largest_difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Largest ||x - y|| / ||x|| over the parameter tensors."""
    return max(float((x - y).norm() / x.norm()) for x, y in zip(one, other, strict=True))


def differences(alone: dict, ranks: list[dict]) -> dict[str, list[float]]:
    """Largest relative difference of one process and two ranks, by case and run."""
    return {
        name: [largest_difference(*pair) for pair in zip(runs, ranks[0][name], strict=True)]
        for name, runs in alone.items()
    }


def as_rank(folder: Path) -> None:
    """What each of the two ranks does."""
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    results = train_all(lambda step, dtype: share(step, rank, dtype))
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def print_table() -> None:
    """The table for people."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = launch(Path(folder))
    print(f"| {'rule':<24} | fp32, 1 step | float64, 1 step | float64, 4 steps |")
    print("|---|---|---|---|")
    for name, row in differences(train_all(joined), ranks).items():
        print(f"| {name:<24} | {row[0]:12.1e} | {row[1]:15.1e} | {row[2]:16.1e} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        as_rank(Path(sys.argv[1]))
    else:
        print_table()
