"""Networks as plain data, and back: class names from a fixed list, and their arguments.

A network is described by nested dictionaries, ``{"class": "Encoder", "arguments":
{"n_basis": 64, …}}``; with ``"partial": true`` it is not the module but what makes it
(what a YAML file calls ``!name:``). Nothing but the classes of :data:`NETWORKS`,
:data:`PARTS` and the kinds of models is ever made from such a description, whoever wrote
it.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Literal

import torch
from torch import nn

from unified_se_ss import networks
from unified_se_ss.errors import UserError, first_line, shortened
from unified_se_ss.inference.models import KINDS

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
KEYS = {"class", "arguments", "partial"}


# ------------------------------------------------------------------ from a YAML file


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


# ------------------------------------------------------------------ from JSON


def read_json(path) -> dict:
    """Read a small JSON object of plain data, whose numbers are finite; else a UserError."""
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
    if not isinstance(description, dict) or not {"class", "arguments"} <= set(description):
        raise UserError(
            f"{where}: expected a class and its arguments, not {shortened(description)}"
        )
    if set(description) - KEYS:
        unknown = ", ".join(shortened(key) for key in sorted(set(description) - KEYS))
        raise UserError(f"{where}: unknown key {unknown}")
    class_name, given = description["class"], description["arguments"]
    if not isinstance(class_name, str) or class_name not in _classes():
        raise UserError(
            f"{where}: there is no class {shortened(class_name)}; "
            f"expected one of: {', '.join(_classes())}"
        )
    if not isinstance(given, dict):
        raise UserError(f"{where}: arguments: expected an object")
    is_partial = description.get("partial", False)
    if not isinstance(is_partial, bool):
        raise UserError(f"{where}: partial: expected true or false")
    arguments = _arguments(class_name, given, where, depth)
    make = partial(_class(class_name), **arguments)
    try:
        return make if is_partial else make()
    except Exception as error:  # of arguments that do not fit; SpeechBrain asserts, too
        reason = first_line(error)[:200]
        raise UserError(f"{where}: {class_name}: {reason}") from error


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
