"""Kinds of models, networks as plain data, and a model that is ready to use.

A new kind is one entry of KINDS. A network is described by nested dictionaries,
``{"class": "Encoder", "arguments": {"n_basis": 64, …}}``; with ``"partial": true`` it is not
the module but what makes it (what a YAML file calls ``!name:``). Nothing but the classes of
:data:`NETWORKS`, :data:`PARTS` and the kinds of models is ever made from such a description,
whoever wrote it.

Axes: B batch, T samples, J sources.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Literal

import torch
from torch import nn

from unified_se_ss import networks
from unified_se_ss.errors import UserError, first_line, shortened
from unified_se_ss.files import load_whole
from unified_se_ss.networks import BinauralNetwork, GSENet, UnifiedNetwork

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# The classes that a description may name besides the outermost, those of KINDS.
NETWORKS = {
    "Decoder": networks.Decoder,
    "DualPath": networks.DualPath,
    "Encoder": networks.Encoder,
    "MaskingFront": networks.MaskingFront,
    "Recurrent": networks.Recurrent,
    "Transformer": networks.Transformer,
}

# Classes of a recogniser, imported when a description names them: package and arguments
# that may be given, plain data or networks. Their signatures take more than that.
PARTS = {
    "RecognitionNetwork": (
        "unified_se_ss.recognition",
        "features normalisation subsampling transformer hop d_model n_tokens",
    ),
    "Subsampling": ("unified_se_ss.recognition", "n_mels channels"),
    "Fbank": (
        "speechbrain.lobes.features",
        "sample_rate n_fft n_mels f_min f_max win_length hop_length filter_shape",
    ),
    "InputNormalization": (
        "speechbrain.processing.features",
        "norm_type mean_norm std_norm",
    ),
    "TransformerASR": (
        "speechbrain.lobes.models.transformer.TransformerASR",
        "tgt_vocab input_size d_model nhead d_ffn num_encoder_layers num_decoder_layers "
        "kernel_size max_length dropout layerdrop_prob normalize_before bias causal "
        "activation positional_encoding encoder_module attention_type",
    ),
    **dict.fromkeys(("GELU", "ReLU", "SiLU"), ("torch.nn", "")),
}
CHOICES = {
    # What is normalised by is of the utterance: statistics of others are no weights.
    "norm_type": ("sentence",),
    "filter_shape": ("triangular", "rectangular", "gaussian"),
    "positional_encoding": ("fixed_abs_sine",),
    "encoder_module": ("conformer", "transformer"),
    "attention_type": ("regularMHA", "RelPosMHAXL", "RoPEMHA"),
}
FRACTIONS = "f_min f_max win_length hop_length dropout layerdrop_prob".split()
SIZES = {("Subsampling", "n_outputs")}  # that YAML files refer to

# What a description may hold. A model far beyond these is no model, but an attempt to
# exhaust memory or time before a single weight has been looked at.
LARGEST_FILE = 1 << 20  # bytes
DEEPEST = 12  # networks within networks
LARGEST = 1 << 16  # any number
LONGEST = 64  # characters of a name
MOST_VALUES = 10_000  # in a description
COUNTS = "blocks repeats layers n_sources num_encoder_layers num_decoder_layers"
MOST = {**dict.fromkeys(COUNTS.split(), 64), "n_mels": 512}  # what is made so many times


# ------------------------------------------------------------------ kinds


@dataclass(frozen=True)
class ModelFamily:
    """Properties that the models of one recipe have in common.

    Arguments
    ---------
    network : type
        Class of the outermost network.
    best : str
        What the recipe chooses its checkpoint by; the larger the better.
    properties : callable
        From the network, those attributes of :class:`~unified_se_ss.inference.Model` that
        follow from it and are not its defaults, such as ``n_sources`` and ``channels``.
    forward : callable
        ``(network, mixture, lengths)`` to sources [B, J, T] (None for a model that
        only enhances) and enhanced mixture [B, T] (None for one that only separates).
    enhance : callable, optional
        The same arguments to the enhanced mixture alone, without the work for sources;
        by default the second of `forward`.
    parts : tuple of str
        A run's modules: the network, or those that are arguments of `network`; the
        first must be there.
    pipeline : str
        Class of :mod:`~unified_se_ss.inference.pipeline` that takes recordings.
    recognises : bool
        Whether there are a tokenizer and a search beside the network.
    """

    network: type[nn.Module]
    best: str
    properties: Callable
    forward: Callable
    enhance: Callable | None = None
    parts: tuple[str, ...] = ("network",)
    pipeline: str = "Separator"
    recognises: bool = False


def _unified_properties(network) -> dict:
    return {
        "n_sources": network.separator.n_sources,
        "minimum_samples": network.encoder.convolution.kernel_size[0],
        "can_enhance": network.enhancer is not None,
    }


def _unified_forward(network, mixture, lengths):
    output = network(mixture, lengths)
    return output.sources, output.enhanced


def _gsenet_properties(network) -> dict:
    return {"channels": 2, "causal": True}  # raw reference microphone, beamformer


def _binaural_properties(network) -> dict:
    return {
        "n_sources": network.n_sources,
        "channels": 2,  # left ear, right ear
        "ears": 2,
        "causal": network.causal,
        "can_enhance": False,
    }


class RecognitionSystem(nn.Module):
    """A recogniser and, if there is one, its front, so that they are weights of one file."""

    def __init__(self, recogniser: nn.Module, front: nn.Module | None = None):
        super().__init__()
        self.recogniser, self.front = recogniser, front
        spectrum = recogniser.features.compute_STFT
        if spectrum.hop_length != recogniser.hop:
            raise ValueError(
                f"hop: is {recogniser.hop} samples; the features' is {spectrum.hop_length}"
            )

    def forward(self, noisy: torch.Tensor, lengths=None, tokens=None):
        enhanced = self.enhance(noisy, lengths)
        signals = noisy if enhanced is None else enhanced
        return enhanced, self.recogniser(signals, lengths, tokens)

    def enhance(self, noisy: torch.Tensor, lengths=None):
        """Signals [B, T] through the front; None without one."""
        return None if self.front is None else self.front(noisy, lengths).signal

    def shape_check(self) -> None:
        """Send a short signal and two tokens through all modules."""
        signal = torch.zeros(1, 2 * self.minimum_samples)
        self(signal, None, torch.tensor([[1, self.n_tokens - 1]]))

    @property
    def n_tokens(self) -> int:
        """Tokens that the recogniser knows."""
        return self.recogniser.attention.w.out_features

    @property
    def minimum_samples(self) -> int:
        """The fewest samples in which the recogniser has a frame."""
        samples = self.recogniser.hop
        while self.recogniser.count_frames(samples) < 1:
            samples += self.recogniser.hop
        return samples

    @property
    def maximum_samples(self) -> int:
        """The most whose frames and tokens all have positions.

        SpeechBrain's positions end with its transformer's ``max_length``.
        """
        modules = self.recogniser.transformer.modules()
        positions = min(m.max_len for m in modules if hasattr(m, "max_len"))
        samples = 4 * positions * self.recogniser.hop
        while self.recogniser.count_frames(samples) > positions:
            samples -= self.recogniser.hop
        return samples


def _recogniser_properties(network) -> dict:
    return {"can_enhance": network.front is not None}


# By the name that config.json gives as "kind".
KINDS = {
    "unified": ModelFamily(
        UnifiedNetwork,
        best="si_snr_i",
        properties=_unified_properties,
        forward=_unified_forward,
        enhance=UnifiedNetwork.enhance,
    ),
    "gsenet": ModelFamily(
        GSENet,
        best="si_snr_i",
        properties=_gsenet_properties,
        forward=lambda network, mixture, lengths: (None, network(mixture, lengths)),
        pipeline="GuidedEnhancer",
    ),
    "binaural": ModelFamily(
        BinauralNetwork,
        best="snr_i",
        properties=_binaural_properties,
        forward=lambda network, mixture, lengths: (network(mixture, lengths), None),
        pipeline="BinauralSeparator",
    ),
    "recogniser": ModelFamily(
        RecognitionSystem,
        best="accuracy",
        properties=_recogniser_properties,
        forward=lambda network, mixture, lengths: (None, network.enhance(mixture, lengths)),
        parts=("recogniser", "front"),
        pipeline="Recognizer",
        recognises=True,
    ),
}


# ------------------------------------------------------------------ networks as plain data


def describe_network(tagged, name) -> dict:
    """Turn a network of a run's ``hyperparams.yaml`` into its description.

    Arguments
    ---------
    tagged : object
        The network as :func:`~unified_se_ss.plain_yaml.plain_yaml` gives it.
    name : str or Path
        The file's name, for messages.

    Raises
    ------
    UserError
        The file makes something that is not a network of this project.

    Example
    -------
    >>> from unified_se_ss.plain_yaml import plain_yaml
    >>> text = "e: !new:unified_se_ss.networks.Encoder\\n  n_basis: 64"
    >>> describe_network(plain_yaml(text, "a.yaml")["e"], "a.yaml")
    {'class': 'Encoder', 'arguments': {'n_basis': 64}}
    """
    if _count(tagged, {}) > MOST_VALUES:
        raise UserError(f"{name}: the network is made of more than {MOST_VALUES} values")
    return _describe(tagged, name)


def _count(value, known: dict) -> int:
    """Values within a value; what a YAML file repeats by alias is looked at once."""
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(value)]


def _describe(tagged, name):
    """The description of a tagged value; of another, the value itself."""
    if not isinstance(tagged, tuple):
        return tagged
    tag, content = tagged
    if tag == "!apply:getattr":  # what <part.size> becomes in a run's file
        return _size(content, name)
    sort, _, path = tag.partition(":")
    package, _, class_name = path.rpartition(".")
    content = {} if content == "" else content  # a class that is given nothing
    is_known = class_name in _classes() and f"{package}.".startswith(
        f"{_package(class_name)}."
    )
    if sort not in ("!new", "!name") or not is_known or not isinstance(content, dict):
        raise UserError(
            f"{name}: the network is made of {tag}, which cannot be shared; expected "
            f"!new: or !name: and one of {', '.join(_classes())}"
        )
    arguments = {key: _describe(value, name) for key, value in content.items()}
    description = {"class": class_name, "arguments": arguments}
    return description if sort == "!new" else {**description, "partial": True}


def _size(content, name) -> int:
    """The size of a part that another part is given."""
    part, size = content if isinstance(content, list) and len(content) == 2 else (0, 0)
    described = _describe(part, name)
    of = described.get("class") if isinstance(described, dict) else None
    if (of, size) not in SIZES:
        raise UserError(f"{name}: {shortened(content)} is no size of a part of a network")
    return getattr(outline(described, name), size)


def read_json(path) -> dict:
    """Read a small JSON object of plain data, whose numbers are finite; else a UserError."""
    found = load_whole(path, _load_json, "valid JSON ({})")
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, not {type(found).__name__}")
    return found


def _load_json(path):
    with open(path, "rb") as file:
        text = file.read(LARGEST_FILE + 1)
    if len(text) > LARGEST_FILE:
        raise UserError(f"{path}: is larger than {LARGEST_FILE} bytes; not a configuration")
    return json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)


def _refuse_constant(constant: str):
    """Python's JSON reads NaN and Infinity; JSON does not have them."""
    raise ValueError(f"{constant} is not a number")


