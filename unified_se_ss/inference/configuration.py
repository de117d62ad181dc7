"""Networks as plain data, and back: class names from a fixed list, and their arguments.

A network is described by nested dictionaries, ``{"class": "Encoder", "arguments":
{"n_basis": 64, …}}``; with ``"partial": true`` it is not the module but what makes it
(what a YAML file calls ``!name:``). Nothing but the classes of :data:`NETWORKS` and
:data:`PARTS` is ever made from such a description, whoever wrote it.
"""

from __future__ import annotations

import inspect
import json
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Literal

import torch
from torch import nn

from unified_se_ss import networks
from unified_se_ss.errors import UserError
from unified_se_ss.inference.recognition_system import RecognitionSystem

# The classes that a description may name. A new network is one more line.
NETWORKS = {
    "BinauralNetwork": networks.BinauralNetwork,
    "Decoder": networks.Decoder,
    "DualPath": networks.DualPath,
    "Encoder": networks.Encoder,
    "GSENet": networks.GSENet,
    "MaskingFront": networks.MaskingFront,
    "RecognitionSystem": RecognitionSystem,
    "Recurrent": networks.Recurrent,
    "Transformer": networks.Transformer,
    "UnifiedNetwork": networks.UnifiedNetwork,
}


@dataclass(frozen=True)
class Part:
    """A class of a recogniser, which is imported when a description names it.

    Arguments
    ---------
    package : str
        Where it is, as a YAML file names it.
    arguments : dict
        What a description may give it, and of which types: their signatures do not say,
        and take more than plain data.
    """

    package: str
    arguments: dict


SPEECHBRAIN_TRANSFORMER = "speechbrain.lobes.models.transformer.TransformerASR"
ACTIVATIONS = ("GELU", "ReLU", "SiLU")  # of torch.nn, and as partial
PARTS = {
    "RecognitionNetwork": Part(
        "unified_se_ss.recognition",
        {
            **dict.fromkeys(("features", "normalisation"), nn.Module),
            **dict.fromkeys(("subsampling", "transformer"), nn.Module),
            **dict.fromkeys(("hop", "d_model", "n_tokens"), int),
        },
    ),
    "Subsampling": Part("unified_se_ss.recognition", {"n_mels": int, "channels": int}),
    "Fbank": Part(
        "speechbrain.lobes.features",
        {
            **dict.fromkeys(("sample_rate", "n_fft", "n_mels"), int),
            **dict.fromkeys(("f_min", "f_max", "win_length", "hop_length"), float),
            "filter_shape": Literal["triangular", "rectangular", "gaussian"],
        },
    ),
    "InputNormalization": Part(
        "speechbrain.processing.features",
        # What is normalised by is of the utterance: statistics of others are no weights.
        {"norm_type": Literal["sentence"], "mean_norm": bool, "std_norm": bool},
    ),
    "TransformerASR": Part(
        SPEECHBRAIN_TRANSFORMER,
        {
            **dict.fromkeys(("tgt_vocab", "input_size", "d_model", "nhead", "d_ffn"), int),
            **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), int),
            **dict.fromkeys(("kernel_size", "max_length"), int),
            **dict.fromkeys(("dropout", "layerdrop_prob"), float),
            **dict.fromkeys(("normalize_before", "bias", "causal"), bool),
            "activation": partial,
            "positional_encoding": Literal["fixed_abs_sine"],
            "encoder_module": Literal["conformer", "transformer"],
            "attention_type": Literal["regularMHA", "RelPosMHAXL", "RoPEMHA"],
        },
    ),
    **{name: Part("torch.nn", {}) for name in ACTIVATIONS},
}

SIZES = {("Subsampling", "n_outputs")}  # that YAML files refer to

# What a description may hold. A model far beyond these is no model, but an attempt to
# exhaust memory or time before a single weight has been looked at.
LARGEST_FILE = 1 << 20  # bytes
DEEPEST = 12  # networks within networks
LARGEST = 1 << 16  # any number
MOST = {
    "blocks": 64,
    "repeats": 64,
    "layers": 64,
    "n_sources": 64,
    "num_encoder_layers": 64,
    "num_decoder_layers": 64,
    "n_mels": 512,  # no weights bound it
}  # what is made so many times
LONGEST = 64  # characters of a name
MOST_VALUES = 10_000  # in a description
KEYS = {"class", "arguments", "partial"}
# What classes raise of arguments that do not fit them. SpeechBrain asserts.
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    IndexError,
    RuntimeError,
    TypeError,
    ValueError,
)


