"""Time and memory against duration, batch, parameters and sources, with fitted exponents.

No other program is the baseline here, but the least that a part can need: linear in the
duration, the batch and the parameters, but for attention across chunks, whose work is the
square of the duration. Exponents are of power laws, by least squares in logarithms over the
larger half of the sizes: fixed costs flatten the smaller. Below 1 means that larger is
cheaper by the piece.

On a CPU processor time is fitted, which other programs lengthen least, without the operating
system's part of it: it hands out blocks of over 32 MiB anew at every step, page by page,
which small sizes have none of. Only so many sizes are tried as take `SECONDS` a step and a
quarter of the memory that is free: a heap of many sizes takes far more than was asked of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from hyperpyyaml import load_hyperpyyaml

from benchmarks.frame import (
    ROOT,
    Options,
    Table,
    Timing,
    alternate,
    free_bytes,
    in_mebibytes,
)
from benchmarks.networks import recipe
from benchmarks.steps import Batch, ProjectStep
from unified_se_ss.evaluation.rows import evaluate_item
from unified_se_ss.gradients import TaskLoss, TwoTaskGradients, TwoTaskLosses
from unified_se_ss.losses import (
    permutation_invariant_si_snr,
    permutation_invariant_snr,
    si_snr,
)
from unified_se_ss.networks import GSENet
from unified_se_ss.networks.dual_path import count_chunks
from unified_se_ss.networks.transformer import attend

RATE = 8000
TOLERANCE = 0.15  #: By which a fitted exponent may exceed the expected one by chance.
SECONDS = {"cpu": 8.0, "cuda": 60.0}  #: Of a step, at most.
DURATIONS = (1, 2, 4, 8, 15, 30)
LONG = (60, 120)  #: For attention across chunks alone, which is linear at first.
BATCHES = (1, 2, 4, 8, 16)
WIDTHS = (32, 64, 128, 256)
SIZES = (1e5, 1e6, 1e7, 5e7)
SOURCES = (2, 3, 4, 5, 6)

#: A quarter as wide, SepFormer with two layers of eight; chunks and windows as published.
SMALL = {
    "SepFormer": {"n_basis": 64, "n_features": 64, "heads": 4, "feed_forward": 256}
    | {"ss_layers": 2},
    "DPRNN": {"n_basis": 64, "n_features": 64, "hidden": 64},
}
QUICK = {
    "SepFormer": {"n_basis": 16, "n_features": 16, "heads": 2, "feed_forward": 32}
    | {"ss_layers": 1, "chunk_length": 10},
    "DPRNN": {"n_basis": 16, "n_features": 16, "hidden": 8, "ss_blocks": 2}
    | {"chunk_length": 10, "kernel_size": 64, "stride": 32},
}


class PowerLaw(NamedTuple):
    """y = factor * x ** exponent, fitted.

    Arguments
    ---------
    factor : float
    exponent : float
    error : float or None
        Standard error of the exponent; None where two points determine it.
    """

    factor: float
    exponent: float
    error: float | None

    def __call__(self, x):
        return self.factor * np.asarray(x, dtype=float) ** self.exponent


def power_law(sizes, values) -> PowerLaw:
    """Fit a power law by least squares in logarithms.

    Arguments
    ---------
    sizes, values : sequence of float
        At least two, positive.

    Example
    -------
    >>> power_law([1, 2, 4], [3, 12, 48]).exponent
    2.0
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float))
    if len(x) < 2 or len(x) != len(y):
        raise ValueError(
            f"{len(x)} sizes and {len(y)} values; expected two or more of each"
        )
    centred = x - x.mean()
    exponent = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - exponent * centred
    error = None
    if len(x) > 2:
        error = float(math.sqrt(rest @ rest / (len(x) - 2) / (centred @ centred)))
    factor = math.exp(y.mean() - exponent * x.mean())
    return PowerLaw(factor, round(exponent, 12), error)