def build_network(description, name="config.json"):
    """Make the network that a description describes, its weights as they come.

    Raises
    ------
    UserError
        Names what is wrong and where in the description.

    Example
    -------
    >>> build_network({"class": "Recurrent", "arguments": {"n_features": 4, "hidden": 3}})
    Recurrent(
      (rnn): LSTM(4, 3, batch_first=True, bidirectional=True)
    )
    """
    network = _build(description, f"{name}: network")
    if not isinstance(network, nn.Module):
        raise UserError(f"{name}: network: expected a network, not {shortened(network)}")
    return network


def outline(description, name="config.json") -> nn.Module:
    """The network without memory for its weights: names, shapes and types alone.

    Whatever sizes a stranger wrote, looking at them costs nothing.
    """
    with torch.device("meta"):
        return build_network(description, name)


def _build(description, where: str, depth: int = 0):
    """The network or the partial at one place of a description."""
    if depth > DEEPEST:
        raise UserError(f"{where}: more than {DEEPEST} networks in each other")
    if not _is_description(description):
        raise UserError(
            f"{where}: expected a class, its arguments, and perhaps partial: true, not "
            f"{shortened(description)}"
        )
    class_name, given = description["class"], description["arguments"]
    if class_name not in _classes():
        raise UserError(
            f"{where}: there is no class {shortened(class_name)}; "
            f"expected one of: {', '.join(_classes())}"
        )
    arguments = _arguments(class_name, given, where, depth)
    make = partial(_class(class_name), **arguments)
    try:
        return make if description.get("partial") else make()
    except Exception as error:  # of arguments that do not fit; SpeechBrain asserts, too
        reason = first_line(error)[:200]
        raise UserError(f"{where}: {class_name}: {reason}") from error