# ------------------------------------------------------------------ from a YAML file


def describe_network(tagged, name) -> dict:
    """Turn a network of a run's ``hyperparams.yaml`` into its description.

    Arguments
    ---------
    tagged : object
        The network as :func:`~unified_se_ss.plain_yaml.plain_yaml` gives it.
    name : str or Path
        The file's name, for messages.

    Returns
    -------
    dict
        Plain data, for :func:`build_network`.

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
    kind, _, path = tag.partition(":")
    package, _, name_of_class = path.rpartition(".")
    content = {} if content == "" else content  # a class that is given nothing
    if (
        kind not in ("!new", "!name")
        or not _is_known(package, name_of_class)
        or not isinstance(content, dict)
    ):
        raise UserError(
            f"{name}: the network is made of {tag}, which cannot be shared; expected "
            f"!new: or !name: and one of {networks.__name__}: {', '.join(NETWORKS)}; or "
            f"of a recogniser: {', '.join(PARTS)}"
        )
    arguments = {key: _describe(value, name) for key, value in content.items()}
    description = {"class": name_of_class, "arguments": arguments}
    return description if kind == "!new" else {**description, "partial": True}


def _size(content, name) -> int:
    """The size of a part that another part is given."""
    part, size = content if isinstance(content, list) and len(content) == 2 else (0, 0)
    described = _describe(part, name)
    of = described.get("class") if isinstance(described, dict) else None
    if (of, size) not in SIZES:
        raise UserError(f"{name}: {_short(content)} is no size of a part of a network")
    return getattr(outline(described, name), size)


def _is_known(package: str, name_of_class: str) -> bool:
    """Whether a YAML file's class is one that a description may name."""
    if name_of_class in PARTS:
        return f"{package}.".startswith(f"{PARTS[name_of_class].package}.")
    ours = f"{package}.".startswith(f"{networks.__name__}.")
    return ours and name_of_class in NETWORKS


# ------------------------------------------------------------------ from JSON


def read_json(path) -> dict:
    """Read a small JSON file of plain data.

    Raises
    ------
    UserError
        Missing, too large, not JSON, not an object, or with numbers that are not finite.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(text) > LARGEST_FILE:
        raise UserError(f"{path}: is larger than {LARGEST_FILE} bytes; not a configuration")
    try:
        found = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, not {type(found).__name__}")
    return found


def _refuse_constant(constant: str):
    """Python's JSON reads NaN and Infinity; JSON does not have them."""
    raise ValueError(f"{constant} is not a number")


# ------------------------------------------------------------------ a network from it


