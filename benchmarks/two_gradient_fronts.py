"""The price of two gradients on fronts alone, by kind of step: published, torchjd, here.

A front is shared by two tasks: the auxiliary loss stands at its output, the main loss
behind a back that the main task alone uses. The back is either a gain (one number, so
that the front is all there is: the worst case) or a network as large as the front. By
operation count, with a backward pass of twice a forward pass, the second gradient then
costs 5/3 and 4/3 of one backward pass.

Kinds of step, without an optimizer:

- one backward: of the sum of both losses, the baseline.
- bare passes: both gradients by autograd, no rule. Nothing that takes two gradients
  one after the other can be faster.
- project (here): TwoTaskGradients with the rule `project`.
- published loop: two backward passes, copies, a loop over tensors (arXiv 2302.11131).
- torchjd: mtl_backward and jac_to_grad with PCGrad, as its documentation has them.
- torchjd, lean: the same with parallel_chunk_size=1, which it advises for recurrent
  networks, and optimize_gramian_computation=True, which it advises where memory is short.

Memory is the most that is allocated at once beyond weights and data over two steps, buffers
that live on between them included. "Gradients" is how much more than one backward needs,
where 1 is one gradient of the front.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.frame import Options, Table, alternate, in_mebibytes, peak_bytes
from benchmarks.networks import recipe
from benchmarks.steps import modulate
from unified_se_ss.gradients import TaskLoss, TwoTaskGradients, TwoTaskLosses
from unified_se_ss.networks import Recurrent


class Masked(nn.Module):
    """What comes in, times the mask that a network makes of it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape to the same shape."""
        return x * self.network(x).view_as(x)


class Gain(nn.Module):
    """A back that costs next to nothing: one number."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape to the same shape."""
        return self.gain * x


def dprnn(width: int = 256):
    """Front, back and data maker: encoder and enhancer of the recipe, 5.07 M."""
    sizes = {"n_basis": width, "n_features": width, "hidden": width}
    hparams = recipe("DPRNN", **sizes)
    enhancer = Masked(hparams["enhancer"])
    front = nn.Sequential(hparams["encoder"], enhancer)
    rate = hparams["sample_rate"]
    return front, enhancer, lambda seconds: 0.1 * torch.randn(2, int(seconds * rate))


def blstm(width: int = 896):
    """Front, back and data maker: the BLSTM of Gradient Remedy (2302.11362), 47.30 M."""
    bins, frames_per_second = 257, 62.5  # 16 kHz, windows of 512, a shift of 256
    recurrent = Recurrent(bins, width, layers=3)
    mask = nn.Sequential(recurrent, nn.Linear(recurrent.n_outputs, bins), nn.ReLU())
    front = Masked(mask)

    def magnitudes(seconds):
        return torch.randn(4, int(seconds * frames_per_second), bins).abs()

    return front, front, magnitudes


def transformer(width: int = 512):
    """Front, back and data maker: 8 layers, 8 heads, 25.22 M, 100 frames per second."""
    layer = nn.TransformerEncoderLayer(
        width, 8, 4 * width, dropout=0.0, batch_first=True, norm_first=True
    )
    front = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
    return front, front, lambda seconds: torch.randn(4, int(100 * seconds), width)


FRONTS = {"DPRNN": dprnn, "BLSTM": blstm, "Transformer": transformer}
BACKS = {"gain": lambda network: Gain(), "as front": copy.deepcopy}
TINY = 16  # width to try it out with
SECONDS = 1.0  # length of the items


class TwoTasks:
    """A front that two tasks share, a back of the main task, and one batch.

    Arguments
    ---------
    front, back : torch.nn.Module
        The back keeps the shape.
    data : torch.Tensor
        [B, ...].
    """

    def __init__(self, front: nn.Module, back: nn.Module, data: torch.Tensor):
        self.front, self.back, self.data = front, back, data
        self.network = nn.ModuleDict({"front": front, "back": back})
        with torch.no_grad():
            features = front(data)
        self.clean, self.wanted = torch.randn_like(features), torch.randn_like(features)

    def losses(self):
        """Features, auxiliary and main loss of each item, [B]."""
        features = self.front(self.data)
        auxiliary = (features - self.clean).square().flatten(1).mean(1)
        main = (self.back(features) - self.wanted).square().flatten(1).mean(1)
        return features, auxiliary, main

    def clear(self):
        """Drop all gradients."""
        self.network.zero_grad(set_to_none=True)


def one_backward(tasks: TwoTasks):
    """The baseline: the gradient of the sum."""

    def step():
        _, auxiliary, main = tasks.losses()
        (main.mean() + auxiliary.mean()).backward()

    return step


def bare_passes(tasks: TwoTasks):
    """Both gradients, and nothing is done with the auxiliary one."""
    shared = list(tasks.front.parameters())

    def step():
        _, auxiliary, main = tasks.losses()
        torch.autograd.grad(auxiliary.mean(), shared, retain_graph=True)
        main.mean().backward()

    return step


