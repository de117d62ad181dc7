"""The price of two gradients: the recipes' steps against one backward pass of the sum.

The baseline is the same network, losses and optimizer with `(main + auxiliary).backward()`,
which is what `rule: sum` would be without a gradient of its own for each task. The share
that cannot be avoided is that of the operations: with a backward pass of twice a forward
pass it is 1.169 for the published DPRNN and 1.077 for the SepFormer; the price aimed at is
at most 2 % above that. For other fronts, memory, and other ways to take two gradients:
two_gradient_fronts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.frame import Options, Table, alternate
from benchmarks.networks import RECIPES, recipe
from benchmarks.steps import MODULATION, Batch, ProjectStep, SingleBackwardStep
from benchmarks.training_step import profiled

SHARE = {"DPRNN": 1.169, "SepFormer": 1.077}
SECONDS, RATE = 4.0, 8000
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def run(options: Options) -> Iterator[Table]:
    """One row for each kind of network and precision."""
    seconds = 0.05 if options.quick else SECONDS
    rows = []
    for kind in RECIPES:
        batch = Batch.of(1, int(seconds * RATE), options.device)
        for precision, dtype in PRECISIONS.items():
            rows.append(
                {
                    "network": kind,
                    "precision": precision,
                    **price(kind, batch, dtype, options),
                    "operations": SHARE[kind],
                }
            )
            rows[-1]["above"] = rows[-1]["processor ratio"] / SHARE[kind] - 1
    if options.device.type == "cuda":  # where the processor only starts kernels
        for row in rows:
            row["above"] = row["ratio"] / SHARE[row["network"]] - 1
    note = "Above: how far the ratio lies above the operations' (processor time on a CPU)."
    yield Table(f"two gradients, one item of {seconds:g} s", list(rows[0]), rows, note)


def price(kind: str, batch: Batch, dtype, options: Options) -> dict:
    """Times of both kinds of step, their ratio, and the modulation's share."""

    def step(made):
        network = recipe(kind, options.quick)["network"].to(options.device)
        return made(network, batch, dtype)

    two = step(ProjectStep)
    steps = {"one": step(SingleBackwardStep), "two": two}
    timings = alternate(steps, options.repeats, options.device)
    one_timing, two_timing = timings["one"], timings["two"]
    return {
        "one backward s": one_timing.median,
        "two gradients s": two_timing.median,
        "ratio": two_timing.times(one_timing),
        "processor ratio": two_timing.times(one_timing, "processor"),
        f"{MODULATION} share": profiled(two, options.device)["modulation"],
    }
