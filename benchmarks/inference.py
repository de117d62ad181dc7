"""Inference: real-time factor and memory by model, whole and in chunks, beside SpeechBrain.

Baseline for the unified networks: SpeechBrain's own `SepformerSeparation` with the same
weights, from the folder that this project exports for it. The other networks have no
counterpart there; they are set against the same network run whole, in eager fp32. Streams
by size of block: `binaural_streaming` and `gsenet_streaming`.

The real-time factor is seconds of work for a second of sound; below 1 keeps up with it.
Weights are random: they do not change the work. The difference is the largest from what is
compared with, over its maximum. In chunks, differences come from what a network cannot hear
beyond a chunk, and with random weights from sources in another order; they are not stated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.frame import Options, Table, alternate, in_mebibytes, peak_bytes
from benchmarks.networks import recipe
from unified_se_ss.inference import Model, Separator
from unified_se_ss.inference.speechbrain_format import (
    speechbrain_states,
    speechbrain_yaml,
)
from unified_se_ss.networks import BinauralNetwork, GSENet
from unified_se_ss.networks.binaural import VARIANTS

UNIFIED = ("SepFormer", "DPRNN")
RATE, GSENET_RATE = 8000, 16000
SECONDS = 8.0  #: Of a signal that is worked on whole.
LONG = {"cpu": 15.0, "cuda": 120.0}  #: Of one that is worked on in chunks, too.
CHUNK, OVERLAP = 5.0, 1.0
MOST_ROUNDS = 3  #: On a CPU, where one takes long.
TINY_BINAURAL = {"n_basis": 8, "n_features": 4, "hidden": 8, "blocks": 2, "repeats": 1}
TINY_GSENET = [[2, 4, 2, 2, True]]
COLUMNS = [
    *("model", "way", "real-time factor", "processor factor", "speed"),
    *("peak MiB", "relative difference"),
]


def noise(seconds: float, rate: int, channels: int | None, device) -> torch.Tensor:
    """A signal from a seed, [1, T] or [1, C, T]."""
    generator = torch.Generator().manual_seed(0)
    shape = (1,) if channels is None else (1, channels)
    samples = int(seconds * rate)
    return (0.1 * torch.randn(*shape, samples, generator=generator)).to(device)


def speechbrains(model: Model, device: torch.device):
    """SpeechBrain's `SepformerSeparation` with the weights of a unified model."""
    from speechbrain.inference.separation import SepformerSeparation

    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as kept:
        (Path(place) / "hyperparams.yaml").write_text(speechbrain_yaml(model))
        for name, state in speechbrain_states(model.network).items():
            torch.save(state, Path(place) / f"{name}.ckpt")
        return SepformerSeparation.from_hparams(
            source=place, savedir=kept, run_opts={"device": str(device)}
        )


def rows_of(
    name: str,
    ways: dict[str, Callable],
    baseline: str,
    seconds: float,
    options: Options,
    shorter: dict[str, Callable] | None = None,
) -> list[dict]:
    """A row for each way to work on one signal of some seconds.

    `shorter` has, by name, what takes as much memory in less time: of a stream on a CPU,
    each of whose operations would be recorded, a few blocks are enough.
    """
    repeats, found = options.repeats, {}
    if options.device.type == "cpu":
        repeats = min(repeats, MOST_ROUNDS)

    def kept(way, function):
        return lambda: found.update({way: function()})

    timings = alternate(
        {way: kept(way, function) for way, function in ways.items()},
        repeats,
        options.device,
    )
    peaks = {
        way: peak_bytes(function, options.device)
        for way, function in {**ways, **(shorter or {})}.items()
    }
    return [
        {
            "model": name,
            "way": way,
            "real-time factor": timing.median / seconds,
            "processor factor": timing.processor_median / seconds,
            "speed": timings[baseline].times(timing),
            "peak MiB": in_mebibytes(peaks[way]),
            "relative difference": None
            if way == baseline
            else relative_difference(found[way], found[baseline]),
            "low": timing.low / seconds,
            "high": timing.high / seconds,
        }
        for way, timing in timings.items()
    ]


def relative_difference(found, wanted) -> float:
    """The largest difference, over the largest of what is compared with."""
    found, wanted = (torch.as_tensor(x).float() for x in (found, wanted))
    return float((found - wanted).abs().max() / wanted.abs().max())


