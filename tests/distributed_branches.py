"""Two ranks, gradients that are orthogonal but for rounding; started by a test.

torchrun --nproc_per_node=2 tests/distributed_branches.py FOLDER

Whether <g_a, g_m> is below zero is decided by rounding here, so ranks that rounded
differently would take different branches of a rule.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

sys.path.insert(0, str(Path(__file__).parent.parent))

from unified_se_ss.gradients import TaskLoss, TwoTaskGradients, TwoTaskLosses

TENSORS, SIZE = 200, 3000


def orthogonal_pair(generator):
    """g_a and g_m, each [TENSORS, SIZE], with products that are zero but for rounding."""
    main = torch.randn(TENSORS, SIZE, generator=generator, dtype=torch.float64)
    auxiliary = torch.randn(TENSORS, SIZE, generator=generator, dtype=torch.float64)
    along = (auxiliary * main).sum(1, keepdim=True) / main.square().sum(1, keepdim=True)
    return (auxiliary - along * main).float(), main.float()


def shares(gradient, generator):
    """A gradient as what each of two ranks has of it; their sum is it, but for rounding."""
    first = torch.randn(gradient.shape, generator=generator)
    return first, gradient - first


def main(folder):
    """Combine once, and save what this rank found and did."""
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    generator = torch.Generator().manual_seed(0)
    auxiliary, main = (
        shares(gradient, generator)[rank] for gradient in orthogonal_pair(generator)
    )
    parameters = [torch.nn.Parameter(torch.zeros(SIZE)) for _ in range(TENSORS)]
    network = torch.nn.ParameterList(parameters)
    gradients = TwoTaskGradients(network.named_parameters(), map(str, range(TENSORS)))
    stacked = torch.stack(parameters)
    losses = (TaskLoss.of((stacked * g).sum().view(1)) for g in (main, auxiliary))
    gradients.accumulate(TwoTaskLosses(*losses))
    found = gradients.combine()
    combined = torch.stack([parameter.grad for parameter in parameters])
    torch.save({**found._asdict(), "combined": combined}, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
