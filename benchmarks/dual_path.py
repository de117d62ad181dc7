"""The dual-path networks against SpeechBrain's: forward and backward, with the same weights.

The separation modules of the published sizes on one item. Also compared: how far the masks
are apart, and how many bytes are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.frame import Options, Table, alternate, compared
from benchmarks.networks import RECIPES, of_speechbrain, recipe
from benchmarks.training_step import kept_by

SECONDS, FRAMES_PER_SECOND = 2.0, 1000


def run(options: Options) -> Iterator[Table]:
    """Two rows for each kind."""
    frames = int((0.1 if options.quick else SECONDS) * FRAMES_PER_SECOND) - 1
    rows = [row for kind in RECIPES for row in compare(kind, frames, options)]
    columns = ["network", "modules", "seconds", "processor s", "speed", "processor speed"]
    columns += ["kept", "difference of the masks"]
    yield Table(f"forward and backward of one item of {frames} frames", columns, rows)


def compare(kind: str, frames: int, options: Options) -> list[dict]:
    """Rows of SpeechBrain's module and of ours."""
    device = options.device
    network = recipe(kind, options.quick)["separator"].to(device)
    reference = of_speechbrain(kind, network).to(device)
    x = torch.rand(1, network.bottleneck.in_features, frames, device=device)
    with torch.no_grad():
        expected = reference(x).transpose(0, 1)
        difference = ((network(x) - expected).norm() / expected.norm()).item()

    def pass_through(module):
        def call():
            module(x).square().sum().backward()
            module.zero_grad()

        return call

    modules = {"SpeechBrain": reference, "here": network}
    functions = {name: pass_through(module) for name, module in modules.items()}
    timings = alternate(functions, options.repeats, device)
    rows = compared(timings, "SpeechBrain", "modules")
    kept = [kept_by(lambda m=m: m(x), m.parameters()) for m in modules.values()]
    for row, size in zip(rows, kept):
        row.update({"network": kind, "kept": size / kept[0], "kept bytes": size})
        row["difference of the masks"] = difference if row["modules"] == "here" else None
    return rows
