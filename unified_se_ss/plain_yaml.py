"""HyperPyYAML as plain data: nothing that it names is imported or run."""

from __future__ import annotations

import yaml

from unified_se_ss.errors import UserError


class _PlainLoader(yaml.SafeLoader):
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}, column {place.column + 1}" if place else ""
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{name}{where}: not valid YAML: {problem}") from error
    if not isinstance(found, dict):
        raise UserError(f"{name}: expected keys and values, not {type(found).__name__}")
    return found