def build_network(description, name="config.json"):
    """Make the network that a description describes, its weights as they come.

    Arguments
    ---------
    description : dict
        As :func:`describe_network` gives it, or as a stranger wrote it.
    name : str or Path
        The file's name, for messages.

    Returns
    -------
    torch.nn.Module

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
    network = _build(description, name, "network")
    if not isinstance(network, nn.Module):
        raise UserError(f"{name}: network: expected a network, not {_short(network)}")
    return network


def _build(description, name, place: str, depth: int = 0):
    """The network or the partial at one place of a description."""
    if depth > DEEPEST:
        raise UserError(f"{name}: {place}: more than {DEEPEST} networks in each other")
    if not isinstance(description, dict) or not {"class", "arguments"} <= set(description):
        raise UserError(
            f"{name}: {place}: expected a class and its arguments, not {_short(description)}"
        )
    if set(description) - KEYS:
        unknown = ", ".join(_short(key) for key in sorted(set(description) - KEYS))
        raise UserError(f"{name}: {place}: unknown key {unknown}")
    name_of_class, given = description["class"], description["arguments"]
    if not isinstance(name_of_class, str) or name_of_class not in {*NETWORKS, *PARTS}:
        raise UserError(
            f"{name}: {place}: there is no class {_short(name_of_class)}; "
            f"expected one of: {', '.join((*NETWORKS, *PARTS))}"
        )
    if not isinstance(given, dict):
        raise UserError(f"{name}: {place}: arguments: expected an object")
    is_partial = description.get("partial", False)
    if not isinstance(is_partial, bool):
        raise UserError(f"{name}: {place}: partial: expected true or false")
    arguments = _arguments(name_of_class, given, name, place, depth)
    make = partial(_class(name_of_class), **arguments)
    try:
        return make if is_partial else make()
    except FAULTS as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{name}: {place}: {name_of_class}: {reason}") from error


def _class(name_of_class: str) -> type:
    """The class of a name; one of a recogniser is imported now."""
    if name_of_class in NETWORKS:
        return NETWORKS[name_of_class]
    try:
        return getattr(import_module(PARTS[name_of_class].package), name_of_class)
    except ImportError as error:
        raise UserError(
            f"{name_of_class}: a recogniser needs SpeechBrain and sentencepiece, which "
            f"cannot be imported ({error})"
        ) from error


def _parameters(name_of_class: str) -> dict:
    """What a class may be given, each with its type; None where nothing says it."""
    if name_of_class in PARTS:
        return PARTS[name_of_class].arguments
    network = NETWORKS[name_of_class]
    hints = typing.get_type_hints(network.__init__)
    return {key: hints.get(key) for key in inspect.signature(network).parameters}


def _arguments(name_of_class: str, given: dict, name, place: str, depth: int) -> dict:
    """The arguments of a class, each of the kind that the class says it takes."""
    parameters = _parameters(name_of_class)
    arguments = {}
    for key, value in given.items():
        where = f"{place}.{_short(key) if key not in parameters else key}"
        if key not in parameters:
            raise UserError(
                f"{name}: {where}: {name_of_class} has no such argument; "
                f"it has: {', '.join(parameters) or 'none'}"
            )
        if isinstance(value, dict):
            value = _build(value, name, where, depth + 1)
        _check(key, value, parameters[key], name, where)
        arguments[key] = value
    return arguments


def _check(key: str, value, hint, name, where: str) -> None:
    """Stop at a value of another kind than expected, or beyond all reason."""
    kinds = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is Callable:  # what makes a network
        fits = isinstance(value, partial)
        kinds = ("what makes a network (partial)",)
    elif typing.get_origin(hint) is Literal:
        fits = value in kinds
    elif isinstance(value, nn.Module) or value is None:
        fits = any(isinstance(value, kind) for kind in kinds)
    else:
        fits = type(value) in kinds or (float in kinds and type(value) is int)
    if not fits:
        expected = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
        raise UserError(f"{name}: {where}: is {_short(value)}; expected {expected}")
    largest = MOST.get(key, LARGEST)
    if type(value) is int and hint is float and value == 0:
        return
    if type(value) is int and not 1 <= value <= largest:
        raise UserError(f"{name}: {where}: is {_short(value)}; expected 1 to {largest}")
    if type(value) is float and not (math.isfinite(value) and 0 <= value <= LARGEST):
        raise UserError(f"{name}: {where}: is {value}; expected 0 to {LARGEST}")
    if isinstance(value, list):
        _check_table(value, name, where)
    if isinstance(value, str) and len(value) > LONGEST:
        raise UserError(f"{name}: {where}: expected a name, not {len(value)} characters")


def _check_table(rows: list, name, where: str) -> None:
    """Stop at a list that is no small table of numbers, such as a network's blocks."""
    fits = len(rows) <= MOST["blocks"] and all(
        isinstance(row, list)
        and len(row) <= LONGEST
        and all(type(x) is bool or (type(x) is int and 1 <= x <= LARGEST) for x in row)
        for row in rows
    )
    if not fits:
        raise UserError(
            f"{name}: {where}: is {_short(rows)}; expected at most {MOST['blocks']} lists "
            f"of true, false, and numbers from 1 to {LARGEST}"
        )


def _short(value) -> str:
    """A stranger's value in few words."""
    if isinstance(value, (nn.Module, partial)):
        return "a network"
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a number beyond all reason"
    return text if len(text) <= 60 else text[:57] + "..."


def outline(description, name="config.json") -> nn.Module:
    """The network without memory for its weights: names, shapes and types alone.

    Whatever sizes a stranger wrote, looking at them costs nothing.

    Example
    -------
    >>> network = outline({"class": "Encoder",
    ...     "arguments": {"n_basis": 65536, "kernel_size": 65536, "stride": 1}})
    >>> network.convolution.weight.device
    device(type='meta')
    """
    with torch.device("meta"):
        return build_network(description, name)
