"""A model in the form that SpeechBrain's own ``SepformerSeparation`` loads.

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
from pathlib import Path

import torch

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path, atomic_write
from unified_se_ss.inference.check_export import mixtures_to_compare, same_signals
from unified_se_ss.inference.max_length import POSITIONS
from unified_se_ss.networks import DualPath, Recurrent, Transformer
from unified_se_ss.networks.speechbrain_weights import to_speechbrain
from unified_se_ss.networks.transformer import sinusoidal_positions

HEADER = """\
# Unified enhancement and separation, for SpeechBrain:
#   from speechbrain.inference.separation import SepformerSeparation
#   model = SepformerSeparation.from_hparams(source="THIS FOLDER", savedir="...")
#   sources = model.separate_batch(mixture)  # [B, T] to [B, T, J]
# The SE module is part of the encoder; decoder(encoder(mixture)) is the enhanced mixture.

sample_rate: {sample_rate}
num_spks: {n_sources}
"""

CONVOLUTION = """
{name}: !new:speechbrain.lobes.models.dual_path.Encoder
    kernel_size: {kernel_size}
    out_channels: {n_basis}
"""

RECURRENT = """
{name}: !new:speechbrain.lobes.models.dual_path.SBRNNBlock
    input_size: {n_features}
    hidden_channels: {hidden}
    num_layers: {layers}
    dropout: {dropout}
    bidirectional: True
"""

TRANSFORMER = """
{name}: !new:speechbrain.lobes.models.dual_path.SBTransformerBlock
    num_layers: {layers}
    d_model: {n_features}
    nhead: {heads}
    d_ffn: {feed_forward}
    dropout: {dropout}
    use_positional_encoding: True
    norm_before: True
"""

DUAL_PATH = """
{name}: !new:speechbrain.lobes.models.dual_path.Dual_Path_Model
    in_channels: {n_basis}
    out_channels: {n_features}
    intra_model: !ref <{name}_intra>
    inter_model: !ref <{name}_inter>
    num_layers: {blocks}
    norm: ln
    K: {chunk_length}
    num_spks: {n_sources}
    skip_around_intra: True
    linear_layer_after_inter_intra: {linear_after}
"""

# ConnectBlocks is filled by a call: its constructor takes no blocks.
ENHANCER = """
se_mask: !new:speechbrain.nnet.containers.Sequential
    dual_path: !ref <enhancer>
    squeeze: !new:torch.nn.Flatten # [1, B, N, L] to [B, N, L]
        start_dim: 0
        end_dim: 1

masked: !new:speechbrain.nnet.containers.ConnectBlocks
    input_shape: [null, {n_basis}, null]
    shortcut_type: residual
    shortcut_combine_fn: !name:torch.mul

filled: !apply:speechbrain.nnet.containers.ConnectBlocks.append
    - !ref <masked>
    - !ref <se_mask>

encoder: !new:speechbrain.nnet.containers.Sequential
    convolution: !ref <convolution>
    enhancer: !ref <masked>
"""
SE_PREFIX = "enhancer.blocks.0.0.dual_path."  # where the above puts the SE module

FOOTER = """
decoder: !new:speechbrain.lobes.models.dual_path.Decoder
    in_channels: {n_basis}
    out_channels: 1
    kernel_size: {kernel_size}
    stride: {stride}
    bias: False

modules:
    encoder: !ref <encoder>
    masknet: !ref <masknet>
    decoder: !ref <decoder>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        encoder: !ref <encoder>
        masknet: !ref <masknet>
        decoder: !ref <decoder>
"""


def write_speechbrain(model, folder) -> None:
    """Write a model in SpeechBrain's form, load it there, and compare the sources.

    Arguments
    ---------
    model : unified_se_ss.inference.Model
        Of kind ``unified``, on the CPU.
    folder : str or Path
        Gets ``hyperparams.yaml``, ``encoder.ckpt``, ``masknet.ckpt``, ``decoder.ckpt``.

    Raises
    ------
    UserError
        SpeechBrain's classes cannot express the network, or what SpeechBrain computes
        differs.
    """
    folder = Path(folder)
    check_expressible(model)
    atomic_write(folder / "hyperparams.yaml", speechbrain_yaml(model))
    for name, state in speechbrain_states(model.network).items():
        with atomic_path(folder / f"{name}.ckpt") as path:
            torch.save(state, path)
    check_same_sources(model, folder)


def check_expressible(model) -> None:
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
    """Kernel size and stride of an encoder or a decoder."""
    return encoder.convolution.kernel_size[0], encoder.convolution.stride[0]


# ------------------------------------------------------------------ configuration


def speechbrain_yaml(model) -> str:
    """The ``hyperparams.yaml`` of a model."""
    network = model.network
    kernel_size, stride = _window(network.encoder)
    sizes = {
        "n_basis": network.encoder.convolution.out_channels,
        "kernel_size": kernel_size,
        "stride": stride,
    }
    text = HEADER.format(sample_rate=model.sample_rate, n_sources=model.n_sources)
    if network.enhancer is None:
        text += CONVOLUTION.format(name="encoder", **sizes)
    else:
        text += CONVOLUTION.format(name="convolution", **sizes)
        text += _dual_path_yaml("enhancer", network.enhancer)
        text += ENHANCER.format(**sizes)
    text += _dual_path_yaml("masknet", network.separator)
    return text + FOOTER.format(**sizes)


def _dual_path_yaml(name: str, part: DualPath) -> str:
    """A ``Dual_Path_Model`` and what it is made of."""
    block = part.blocks[0]
    text = _sequence_model_yaml(f"{name}_intra", block.intra)
    text += _sequence_model_yaml(f"{name}_inter", block.inter)
    return text + DUAL_PATH.format(
        name=name,
        n_basis=part.bottleneck.in_features,
        n_features=part.bottleneck.out_features,
        blocks=len(part.blocks),
        chunk_length=part.chunk_length,
        n_sources=part.n_sources,
        linear_after=isinstance(block.intra_linear, torch.nn.Linear),
    )


def _sequence_model_yaml(name: str, sequence_model) -> str:
    """One intra- or inter-chunk model."""
    if isinstance(sequence_model, Recurrent):
        rnn = sequence_model.rnn
        return RECURRENT.format(
            name=name,
            n_features=rnn.input_size,
            hidden=rnn.hidden_size,
            layers=rnn.num_layers,
            dropout=rnn.dropout,
        )
    layer = sequence_model.layers[0]
    return TRANSFORMER.format(
        name=name,
        n_features=sequence_model.n_features,
        layers=len(sequence_model.layers),
        heads=layer.attention.heads,
        feed_forward=layer.feed_forward[0].out_features,
        dropout=layer.dropout.p,
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


def check_same_sources(model, folder) -> None:
    """Load the folder with SpeechBrain and compare what it separates.

    Raises
    ------
    UserError
        SpeechBrain is not installed, cannot load the folder, or computes other sources.
    """
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
    for mixture in mixtures_to_compare(model, batch=2):
        found = theirs.separate_batch(mixture).transpose(1, 2)
        same_signals("speechbrain", "SpeechBrain", model.separate(mixture), found)
