"""What many GPUs would give: computed from bytes and links, and from step times measured here.

The baseline is one GPU with the same batch: of N, N times the items in the time of its step
and of one exchange of the gradients. The exchange is one all-reduce of one flat buffer
after both backward passes, so nothing of it is hidden behind them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from benchmarks.frame import Options, Table, alternate
from benchmarks.networks import RECIPES, recipe
from benchmarks.steps import SHARED, Batch, ProjectStep
from unified_se_ss.gradients import TwoTaskGradients

RATE = 8000
PER_NODE = 8
WORLD_SIZES = (8, 16, 32, 64, 128, 256, 512)


class Link(NamedTuple):
    """What connects GPUs, or nodes of eight.

    Arguments
    ---------
    name : str
    bytes_per_second : float
        In one direction: of a GPU within a node, of a whole node between nodes.
    latency : float
        Seconds for a message to the next rank, assumed.
    """

    name: str
    bytes_per_second: float
    latency: float


#: Speeds as their makers state them; docs/scaling.md names the sources.
NVLINK = Link("NVLink", 450e9, 3e-6)
NDR = Link("NDR", 8 * 50e9, 5e-6)
ETHERNET = Link("100 GbE", 12.5e9, 30e-6)
BETWEEN = (NDR, ETHERNET)


def ring_seconds(n_bytes: float, ranks: int, link: Link) -> float:
    """Time of a ring all-reduce: every rank sends 2 (n - 1) / n of the bytes, in 2 (n - 1) turns.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations", J. Parallel Distrib. Comput. 69(2), 2009.

    Arguments
    ---------
    n_bytes : float
        Size of the buffer.
    ranks : int
        How many there are, n.
    link : Link
        The slowest on the ring.

    Example
    -------
    >>> round(ring_seconds(100e6, 2, Link("gigabyte per second", 1e9, 0.0)), 6)
    0.1
    """
    if ranks < 1:
        raise ValueError(f"ranks is {ranks}; expected 1 or more")
    turns = 2 * (ranks - 1)
    return turns / ranks * n_bytes / link.bytes_per_second + turns * link.latency


def exchange_seconds(n_bytes: float, ranks: int, between: Link) -> float:
    """Time of the exchange of one step on nodes of eight GPUs.

    Within a node at NVLink's speed; over nodes at that of the slower of NVLink and what a
    node has to the outside, which all its rings share.

    Arguments
    ---------
    n_bytes : float
        Size of the buffer.
    ranks : int
        GPUs in all.
    between : Link
        What connects the nodes.
    """
    if ranks <= PER_NODE:
        return ring_seconds(n_bytes, ranks, NVLINK)
    slowest = min(NVLINK, between, key=lambda link: link.bytes_per_second)
    latency = max(NVLINK.latency, between.latency)
    return ring_seconds(n_bytes, ranks, slowest._replace(latency=latency))


def efficiency(step: float, n_bytes: float, ranks: int, between: Link) -> float:
    """Share of the ranks' time that is not spent exchanging, if all steps take as long."""
    return step / (step + exchange_seconds(n_bytes, ranks, between))


def bytes_per_step(network: torch.nn.Module, shared=SHARED) -> int:
    """Size of the one buffer that ranks exchange at a step: both gradients of what is shared.

    Arguments
    ---------
    network : torch.nn.Module
        On any device; it is not run.
    shared : sequence of str
        Names of the modules that both tasks train.
    """
    buffer = TwoTaskGradients(network.named_parameters(), shared)._buffer
    return buffer.numel() * buffer.element_size()


def published_bytes() -> dict[str, int]:
    """Bytes per step of the published networks."""
    return {kind: bytes_per_step(recipe(kind)["network"].to("meta")) for kind in RECIPES}


def computed(world_sizes=WORLD_SIZES) -> Table:
    """Time of one exchange, and the shortest step that it lengthens by less than a tenth."""
    rows = []
    for kind, n_bytes in published_bytes().items():
        for ranks in world_sizes:
            row = {"network": kind, "MB a step": n_bytes / 1e6, "GPUs": ranks}
            for link in BETWEEN:
                seconds = exchange_seconds(n_bytes, ranks, link)
                row[f"exchange, {link.name}, ms"] = 1e3 * seconds
                row[f"step for 90 %, {link.name}, ms"] = 9e3 * seconds
            rows.append(row)
    return Table(
        "Computed: one exchange",
        list(rows[0]),
        rows,
        "`step for 90 %`: with a step of that time on one GPU, N GPUs do 0.9 N times its work.",
    )


def predicted(steps: dict[str, float], device: str, world_sizes=WORLD_SIZES) -> Table:
    """Efficiency from measured step times, by number of GPUs.

    Arguments
    ---------
    steps : dict of float
        Seconds of a step of one process, by network.
    device : str
        Where they were measured.
    """
    found = published_bytes()
    rows = [
        {
            "network": kind,
            "step s": step,
            "ranks": ranks,
            **{
                f"efficiency, {between.name}, %": 100
                * efficiency(step, found[kind], ranks, between)
                for between in BETWEEN
            },
        }
        for kind, step in steps.items()
        for ranks in world_sizes
    ]
    return Table(f"Computed from steps measured on {device}", list(rows[0]), rows)


def measured_steps(options: Options) -> dict[str, float]:
    """Seconds of a step of the published networks, one item of 4 s (0.25 s where quick).

    On a CPU those of the processor: what one thread takes where no other program runs.
    """
    steps = {}
    for kind in RECIPES:
        samples = RATE // 4 if options.quick else 4 * RATE
        network = recipe(kind, small=options.quick)["network"].to(options.device)
        step = ProjectStep(network, Batch.of(1, samples, options.device))
        repeats = 1 if options.quick else min(3, options.repeats)
        timing = alternate({kind: step}, repeats, options.device)[kind]
        on_cpu = options.device.type == "cpu"
        steps[kind] = timing.processor_median if on_cpu else timing.median
    return steps


def run(options: Options) -> list[Table]:
    """Compute, from what is measured."""
    steps = measured_steps(options)
    item = "one item of 0.25 s, small" if options.quick else "one item of 4 s"
    measured = Table(
        "Measured: a step of one process",
        ["network", "device", "step s"],
        [
            {"network": k, "device": str(options.device), "step s": s}
            for k, s in steps.items()
        ],
        item,
    )
    return [measured, computed(), predicted(steps, str(options.device))]
