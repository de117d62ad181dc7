"""A training step of the unified networks, against the published one in SpeechBrain's modules.

SepFormer and DPRNN of the published sizes on items of 4 s at 8 kHz. The baseline is the
published step: SpeechBrain's encoder, dual-path modules, decoder and loss, two backward
passes, a loop with a branch for each tensor, Adam; with the same weights and, before the
first step, equal losses. In fp32 unless a row says otherwise; "speed" is a multiple of the
baseline's in fp32. Batches that the machine's memory does not hold are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.frame import (
    Options,
    Table,
    alternate,
    compared,
    free_bytes,
    from_tests,
    in_mebibytes,
    peak_bytes,
)
from benchmarks.networks import RECIPES, recipe
from benchmarks.steps import MODULATION, Batch, ProjectStep, Step, graphed, published
from unified_se_ss.networks.recurrent import FP32_ONLY

SECONDS, RATE = 4.0, 8000
BATCHES = (1, 4, 16)
BASELINE = "published"
ROOM = 0.5  #: Of the free memory: a heap of many sizes takes far more than was asked of it.
TOP = 15  # operations that a profile lists

TIMES = ("batch", "step", "seconds", "low", "high", "processor s", "speed")
TIMES += ("processor speed", "peak MiB", "peak", "SS loss", "SE loss")
COUNTS = ("step", "kept for backward MiB", "kept", "operations", "waits for the host")
COUNTS += ("modulation share",)


def run(options: Options) -> Iterator[Table]:
    """Times and memory of both kinds of network, and what their steps are made of."""
    for kind in RECIPES:
        bench = Bench(kind, options)
        yield bench.times()
        yield (counts := bench.counts())
        if options.device.type == "cuda" and kind == "SepFormer":
            yield bench.utilisation()
        if options.profile:
            yield from bench.profiles(counts)


class Bench:
    """Everything about one kind of network.

    Arguments
    ---------
    kind : str
        One of ``RECIPES``.
    options : Options
        See there.
    """

    def __init__(self, kind: str, options: Options):
        self.kind, self.options = kind, options
        self.seconds = 0.05 if options.quick else SECONDS
        self.batches = (1,) if options.quick else BATCHES
        self.on_cuda = options.device.type == "cuda"

    def title(self, what: str) -> str:
        """Unique within the benchmark."""
        return f"{self.kind}, {what}, items of {self.seconds:g} s at 8 kHz"

    def network(self):
        """The network of the recipe, always the same weights."""
        made = recipe(self.kind, self.options.quick)["network"]
        return made.to(self.options.device)

    def batch(self, items: int) -> Batch:
        """The same batch at every call."""
        return Batch.of(items, int(self.seconds * RATE), self.options.device)

    def ways(self) -> dict[str, Callable[[int], Step]]:
        """Makers of each kind of step, by name; the argument is the batch."""

        def theirs(dtype=None):
            return lambda n: published(self.kind, self.network(), self.batch(n), dtype)

        def ours(dtype=None):
            return lambda n: ProjectStep(self.network(), self.batch(n), dtype)

        ways = {
            BASELINE: theirs(),
            "here": ours(),
            f"{BASELINE}, bf16": theirs(torch.bfloat16),
            "here, bf16": ours(torch.bfloat16),
        }
        if FP32_ONLY and self.kind == "DPRNN" and not self.on_cuda:
            del ways[f"{BASELINE}, bf16"]  # SpeechBrain's LSTM raises there
        return ways

    def faster_ways(self) -> dict[str, Callable[[int], Callable]]:
        """On a GPU: TF32, compiled, and as one CUDA graph."""
        if not self.on_cuda:
            return {}
        ways = self.ways()

        def compiled(n):
            step = ways["here, bf16"](n)
            step.network.compile(dynamic=False)
            return step

        return {
            f"{BASELINE}, TF32": lambda n: _with_tf32(ways[BASELINE](n)),
            "here, TF32": lambda n: _with_tf32(ways["here"](n)),
            "here, bf16, graphed": lambda n: graphed(ways["here, bf16"](n)),
            "here, bf16, compiled": compiled,
            "here, bf16, compiled, graphed": lambda n: graphed(compiled(n)),
        }

    # ------------------------------------------------------------------ tables

    def times(self) -> Table:
        """Time, peak of memory and losses by batch and way."""
        rows, left_out, of_one = [], [], self.bytes_of_one()
        for items in self.batches:
            fitting = {}
            for name, make in {**self.ways(), **self.faster_ways()}.items():
                needed = of_one.get(name, 0) * items
                if needed > ROOM * free_bytes(self.options.device):
                    left_out.append(
                        f"batch {items}, {name} (about {needed / 2**30:.0f} GiB)"
                    )
                else:
                    fitting[name] = make
            rows += self.times_of_batch(items, fitting)
        note = f"Too large for this machine's memory: {'; '.join(left_out)}."
        return Table(self.title("one step"), TIMES, rows, note if left_out else "")

    def times_of_batch(self, items: int, ways: dict) -> list[dict]:
        """Rows of one batch; without the baseline there is no speed."""
        if not ways:
            return []
        steps = {name: make(items) for name, make in ways.items()}
        losses = {
            n: self.losses(step) for n, step in steps.items() if isinstance(step, Step)
        }
        device = self.options.device
        timings = alternate(steps, self.options.repeats, device, memory=items == 1)
        first = next(iter(timings))
        rows = compared(timings, first, "step")
        for row in rows:
            row["batch"] = items
            row["SS loss"], row["SE loss"] = losses.get(row["step"], (None, None))
            if first != BASELINE:
                row["speed"] = row["processor speed"] = None
            elif row["peak MiB"] is not None:
                row["peak"] = row["peak MiB"] / rows[0]["peak MiB"]
        return rows

    def losses(self, step: Step) -> tuple[float, float]:
        """Separation and enhancement loss before any step."""
        with torch.no_grad():
            main, auxiliary = step.losses()
        return main.item(), auxiliary.item()

    def bytes_of_one(self) -> dict[str, float]:
        """About what each way takes at its peak for one item, from shorter ones."""
        if self.on_cuda or self.options.quick:
            return {}
        short, wanted = (0.5, 1.0), self.seconds
        peaks = []
        for self.seconds in short:
            made = {name: make(1) for name, make in self.ways().items()}
            peaks.append({n: peak_bytes(s, self.options.device) for n, s in made.items()})
        self.seconds = wanted
        first, second = peaks
        beyond = (wanted - short[1]) / (short[1] - short[0])
        return {n: second[n] + beyond * (second[n] - first[n]) for n in first}

    def counts(self) -> Table:
        """What a step keeps, calls and waits for, at batch 1."""
        rows = []
        for name, make in self.ways().items():
            step = make(1)
            step()  # what happens only once
            kept = kept_by(step.losses, [*step.network.parameters(), *step.batch])
            found = profiled(step, self.options.device)
            rows.append(
                {
                    "step": name,
                    "kept for backward MiB": in_mebibytes(kept),
                    "kept": kept / (rows[0]["kept bytes"] if rows else kept),
                    "kept bytes": kept,
                    "operations": found["operations"],
                    "kernels": found["kernels"],
                    "waits for the host": waits(step),
                    "modulation share": found["modulation"],
                    "top": found["top"],
                }
            )
        columns = [*COUNTS, "kernels"] if self.on_cuda else COUNTS
        note = (
            "Kept: bytes that the forward pass leaves for the backward passes. Waits: "
            "operations that need a number of the device on the host."
        )
        return Table(self.title("what a step is made of"), columns, rows, note)

    def profiles(self, counts: Table) -> Iterator[Table]:
        """The operations that take longest, as they were counted."""
        for row in counts.rows:
            title = self.title(f"top operations, {row['step']}")
            yield Table(title, ("operation", "calls", "seconds", "share"), row["top"])

    def utilisation(self) -> Table:
        """Arithmetic of a step over its time, against the measured rate of a product."""
        largest = self.batches[-1]
        step = self.ways()["here, bf16"](largest)
        with FlopCounterMode(display=False) as counter:
            step()
        work = counter.get_total_flops()
        ways = {
            name: make(largest)
            for name, make in {**self.ways(), **self.faster_ways()}.items()
            if name.startswith("here, bf16")
        }
        timings = alternate(ways, self.options.repeats, self.options.device)
        rate = matrix_rate(self.options.device, 256 if self.options.quick else 8192)
        rows = [
            {
                "step": name,
                "batch": largest,
                "TFLOP": work / 1e12,
                "TFLOP/s": work / timing.median / 1e12,
                "bf16 product TFLOP/s": rate / 1e12,
                "share": work / timing.median / rate,
            }
            for name, timing in timings.items()
        ]
        return Table(self.title("share of the chip"), list(rows[0]), rows)


# ------------------------------------------------------------------ what is looked at


def kept_by(forward: Callable, known) -> int:
    """Bytes of distinct memory that a forward pass keeps for the backward pass.

    Arguments
    ---------
    forward : callable
        Gives something with a graph.
    known : iterable of torch.Tensor
        Parameters and data, which are there anyway.
    """
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, an output would hold its graph, for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    places = {tensor.untyped_storage().data_ptr() for tensor in known}
    return sum(size for place, size in sizes.items() if place not in places)


def waits(step: Step) -> int:
    """Times that the host needs a number of the device within a step.

    Not counted is the number of steps that Adam keeps, which lies on the host anyway.
    """
    with from_tests("host_reads").HostReads() as reads:
        step()
    return sum("Optimizer.step" not in place for place in reads.places)


def profiled(step: Step, device: torch.device) -> dict:
    """Operations, kernels, share of the modulation, and the longest operations."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities, acc_events=True) as profiler:
        step()
        if on_cuda:
            torch.cuda.synchronize(device)
    time = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    events = profiler.events()
    averages = [event for event in profiler.key_averages() if event.key != MODULATION]
    total = sum(getattr(event, time) for event in averages) or 1
    spent = _modulation_time(events, on_cuda)
    longest = sorted(averages, key=lambda event: -getattr(event, time))[:TOP]
    return {
        "operations": sum(_is_operation(event) for event in events),
        "kernels": sum("cuda" in str(event.device_type).lower() for event in events),
        "modulation": spent / total,
        "top": [
            {
                "operation": event.key,
                "calls": event.count,
                "seconds": getattr(event, time) / 1e6,
                "share": getattr(event, time) / total,
            }
            for event in longest
        ],
    }


def _is_operation(event) -> bool:
    """Whether it is an operation that calls no other."""
    return event.name.startswith(("aten::", "mkldnn::")) and not any(
        child.name.startswith("aten::") for child in event.cpu_children
    )


def _modulation_time(events, on_cuda: bool) -> float:
    """Microseconds of what makes one gradient of the two."""
    time = "device_time_total" if on_cuda else "cpu_time_total"
    return sum(
        getattr(e, time) for e in events if e.name == MODULATION and e.cpu_time_total
    )


def matrix_rate(device: torch.device, size: int) -> float:
    """Operations per second of a large product in bf16."""
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    timing = alternate({"product": lambda: a @ b}, 10, device)["product"]
    return 2 * size**3 / timing.low


def _with_tf32(step: Callable) -> Callable:
    """A step in which products of fp32 matrices are taken in TF32."""

    def call():
        with tf32():
            step()

    return call


@contextmanager
def tf32():
    """Let fp32 products be taken in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
