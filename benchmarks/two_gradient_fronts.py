"""What the second gradient costs in time and memory, by kind of front and of step.

    python benchmarks/two_gradient_fronts.py [--seconds 1] [--repeats 5] [--json out.json]

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

Time: all kinds in turn in one process after a warm-up, medians. On a machine that others
use too, set OMP_NUM_THREADS=1 and ask for --clock cpu, which counts the processor's
seconds and not those of waiting for it. Memory: the most that
is allocated at once beyond weights and data over two steps, buffers that live on between
them included. On the CPU it is summed up from the profiler's record of every tensor that
comes and goes (what oneDNN allocates for itself is not in it), on CUDA it is the
allocator's peak. "Gradients" is how much more than one backward needs, where 1 is one
gradient of the front.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's search for a GPU

import torch  # noqa: E402
from torch import nn  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hyperpyyaml import load_hyperpyyaml  # noqa: E402

from unified_se_ss.gradients import TaskLoss, TwoTaskGradients, TwoTaskLosses  # noqa: E402
from unified_se_ss.networks import Recurrent  # noqa: E402
from unified_se_ss.recipe import commit, keep_freed_memory  # noqa: E402

RECIPE = "hparams/libri2mix_noisy_dprnn.yaml"
MEBIBYTE = 1 << 20


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
    unused = {"data_folder": "unused", "output_folder": tempfile.mkdtemp()}
    with open(ROOT / RECIPE, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, {**unused, **sizes})
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
        for parameter, copied in zip(shared, copies):
            of_main, of_auxiliary = parameter.grad.clone().view(-1), copied.view(-1)
            product = torch.dot(of_auxiliary, of_main)
            if product < 0:
                of_auxiliary = of_auxiliary - product * of_main / of_main.norm() ** 2
            parameter.grad = parameter.grad + of_auxiliary.view_as(parameter)

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


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def median_seconds(tasks: TwoTasks, repeats: int, clock) -> dict[str, float]:
    """Median seconds of each kind of step that runs, taken in turn."""
    steps = _running_steps(tasks)
    taken = {kind: [] for kind in steps}
    for _ in range(repeats):
        for kind, step in steps.items():
            _wait(tasks.data.device)
            began = clock()
            step()
            _wait(tasks.data.device)
            taken[kind].append(clock() - began)
            tasks.clear()
    return {kind: statistics.median(seconds) for kind, seconds in taken.items()}


def _running_steps(tasks: TwoTasks) -> dict:
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_of_kind(kind: str, tasks: TwoTasks) -> int:
    """Most bytes at once beyond weights and data: what a kind keeps, and two steps."""

    def run():
        step = KINDS[kind](tasks)
        for _ in range(2):
            step()
            tasks.clear()

    return peak_bytes(run, tasks.data.device)


def peak_bytes(run, device: torch.device) -> int:
    """Most bytes of tensors that `run()` allocates and holds at once.

    Arguments
    ---------
    run : callable
        Without arguments.
    device : torch.device
        Whose memory is counted.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_of_record(_allocations(run))


def _allocations(run) -> list[dict]:
    """The profiler's record of what was allocated (and freed) on the CPU, in order."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(
        activities=activities, profile_memory=True, acc_events=True
    ) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    memory.sort(key=lambda event: event["args"]["Ev Idx"])
    return [event["args"] for event in memory]


def _peak_of_record(record: list[dict]) -> int:
    """Highest sum of what is held; what was allocated before the record is left out."""
    held, now, peak = {}, 0, 0
    for event in record:
        address, size = event["Addr"], event["Bytes"]
        if size > 0:
            held[address] = size
            now += size
            peak = max(peak, now)
        else:
            now -= held.pop(address, 0)
    return peak


def measure(front_name: str, back_name: str, options) -> list[dict]:
    """One row for each kind of step."""
    torch.manual_seed(0)
    make = FRONTS[front_name]
    front, network, data = make(TINY) if options.tiny else make()
    back = BACKS[back_name](network)
    tasks = TwoTasks(
        front.to(options.device),
        back.to(options.device),
        data(options.seconds).to(options.device),
    )
    gradient = sum(p.numel() * p.element_size() for p in front.parameters())
    seconds = median_seconds(tasks, options.repeats, CLOCKS[options.clock])
    peaks = {kind: peak_of_kind(kind, tasks) for kind in seconds}
    first = next(iter(KINDS))
    return [
        {
            "front": front_name,
            "front_parameters": sum(p.numel() for p in front.parameters()),
            "back": back_name,
            "kind": kind,
            "seconds": seconds[kind],
            "time_ratio": seconds[kind] / seconds[first],
            "peak_bytes": peaks[kind],
            "memory_ratio": peaks[kind] / peaks[first],
            "gradients_more": (peaks[kind] - peaks[first]) / gradient,
        }
        for kind in seconds
    ]


def as_line(row: dict) -> str:
    """A row of the table."""
    front = f"{row['front']} {row['front_parameters'] / 1e6:.2f} M"
    return (
        f"{front:<20} {row['back']:<9} {row['kind']:<15} {row['seconds']:>8.3f} s "
        f"{row['time_ratio']:>6.2f} {row['peak_bytes'] / MEBIBYTE:>9.1f} MiB "
        f"{row['memory_ratio']:>6.2f} {row['gradients_more']:>+10.2f}"
    )


def _options(arguments):
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fronts", nargs="+", choices=FRONTS, default=list(FRONTS))
    parser.add_argument("--backs", nargs="+", choices=BACKS, default=list(BACKS))
    parser.add_argument("--seconds", type=float, default=1.0, help="length of the items")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each kind")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--tiny", action="store_true", help="narrow networks, to try it out"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Measure every front with every back, print a table, write it as JSON if asked."""
    options = _options(arguments)
    keep_freed_memory()
    # torch.vmap says of each operation that it runs one gradient after the other.
    warnings.filterwarnings("ignore", "There is a performance drop because")
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {options.device}, {threads} threads, ", end="")
    print(
        f"items of {options.seconds:g} s, median of {options.repeats}, "
        f"{options.clock} clock"
    )
    if importlib.util.find_spec("torchjd") is None:
        print("torchjd is not installed: its steps are left out (pip install torchjd)")
    print(
        f"\n{'front':<20} {'back':<9} {'step':<15} {'time':>10} {'ratio':>6} "
        f"{'peak memory':>13} {'ratio':>6} {'gradients':>10}"
    )
    rows = []
    for front in options.fronts:
        for back in options.backs:
            rows += (measured := measure(front, back, options))
            print(*map(as_line, measured), sep="\n", flush=True)
    if options.json:
        machine = {
            "commit": commit(),
            "torch": torch.__version__,
            "device": options.device,
            "threads": threads,
            "clock": options.clock,
            "cpu": platform.processor(),
        }
        options.json.write_text(json.dumps({**machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
