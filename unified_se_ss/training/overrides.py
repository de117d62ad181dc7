"""``--key value``: from words to values, each checked against the YAML file's key.

A key within an object or a list of options is named with dots: ``--optimizer.lr 0.01``.
"""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from pathlib import Path

from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from unified_se_ss.errors import UserError, shortened
from unified_se_ss.plain_yaml import KeyPlace, key_places, plain_value, plain_yaml
from unified_se_ss.training.aliases import with_current_names
from unified_se_ss.training.values import Keys, Text, kind_of

# What no YAML file can hold: control characters, and bytes that were no UTF-8.
UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class KnownKeys:
    """The keys of a YAML file: their values there, and where they stand.

    Arguments
    ---------
    file : Path
        The YAML file, which need not construct anything.

    Raises
    ------
    UserError
        It cannot be read, is not YAML, or has a key twice.
    """

    def __init__(self, file: Path):
        self.file = file
        self.text = with_current_names(read_text(file), file)
        self.values = plain_yaml(self.text, file)
        self.places: dict[str, KeyPlace] = key_places(self.text, file)

    def where(self, path: str) -> str:
        """File and line of a key, or of the nearest key above it that the file has."""
        while path and path not in self.places:
            path = path.rpartition(".")[0]
        return f"{self.file}, line {self.places[path].line}" if path else str(self.file)

    def kind(self, key: str):
        """What a top-level key may hold."""
        return self.kind_like(key, self.values[key])

    def kind_like(self, key: str, value):
        """What a key with this value in the file may hold.

        A reference holds what the key that it names does; a path in it makes it text.
        """
        if not (isinstance(value, tuple) and value[0] == "!ref"):
            return kind_of(key, value)
        whole = re.fullmatch(r"<(\w+)>", str(value[1]).strip())
        if whole and not isinstance(self.values.get(whole[1]), (tuple, type(None))):
            return kind_of(whole[1], self.values[whole[1]])
        if whole and self._is_made(whole[1]):
            return Keys()
        return kind_of(key, "text" if "/" in str(value[1]) else value)

    def _is_made(self, key: str) -> bool:
        """Whether a key holds an object that the file describes."""
        place = self.places.get(key)
        return place is not None and place.tag.startswith("!new:")


