"""A model as a folder to hand on: weights, configuration, and a card that says what it is.

An ONNX graph is checked with onnxruntime before it is handed out. It takes one mixture of any
length, ``mixture`` [1, T], and gives ``sources`` [1, J, T] and, where there is an SE module,
``enhanced`` [1, T]. Two parts are replaced for it. LSTMs become ONNX's own LSTM: left to the
exporter, one along a sequence of unknown length is not exported at all. Global norms take
their means one axis after the other: onnxruntime adds up all elements in one row, whose
rounding grows with the length (of 20 s, the sources were off by 1e-3; so it is 7e-6).
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from unified_se_ss import __version__
from unified_se_ss.errors import UserError, first_names
from unified_se_ss.files import atomic_path, atomic_write
from unified_se_ss.inference import folders, speechbrain_format
from unified_se_ss.inference.models import KINDS, Model
from unified_se_ss.networks.dual_path import EPSILON, GlobalNorm

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# Keys of a run that say what it was trained on, and how.
QUOTED_KEYS = (
    "mixture mode train_subset segment_seconds dynamic_mixing snr_range rule granularity "
    "se_loss weight_se number_of_epochs system weight_ctc average_checkpoints"
).split()
# A folder that holds none of these, or anything but all of those, is never replaced.
MODELS = {folders.WEIGHTS, "masknet.ckpt", "model.onnx"}
EXPORTED = MODELS | {CARD, folders.CONFIGURATION, folders.TOKENS}
EXPORTED |= {"hyperparams.yaml", "encoder.ckpt", "decoder.ckpt"}
NEEDED_BY_ONNX = ("onnx", "onnxruntime", "onnxscript")
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of an LSTM's layer
# torch: input, forget, cell, output; ONNX: input, output, forget, cell
GATES = (0, 3, 1, 2)


def export(source, folder, format: str = "native", force: bool = False) -> Path:
    """Write a trained model into a folder that others can use; whole or not at all.

    Arguments
    ---------
    source : str or Path
        A run's folder (its best checkpoint is taken, or the mean of the best, as by its
        test) or an exported folder.
    folder : str or Path
        Where it goes.
    format : str
        ``"native"``: for this project; ``"speechbrain"``: for its ``SepformerSeparation``;
        ``"onnx"``: ``model.onnx``. Each with a model card, ``README.md``.
    force : bool
        Replace what an earlier export left there; never anything else.

    Raises
    ------
    UserError
        No model there, a folder in the way, or a format that cannot hold this model.
    OSError
        The folder cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"--format: is '{format}'; expected one of: {', '.join(FORMATS)}")
    source, folder = Path(source), Path(folder)
    _check_target(source, folder, force)
    contents = folders.read_folder(source)
    model = folders.as_model(contents, "cpu")
    if format != "native" and (model.decoding or model.channels > 1):
        raise UserError(
            f"--format {format}: cannot hold a recogniser, nor a model that hears several "
            "channels; take --format native"
        )
    if model.decoding:  # a damaged tokenizer is not handed on
        folders.read_tokens(model.decoding.tokens, model.network.n_tokens)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
        new, old = Path(place, "new"), Path(place, "old")
        new.mkdir()
        FORMATS[format](model, new)
        atomic_write(new / CARD, model_card(model, contents, source, folder, format))
        _replace(folder, new, old)
    return folder


def _check_target(source: Path, folder: Path, force: bool) -> None:
    """Stop at a target that would be lost."""
    is_other = not folder.name or folder.is_symlink() or folder.is_file()
    if is_other or folder.resolve() == source.resolve():
        raise UserError(
            f"-o: {folder} is a file, a link, the model itself or no folder's name; choose "
            "another"
        )
    if not folder.exists():
        return
    there = {path.name for path in folder.iterdir()}
    if there - EXPORTED or (there and not there & MODELS):
        raise UserError(
            f"-o: {folder} holds what no export wrote ({first_names(sorted(there - MODELS))}); "
            "choose another folder"
        )
    if there and not force:
        raise UserError(
            f"-o: {folder} is there already; give --force to replace it, or choose another"
        )


def _replace(folder: Path, new: Path, old: Path) -> None:
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise


# ------------------------------------------------------------------ the card


