"""GSENet as a stream: what it keeps, and how fast it is by size of block and engine.

Baseline: the same network on the whole signal, in eager fp32. The published network takes
noise in blocks of so many hops of 10 ms. The real-time factor is the time spent over the
length of the audio, below 1 is fast enough; beside it the processor's time, which other
programs on the machine do not lengthen, and the longest block over its own length. `compile`
is torch.compile; `onnx` is one graph for each phase of the stride in time, run by onnxruntime
on the CPU; what is not installed is said and left out. Spectra are torch's in all of them. The
difference is the largest from the whole signal's output, over its maximum.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import statistics
import time
import warnings
from collections.abc import Iterator

import torch

from benchmarks.frame import Options, Table, alternate
from unified_se_ss.networks import GSENet

SAMPLE_RATE = 16000
TINY = [[2, 4, 2, 2, True]]
NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript")}
WARM_UP = 4  # blocks: every phase of the stride, twice
SECONDS = 10.0
HOPS = (1, 2, 10, 100)


def missing(engine):
    """Packages that an engine needs and that are not there."""
    needed = NEEDED.get(engine, ())
    return [name for name in needed if importlib.util.find_spec(name) is None]


class Graph(torch.nn.Module):
    """A step from one phase, as a function of features and memory alone.

    Arguments
    ---------
    network : GSENet
        To be exported.
    start : int
        Phase of the first frame.
    """

    def __init__(self, network, start):
        super().__init__()
        self.network, self.start = network, start

    def forward(self, features, *memory):
        """Parts of the spectrum, and the memory after it."""
        memory = list(memory)
        parts = self.network.map(features, memory, self.start)
        return (parts, *memory)


class OnnxStep:
    """A step in onnxruntime: a graph is exported at the first block of each shape.

    Arguments
    ---------
    network : GSENet
        On the CPU.
    """

    def __init__(self, network):
        self.network, self.sessions = network, {}

    def __call__(self, features, memory, start):
        key = start, tuple(features.shape)
        inputs = (features, *memory)
        if key not in self.sessions:
            self.sessions[key] = self.session(Graph(self.network, start), inputs)
        session = self.sessions[key]
        names = [item.name for item in session.get_inputs()]
        arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs)}
        parts, *memory[:] = map(torch.from_numpy, session.run(None, arrays))
        return parts

    @staticmethod
    def session(graph, inputs):
        """Export one graph, quietly, and load it."""
        import onnxruntime

        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(graph, inputs, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        model = program.model_proto.SerializeToString()
        return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


def compiled(network):
    """A step by torch.compile, a graph for each shape: blocks do not change theirs."""
    torch._dynamo.reset()
    return torch.compile(network.map, dynamic=False)


ENGINES = {"eager": lambda network: None, "compile": compiled, "onnx": OnnxStep}


def measure(network, engine: str, hops: int, seconds: float) -> dict:
    """Stream so many seconds in blocks of so many hops, and compare.

    Arguments
    ---------
    network : GSENet
        In evaluation, without gradients.
    engine : str
        One of `ENGINES`.
    hops : int
        Length of a block.
    seconds : float
        Length of the signal, after the warm-up.

    Returns
    -------
    dict
        One row of the table.
    """
    size = hops * network.stft.hop
    blocks = WARM_UP + max(1, round(seconds * SAMPLE_RATE / size))
    signals = noise(blocks * size, next(network.parameters()).device)
    stream = network.stream(ENGINES[engine](network))
    outputs, wall, processor = [], [], []
    for block in signals.split(size, -1):
        wait(signals)
        began, began_processor = time.perf_counter(), time.process_time()
        outputs.append(stream(block))
        wait(signals)
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - began_processor)
    outputs.append(stream.flush())
    wall, processor = wall[WARM_UP:], processor[WARM_UP:]
    lasts = size / SAMPLE_RATE
    whole, streamed = network(signals), torch.cat(outputs, -1)
    return {
        "engine": engine,
        "block ms": 1000 * lasts,
        "real-time factor": statistics.mean(wall) / lasts,
        "processor factor": statistics.mean(processor) / lasts,
        "longest block": max(wall) / lasts,
        "difference": float((streamed - whole).abs().max() / whole.abs().max()),
    }


def noise(samples: int, device) -> torch.Tensor:
    """Two channels from a seed, [1, 2, T]."""
    generator = torch.Generator().manual_seed(0)
    return (0.1 * torch.randn(1, 2, samples, generator=generator)).to(device)


def wait(signal) -> None:
    """Until the device has done what it was asked to."""
    if signal.is_cuda:
        torch.cuda.synchronize(signal.device)


def whole(network, seconds: float, options: Options) -> dict:
    """The baseline's row: the whole signal at once."""
    signals = noise(int(seconds * SAMPLE_RATE), options.device)
    timing = alternate({"": lambda: network(signals)}, options.repeats, options.device)[""]
    return {
        "engine": "whole signal",
        "real-time factor": timing.median / seconds,
        "processor factor": timing.processor_median / seconds,
    }


@torch.no_grad()
def table(options: Options) -> Table:
    """All engines and sizes of block that can be had here."""
    torch.manual_seed(0)
    network = GSENet(TINY, bottleneck=2) if options.quick else GSENet()
    network = network.eval().to(options.device)
    seconds, hops_tried = (0.1, (1,)) if options.quick else (SECONDS, HOPS)
    rows, left_out = [whole(network, seconds, options)], []
    for engine in ENGINES:
        absent = missing(engine)
        if absent:
            left_out.append(f"{engine} is left out: {', '.join(absent)} not installed.")
        elif engine == "onnx" and options.device.type != "cpu":
            left_out.append("onnx is left out: its graphs run on the CPU.")
        elif not (options.quick and engine == "compile"):  # takes long to begin
            rows += [measure(network, engine, hops, seconds) for hops in hops_tried]
    state = 4 * network.stream().state_size()
    return Table(
        f"GSENet on {seconds:g} s at 16 kHz, by engine and size of block",
        [
            *("engine", "block ms", "real-time factor", "processor factor"),
            *("longest block", "difference"),
        ],
        rows,
        " ".join(
            [
                f"State of one stream: {state:,} bytes; latency: {network.latency} samples.",
                *left_out,
            ]
        ),
    )


def run(options: Options) -> Iterator[Table]:
    """One table."""
    yield table(options)