def _is_description(value) -> bool:
    types = {"class": str, "arguments": dict, "partial": bool}
    return (
        isinstance(value, dict)
        and {"class", "arguments"} <= set(value) <= set(types)
        and all(isinstance(part, types[key]) for key, part in value.items())
    )


def _classes() -> dict:
    """All classes that a description may name; of a recogniser's parts, their packages."""
    outermost = {family.network.__name__: family.network for family in KINDS.values()}
    return {**NETWORKS, **outermost, **{name: part[0] for name, part in PARTS.items()}}


def _package(class_name: str) -> str:
    """The package in or below which a YAML file names a class."""
    return PARTS[class_name][0] if class_name in PARTS else networks.__name__


def _class(class_name: str) -> type:
    """The class of a name; one of a recogniser is imported now."""
    found = _classes()[class_name]
    if not isinstance(found, str):
        return found
    try:
        return getattr(import_module(found), class_name)
    except ImportError as error:
        raise UserError(
            f"{class_name}: a recogniser needs SpeechBrain and sentencepiece, which "
            f"cannot be imported ({error})"
        ) from error


def _parameters(class_name: str) -> dict:
    """The arguments of a class, each with its type; None where nothing says it."""
    if class_name in PARTS:
        known = {name: Literal[choices] for name, choices in CHOICES.items()}
        known |= dict.fromkeys(FRACTIONS, float)
        return {name: known.get(name) for name in PARTS[class_name][1].split()}
    network = _class(class_name)
    hints = typing.get_type_hints(network.__init__)
    return {key: hints.get(key) for key in inspect.signature(network).parameters}