def model_card(model, contents, source, folder, format: str) -> str:
    """The card's Markdown: what a model is, how good it is, how it was trained and is used."""
    from huggingface_hub import ModelCard, ModelCardData

    hparams, recognises = contents.hparams or {}, model.decoding is not None
    tag = "speech-recognition" if recognises else "speech-separation"
    data = ModelCardData(
        pipeline_tag="automatic-speech-recognition" if recognises else "audio-to-audio",
        tags=[tag, "speech-enhancement"],
    )
    abilities = {
        "separate": f"separates a mixture of {model.n_sources} talkers",
        "enhance": "removes noise from the mixture",
        "recognise": "recognises what is said",
    }
    longest = (
        speechbrain_format.longest_input(model.network) if format != "native" else None
    )
    seconds = (longest or 0) / model.sample_rate
    sizes = [model.n_sources] * bool(model.n_sources) + [model.ears] * (model.ears > 1)
    card = ModelCard.from_template(
        data,
        TEMPLATE,
        title=hparams.get("experiment_name", Path(folder).name),
        version=__version__,
        model=model,
        abilities=[abilities[task] for task in model.tasks],
        parameters=lambda module: sum(p.numel() for p in module.parameters()),
        results=_text(Path(source) / "summary.md").strip(),
        averaged=hparams.get("average_checkpoints", 1),
        training=_training(hparams, Path(source)),
        format=format,
        folder=Path(folder).name,
        takes="[B, T]" if model.channels == 1 else f"[B, {model.channels}, T]",
        gives=f"[{', '.join(map(str, ['B', *sizes, 'T']))}]",
        outputs=["sources"] * bool(model.n_sources) + ["enhanced"] * model.can_enhance,
        limit=f" The longest input is {seconds:.0f} s." if longest else "",
    )
    return f"{card}\n"


def _training(hparams: dict, source: Path) -> list[str]:
    if not hparams:
        return []
    known = {"data": Path(str(hparams.get("data_folder", "unknown"))).name}
    known |= {key: hparams[key] for key in QUOTED_KEYS if key in hparams}
    lines = [f"{key}: {value}" for key, value in known.items() if value is not None]
    for line in _text(source / "env.log").splitlines():
        key, colon, value = line.partition(": ")
        if key in ("command", "commit") and colon:
            lines.append(f"{key}: `{value}`")
    return lines


def _text(path: Path) -> str:
    """A small text file of the run; nothing if it is not there."""
    return path.read_text("utf-8", "replace")[: 1 << 16] if path.is_file() else ""


# ------------------------------------------------------------------ native


def write_native(model: Model, folder) -> None:
    """Write ``config.json`` and ``model.safetensors``; of a recogniser ``tokens.model``."""
    from safetensors.torch import save

    folder = Path(folder)
    text = json.dumps(model.configuration, indent=2, allow_nan=False) + "\n"
    atomic_write(folder / folders.CONFIGURATION, text)
    state = {name: value.contiguous() for name, value in model.network.state_dict().items()}
    # Its save_file would make a file that nobody else may read.
    atomic_write(folder / folders.WEIGHTS, save(state, metadata={"format": "pt"}))
    if model.decoding:
        atomic_write(folder / folders.TOKENS, model.decoding.tokens.read_bytes())


# ------------------------------------------------------------------ ONNX


def write_onnx(model, folder) -> None:
    """Write ``model.onnx``, run it with onnxruntime, and compare.

    A UserError where a package is missing, the network cannot be exported, or they differ.
    """
    missing = [name for name in NEEDED_BY_ONNX if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx: needs {', '.join(missing)}; "
            "install with: pip install 'unified_se_ss[onnx]'"
        )
    program = _export_graph(model)
    path = Path(folder) / "model.onnx"
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
            names = ("input", "recurrent", "bias")
            weights = [getattr(self, f"{name}_{layer}") for name in names]
            direction = "bidirectional" if self.directions == 2 else "forward"
            output = torch.onnx.ops.symbolic_multi_out(
                "LSTM",
                [x, *weights],
                {"hidden_size": self.hidden, "direction": direction},
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
        "samples",
        min=model.minimum_samples,
        max=speechbrain_format.longest_input(model.network),
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


@contextmanager
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

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(mixture):
        return map(torch.from_numpy, session.run(None, {"mixture": mixture.numpy()}))

    speechbrain_format.compare_outputs(model, "onnx", "onnxruntime", run)


# A new format is one entry: a function of a model and a folder.
FORMATS = {
    "native": write_native,
    "speechbrain": speechbrain_format.write_speechbrain,
    "onnx": write_onnx,
}
