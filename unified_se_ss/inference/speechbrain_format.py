"""SpeechBrain's form of a model: written for its ``SepformerSeparation``, or started from.

Axes: B batch, N basis functions, L frames, J sources.

SpeechBrain computes ``decoder(masknet(w) * w)`` with ``w = encoder(mixture)``. The SS
module estimates its masks from, and applies them to, ``h = mask_SE * w``; so the SE
module belongs to what SpeechBrain calls the encoder::

    encoder = Encoder, then w -> w * squeeze(SE module(w))
    masknet = SS module
    decoder = Decoder

The product is SpeechBrain's ``ConnectBlocks`` with a shortcut that multiplies. The YAML
names SpeechBrain's and torch's classes alone, so nothing of this project is needed to
load it, and the folder holds no code. ``decoder(encoder(mixture))`` is the enhanced
mixture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import jinja2
import torch

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path, atomic_write
from unified_se_ss.networks import DualPath, Recurrent, Transformer
from unified_se_ss.networks.dual_path import count_chunks
from unified_se_ss.networks.speechbrain_weights import to_speechbrain
from unified_se_ss.networks.transformer import sinusoidal_positions

POSITIONS = 2500  # source: max_len of speechbrain's PositionalEncoding
TOLERANCES = {"speechbrain": 1e-5, "onnx": 1e-4}  # of the largest sample
QUIET = 0.01  # where the largest sample is smaller, of this

TEMPLATE = Path(__file__).with_name("speechbrain.yaml.jinja")
SE_PREFIX = "enhancer.blocks.0.0.dual_path."  # where the template puts the SE module


def write_speechbrain(model, folder) -> None:
    """Write a model of kind ``unified`` in SpeechBrain's form, load it there, and compare.

    A UserError where SpeechBrain's classes cannot express the network, or give other sources.
    """
    folder = Path(folder)
    _check_expressible(model)
    atomic_write(folder / "hyperparams.yaml", speechbrain_yaml(model))
    for name, state in speechbrain_states(model.network).items():
        with atomic_path(folder / f"{name}.ckpt") as path:
            torch.save(state, path)
    _check_same_sources(model, folder)


def _check_expressible(model) -> None:
    """Stop at what SpeechBrain's classes cannot do."""
    if model.kind != "unified":
        raise UserError(
            f"--format speechbrain: is for models of kind unified, not {model.kind}"
        )
    network = model.network
    kernel_size, stride = _window(network.encoder)
    if stride != kernel_size // 2:
        raise UserError(
            "--format speechbrain: SpeechBrain's Encoder has a hop of half its window; "
            f"here kernel_size is {kernel_size} and stride is {stride}"
        )
    for name in ("enhancer", "separator"):
        part = getattr(network, name)
        if part is not None and not isinstance(part, DualPath):
            raise UserError(
                f"--format speechbrain: the {name} is a {type(part).__name__}; "
                "SpeechBrain's Dual_Path_Model can stand for a DualPath only"
            )
        for path in ("intra", "inter") if part is not None else ():
            _check_sequence_model(part, f"{name}.{path}", path)


def _check_sequence_model(dual_path: DualPath, name: str, path: str) -> None:
    """Stop at a sequence model that SpeechBrain does not have in this form."""
    sequence_model = getattr(dual_path.blocks[0], path)
    if not isinstance(sequence_model, (Recurrent, Transformer)):
        raise UserError(
            f"--format speechbrain: {name} is a {type(sequence_model).__name__}; "
            "expected Recurrent or Transformer"
        )
    steps = dual_path.chunk_length if path == "intra" else 0
    if isinstance(sequence_model, Transformer) and steps > POSITIONS:
        raise UserError(
            f"--format speechbrain: chunk_length is {steps}; SpeechBrain's transformer "
            f"knows {POSITIONS} positions"
        )


def _window(encoder) -> tuple[int, int]:
    return encoder.convolution.kernel_size[0], encoder.convolution.stride[0]


# ------------------------------------------------------------------ configuration


def speechbrain_yaml(model) -> str:
    """The ``hyperparams.yaml`` of a model."""
    network = model.network
    kernel_size, stride = _window(network.encoder)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        model=model,
        network=network,
        n_basis=network.encoder.convolution.out_channels,
        kernel_size=kernel_size,
        stride=stride,
    )


# ------------------------------------------------------------------ weights


