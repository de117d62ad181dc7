"""HyperPyYAML as plain data: nothing that it names is imported or run."""

from __future__ import annotations

import re
from typing import NamedTuple

import ruamel.yaml
from ruamel.yaml.error import YAMLError

from unified_se_ss.errors import UserError

#: What reading may raise: not YAML, a number of thousands of digits, nesting without end.
INVALID = (YAMLError, ValueError, TypeError, RecursionError)


class _PlainLoader(ruamel.yaml.SafeLoader):
    """Reads YAML 1.2 as HyperPyYAML does; a value with one of its tags becomes a pair."""


def _tagged(loader, suffix, node):
    if isinstance(node, ruamel.yaml.MappingNode):
        content = loader.construct_mapping(node, deep=True)
    elif isinstance(node, ruamel.yaml.SequenceNode):
        content = loader.construct_sequence(node, deep=True)
    else:
        content = node.value
    return f"!{suffix}", content


_PlainLoader.add_multi_constructor("!", _tagged)


def plain_yaml(text: str, name) -> dict:
    """Read the keys and values of a HyperPyYAML file.

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
        Not YAML, a key that is there twice, or no keys with values.

    Example
    -------
    >>> plain_yaml("lr: 1e-1\\nnet: !new:torch.nn.ReLU\\n    inplace: True", "a.yaml")
    {'lr': 0.1, 'net': ('!new:torch.nn.ReLU', {'inplace': True})}
    """
    return _read(text, name)[1]


def plain_value(text: str):
    """Read a value of a command line: number, True, False, null, list, mapping or text.

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
        loader = ruamel.yaml.SafeLoader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node)
    except INVALID as error:
        raise ValueError(_problem(error)) from error


class YamlKey(NamedTuple):
    """A key of a YAML file: its line from 1, its value as plain data, its comment."""

    line: int
    value: object
    comment: str = ""


def yaml_keys(text: str, name) -> dict[str, YamlKey]:
    """Read all keys of a HyperPyYAML file, those within others too.

    Arguments
    ---------
    text : str
        The file's content.
    name : str or Path
        The file's name, for messages.

    Returns
    -------
    dict of YamlKey
        By the names of the keys on the way, joined by dots.

    Raises
    ------
    UserError
        As :func:`plain_yaml` does.

    Example
    -------
    >>> yaml_keys("lr: 1 # least\\nnet: !new:torch.nn.ReLU\\n    inplace: True", "a.yaml")
    {'lr': YamlKey(line=1, value=1, comment='least'), \
'net': YamlKey(line=2, value=('!new:torch.nn.ReLU', {'inplace': True}), comment=''), \
'net.inplace': YamlKey(line=3, value=True, comment='')}
    """
    node, values = _read(text, name)
    keys: dict[str, YamlKey] = {}
    try:
        _add_keys(node, values, "", text.splitlines(), keys)
    except RecursionError as error:
        raise _invalid(name, error) from error
    return keys


def _add_keys(node, values, above: str, lines: list[str], keys: dict[str, YamlKey]) -> None:
    if not isinstance(node, ruamel.yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line
        value = values.get(key) if isinstance(values, dict) else None
        comment = re.search(r"\s#\s*(.*)", lines[line] if line < len(lines) else "")
        keys[above + key] = YamlKey(line + 1, value, comment[1].strip() if comment else "")
        within = value[1] if isinstance(value, tuple) else value
        _add_keys(value_node, within, f"{above}{key}.", lines, keys)


def _read(text: str, name) -> tuple[ruamel.yaml.Node | None, dict]:
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        values = {} if node is None else loader.construct_document(node) or {}
    except INVALID as error:
        raise _invalid(name, error) from error
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected keys and values, not {type(values).__name__}")
    return node, values


def _invalid(name, error) -> UserError:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return UserError(f"{name}{where}: not valid YAML: {_problem(error)}")


def _problem(error) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return str(problem)[:200]
