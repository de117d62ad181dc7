"""From a YAML file to what it describes; what cannot be made is named by key and line."""

from __future__ import annotations

import atexit
import functools
import inspect
import io
import os
import pydoc
import re
import shutil
import tempfile
from pathlib import Path

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.error import YAMLError

from unified_se_ss.errors import UserError, did_you_mean, shortened, user_message
from unified_se_ss.gradients import RULES, find_rule
from unified_se_ss.plain_yaml import plain_yaml
from unified_se_ss.training.options import KINDS, HparamsFile, Options

DESCRIPTION = "hyperparams.yaml"
BATCH_SECONDS = "batch_seconds.json"  #: The result of --batch_seconds auto.


class Hparams(dict):
    """Values of a YAML file; a key that a recipe needs and the file lacks is named."""

    def __init__(self, values: dict, file):
        super().__init__(values)
        self.file = file

    def __missing__(self, key):
        raise UserError(
            f"{self.file}: has no key {key}, which this recipe needs; compare with the "
            "YAML files that come with it"
        )


def load_hparams(options: Options) -> Hparams:
    """Load the YAML file with its overrides.

    With ``--describe`` and ``--check``, ``output_folder`` and ``save_folder`` lie in a
    folder that goes away with the process.

    Raises
    ------
    UserError
        A key is left open, has a value that makes no sense, or names what cannot be made.
    """
    file = HparamsFile(options.hparams_file)
    _fill_placeholders(options, file)
    for key in KINDS.keys() & file.keys.keys() - options.overrides.keys():
        value = file.keys[key].value
        if not isinstance(value, tuple) and not KINDS[key].accepts(value):
            raise UserError(
                f"{file.where(key)}: {key}: is {shortened(value)}; expected "
                f"{KINDS[key].expected}"
            )
    overrides = options.overrides
    if options.describe or options.check:
        folder = _scratch_folder(options)
        folders = {"output_folder": folder, "save_folder": f"{folder}/save"}
        overrides = {**overrides, **{k: f for k, f in folders.items() if k in file.keys}}
    hparams = Hparams(_construct(file, overrides), file.path)
    hparams["options"] = options
    return hparams


def resolved_yaml(options: Options) -> str:
    """Replace every reference of the YAML file, with its overrides, by what it refers to."""
    text = HparamsFile(options.hparams_file).text
    return resolve_references(io.StringIO(text), options.overrides).read()


def own_folder(options: Options) -> Path:
    """Find the run's own output folder, also where ``--check`` writes elsewhere."""
    return Path(plain_yaml(resolved_yaml(options), options.hparams_file)["output_folder"])


