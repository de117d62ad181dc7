"""Binaural separation as a stream: how fast it is by size of block, and what it keeps.

    python benchmarks/binaural_streaming.py [--variants mimo] [--hops 1 2 10] [--share-ears]

The causal network of the published size takes a binaural signal at 8 kHz in blocks of so
many hops of 1 ms, on one thread unless told otherwise. The algorithmic latency is the
encoder's window, 2 ms; who hands over larger blocks waits for these. The real-time
factor is the time spent over the length of the audio, below 1 is fast enough; beside it
the processor's time, which other programs on the machine do not lengthen, the share of
blocks that took longer than they last, and how far the output is from that of the whole
signal.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from unified_se_ss.networks import BinauralNetwork  # noqa: E402
from unified_se_ss.networks.binaural import VARIANTS  # noqa: E402

SAMPLE_RATE = 8000
TINY = dict(n_basis=8, n_features=4, hidden=8, blocks=2, repeats=1)
WARM_UP = 5  # blocks


def measure(network, signal, hops):
    """Separate a signal in blocks of so many hops; a row of the table."""
    length = hops * network.stride
    for block in signal[..., : WARM_UP * length].split(length, -1):
        (warm := network.stream())(block)
    warm.flush()
    stream, parts, late = network.stream(), [], 0
    wall, processor = time.perf_counter(), time.process_time()
    blocks = signal.split(length, -1)
    for block in blocks:
        began = time.perf_counter()
        parts.append(stream(block))
        late += time.perf_counter() - began > block.shape[-1] / SAMPLE_RATE
    state = stream.state_bytes
    parts.append(stream.flush())
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    with torch.inference_mode():
        error = (torch.cat(parts, -1) - network(signal)).abs().max().item()
    seconds = signal.shape[-1] / SAMPLE_RATE
    return {
        "hops": hops,
        "block_ms": 1000 * length / SAMPLE_RATE,
        "real_time_factor": wall / seconds,
        "processor_factor": processor / seconds,
        "late": late / len(blocks),
        "state_bytes": state,
        "error": error,
    }


def as_line(row):
    """A row of the table as text."""
    return (
        f"{row['variant']:<12} {row['block_ms']:>5g} ms {row['real_time_factor']:>10.2f} "
        f"{row['processor_factor']:>10.2f} {row['late']:>6.0%} "
        f"{row['state_bytes'] / 2**20:>6.2f} MiB {row['error']:>8.0e}"
    )


def main(arguments=None):
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--hops", nargs="+", type=int, default=[1, 2, 4, 10, 50, 200])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the signal")
    parser.add_argument("--norm", choices=["cumulative", "frame"], default="cumulative")
    parser.add_argument("--share-ears", action="store_true", help="one network, two ears")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a very small network")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    signal = 0.1 * torch.randn(1, 2, int(options.seconds * SAMPLE_RATE))
    print(
        f"torch {torch.__version__}, cpu, threads: {options.threads}, norm: {options.norm}, "
        f"share_ears: {options.share_ears}, {options.seconds:g} s at {SAMPLE_RATE} Hz\n"
        f"algorithmic latency: 2 ms; {'':<9}real time below 1\n\n"
        f"{'variant':<12} {'block':>8} {'time':>10} {'processor':>10} {'late':>6} "
        f"{'state':>10} {'error':>8}"
    )
    rows = []
    for variant in options.variants:
        network = BinauralNetwork(
            variant,
            causal=True,
            norm=options.norm,
            share_ears=options.share_ears,
            **(TINY if options.tiny else {}),
        ).eval()
        for hops in options.hops:
            rows.append({"variant": variant, **measure(network, signal, hops)})
            print(as_line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
