"""Binaural separation as a stream: how fast it is by size of block, and what it keeps.

Baseline: the same causal network, of the published size, run on the whole signal. The
stream takes a binaural signal at 8 kHz in blocks of so many hops of 1 ms. The algorithmic
latency is the encoder's window, 2 ms; who hands over larger blocks waits for these. The
real-time factor is the time spent over the length of the audio, below 1 is fast enough;
beside it the processor's time, which other programs on the machine do not lengthen, the
share of blocks that took longer than they last, and how far the output is from that of
the whole signal.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch

from benchmarks.frame import MEBIBYTE, Options, Table
from unified_se_ss.networks import BinauralNetwork
from unified_se_ss.networks.binaural import VARIANTS

SAMPLE_RATE = 8000
SECONDS = 4.0
HOPS = (1, 2, 4, 10, 50, 200)
TINY = dict(n_basis=8, n_features=4, hidden=8, blocks=2, repeats=1)
WARM_UP = 5  # blocks


def measure(network, signal, hops: int, wanted) -> dict:
    """Separate a signal in blocks of so many hops once; figures of the table."""
    length = hops * network.stride
    for block in signal[..., : WARM_UP * length].split(length, -1):
        (warm := network.stream())(block)
    warm.flush()
    stream, parts, late = network.stream(), [], 0
    wait(signal)
    wall, processor = time.perf_counter(), time.process_time()
    blocks = signal.split(length, -1)
    for block in blocks:
        began = time.perf_counter()
        parts.append(stream(block))
        wait(signal)
        late += time.perf_counter() - began > block.shape[-1] / SAMPLE_RATE
    state = stream.state_bytes
    parts.append(stream.flush())
    wait(signal)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    seconds = signal.shape[-1] / SAMPLE_RATE
    return {
        "real-time factor": wall / seconds,
        "processor factor": processor / seconds,
        "late blocks": late / len(blocks),
        "state MiB": state / MEBIBYTE,
        "difference": (torch.cat(parts, -1) - wanted).abs().max().item(),
    }


def whole(network, signal) -> dict:
    """The whole signal at once."""
    wait(signal)
    wall, processor = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        network(signal)
    wait(signal)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    seconds = signal.shape[-1] / SAMPLE_RATE
    return {"real-time factor": wall / seconds, "processor factor": processor / seconds}


def wait(signal) -> None:
    """Until the device has done what it was asked to."""
    if signal.is_cuda:
        torch.cuda.synchronize(signal.device)


def rows_of(network, signal, hops_tried, repeats: int) -> list[dict]:
    """A row for the whole signal and one for each size of block; medians of rounds."""
    with torch.inference_mode():
        wanted = network(signal)
    rounds = []
    for _ in range(repeats):
        found = [{"block ms": None, **whole(network, signal)}]
        for hops in hops_tried:
            block = {"block ms": 1000 * hops * network.stride / SAMPLE_RATE}
            found.append({**block, **measure(network, signal, hops, wanted)})
        rounds.append(found)
    return [medians(rows) for rows in zip(*rounds)]


def medians(rows) -> dict:
    """One row of several of the same columns."""
    return {
        key: value if value is None else statistics.median(row[key] for row in rows)
        for key, value in rows[0].items()
    }


def run(options: Options) -> Iterator[Table]:
    """A table for the causal networks of every variant."""
    seconds = 0.1 if options.quick else SECONDS
    hops_tried = (1, 10) if options.quick else HOPS
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, int(seconds * SAMPLE_RATE))
    signal = 0.1 * torch.randn(shape, generator=generator).to(options.device)
    rows = []
    for variant in VARIANTS:
        torch.manual_seed(0)
        network = BinauralNetwork(variant, causal=True, **(TINY if options.quick else {}))
        network = network.eval().to(options.device)
        for row in rows_of(network, signal, hops_tried, options.repeats):
            way = "whole" if row["block ms"] is None else "stream"
            rows.append({"variant": variant, "way": way, **row})
    yield Table(
        f"Causal binaural networks on {seconds:g} s at 8 kHz, by size of block",
        [
            *("variant", "way", "block ms", "real-time factor", "processor factor"),
            *("late blocks", "state MiB", "difference"),
        ],
        rows,
        "Algorithmic latency 2 ms. Real time: below 1.",
    )
