"""PIT SI-SNR against SpeechBrain's: time, forward and backward, and exactness in fp32.

Batches of 16 items of 4 s at 8 kHz with 2 and 3 sources. "Gram" is the tempting shortcut: the
energies of the error out of products of the signals, |e|^2 = |x|^2 - <x,s>^2 / |s|^2, which
takes a fifth of the time and has no digits left where the estimate is good. Exactness is the
difference from the same formula in float64, over estimates of known SI-SNR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from speechbrain.nnet.losses import get_si_snr_with_pitwrapper

from benchmarks.frame import Options, Table, alternate, compared, from_tests
from unified_se_ss.losses import best_permutation, permutation_invariant_si_snr

ITEMS, SECONDS, RATE = 16, 4.0, 8000
LEVELS = range(10, 80, 10)  # dB
BASELINE = "SpeechBrain"
EPSILON = 1e-8


def of_speechbrain(estimates: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Scores of SpeechBrain, whose loss changes what it is given, [B]."""
    first, second = sources.transpose(1, 2), estimates.transpose(1, 2)
    return -get_si_snr_with_pitwrapper(first.contiguous(), second.contiguous())


def of_project(estimates: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Scores of this project, [B]."""
    return permutation_invariant_si_snr(estimates, sources)[0]


def of_gram(estimates: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Scores by the shortcut that is not exact, [B]."""
    estimates = estimates - estimates.mean(-1, keepdim=True)
    sources = sources - sources.mean(-1, keepdim=True)
    products = estimates @ sources.mT
    energy = sources.square().sum(-1).unsqueeze(1)
    projected = products.square() / (energy + EPSILON)
    noise = (estimates.square().sum(-1).unsqueeze(2) - projected).clamp(min=0)
    return best_permutation(10 * torch.log10(projected / (noise + EPSILON) + EPSILON))[0]


WAYS: dict[str, Callable] = {BASELINE: of_speechbrain, "here": of_project, "Gram": of_gram}


def signals(items: int, sources: int, samples: int, level: float, device: torch.device):
    """Estimates of so many dB in another order than their sources, in float64."""
    generator = torch.Generator().manual_seed(0)
    true, noise = torch.randn(
        2, items, sources, samples, generator=generator, dtype=torch.float64
    )
    estimates = 0.1 * (true + 10 ** (-level / 20) * noise).roll(1, 1)
    return estimates.to(device), (0.1 * true).to(device)


def run(options: Options) -> Iterator[Table]:
    """Time, then exactness, for 2 and 3 sources."""
    items, samples = (2, 800) if options.quick else (ITEMS, int(SECONDS * RATE))
    for count in (2, 3):
        yield times(count, items, samples, options)
        yield exactness(count, items, samples, options.device)


def times(count: int, items: int, samples: int, options: Options) -> Table:
    """Forward and backward, operations and waits for the host."""
    estimates, sources = (
        x.float() for x in signals(items, count, samples, 10, options.device)
    )
    estimates.requires_grad_()

    def pass_through(way):
        def call():
            torch.autograd.grad(way(estimates, sources).sum(), estimates)

        return call

    calls = {name: pass_through(way) for name, way in WAYS.items()}
    timings = alternate(calls, 4 * options.repeats, options.device, memory=True)
    rows = compared(timings, BASELINE, "loss")
    for row in rows:
        with from_tests("host_reads").HostReads() as reads:
            calls[row["loss"]]()
        row["waits for the host"] = reads.count
    columns = ["loss", "seconds", "low", "high", "processor s", "speed", "processor speed"]
    columns += ["peak MiB", "waits for the host"]
    title = f"{count} sources, batch {items}, {samples} samples, forward and backward"
    return Table(title, columns, rows)


def exactness(count: int, items: int, samples: int, device: torch.device) -> Table:
    """Largest difference in dB from float64 by level."""
    rows = []
    for level in LEVELS:
        estimates, sources = signals(items, count, samples, level, device)
        exact = of_project(estimates, sources)
        row = {"SI-SNR dB": level}
        for name, way in WAYS.items():
            found = way(estimates.float(), sources.float())
            row[f"{name}, error in dB"] = (found.double() - exact).abs().max().item()
        rows.append(row)
    return Table(f"{count} sources, fp32 against float64", list(rows[0]), rows)
