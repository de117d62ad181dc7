"""GSENet as a stream: what it keeps, and how fast it is by size of block.

    python benchmarks/gsenet_streaming.py [--hops 1 2 10 100] [--engines eager compile onnx]

The published network takes noise in blocks of so many hops of 10 ms, on one thread
unless told otherwise. The real-time factor is the time spent over the length of the
audio, below 1 is fast enough; beside it the processor's time, which other programs on
the machine do not lengthen, and the longest block over its own length. `compile` is
torch.compile; `onnx` is one graph for each phase of the stride in time, run by
onnxruntime; what is not installed is said and left out. Spectra are torch's in all of
them. The difference is the largest from the whole signal's output, over its maximum.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import sys
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from unified_se_ss.networks import GSENet  # noqa: E402

SAMPLE_RATE = 16000
TINY = [[2, 4, 2, 2, True]]
NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript")}
WARM_UP = 4  # blocks: every phase of the stride, twice


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


def measure(network, engine, hops, seconds):
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
    generator = torch.Generator().manual_seed(0)
    signals = 0.1 * torch.randn(1, 2, blocks * size, generator=generator)
    stream = network.stream(ENGINES[engine](network))
    outputs, wall, cpu = [], [], []
    for block in signals.split(size, -1):
        began, began_cpu = time.perf_counter(), time.process_time()
        outputs.append(stream(block))
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    outputs.append(stream.flush())
    wall, cpu = wall[WARM_UP:], cpu[WARM_UP:]
    audio = len(wall) * size / SAMPLE_RATE
    whole, streamed = network(signals), torch.cat(outputs, -1)
    return {
        "engine": engine,
        "hops": hops,
        "real_time_factor": sum(wall) / audio,
        "cpu_factor": sum(cpu) / audio,
        "longest": max(wall) / (size / SAMPLE_RATE),
        "difference": float((streamed - whole).abs().max() / whole.abs().max()),
    }


def as_line(row):
    """One row as it is printed."""
    return (
        f"{row['engine']:<8} {row['hops']:>5} {row['real_time_factor']:>17.3f} "
        f"{row['cpu_factor']:>10.3f} {row['longest']:>14.3f} {row['difference']:>11.1e}"
    )


@torch.no_grad()
def main(arguments=None):
    """Measure, print a table, write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hops", type=int, nargs="+", default=[1, 2, 10, 100])
    parser.add_argument("--engines", nargs="+", default=[*ENGINES], choices=[*ENGINES])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the signal")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a very small network")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = GSENet(TINY, bottleneck=2) if options.tiny else GSENet()
    network.eval()
    state = 4 * network.stream().state_size()
    print(f"torch {torch.__version__}, CPU, threads: {options.threads}, float32")
    print(f"state of one stream: {state:,} bytes; latency: {network.latency} samples\n")
    print(
        f"{'engine':<8} {'hops':>5} {'real-time factor':>17} {'CPU factor':>10} "
        f"{'longest block':>14} {'difference':>11}"
    )
    rows = []
    for engine in options.engines:
        if absent := missing(engine):
            print(f"{engine} is left out: {', '.join(absent)} is not installed")
            continue
        for hops in options.hops:
            rows.append(measure(network, engine, hops, options.seconds))
            print(as_line(rows[-1]), flush=True)
    if options.json:
        figures = {"torch": torch.__version__, "threads": options.threads}
        options.json.write_text(
            json.dumps({**figures, "state_bytes": state, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