def larger_half(count: int) -> slice:
    """The larger half of so many sizes, in order: what a fit is made of; at least two."""
    return slice(min(count // 2, count - 2) if count > 2 else 0, None)


class Series(NamedTuple):
    """What one thing took at each size.

    Arguments
    ---------
    name : str
    against : str
        What its size is, with its unit.
    most : float
        The exponent of the work that is to be done, which its time must not exceed.
    sizes : list of float
    seconds : list of float
        Of the program on the processor of a CPU, on the clock on a GPU.
    memory : list of int or None
        Bytes at the peak.
    system : list of float
        Seconds of the operating system beside them, on a CPU.
    left_out : str
        Sizes that were not tried, and why.
    """

    name: str
    against: str
    most: float
    sizes: list
    seconds: list
    memory: list
    system: Sequence = ()
    left_out: str = ""

    def rows(self) -> list[dict]:
        """One row for each size."""
        return [
            {
                "what": self.name,
                self.against: size,
                "seconds": seconds,
                "system s": system,
                "peak MiB": in_mebibytes(memory),
            }
            for size, seconds, memory, system in zip_longest(
                self.sizes, self.seconds, self.memory, self.system
            )
        ]

    def fits(self) -> dict:
        """The row of the table of exponents."""
        part = larger_half(len(self.sizes))
        sizes = self.sizes[part]
        row = {
            "what": self.name,
            "against": self.against,
            "from": sizes[0],
            "to": sizes[-1],
            "at most": self.most,
        }
        if len(sizes) > 1:
            law = power_law(sizes, self.seconds[part])
            row |= {"time": law.exponent, "standard error": law.error}
            row["holds"] = law.exponent <= self.most + TOLERANCE
            memory = [m for m in self.memory[part] if m]
            if len(memory) == len(sizes):
                row["memory"] = power_law(sizes, memory).exponent
        return row


def measured(
    options: Options,
    name: str,
    against: str,
    sizes: Iterable,
    make: Callable,
    most: float = 1.0,
    repeats: int | None = None,
) -> Series:
    """Time what `make(size)` returns at every size that is not too much.

    Arguments
    ---------
    options : Options
        Of the command line.
    name, against, most
        See :class:`Series`.
    sizes : iterable of float
        In rising order.
    make : callable
        Takes a size, returns a function without arguments.
    repeats : int, optional
        Rounds; by default as many as the options say, three at most.
    """
    series = Series(name, against, most, [], [], [], [])
    repeats = repeats or min(options.repeats, 3)
    device = options.device
    for size in sizes:
        reason = _too_much(series, size, device)
        if reason:
            return series._replace(left_out=f"{name} from {size:g} {against} on: {reason}")
        try:
            timing = _time(make(size), 1 if options.quick else repeats, device)
        except torch.cuda.OutOfMemoryError:
            reason = "not enough memory on the GPU"
            return series._replace(left_out=f"{name} from {size:g} {against} on: {reason}")
        series.sizes.append(size)
        on_cpu = device.type == "cpu"
        series.seconds.append(timing.own_median if on_cpu else timing.median)
        series.system.append(timing.system_median if on_cpu else None)
        series.memory.append(timing.peak_bytes)
    return series


def _time(function, repeats, device) -> Timing:
    return alternate({"it": function}, repeats, device, memory=True)["it"]


def _too_much(series: Series, size, device) -> str:
    """Why a size is not tried, from what the two before it took."""
    if len(series.sizes) < 2:
        return ""
    predicted = {}
    for what in ("seconds", "memory"):
        values = getattr(series, what)
        law = power_law(series.sizes[-2:], [max(v or 0, 1e-9) for v in values[-2:]])
        predicted[what] = float(values[-1] or 0) * (size / series.sizes[-1]) ** max(
            law.exponent, 1
        )
    most = SECONDS[device.type]
    if predicted["seconds"] > most:
        return f"about {predicted['seconds']:.0f} s a step, more than {most:g}"
    if predicted["memory"] > free_bytes(device) / 4:
        return f"about {predicted['memory'] / 2**30:.0f} GiB, more than a quarter of what is free"
    return ""


# ------------------------------------------------------------------ what is measured


def unified_step(kind: str, device, seconds=1.0, batch=1, **sizes) -> ProjectStep:
    """The training step of a unified network."""
    network = recipe(kind, **sizes)["network"].to(device)
    return ProjectStep(network, Batch.of(batch, int(seconds * RATE), device))


def gsenet_step(device, seconds) -> Callable:
    """Forward and backward of GSENet as published, at 16 kHz."""
    torch.manual_seed(0)
    network = GSENet().to(device)
    inputs = torch.randn(1, 2, int(2 * RATE * seconds), device=device)
    return _step(network, lambda: -si_snr(network(inputs), inputs[:, 0]).sum())


def binaural_step(device, seconds) -> Callable:
    """Forward and backward of the binaural network as published (MIMO)."""
    file = ROOT / "recipes/BinauralWSJ0Mix/hparams/convtasnet-mimo.yaml"
    text = file.read_text(encoding="utf-8").replace("!PLACEHOLDER", "unused")
    network = load_hyperpyyaml(text, {"output_folder": "unused"})["network"].to(device)
    sources = torch.randn(1, 2, 2, int(RATE * seconds), device=device)
    mixture = sources.sum(1)
    return _step(
        network,
        lambda: -permutation_invariant_snr(network(mixture), sources)[0].sum(),
    )


def _step(network, loss) -> Callable:
    def step():
        network.zero_grad()
        loss().backward()

    return step


def inter_attention(device, seconds, width, heads, chunk_length, stride) -> Callable:
    """Attention across chunks of one layer, forward and backward, and nothing else."""
    chunks = count_chunks(int(seconds * RATE / stride), chunk_length)
    shape = chunk_length, heads, chunks, width // heads
    query, key, value = (
        torch.randn(shape, device=device, requires_grad=True) for _ in range(3)
    )

    def step():
        attend(query, key, value, None, 0.0).square().sum().backward()
        query.grad = key.grad = value.grad = None

    return step


def two_gradients(device, size) -> tuple[Callable, Callable]:
    """Taking two gradients of so many parameters, and making one of them.

    The network is layers of 250,000 parameters side by side (fewer in the smallest), half
    of them shared, on a single item: next to no work but what goes with the parameters.
    """
    layers = max(2, round(size / 250_000))
    width = round(math.sqrt(size / layers))
    network = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
    network.to(device)
    shared = [str(number) for number in range(layers // 2)]
    gradients = TwoTaskGradients(network.named_parameters(), shared)
    x = torch.randn(1, width, device=device)

    def losses():
        outputs = [layer(x).square().sum() for layer in network]
        main, auxiliary = sum(outputs), sum(outputs[: layers // 2])
        one = torch.ones((), device=device)
        return TwoTaskLosses(TaskLoss(main, one), TaskLoss(auxiliary, one))

    def accumulate():
        gradients.pending = 0
        gradients.accumulate(losses())

    accumulate()
    return accumulate, gradients.combine


def pit_loss(device, sources, samples) -> Callable:
    """Loss and its gradient under the best of all assignments."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(4, sources, samples, generator=generator).to(device)
    estimates = targets.roll(1, 1).clone().requires_grad_()

    def step():
        permutation_invariant_si_snr(estimates, targets)[0].sum().backward()
        estimates.grad = None

    return step


def evaluation(seconds) -> Callable:
    """All metrics of one item with two sources."""
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((2, int(seconds * RATE))).astype(np.float32)
    mixture = targets.sum(0)
    estimates = targets + 0.1 * mixture
    return partial(evaluate_item, mixture, estimates, targets, sample_rate=RATE)


# ------------------------------------------------------------------ tables


def against_duration(options: Options) -> Iterator[Series]:
    """Steps of all networks by seconds of audio."""
    device, quick = options.device, options.quick
    durations = (0.25, 0.5) if quick else DURATIONS
    what = partial(measured, options, against="s of audio", sizes=durations)
    for kind in ("SepFormer", "DPRNN"):
        sizes = {"small": QUICK[kind]} if quick else {"small": SMALL[kind], "published": {}}
        for name, of in sizes.items():
            make = partial(unified_step, kind, device, **of)
            most = 2.0 if kind == "SepFormer" else 1.0
            yield what(name=f"{kind}, {name}", make=make, most=most)
    yield what(name="GSENet, published", make=partial(gsenet_step, device))
    yield what(name="binaural, published", make=partial(binaural_step, device))


def attention_share(options: Options, step: Series) -> tuple[Series, Series, Table]:
    """The part of the small SepFormer's step that is quadratic, the rest, and their shares."""
    of = recipe("SepFormer", **(QUICK if options.quick else SMALL)["SepFormer"])
    make = partial(
        inter_attention,
        options.device,
        width=of["n_features"],
        heads=of["heads"],
        chunk_length=of["chunk_length"],
        stride=of["stride"],
    )
    part = measured(
        options,
        "attention across chunks, a layer",
        "s of audio",
        step.sizes if options.quick else [*step.sizes, *LONG],
        make,
        most=2.0,
    )
    # The SE module's go backwards twice; forward is a third of forward and backward.
    layers = of["ss_blocks"] * of["ss_layers"] + of["se_blocks"] * of["se_layers"] * 5 / 3
    rows = [
        {
            "s of audio": size,
            "step s": whole,
            "attention across chunks s": layers * one,
            "share": layers * one / whole,
        }
        for size, whole, one in zip(part.sizes, step.seconds, part.seconds)
    ]
    rest = Series(
        f"{step.name}, without this attention",
        step.against,
        1.0,
        step.sizes[: len(rows)],
        [row["step s"] - row["attention across chunks s"] for row in rows],
        [None] * len(rows),
    )
    return (
        part,
        rest,
        Table(
            f"What of the step is quadratic: {step.name}",
            ["s of audio", "step s", "attention across chunks s", "share"],
            rows,
            f"Attention across chunks alone, forward and backward, times {layers:g} layers "
            "(those of the SE module count 5/3, since they go backwards twice). Projections "
            "and feed-forward layers around it are linear.",
        ),
    )


def against_batch(options: Options) -> Iterator[Series]:
    """Steps of the small networks by items of a batch."""
    sizes = QUICK if options.quick else SMALL
    batches = (1, 2) if options.quick else BATCHES
    for kind in ("SepFormer", "DPRNN"):
        make = partial(_batch_step, kind, options.device, sizes[kind])
        yield measured(options, f"{kind}, small, 1 s", "items", batches, make)


def _batch_step(kind, device, sizes, batch):
    return unified_step(kind, device, batch=int(batch), **sizes)


def against_parameters(options: Options) -> Iterator[Series]:
    """Steps by parameters, as the networks get wider."""
    widths = (8, 16) if options.quick else WIDTHS
    for kind in ("SepFormer", "DPRNN"):
        sizes = {}
        for width in widths:
            of = _of_width(kind, width, options.quick)
            network = recipe(kind, **of)["network"]
            sizes[sum(p.numel() for p in network.parameters())] = of
        make = partial(_wide_step, kind, options.device, sizes)
        yield measured(options, f"{kind}, 1 s", "parameters", sizes, make, most=1.0)


def _wide_step(kind, device, sizes, parameters):
    return unified_step(kind, device, **sizes[parameters])


def _of_width(kind, width, quick):
    """Sizes of a network that is so wide everywhere."""
    of = dict((QUICK if quick else {"SepFormer": {}, "DPRNN": {}})[kind])
    of |= {"n_basis": width, "n_features": width}
    of |= {"hidden": width} if kind == "DPRNN" else {"feed_forward": 4 * width}
    return of


def of_the_gradients(options: Options) -> Iterator[Series]:
    """Both halves of the two gradients by parameters."""
    sizes = (1e4, 1e5) if options.quick else SIZES
    names = ("accumulate", "combine")
    for number, name in enumerate(names):
        make = partial(_half, number, options.device)
        yield measured(options, f"{name}, two gradients", "parameters", sizes, make)


def _half(number, device, size):
    return two_gradients(device, size)[number]


def of_losses_and_metrics(options: Options) -> Iterator[Series]:
    """The permutation-invariant loss by sources, the evaluation by duration."""
    quick, device = options.quick, options.device
    samples = 400 if quick else 4 * RATE
    sources = (2, 3) if quick else SOURCES
    make = partial(pit_loss, device, samples=samples)
    yield measured(
        options, "PIT SI-SNR, 4 items of 4 s", "sources", sources, make, most=2.0
    )
    durations = (0.25, 0.5) if quick else DURATIONS
    host = Options(torch.device("cpu"), quick, options.repeats, options.threads)
    yield measured(host, "evaluation of an item", "s of audio", durations, evaluation)


def table(title: str, series: list[Series], note: str = "") -> Table:
    """All points of some series."""
    left_out = [s.left_out for s in series if s.left_out]
    said = f"Not tried: {'; '.join(left_out)}." if left_out else ""
    return Table(
        title,
        ["what", series[0].against, "seconds", "system s", "peak MiB"],
        [row for s in series for row in s.rows()],
        " ".join(filter(None, [note, said])),
    )


def run(options: Options) -> list[Table]:
    """Measure all, fit, and draw."""
    by_duration = list(against_duration(options))
    part, rest, share = attention_share(options, by_duration[0])
    by_batch = list(against_batch(options))
    by_parameters = list(against_parameters(options))
    gradients = list(of_the_gradients(options))
    pit, metrics = of_losses_and_metrics(options)
    everything = [
        *by_duration,
        part,
        rest,
        *by_batch,
        *by_parameters,
        *gradients,
        pit,
        metrics,
    ]
    on_cpu = options.device.type == "cpu"
    clock = "of the program on the processor" if on_cpu else "on the clock"
    note = (
        f"Seconds {clock}, median, and beside them those of the operating system; memory "
        "beyond weights and optimizer."
    )
    tables = [
        exponents(everything),
        table("Step against duration, one item", by_duration, note),
        share,
        table("Step against batch", by_batch),
        table("Step against width", by_parameters),
        table("Two gradients against parameters, half of them shared", gradients),
        table("Loss against sources", [pit]),
        table("Evaluation against duration", [metrics], "On the CPU."),
    ]
    if options.output is not None:
        panels = {
            "training step": by_duration + [part, rest],
            "batch": by_batch,
            "width": by_parameters,
            "two gradients": gradients,
            "loss": [pit],
            "evaluation": [metrics],
        }
        draw(panels, options.output / "growth.png")
    return tables


def exponents(everything: list[Series]) -> Table:
    """The table of fits."""
    columns = "what, against, from, to, time, standard error, memory, at most, holds"
    return Table(
        "Fitted exponents",
        columns.split(", "),
        [series.fits() for series in everything],
        "Of the larger half of the sizes. `at most` is that of the operations that are asked "
        "for: 1 in duration, items and parameters; 2 in duration for attention across "
        "chunks, and so for SepFormer's step in the end; 2 in sources, all pairs of which "
        f"are compared. It holds if the time's is no more than {TOLERANCE} above.",
    )


def draw(panels: dict[str, list[Series]], path) -> None:
    """Time and memory over size, with the fitted lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(panels), figsize=(4.2 * len(panels), 8), layout="constrained"
    )
    for (title, panel), column in zip(panels.items(), axes.T):
        for number, series in enumerate(panel):
            colour = f"C{number}"
            _draw(column[0], series.sizes, series.seconds, series.name, colour)
            pairs = [(s, m / 2**20) for s, m in zip(series.sizes, series.memory) if m]
            if pairs:
                _draw(column[1], *zip(*pairs), series.name, colour)
        for axis, unit in zip(column, ("seconds", "peak MiB")):
            axis.set(xscale="log", yscale="log", xlabel=panel[0].against, ylabel=unit)
            sizes = panel[0].sizes
            axis.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
            axis.set_xticks([], minor=True)
            axis.grid(True, which="both", alpha=0.2)
            axis.set_visible(bool(axis.lines))  # numpy's memory is not known
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=7)
        column[0].set_title(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(axis, sizes, values, name, colour) -> None:
    """Points of one series, and the line through the larger half of them."""
    part = larger_half(len(sizes))
    axis.plot(sizes, values, "o", color=colour, markersize=4)
    if len(sizes) > 1:
        law = power_law(sizes[part], values[part])
        label = f"{name}: {law.exponent:.2f}"
        axis.plot(sizes[part], law(sizes[part]), color=colour, label=label)