def read_text(file: Path) -> str:
    """A YAML file's content.

    Raises
    ------
    UserError
        It cannot be read, or is not text in UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{file}, line {line}: not text in UTF-8; save it in that encoding"
        ) from error


def read_overrides(given: dict[str, str | None], known: KnownKeys, others=()) -> dict:
    """Values of keys from what stands behind them on the command line.

    Arguments
    ---------
    given : dict
        Text by key; None where none was given.
    known : KnownKeys
        The YAML file's keys.
    others : iterable of str
        Other options that there are, for hints.

    Returns
    -------
    dict
        As HyperPyYAML takes overrides.

    Raises
    ------
    UserError
        Names the key, what is wrong with it, and where it stands in the file.
    """
    overrides: dict = {}
    for path, text in given.items():
        check_key(path, known, others)
        if text is None:
            raise UserError(
                f"--{path}: no value was given; expected --{path} VALUE "
                f"(null for none; {known.where(path)})"
            )
        _put(overrides, path.split("."), read_value(path, text, known))
    check_overrides(overrides, known, others)
    return overrides


def read_value(path: str, text: str, known: KnownKeys):
    """The value that a text stands for.

    Numbers, True, False, null, lists and keys with values are written as in YAML; 1e-3 is
    a number too. Where the file has a text, it is taken as it stands.
    """
    if UNWRITABLE.search(text):
        raise UserError(f"--{path}: {shortened(text)} holds characters that are not text")
    if path in known.values and isinstance(known.kind(path), Text):
        return None if text in ("null", "~") else _quoted(_without_quotes(text))
    braced = text.lstrip().startswith(("{", "["))
    try:
        value = plain_value(text)
    except ValueError as error:
        if not braced:
            return _quoted(text)
        raise UserError(
            f"--{path}: {shortened(text)} is not valid YAML ({error}); expected such as "
            "[1, 2] or {key: value}, in quotes for the shell"
        ) from error
    if isinstance(value, (list, dict)) and not braced:
        value = text  # a text with a colon or a dash in it
    return _all_quoted(value)


def _without_quotes(text: str) -> str:
    """A text that is in quotes as YAML reads it; any other as it stands."""
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]:
        with suppress(ValueError):
            value = plain_value(text)
            return value if isinstance(value, str) else text
    return text


def _all_quoted(value):
    """A value of which each text stays text."""
    if isinstance(value, list):
        return [_all_quoted(item) for item in value]
    if isinstance(value, dict):
        return {key: _all_quoted(item) for key, item in value.items()}
    return _quoted(value) if isinstance(value, str) else value


def _quoted(text: str) -> str:
    """A text that HyperPyYAML does not take for a tuple."""
    return DoubleQuotedScalarString(text) if text.startswith("(") else text


def _put(overrides: dict, way: list[str], value) -> None:
    """Set a value some keys down."""
    for key in way[:-1]:
        if not isinstance(overrides.get(key), dict):
            overrides[key] = {}
        overrides = overrides[key]
    overrides[way[-1]] = value


def check_key(path: str, known: KnownKeys, others=()) -> None:
    """Stop at a key that the file does not have."""
    top, *below = path.split(".")
    if top not in known.values:
        raise UserError(
            f"--{path}: {known.file} has no such key; {_near(path, known, others)}"
        )
    if top.startswith("__"):
        raise UserError(
            f"--{path}: belongs to the file ({known.where(top)}); change it there"
        )
    if below and not isinstance(known.kind(top), Keys):
        raise UserError(
            f"--{path}: {top} has no keys in it; give --{top} VALUE ({known.where(top)})"
        )


def _near(path: str, known: KnownKeys, others) -> str:
    """The nearest key that there is, and where it stands."""
    top = path.split(".")[0]
    candidates = [k for k in known.values if not str(k).startswith("__")] + list(others)
    near = difflib.get_close_matches(top.replace("-", "_"), map(str, candidates), 1)
    if not near:
        deeper = [p for p in known.places if p.rpartition(".")[2] == path and "." in p]
        if deeper:
            return f"did you mean --{deeper[0]}? ({known.where(deeper[0])})"
        return "see --help for the keys it has"
    where = f" ({known.where(near[0])})" if near[0] in known.places else ""
    return f"did you mean --{near[0]}?{where}"


def check_overrides(overrides: dict, known: KnownKeys, others=()) -> None:
    """Stop at a key that the file does not have, or a value that makes no sense for one.

    Arguments
    ---------
    overrides : dict
        Values by key.
    known : KnownKeys
        The YAML file's keys.
    others : iterable of str
        Other options that there are, for hints.
    """
    for key, value in overrides.items():
        check_key(key, known, others)
        expected = known.kind(key).error_for(value)
        if expected:
            raise UserError(
                f"--{key}: is {shortened(value)}; expected {expected}"
                f"{_how_to_go_within(key, known)} ({known.where(key)}: "
                f"{_as_it_stands(known.values[key])})"
            )
        if isinstance(value, dict):
            _check_within(key, value, known.values[key], known)


def _how_to_go_within(key: str, known: KnownKeys) -> str:
    """How one value of an object is replaced."""
    inner = [p for p in known.places if p.startswith(f"{key}.")]
    if not isinstance(known.kind(key), Keys):
        return ""
    if not inner:
        return ", such as {key: value}"
    last = inner[0].rpartition(".")[2]
    return f", such as --{inner[0]} VALUE or --{key} '{{{last}: VALUE}}'"


def _check_within(path: str, value: dict, before, known: KnownKeys) -> None:
    """Check values within a key against those that the file has there, where it has them."""
    before = before[1] if isinstance(before, tuple) else before
    for key, item in value.items():
        here = f"{path}.{key}"
        if not isinstance(key, str):
            raise UserError(f"--{path}: {shortened(key)} is no key; expected a name")
        if not isinstance(before, dict) or key not in before:
            continue  # whether there is such an argument is seen when the object is made
        expected = known.kind_like("", before[key]).error_for(item)
        if expected:
            raise UserError(
                f"--{here}: is {shortened(item)}; expected {expected} ({known.where(here)})"
            )
        if isinstance(item, dict):
            _check_within(here, item, before[key], known)


def check_values(known: KnownKeys, overrides: dict) -> None:
    """Stop at a value in the file itself that makes no sense for its key.

    Arguments
    ---------
    known : KnownKeys
        The YAML file's keys.
    overrides : dict
        Keys that need not be looked at.
    """
    for key, value in known.values.items():
        if key in overrides or isinstance(value, tuple):
            continue
        expected = known.kind(key).error_for(value)
        if expected:
            raise UserError(
                f"{known.where(key)}: {key}: is {shortened(value)}; expected {expected}"
            )


def _as_it_stands(value) -> str:
    """A value of the file as it could be written there."""
    if isinstance(value, tuple):
        content = "" if isinstance(value[1], (dict, list)) else f" {value[1]}"
        return f"{value[0]}{content}"
    return "null" if value is None else str(value) if len(str(value)) < 60 else "..."
