"""What a recipe asks of its own keys, beyond what holds in all recipes."""

from __future__ import annotations

import difflib

from unified_se_ss.errors import UserError, shortened
from unified_se_ss.gradients import RULES, find_rule
from unified_se_ss.training.values import Number


def check_choices(hparams: dict, choices: dict) -> None:
    """Stop at a key whose value is not one of those there are.

    Arguments
    ---------
    hparams : dict
        As :func:`~unified_se_ss.training.load_hparams` returns it.
    choices : dict
        Allowed values by key.

    Raises
    ------
    UserError
        Names the key, its value, and what was expected.

    Example
    -------
    >>> check_choices({"rule": "project"}, {"rule": ["sum", "project"]})
    """
    for key, allowed in choices.items():
        value, allowed = hparams[key], list(allowed)
        if value not in allowed:
            near = difflib.get_close_matches(str(value), list(map(str, allowed)), 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(
                f"{key}: is {shortened(value)}; expected one of: "
                f"{', '.join('null' if a is None else str(a) for a in allowed)}{hint}"
            )


def check_ranges(hparams: dict, least: dict) -> None:
    """Stop at a number that is too small, or at what is no number.

    Arguments
    ---------
    hparams : dict
        As :func:`~unified_se_ss.training.load_hparams` returns it.
    least : dict
        The smallest value that makes sense, by key.

    Raises
    ------
    UserError
        Names the key, its value, and what was expected.

    Example
    -------
    >>> check_ranges({"num_workers": 2}, {"num_workers": 0})
    """
    for key, bound in least.items():
        expected = Number(least=bound).error_for(hparams[key])
        if expected:
            raise UserError(f"{key}: is {shortened(hparams[key])}; expected {expected}")


def check_segment(hparams: dict) -> None:
    """Stop at crops that are shorter than the encoder's window.

    Arguments
    ---------
    hparams : dict
        As :func:`~unified_se_ss.training.load_hparams` returns it; ``segment_seconds``,
        ``sample_rate`` and ``kernel_size`` are looked at.

    Raises
    ------
    UserError
        Says how long a crop must be.

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
    """Stop at a rule or an option of it that there is not.

    Arguments
    ---------
    hparams : dict
        As :func:`~unified_se_ss.training.load_hparams` returns it; ``rule`` and
        ``rule_options`` are looked at.

    Raises
    ------
    UserError
        Names the key, its value, and what was expected.

    Example
    -------
    >>> check_rule({"rule": "remedy", "rule_options": {"strict": True}})
    """
    try:
        find_rule(hparams["rule"], hparams.get("rule_options"))
    except (ValueError, TypeError) as error:
        near = difflib.get_close_matches(str(hparams["rule"]), RULES, 1)
        unknown = hparams["rule"] not in RULES and near
        hint = f"; did you mean '{near[0]}'?" if unknown else ""
        raise UserError(f"{error}{hint}") from error