def unified(options: Options) -> Table:
    """The unified networks, beside SpeechBrain's of the same weights."""
    seconds = 0.25 if options.quick else SECONDS
    return Table(
        f"Separation of {seconds:g} s at 8 kHz, whole, beside SepformerSeparation",
        COLUMNS,
        [row for kind in UNIFIED for row in unified_rows(kind, seconds, options)],
        "Peak memory is that of tensors beyond the weights.",
    )


def network_of(kind: str, options: Options):
    """A recipe's network, its weights always the same."""
    torch.manual_seed(0)
    return recipe(kind, small=options.quick)["network"]


def unified_rows(kind: str, seconds: float, options: Options) -> list[dict]:
    """SpeechBrain, here, and here in bf16."""
    network = network_of(kind, options)
    theirs = speechbrains(Model(network, "unified", RATE, "cpu"), options.device)
    model = Model(network, "unified", RATE, options.device)
    half = Model(network, "unified", RATE, options.device, "bf16")
    mixture = noise(seconds, RATE, None, options.device)
    ways = {
        "SpeechBrain": lambda: theirs.separate_batch(mixture).transpose(1, 2),
        "here": lambda: model.separate(mixture),
        "here, bf16": lambda: half.separate(mixture),
    }
    return rows_of(kind, ways, "SpeechBrain", seconds, options)


def in_chunks(options: Options) -> Table:
    """A recording in chunks, beside the same one as a whole."""
    seconds = 1.0 if options.quick else LONG[options.device.type]
    chunk, overlap = (0.5, 0.1) if options.quick else (CHUNK, OVERLAP)
    rows = []
    for kind in UNIFIED:
        rows += chunk_rows(kind, seconds, chunk, overlap, options)
    return Table(
        f"A recording of {seconds:g} s through Separator: as a whole, and in chunks that "
        f"overlap by {overlap:g} s",
        [column for column in COLUMNS if column != "relative difference"],
        rows,
        "With reading, levels, and putting together. Chunks repeat the overlaps, and "
        "more where somebody pauses there; their memory does not grow with the recording.",
    )


def chunk_rows(kind: str, seconds, chunk, overlap, options: Options) -> list[dict]:
    """As a whole, and in chunks."""
    model = Model(network_of(kind, options), "unified", RATE, options.device)
    recording = noise(seconds, RATE, None, "cpu")[0].numpy()
    whole = Separator(model, 2 * seconds, overlap)
    chunks = Separator(model, chunk, overlap)
    ways = {
        "whole": lambda: whole.separate(recording, RATE),
        f"chunks of {chunk:g} s": lambda: chunks.separate(recording, RATE),
    }
    return rows_of(kind, ways, "whole", seconds, options)


def others(options: Options) -> Table:
    """Binaural networks and GSENet: whole, and as streams in blocks of 10 ms."""
    seconds = 0.2 if options.quick else SECONDS
    sizes = TINY_BINAURAL if options.quick else {}
    rows = []
    for variant in VARIANTS:
        for causal in (False, True):
            torch.manual_seed(0)
            network = BinauralNetwork(variant, causal=causal, **sizes)
            name = f"binaural, {variant}{', causal' if causal else ''}"
            rows += other_rows(name, network, RATE, seconds, causal, options)
    torch.manual_seed(0)
    gsenet = GSENet(TINY_GSENET, bottleneck=2) if options.quick else GSENet()
    rows += other_rows("GSENet", gsenet, GSENET_RATE, seconds, True, options)
    return Table(
        f"Two channels of {seconds:g} s: binaural networks at 8 kHz, GSENet at 16 kHz",
        COLUMNS,
        rows,
        "Every row is against the same network run whole.",
    )


def other_rows(name, network, rate, seconds, streams, options: Options) -> list[dict]:
    """A network of two channels: whole and, if it can, as a stream."""
    network = network.eval().requires_grad_(False).to(options.device)
    signal = noise(seconds, rate, 2, options.device)
    ways, shorter = {"whole": lambda: network(signal)}, {}
    if streams:
        way, size = "stream, 10 ms", rate // 100
        ways[way] = lambda: streamed(network, signal, size)
        shorter[way] = lambda: streamed(network, signal[..., : 5 * size], size)
    return rows_of(name, ways, "whole", seconds, options, shorter)


def streamed(network, signal: torch.Tensor, size: int) -> torch.Tensor:
    """What a stream makes of a signal in blocks."""
    stream = network.stream()
    parts = [stream(block) for block in signal.split(size, -1)]
    return torch.cat([*parts, stream.flush()], -1)


def run(options: Options) -> Iterator[Table]:
    """Whole and in chunks, then the networks of the other recipes."""
    yield unified(options)
    yield in_chunks(options)
    yield others(options)
