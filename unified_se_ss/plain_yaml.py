"""HyperPyYAML as plain data: nothing that it names is imported or run."""

from __future__ import annotations

import re
from typing import NamedTuple

import yaml

from unified_se_ss.errors import UserError


class _ValueLoader(yaml.SafeLoader):
    """Reads plain values as HyperPyYAML does: 1e-3 is a number, yes and no are texts."""

    yaml_implicit_resolvers: dict = {}


def _whole(loader, node):
    """A whole number, also in other bases: 0x1f, 0o17."""
    return int(
        node.value.replace("_", ""), 0 if "x" in node.value or "o" in node.value else 10
    )


# YAML 1.2's plain scalars; PyYAML by itself reads those of 1.1.
for tag, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7_]+|0x[0-9a-fA-F_]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9][0-9_]*)(\.[0-9_]*)?[eE][-+]?[0-9]+|[-+]?[0-9][0-9_]*\.[0-9_]*"
        r"|[-+]?\.[0-9_]+([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", "<<", ["<"]),
):
    _ValueLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})\\Z"), first
    )
_ValueLoader.add_constructor("tag:yaml.org,2002:int", _whole)


class _PlainLoader(_ValueLoader):
    """Reads HyperPyYAML without running anything: a tag is kept as data."""


def _tagged(loader, suffix, node):
    """A tagged node as (tag, content)."""
    if isinstance(node, yaml.MappingNode):
        content = loader.construct_mapping(node, deep=True)
    elif isinstance(node, yaml.SequenceNode):
        content = loader.construct_sequence(node, deep=True)
    else:
        content = node.value
    return f"!{suffix}", content


_PlainLoader.add_multi_constructor("!", _tagged)


def plain_yaml(text: str, name) -> dict:
    """The keys and values of a HyperPyYAML file, nothing constructed.

    Arguments
    ---------
    text : str
        The file's content. References are kept as they stand; in the
        ``hyperparams.yaml`` of a run they are resolved.
    name : str or Path
        The file's name, for messages.

    Returns
    -------
    dict
        A tagged value is the pair of its tag and its content.

    Raises
    ------
    UserError
        Not YAML, or not keys with values.

    Example
    -------
    >>> plain_yaml("lr: 0.1\\nnet: !new:torch.nn.ReLU\\n    inplace: True", "a.yaml")
    {'lr': 0.1, 'net': ('!new:torch.nn.ReLU', {'inplace': True})}
    """
    try:
        found = yaml.load(text, Loader=_PlainLoader) or {}
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise _invalid(name, error) from error
    if not isinstance(found, dict):
        raise UserError(f"{name}: expected keys and values, not {type(found).__name__}")
    return found


def plain_value(text: str):
    """The value that a text stands for: number, switch, null, list, keys with values, text.

    Raises
    ------
    ValueError
        Not YAML, or with tags.

    Example
    -------
    >>> plain_value("1e-3"), plain_value("[yes, null, '1']")
    (0.001, ['yes', None, '1'])
    """
    try:
        return yaml.load(text, Loader=_ValueLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = getattr(error, "problem", None) or "too long, or nested too deeply"
        raise ValueError(problem) from error


class KeyPlace(NamedTuple):
    """Where a key of a YAML file stands: line from 1, tag of its value, comment."""

    line: int
    tag: str
    comment: str


def key_places(text: str, name) -> dict[str, KeyPlace]:
    """Where every key of a HyperPyYAML file stands.

    Arguments
    ---------
    text : str
        The file's content.
    name : str or Path
        The file's name, for messages.

    Returns
    -------
    dict of KeyPlace
        By the names of the keys on the way, joined by dots.

    Raises
    ------
    UserError
        Not YAML, or a key that stands there twice, of which the first would be lost.

    Example
    -------
    >>> key_places("lr: 1 # least\\nnet: !new:torch.nn.ReLU\\n    inplace: True", "a.yaml")
    {'lr': KeyPlace(line=1, tag='', comment='least'), \
'net': KeyPlace(line=2, tag='!new:torch.nn.ReLU', comment=''), \
'net.inplace': KeyPlace(line=3, tag='', comment='')}
    """
    try:
        root = yaml.compose(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _invalid(name, error) from error
    places: dict[str, KeyPlace] = {}
    _note_places(root, "", text.splitlines(), places, name, ())
    return places


def _note_places(node, above, lines, places, name, way) -> None:
    """Add the keys of a mapping, and of the mappings in it, to `places`."""
    if not isinstance(node, yaml.MappingNode) or node in way:
        return
    here = set()
    for key, value in node.value:
        path, line = f"{above}{key.value}", key.start_mark.line
        if path in here:
            raise UserError(
                f"{name}, line {line + 1}: the key {path} stands there twice, first on "
                f"line {places[path].line}; remove one of the two"
            )
        here.add(path)
        comment = re.search(r"\s#\s*(.*)", lines[line] if line < len(lines) else "")
        tag = value.tag if value.tag.startswith("!") else ""
        places[path] = KeyPlace(line + 1, tag, comment[1].strip() if comment else "")
        _note_places(value, f"{path}.", lines, places, name, (*way, node))


def _invalid(name, error) -> UserError:
    """What is said of a file that does not parse, with line and column."""
    place = getattr(error, "problem_mark", None)
    where = f", line {place.line + 1}, column {place.column + 1}" if place else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return UserError(f"{name}{where}: not valid YAML: {problem}")