def _scratch_folder(options: Options) -> str:
    """Make a folder that goes away; for --check, with what the run has already found."""
    folder = tempfile.mkdtemp(prefix="unified_se_ss_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if not options.check:
        return folder
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--check runs in one process; start without torchrun")
    own = own_folder(options)
    for path in (own / DESCRIPTION, own / BATCH_SECONDS, *own.glob("manifests/**/*")):
        if path.is_file() and (own / DESCRIPTION).is_file():
            copy = Path(folder) / path.relative_to(own)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return folder


def _fill_placeholders(options: Options, file: HparamsFile) -> None:
    """Stop at a key that is left open; for --describe, top-level ones are filled."""
    for path, key in file.keys.items():
        given = options.overrides
        for name in path.split("."):
            given = given.get(name) if isinstance(given, dict) else given
        if key.value != ("!PLACEHOLDER", "") or given is not None:
            continue
        if not options.describe or "." in path:
            wanted = f" ({key.comment})" if key.comment else ""
            raise UserError(
                f"{path}: not set in {file.where(path)}; give --{path} VALUE{wanted}"
            )
        options.overrides[path] = "unset"


# ------------------------------------------------------------------ construction


class _NotMade(Exception):
    """An object that could not be made: its key."""


class _LocatingLoader(ruamel.yaml.Loader):
    """Says of an object that cannot be made which key it belongs to."""

    def construct_document(self, node):
        self.root = node
        return super().construct_document(node)

    def construct_object(self, node, deep=True):
        try:
            made = super().construct_object(node, deep=deep)
            if isinstance(made, functools.partial):
                _check_arguments(made)
            return made
        except (_NotMade, UserError):
            raise
        except Exception as error:
            found = (key for key, other in _nodes(self.root) if other is node)
            raise _NotMade(next(found, "")) from error


def _check_arguments(made: functools.partial) -> None:
    """Stop at an argument that will be one too many when the partial is called."""
    try:
        signature = inspect.signature(made.func)
    except (ValueError, TypeError):  # what is written in C may have none
        return
    signature.bind_partial(*made.args, **made.keywords)


def _nodes(node, key: str = ""):
    """Yield all nodes with their keys, joined by dots."""
    yield key, node
    if isinstance(node, ruamel.yaml.MappingNode):
        for name, value in node.value:
            yield from _nodes(value, f"{key}.{name.value}".removeprefix("."))
    elif isinstance(node, ruamel.yaml.SequenceNode):
        for place, value in enumerate(node.value, start=1):
            yield from _nodes(value, f"{key}.{place}")


def _construct(file: HparamsFile, overrides: dict) -> dict:
    stream = io.StringIO(file.text)
    stream.name = str(file.path)  # names of other files (!include) are relative to it
    try:
        made = load_hyperpyyaml(stream, overrides, loader=_LocatingLoader)
    except UserError:
        raise
    except _NotMade as error:
        path, cause = error.args[0], error.__cause__
        raise UserError(f"{file.where(path)}: {path}: {_message(cause)}") from cause
    except Exception as error:
        text, where = _message(error), str(file.path)
        if wrong := re.search(r'reference "(.*?)"', text):
            before, found, _ = file.text.partition(f"<{wrong[1]}")
            where += f", line {before.count(chr(10)) + 1}" if found else ""
        raise UserError(f"{where}: {text}") from error
    _check_made(file, made)
    return made


def _check_made(file: HparamsFile, made: dict) -> None:
    """Try what the Brain will do, while a key can still be named."""
    attempts = {
        "modules": torch.nn.ModuleDict,
        "optimizer": lambda optimizer: optimizer([torch.zeros(1, requires_grad=True)]),
    }
    for key, attempt in attempts.items():
        try:
            if key in made:
                attempt(made[key])
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{file.where(key)}: {key}: {_message(error)}") from error


def _message(error: BaseException) -> str:
    """Put an exception in one line, as HyperPyYAML or the object's class words it."""
    if (known := user_message(error)) is not None and not isinstance(error, ImportError):
        return known
    text = getattr(error, "problem", None) or str(error)
    if text == str(error.args):  # HyperPyYAML puts its own words first
        text = ": ".join(map(str, error.args))
    clear = (TypeError, ValueError, ImportError, YAMLError, pydoc.ErrorDuringImport)
    name = "" if isinstance(error, clear) else f"{type(error).__name__}: "
    return " ".join(f"{name}{text}".split())[:400]


# ------------------------------------------------------------------ what recipes ask


def pick(hparams: dict, *keys: str) -> dict:
    """Some keys with their values, as keyword arguments.

    Example
    -------
    >>> pick({"seed": 1, "lr": 0.1, "n_speakers": 2}, "seed", "n_speakers")
    {'seed': 1, 'n_speakers': 2}
    """
    return {key: hparams[key] for key in keys}


def manifest_folder(hparams: dict) -> Path:
    """Find the place of a run's manifests."""
    return Path(hparams["output_folder"]) / "manifests"


def check_choices(hparams: dict, choices: dict) -> None:
    """Stop at a key whose value, or an element of whose list, is not one of those there are.

    Example
    -------
    >>> check_choices({"rule": "project"}, {"rule": ["sum", "project"]})
    """
    for key, allowed in choices.items():
        names = ["null" if value is None else str(value) for value in allowed]
        for value in hparams[key] if isinstance(hparams[key], list) else [hparams[key]]:
            if value not in list(allowed):
                raise UserError(
                    f"{key}: is {shortened(value)}; expected one of: "
                    f"{', '.join(names)}{did_you_mean(value, names)}"
                )


def check_segment(hparams: dict) -> None:
    """Stop at ``segment_seconds`` shorter than the encoder's window, ``kernel_size``.

    Example
    -------
    >>> check_segment({"segment_seconds": 2.0, "sample_rate": 8000, "kernel_size": 16})
    """
    seconds, least = hparams["segment_seconds"], hparams["kernel_size"]
    if seconds is not None and seconds * hparams["sample_rate"] < least:
        raise UserError(
            f"segment_seconds: is {seconds}; expected {least / hparams['sample_rate']:g} or "
            f"more, the encoder's window (kernel_size is {least})"
        )


def check_rule(hparams: dict) -> None:
    """Stop at a ``rule``, or an option in ``rule_options``, that there is not.

    Example
    -------
    >>> check_rule({"rule": "remedy", "rule_options": {"strict": True}})
    """
    try:
        find_rule(hparams["rule"], hparams.get("rule_options"))
    except (ValueError, TypeError) as error:
        hint = "" if hparams["rule"] in RULES else did_you_mean(hparams["rule"], RULES)
        raise UserError(f"{error}{hint}") from error