def speechbrain_states(network) -> dict[str, dict]:
    """States of encoder, masknet and decoder, under SpeechBrain's names."""
    convolution = {"conv1d.weight": network.encoder.convolution.weight.detach()}
    encoder = convolution
    if network.enhancer is not None:
        encoder = {f"convolution.{name}": value for name, value in convolution.items()}
        enhancer = _dual_path_state(network.enhancer)
        encoder |= {SE_PREFIX + name: value for name, value in enhancer.items()}
    return {
        "encoder": encoder,
        "masknet": _dual_path_state(network.separator),
        "decoder": {"weight": network.decoder.convolution.weight.detach()},
    }


def _dual_path_state(part: DualPath) -> dict[str, torch.Tensor]:
    """State of a ``Dual_Path_Model``, with the positions that SpeechBrain keeps in it."""
    state = to_speechbrain(part.state_dict())
    for number, block in enumerate(part.blocks):
        for path in ("intra", "inter"):
            sequence_model = getattr(block, path)
            if isinstance(sequence_model, Transformer):
                positions = sinusoidal_positions(POSITIONS, sequence_model.n_features)
                name = f"dual_mdl.{number}.{path}_mdl.pos_enc.pe"
                state[name] = positions.unsqueeze(0)
    return state


# ------------------------------------------------------------------ the proof


def _check_same_sources(model, folder) -> None:
    """Load the folder with SpeechBrain and compare what it separates; a UserError if it differs."""
    try:
        from speechbrain.inference.separation import SepformerSeparation
    except ImportError as error:
        raise UserError(
            f"--format speechbrain: the result is checked with SpeechBrain, which cannot "
            f"be imported ({error})"
        ) from error

    with tempfile.TemporaryDirectory() as savedir:
        theirs = SepformerSeparation.from_hparams(
            source=str(Path(folder).resolve()), savedir=savedir, run_opts={"device": "cpu"}
        )

    def run(mixture):
        return [theirs.separate_batch(mixture).transpose(1, 2)]

    compare_outputs(model, "speechbrain", "SpeechBrain", run, batch=2)


def compare_outputs(model, name: str, program: str, run: Callable, batch: int = 1) -> None:
    """Stop unless another program gives what the model gives, within a tolerance.

    Of noise of several lengths: the shortest, an odd one, one second and a bit.

    Arguments
    ---------
    model : Model
    name : str
        The format, a key of :data:`TOLERANCES`.
    program : str
        For the message.
    run : callable
        From mixtures [B, T] to the program's sources and, if it has them, enhanced mixtures.
    batch : int
        B.
    """
    generator = torch.Generator().manual_seed(0)
    least, second = model.minimum_samples, model.sample_rate
    shape = (batch,) if model.channels == 1 else (batch, model.channels)
    for samples in (least, 3 * least + 1, second + 7):
        mixture = torch.randn(*shape, samples, generator=generator)
        expected = [signal for signal in model.both(mixture) if signal is not None]
        for ours, theirs in zip(expected, run(mixture)):
            _check_same(name, program, ours, theirs)


def _check_same(name: str, program: str, expected, found) -> None:
    allowed = TOLERANCES[name] * max(QUIET, expected.abs().max().item())
    if found.shape != expected.shape:
        problem = f"in shape: {tuple(found.shape)} instead of {tuple(expected.shape)}"
    else:
        difference = (found - expected).abs().max().item()
        if difference <= allowed:  # not so for NaN
            return
        problem = f"by {difference:.2g}, allowed are {allowed:.2g}"
    raise UserError(
        f"--format {name}: what {program} computes differs from the model ({problem}); "
        "nothing was written"
    )


def longest_input(network) -> int | None:
    """Samples that :data:`POSITIONS` suffice for; None where nothing counts positions.

    This project's transformer makes further positions as they are needed; SpeechBrain's and
    a graph in a file have those that they were saved with.
    """
    lengths = [
        module.chunk_length
        for module in network.modules()
        if isinstance(module, DualPath) and isinstance(module.blocks[0].inter, Transformer)
    ]
    if not lengths:
        return None
    frames = POSITIONS * min(lengths) // 2
    while count_chunks(frames, min(lengths)) > POSITIONS:
        frames -= 1
    convolution = network.encoder.convolution
    return convolution.kernel_size[0] + (frames - 1) * convolution.stride[0]
