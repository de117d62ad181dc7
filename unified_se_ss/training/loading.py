"""From a YAML file to what it describes; what cannot be made is told by key and line."""

from __future__ import annotations

import difflib
import functools
import inspect
import io
import pydoc
import re
import tempfile

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml

from unified_se_ss.crash import user_message
from unified_se_ss.errors import UserError, shortened
from unified_se_ss.training.options import Options
from unified_se_ss.training.overrides import KnownKeys, check_values
from unified_se_ss.training.scratch_dir import dry_run_overrides, is_dry_run


class Hparams(dict):
    """What a YAML file describes; a key that a recipe needs and the file lacks is named."""

    def __init__(self, values: dict, file):
        super().__init__(values)
        self.file = file

    def __missing__(self, key):
        raise UserError(
            f"{self.file}: has no key {key}, which this recipe needs; compare with the "
            "YAML files that come with it"
        )


def load_hparams(options: Options) -> dict:
    """Load the YAML file with its overrides.

    Arguments
    ---------
    options : Options
        As :func:`parse_options` returns them. For ``--describe``, keys that are left
        open are filled.

    Returns
    -------
    dict
        What the YAML file describes, constructed.

    Raises
    ------
    UserError
        A key is left open, has a value that makes no sense, or names what cannot be made.
    """
    known = KnownKeys(options.hparams_file)
    _fill_open_keys(options, known)
    check_values(known, options.overrides)
    if not options.describe:
        aside = is_dry_run(options)
        overrides = dry_run_overrides(options, known.places) if aside else options.overrides
        hparams = Hparams(_construct(known, overrides), known.file)
        hparams["options"] = options
        return hparams
    with tempfile.TemporaryDirectory() as folder:  # leaves no folder behind
        overrides = {**options.overrides, "output_folder": folder}
        return Hparams(_construct(known, overrides), known.file)


def _fill_open_keys(options: Options, known: KnownKeys) -> None:
    """Stop at a key that is left open, or fill it for a description."""
    for path, place in known.places.items():
        if place.tag != "!PLACEHOLDER" or _is_given(path, options.overrides):
            continue
        if not options.describe or "." in path:
            wanted = f" ({place.comment})" if place.comment else ""
            raise UserError(
                f"{path}: not set in {known.file}, line {place.line}; "
                f"give --{path} VALUE{wanted}"
            )
        options.overrides[path] = "unset"


def _is_given(path: str, overrides: dict) -> bool:
    """Whether the overrides hold a key, or what it stands in."""
    for key in path.split("."):
        if not isinstance(overrides, dict):
            return True
        if key not in overrides:
            return False
        overrides = overrides[key]
    return True


# ------------------------------------------------------------------ construction


TAGS = "!new: !name: !apply: !module: !ref !copy !include: !applyref: !PLACEHOLDER".split()


class _NotMade(Exception):
    """An object that could not be made: its key, its tag, and its content if it is text."""

    def __init__(self, path: str, tag: str, content):
        super().__init__(path)
        self.path, self.tag, self.content = path, tag, content


class _LocatingLoader(ruamel.yaml.Loader):
    """Says of an object that cannot be made which key it belongs to."""

    def construct_document(self, node):
        """Keep the root, from which a key is found again."""
        self.root = node
        return super().construct_document(node)

    def construct_object(self, node, deep=True):
        """Make what a node describes."""
        try:
            made = super().construct_object(node, deep=deep)
            if isinstance(made, functools.partial):
                _check_arguments(made)
            return made
        except (_NotMade, UserError):
            raise
        except Exception as error:
            path = _path_of(node, self.root)
            raise _NotMade(path, str(node.tag), node.value) from error


def _check_arguments(made: functools.partial) -> None:
    """Stop at an argument that will be one too many when the partial is called."""
    try:
        signature = inspect.signature(made.func)
    except (ValueError, TypeError):  # what is written in C may have none
        return
    signature.bind_partial(*made.args, **made.keywords)


def _path_of(wanted, node, above: str = "") -> str | None:
    """The key at which a node stands, keys on the way joined by dots."""
    if wanted is node:
        return above
    parts = []
    if isinstance(node, ruamel.yaml.MappingNode):
        parts = [(key.value, value) for key, value in node.value]
    elif isinstance(node, ruamel.yaml.SequenceNode):
        parts = [(str(place), value) for place, value in enumerate(node.value, start=1)]
    for key, value in parts:
        found = _path_of(wanted, value, f"{above}.{key}" if above else str(key))
        if found is not None:
            return found
    return None