def _arguments(class_name: str, given: dict, where: str, depth: int) -> dict:
    """The arguments of a class, each of the type that the class states."""
    parameters = _parameters(class_name)
    arguments = {}
    for key, value in given.items():
        if key not in parameters:
            raise UserError(
                f"{where}.{shortened(key)}: {class_name} has no such argument; "
                f"it has: {', '.join(parameters) or 'none'}"
            )
        if isinstance(value, dict):
            value = _build(value, f"{where}.{key}", depth + 1)
        _check_type(value, parameters[key], f"{where}.{key}")
        least = 0 if type(value) is float or parameters[key] is float else 1
        _check_size(value, least, MOST.get(key, LARGEST), f"{where}.{key}")
        arguments[key] = value
    return arguments


def _check_type(value, hint, where: str) -> None:
    """Stop at a value of another type than a signature states."""
    types = typing.get_args(hint) or (hint,)
    expected = " or ".join(getattr(one, "__name__", str(one)) for one in types)
    if hint is None:
        return
    if typing.get_origin(hint) is Callable:
        fits, expected = isinstance(value, partial), "what makes a network (partial)"
    elif typing.get_origin(hint) is Literal:
        fits = value in types
    elif isinstance(value, nn.Module) or value is None:
        fits = isinstance(value, types)
    else:
        fits = type(value) in types or (float in types and type(value) is int)
    if not fits:
        raise UserError(f"{where}: is {shortened(value)}; expected {expected}")


def _check_size(value, least: int, most: int, where: str) -> None:
    """Stop at a value beyond all reason."""
    if isinstance(value, str) and len(value) > LONGEST:
        raise UserError(f"{where}: expected a name, not {len(value)} characters")
    if isinstance(value, list) and not (
        len(value) <= MOST["blocks"] and all(map(_is_small_row, value))
    ):
        raise UserError(
            f"{where}: is {shortened(value)}; expected at most {MOST['blocks']} lists of true, "
            f"false, and numbers from 1 to {LARGEST}"
        )
    if type(value) in (int, float) and not least <= value <= most:
        raise UserError(f"{where}: is {shortened(value)}; expected {least} to {most}")


def _is_small_row(row) -> bool:
    return (
        isinstance(row, list)
        and len(row) <= LONGEST
        and all(type(x) is bool or (type(x) is int and 1 <= x <= LARGEST) for x in row)
    )


# ------------------------------------------------------------------ models