def project_here(tasks: TwoTasks):
    """This project's step."""
    gradients = TwoTaskGradients(tasks.network.named_parameters(), ["front"], "project")

    def step():
        _, auxiliary, main = tasks.losses()
        gradients.accumulate(TwoTaskLosses(TaskLoss.of(main), TaskLoss.of(auxiliary)))
        gradients.combine()

    return step


def published_loop(tasks: TwoTasks):
    """The published way: copies, and a decision of the host for each tensor."""
    shared = list(tasks.front.parameters())

    def step():
        _, auxiliary, main = tasks.losses()
        auxiliary.mean().backward(retain_graph=True)
        copies = [parameter.grad.clone() for parameter in shared]
        tasks.clear()
        main.mean().backward()
        modulate(shared, copies)

    return step


def _torchjd(tasks: TwoTasks, chunk_size, optimize: bool):
    """One step with torchjd's multi-task path."""
    from torchjd.aggregation import PCGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator, shared = PCGrad(), list(tasks.front.parameters())

    def step():
        features, auxiliary, main = tasks.losses()
        losses = [main.mean(), auxiliary.mean()]
        mtl_backward(losses, features=features, parallel_chunk_size=chunk_size)
        jac_to_grad(shared, aggregator, optimize_gramian_computation=optimize)

    return step


def torchjd_documented(tasks: TwoTasks):
    """Both gradients at once by torch.vmap, one Jacobian matrix."""
    return _torchjd(tasks, None, False)


def torchjd_lean(tasks: TwoTasks):
    """One gradient after the other, a Jacobian for each tensor."""
    return _torchjd(tasks, 1, True)


KINDS = {
    "one backward": one_backward,
    "bare passes": bare_passes,
    "project (here)": project_here,
    "published loop": published_loop,
    "torchjd": torchjd_documented,
    "torchjd, lean": torchjd_lean,
}


def running_steps(tasks: TwoTasks) -> dict:
    """Each kind's step after a warm-up, but those that are not installed or fail."""
    steps = {}
    for kind, make in KINDS.items():
        foreign = kind.startswith("torchjd")
        if foreign and importlib.util.find_spec("torchjd") is None:
            continue
        try:
            steps[kind] = make(tasks)
            steps[kind]()
        except RuntimeError as error:  # such as torch.vmap over cuDNN's recurrent networks
            if not foreign:
                raise
            del steps[kind]
            print(f"{kind} does not run: {str(error).splitlines()[0]}", file=sys.stderr)
        tasks.clear()
    return steps


def peak_of_kind(kind: str, tasks: TwoTasks) -> int:
    """Most bytes at once beyond weights and data: what a kind keeps, and two steps."""

    def work():
        step = KINDS[kind](tasks)
        for _ in range(2):
            step()
            tasks.clear()

    return peak_bytes(work, tasks.data.device)


def tasks_of(front_name: str, back_name: str, options: Options) -> TwoTasks:
    """A front with its back and data, the same at each call."""
    torch.manual_seed(0)
    make = FRONTS[front_name]
    front, network, data = make(TINY) if options.quick else make()
    back = BACKS[back_name](network)
    data = data(0.1 if options.quick else SECONDS)
    return TwoTasks(*(x.to(options.device) for x in (front, back, data)))


def measure(front_name: str, back_name: str, options: Options) -> list[dict]:
    """One row for each kind of step."""
    tasks = tasks_of(front_name, back_name, options)
    parameters = list(tasks.front.parameters())
    gradient = sum(p.numel() * p.element_size() for p in parameters)
    steps = running_steps(tasks)
    timings = alternate(steps, options.repeats, options.device, between=tasks.clear)
    peaks = {kind: peak_of_kind(kind, tasks) for kind in steps}
    first = next(iter(KINDS))
    return [
        {
            "front": front_name,
            "parameters": f"{sum(p.numel() for p in parameters) / 1e6:.2f} M",
            "back": back_name,
            "step": kind,
            "seconds": timing.median,
            "ratio": timing.times(timings[first]),
            "processor ratio": timing.times(timings[first], "processor"),
            "peak MiB": in_mebibytes(peaks[kind]),
            "memory ratio": peaks[kind] / peaks[first],
            "gradients": (peaks[kind] - peaks[first]) / gradient,
            "peak bytes": peaks[kind],
        }
        for kind, timing in timings.items()
    ]


def run(options: Options) -> Iterator[Table]:
    """A table for each front: with every back, every kind of step."""
    # torch.vmap says of each operation that it runs one gradient after the other.
    warnings.filterwarnings("ignore", "There is a performance drop because")
    missing = importlib.util.find_spec("torchjd") is None
    note = "torchjd is not installed: its steps are left out." if missing else ""
    for front in FRONTS:
        rows = [row for back in BACKS for row in measure(front, back, options)]
        columns = [name for name in rows[0] if name != "peak bytes"]
        yield Table(f"{front} as front", columns, rows, note)
