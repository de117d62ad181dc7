"""Where rules are known by name."""

from __future__ import annotations

RULES = {}


def rule(function):
    """Make a function known as a rule, under its own name (a last underscore apart)."""
    RULES[function.__name__.rstrip("_")] = function
    return function


def find_rule(name: str):
    """Look a rule up by its name.

    Arguments
    ---------
    name : str
        A key of ``RULES``.

    Returns
    -------
    callable
        ``rule(a, b, c) -> (w_a, w_m)``.

    Raises
    ------
    ValueError
        There is no such rule; the message names those there are.

    Example
    -------
    >>> from unified_se_ss.gradients import find_rule
    >>> find_rule("project").__name__
    'project'
    """
    if name not in RULES:
        raise ValueError(f"rule is '{name}'; expected one of: {', '.join(RULES)}")
    return RULES[name]