def _construct(known: KnownKeys, overrides: dict) -> dict:
    """What the file describes."""
    stream = io.StringIO(known.text)
    # Names of other files (!include) are relative to this one.
    stream.name = str(known.file)
    try:
        made = load_hyperpyyaml(stream, overrides, loader=_LocatingLoader)
        _check_made(known, made)
        return made
    except UserError:
        raise
    except _NotMade as error:
        cause = error.__cause__
        where = known.where(error.path or "")
        reason = _reason(error.tag, error.content, cause)
        raise UserError(f"{where}: {error.path}: {reason}") from cause
    except Exception as error:
        raise UserError(_unresolved(known, overrides, error)) from error


def _check_made(known: KnownKeys, made: dict) -> None:
    """Stop at what a Brain cannot use: modules that are none, options of the optimizer."""
    modules = made.get("modules")
    for name, module in modules.items() if isinstance(modules, dict) else ():
        if not isinstance(module, torch.nn.Module):
            raise UserError(
                f"{known.where(f'modules.{name}')}: modules.{name}: is {shortened(module)}; "
                "expected a torch.nn.Module, made with !new: or a reference to one"
            )
    if isinstance(made.get("optimizer"), functools.partial):
        try:
            made["optimizer"]([torch.zeros(1, requires_grad=True)])
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{known.where('optimizer')}: optimizer: {_text(error)}"
            ) from error


def _reason(tag: str, value, error: BaseException) -> str:
    """Why an object could not be made, and what could be."""
    kind, _, name = tag.partition(":")
    text = _text(error)
    if isinstance(error, pydoc.ErrorDuringImport):
        return f"{name} could not be imported: {type(error.value).__name__}: {error.value}"
    if isinstance(error, ImportError) and text.startswith("There is no such"):
        return f"there is no {name}{_near_names(name)}"
    if isinstance(error, TypeError) and kind in ("!new", "!name", "!apply"):
        text = re.sub(r"^Invalid argument to (class|callable) \S+:? *", "", text)
        text = re.sub(r"^\S*\(\) ", "", text.split(".__init__() ")[-1])
        return f"{name} {_as_sentence(text)}{_arguments_of(name)}"
    if isinstance(error, ruamel.yaml.constructor.ConstructorError) and "the tag" in text:
        if kind == "!ref":
            return f"{value} leads back to itself"
        return f"{tag} is no tag of HyperPyYAML; there are {', '.join(TAGS)}"
    if isinstance(error, KeyError):
        text = f"no {text}"
    told = user_message(error)
    if told is not None:
        return told
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _text(error: BaseException) -> str:
    """An exception's message in one line."""
    return " ".join(": ".join(str(argument) for argument in error.args).split())


def _as_sentence(text: str) -> str:
    """A message that follows a name."""
    begins = ("got", "missing", "takes", "argument")
    return text if text.startswith(begins) else f"cannot be made: {text}"


def _arguments_of(name: str) -> str:
    """What a class or function takes."""
    try:
        parameters = inspect.signature(pydoc.locate(name)).parameters.values()
    except (ValueError, TypeError, pydoc.ErrorDuringImport):
        return ""
    return f"; it takes: {', '.join(map(_argument, parameters)) or 'nothing'}"


def _argument(parameter: inspect.Parameter) -> str:
    """One argument, as in a signature, without its type."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return stars.get(parameter.kind, "") + parameter.name


def _near_names(name: str) -> str:
    """The nearest name to one that there is not, in the longest part of it that there is."""
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        try:
            module = pydoc.locate(".".join(parts[:n]))
        except pydoc.ErrorDuringImport:
            return ""
        if module is not None:
            near = difflib.get_close_matches(parts[n], dir(module), 1)
            there = ".".join(parts[:n])
            return f"; did you mean {there}.{near[0]}?" if near else f" in {there}"
    return f"; no module {parts[0]} is installed"


def _unresolved(known: KnownKeys, overrides: dict, error: Exception) -> str:
    """What is wrong with a reference, or with the file as a whole."""
    text = _text(error)
    for key, value in overrides.items():
        if re.search("<.*>", str(value)):
            return (
                f"--{key}: is {shortened(value)}, and what stands between < and > is how "
                f"the file refers to its keys ({text}); expected a value"
            )
    missing = re.search(r'The reference "(.*?)" is not valid', text)
    if missing:
        name = missing[1]
        at = [n for n, line in enumerate(known.text.splitlines(), 1) if f"<{name}" in line]
        near = difflib.get_close_matches(name, list(known.places), 1)
        hint = f"; did you mean <{near[0]}>?" if near else ""
        line = f", line {at[0]}" if at else ""
        return f"{known.file}{line}: <{name}> names no key of the file{hint}"
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{known.file}: not valid YAML: {getattr(error, 'problem', None) or text}"
    if isinstance(error, RecursionError):
        return f"{known.file}: its references go round in circles"
    if isinstance(error, OSError):
        return f"{known.file}: {error.filename}: {error.strerror}"
    return f"{known.file}: {text}"