class Model:
    """A network that is ready to use, whichever recipe trained it.

    Arguments
    ---------
    network : torch.nn.Module
        Is put into evaluation mode and on `device`.
    kind : str
        A name in :data:`~unified_se_ss.inference.models.KINDS`.
    sample_rate : int
        Hz.
    device : str or torch.device, optional
        By default a GPU if there is one.
    precision : str, optional
        ``"fp32"`` (default), ``"bf16"`` or ``"fp16"``: what products are computed in.
        Signals are fp32 in any case.
    configuration : dict, optional
        The same as plain data, as ``config.json`` holds it.
    decoding : unified_se_ss.inference.folders.Decoding, optional
        Of a recogniser: its tokenizer and its search.

    Example
    -------
    >>> from unified_se_ss.networks import GSENet
    >>> model = Model(GSENet([[4, 8, 2, 2, True]], bottleneck=4), "gsenet", 16000, "cpu")
    >>> print(model)
    gsenet model, 0 sources, 16000 Hz, 4,454 parameters, on cpu in fp32
    >>> model.enhance(torch.randn(3, 2, 400)).shape
    torch.Size([3, 400])
    """

    n_sources: int = 0  #: Sources J; 0 for a model that only enhances.
    channels: int = 1  #: Of the input; 1 is mono.
    ears: int = 1  #: Channels of each source; 2 for a binaural model.
    causal: bool = False  #: The output depends on no later input (beyond the window).
    minimum_samples: int = 1  #: The shortest input that the network can take.
    can_enhance: bool = True  #: :meth:`enhance` gives something.

    def __init__(
        self,
        network: nn.Module,
        kind: str,
        sample_rate: int,
        device=None,
        precision=None,
        configuration: dict | None = None,
        decoding=None,
    ):
        self.kind = kind
        self.configuration, self.decoding = configuration, decoding
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.sample_rate = sample_rate
        for name, value in KINDS[kind].properties(network).items():
            setattr(self, name, value)

    @property
    def tasks(self) -> list[str]:
        """Those of separate, enhance and recognise that the model can do."""
        able = {
            "separate": self.n_sources,
            "enhance": self.can_enhance,
            "recognise": self.decoding,
        }
        return [task for task, is_able in able.items() if is_able]

    def check_task(self, task: str) -> None:
        """Stop at a task that the model was not made for."""
        if task not in self.tasks:
            raise UserError(
                f"this {self.kind} model cannot {task}; it can {' and '.join(self.tasks)}"
            )

    def separate(self, mixture: torch.Tensor, lengths=None) -> torch.Tensor:
        """Separate mixtures, [B, T] to [B, J, T].

        Arguments
        ---------
        mixture : torch.Tensor
            [B, T] ([B, C, T] for a model of several channels), any device, any
            floating type.
        lengths : torch.Tensor, optional
            Real samples of each item, [B]; each then gets what it would get alone.

        Returns
        -------
        torch.Tensor
            fp32, on the model's device; of a binaural model [B, J, 2, T]. Scale and sign
            are what training left open.

        Raises
        ------
        UserError
            The mixture has another shape, or is too short.
        """
        self.check_task("separate")
        return self.both(mixture, lengths)[0]

    def enhance(self, mixture: torch.Tensor, lengths=None) -> torch.Tensor:
        """Enhance mixtures, [B, T] to [B, T]; arguments as for :meth:`separate`."""
        self.check_task("enhance")
        enhance = KINDS[self.kind].enhance
        if enhance is None:
            return self.both(mixture, lengths)[1]
        return self.run(enhance, mixture, lengths).float()

    def both(self, mixture: torch.Tensor, lengths=None):
        """Sources and enhanced mixture from one pass; None for what there is not."""
        signals = self.run(KINDS[self.kind].forward, mixture, lengths)
        return tuple(None if signal is None else signal.float() for signal in signals)

    @torch.no_grad()
    def run(self, function, mixture, lengths=None):
        """Call a function of network, mixture and lengths on the device, in the precision."""
        self._check(mixture, lengths)
        mixture = mixture.to(self.device, torch.float32)
        lengths = None if lengths is None else torch.as_tensor(lengths).cpu()
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return function(self.network, mixture, lengths)

    def _check(self, mixture, lengths) -> None:
        shape = tuple(mixture.shape)
        if shape[1:-1] != (self.channels,) * (self.channels > 1) or len(shape) < 2:
            expected = "[B, T]" if self.channels == 1 else f"[B, {self.channels}, T]"
            raise UserError(f"the mixture has the shape {shape}; expected {expected}")
        shortest = shape[-1] if lengths is None else int(min(lengths))
        if not shape[0] or shortest < self.minimum_samples:
            raise UserError(
                f"the mixture has {shortest} samples in {shape[0]} items; this model "
                f"needs {self.minimum_samples} samples or more"
            )

    def __str__(self):
        size = sum(parameter.numel() for parameter in self.network.parameters())
        return (
            f"{self.kind} model, {self.n_sources} sources, {self.sample_rate} Hz, "
            f"{size:,} parameters, on {self.device} in {self.precision}"
        )


def choose_device(device=None) -> torch.device:
    """The device that was asked for, or the best there is; a UserError if there is none such."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: {device} cannot be used ({reason})") from error
    return device


def choose_precision(precision, device: torch.device) -> str:
    """The precision that was asked for, fp32 by default."""
    precision = precision or "fp32"
    if precision not in PRECISIONS:
        raise UserError(
            f"precision: is '{precision}'; expected one of: {', '.join(PRECISIONS)}"
        )
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"precision: fp16 needs a GPU; on {device} use bf16 or fp32")
    return precision
