"""A model as an ONNX graph, checked with onnxruntime before it is handed out.

The graph takes one mixture of any length, ``mixture`` [1, T], and gives ``sources``
[1, J, T] and, where there is an SE module, ``enhanced`` [1, T].

Two parts are replaced for it. LSTMs become ONNX's own LSTM: left to the exporter, one
along a sequence of unknown length is not exported at all. Global norms take their means
one axis after the other: onnxruntime adds up all elements in one row, whose rounding
grows with the length (of 20 s, the sources were off by 1e-3; so it is 7e-6).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path
from unified_se_ss.inference.models import KINDS
from unified_se_ss.inference.speechbrain_format import (
    longest_input,
    mixtures_to_compare,
    same_signals,
)
from unified_se_ss.networks.dual_path import EPSILON, GlobalNorm

NEEDED = ("onnx", "onnxruntime", "onnxscript")
FILE = "model.onnx"
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of an LSTM's layer
GATES = (
    0,
    3,
    1,
    2,
)  # torch: input, forget, cell, output; ONNX: input, output, forget, cell


def write_onnx(model, folder) -> None:
    """Write ``model.onnx``, run it with onnxruntime, and compare.

    A UserError where a package is missing, the network cannot be exported, or they differ.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx: needs {', '.join(missing)}; "
            "install with: pip install 'unified_se_ss[onnx]'"
        )
    program = _export_graph(model)
    path = Path(folder) / FILE
    with atomic_path(path) as temporary:
        program.save(temporary)
    _check_same_outputs(model, path)


class Graph(nn.Module):
    """Exported module: one mixture to all that the model gives; its network is copied."""

    def __init__(self, model):
        super().__init__()
        self.network = _for_onnx(copy.deepcopy(model.network))
        self._both = KINDS[model.kind].forward

    def forward(self, mixture: torch.Tensor):
        """[1, T] to the signals that there are."""
        signals = self._both(self.network, mixture, None)
        return tuple(signal for signal in signals if signal is not None)


class OnnxLSTM(nn.Module):
    """An LSTM as ONNX has it, of a batch-first one; for export alone, in eager mode it gives zeros."""

    def __init__(self, rnn: nn.LSTM):
        super().__init__()
        if not rnn.batch_first or rnn.proj_size or not rnn.bias:
            raise UserError(
                "--format onnx: an LSTM that is not batch first, has projections or has "
                "no bias cannot be exported"
            )
        self.hidden, self.layers = rnn.hidden_size, rnn.num_layers
        self.directions = 2 if rnn.bidirectional else 1
        for layer in range(self.layers):
            weights = [self._gates(rnn, f"{kind}_l{layer}") for kind in PARAMETERS]
            self.register_buffer(f"input_{layer}", weights[0])
            self.register_buffer(f"recurrent_{layer}", weights[1])
            self.register_buffer(f"bias_{layer}", torch.cat(weights[2:], 1))

    def _gates(self, rnn: nn.LSTM, name: str) -> torch.Tensor:
        """A parameter of all directions, in ONNX's order of gates."""
        directions = []
        for suffix in ("", "_reverse")[: self.directions]:
            gates = getattr(rnn, name + suffix).detach().chunk(4)
            directions.append(torch.cat([gates[gate] for gate in GATES]))
        return torch.stack(directions)

    def forward(self, x: torch.Tensor):
        """[B, L, N] to [B, L, directions * hidden], and no state."""
        x = x.transpose(0, 1)
        for layer in range(self.layers):
            steps, batch = x.shape[:2]
            state = (self.directions, batch, self.hidden)
            output = torch.onnx.ops.symbolic_multi_out(
                "LSTM",
                [
                    x,
                    getattr(self, f"input_{layer}"),
                    getattr(self, f"recurrent_{layer}"),
                    getattr(self, f"bias_{layer}"),
                ],
                {
                    "hidden_size": self.hidden,
                    "direction": "bidirectional" if self.directions == 2 else "forward",
                },
                dtypes=[x.dtype] * 3,
                shapes=[(steps, *state), state, state],
            )[0]
            x = output.transpose(1, 2).flatten(2)  # [L, B, directions * hidden]
        return x.transpose(0, 1), None


class OnnxNorm(nn.Module):
    """A global norm whose means onnxruntime computes well.

    Arguments
    ---------
    norm : unified_se_ss.networks.dual_path.GlobalNorm
        Its scale and shift are taken.
    """

    def __init__(self, norm: GlobalNorm):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor, mask: None = None) -> torch.Tensor:
        """Normalise [B, ..., D]; everything is real."""
        centred = x - self.mean(x)
        deviation = torch.rsqrt(self.mean(centred.square()) + EPSILON)
        return centred * deviation * self.weight + self.bias

    @staticmethod
    def mean(x: torch.Tensor) -> torch.Tensor:
        """Mean over all axes but the first, which are kept."""
        for axis in range(x.dim() - 1, 0, -1):
            x = x.mean(axis, keepdim=True)
        return x


REPLACED = {nn.LSTM: OnnxLSTM, GlobalNorm: OnnxNorm}


def _for_onnx(network: nn.Module) -> nn.Module:
    """Put what ONNX can do well in the place of what it cannot, in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) in REPLACED:
                setattr(module, name, REPLACED[type(child)](child))
    return network


def _export_graph(model):
    """The ONNX program, with the length of the mixture left open."""
    names = ["sources"] * bool(model.n_sources) + ["enhanced"] * model.can_enhance
    shape = (1,) if model.channels == 1 else (1, model.channels)
    samples = torch.export.Dim(
        "samples", min=model.minimum_samples, max=longest_input(model.network)
    )
    try:
        with _quiet():
            program = torch.onnx.export(
                Graph(model).eval(),
                (torch.zeros(*shape, model.sample_rate),),
                dynamo=True,
                verbose=False,
                input_names=["mixture"],
                output_names=names,
                dynamic_shapes=({len(shape): samples},),
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UserError(
            f"--format onnx: this network cannot be exported ({reason}); use --format native"
        ) from error
    program.model.metadata_props.update(
        kind=model.kind, sample_rate=str(model.sample_rate), made_by="unified_se_ss"
    )
    return program


@contextlib.contextmanager
def _quiet():
    """Without the exporter's remarks on packages that nobody asked for."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _check_same_outputs(model, path) -> None:
    """Run the graph on mixtures of several lengths; a UserError where it differs from the model."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        for mixture in mixtures_to_compare(model, batch=1):
            found = session.run(None, {"mixture": mixture.numpy()})
            expected = [signal for signal in model.both(mixture) if signal is not None]
            for ours, theirs in zip(expected, found, strict=True):
                same_signals("onnx", "onnxruntime", ours, torch.from_numpy(theirs))
    except Exception as error:  # onnxruntime's have no common class
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"--format onnx: onnxruntime cannot run the graph ({error})"
        ) from error
