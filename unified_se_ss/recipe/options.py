"""The command line and the YAML file: read, checked, loaded."""

from __future__ import annotations

import difflib
import io
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import speechbrain as sb
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.run_opts import RunOptions

from unified_se_ss.errors import UserError
from unified_se_ss.gradients import RULES, find_rule
from unified_se_ss.plain_yaml import plain_yaml

# Stands for = in values on their way through SpeechBrain's parser.
EQUALS = "\ue000"


@dataclass
class Options:
    """What the command line asked for.

    Arguments
    ---------
    hparams_file : Path
        The YAML file.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's run options.
    overrides : dict
        Keys of the YAML file with the values that replace them.
    describe : bool
        Whether to print the modules and leave.
    """

    hparams_file: Path
    run_opts: RunOptions
    overrides: dict
    describe: bool


def parse_options(arguments: list[str], manual: str) -> Options:
    """Read ``HPARAMS.yaml [--key value ...] [run options]``.

    Arguments
    ---------
    arguments : list of str
        Without the name of the program.
    manual : str
        What ``--help`` prints before SpeechBrain's run options.

    Returns
    -------
    Options

    Raises
    ------
    UserError
        No such YAML file, or a key that it does not have.
    """
    files = [a for a in arguments if re.search(r"\.ya?ml$", a) and not a.startswith("--")]
    if not arguments or {"-h", "--help"} & set(arguments):
        _print_help(manual, files)
    if not files:
        raise UserError(
            "no YAML file was named; expected: train.py HPARAMS.yaml [--key value ...]; "
            f"there are: {', '.join(sorted(map(str, Path('hparams').glob('*.yaml'))))}"
        )
    hparams_file = Path(files[0])
    if not hparams_file.is_file():
        raise UserError(_no_such_file(hparams_file))
    describe = "--describe" in arguments
    others = [a for a in arguments if a not in (files[0], "--describe")]
    if "RANK" in os.environ and not torch.cuda.is_available():
        others += ["--distributed_backend", "gloo"]  # SpeechBrain's default needs GPUs
    _, run_opts, overrides = sb.parse_arguments([files[0], *_keep_equals(others)])
    overrides = _parse_overrides(overrides.replace(EQUALS, "="))
    check_overrides(hparams_file, overrides)
    return Options(hparams_file, run_opts, overrides, describe)


def _keep_equals(arguments: list[str]) -> list[str]:
    """Hide what = means nothing in, since SpeechBrain splits values at every one of them."""
    kept = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            kept.append(argument.replace("=", EQUALS))
        elif equals:
            kept.append(f"{key}={value.replace('=', EQUALS)}")
        else:
            kept.append(argument)
    return kept


def _print_help(manual: str, files: list[str]) -> None:
    """Print the manual, the keys of the YAML file if one was named, and the run options."""
    print(manual.strip(), end="\n\n")
    for name in files[:1]:
        if Path(name).is_file():
            print(f"Keys of {name}, each of which --KEY VALUE replaces:\n")
            for line in Path(name).read_text(encoding="utf-8").splitlines():
                if re.match(r"[A-Za-z]\w*:", line):
                    print(f"  --{line}")
            print()
    print("SpeechBrain's run options:\n")
    sb.parse_arguments(["--help"])


def _no_such_file(hparams_file: Path) -> str:
    """Say that a YAML file is missing, and which there are."""
    there = sorted(str(path) for path in hparams_file.parent.glob("*.yaml"))
    near = difflib.get_close_matches(str(hparams_file), there, 1, 0.5)
    hint = (
        f"; did you mean {near[0]}?"
        if near
        else f"; there are: {', '.join(there) or 'none'}"
    )
    return f"{hparams_file}: there is no such file{hint}"


def _parse_overrides(text: str) -> dict:
    """SpeechBrain's override string as a dictionary."""
    try:
        overrides = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        overrides = None
    if not isinstance(overrides, dict):
        raise UserError(
            f"the command line was not understood near: {text.splitlines()[0]!r}; "
            "expected: --key value, with quotes around values that hold a colon"
        )
    return overrides


def check_overrides(hparams_file: Path, overrides: dict) -> None:
    """Stop at a key that the YAML file does not have, or a value of another kind."""
    known = plain_yaml(hparams_file.read_text(encoding="utf-8"), hparams_file)
    run_options = list(RunOptions().as_dict()) + ["describe", "help"]
    for key, value in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known) + run_options, 1)
            hint = (
                f"did you mean --{near[0]}?" if near else "see --help for the keys it has"
            )
            raise UserError(f"--{key}: {hparams_file} has no such key; {hint}")
        wanted = _kind(known[key])
        if wanted == "a number" and isinstance(value, str):
            with suppress(ValueError):  # YAML does not read 1e-3 as a number
                overrides[key] = float(value)
        if wanted and overrides[key] is not None and _kind(overrides[key]) != wanted:
            raise UserError(
                f"--{key}: is {value!r}; expected {wanted}, such as {known[key]!r}"
            )


def _kind(value) -> str | None:
    """What sort of plain value it is, in words; None for what is constructed or null."""
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, (int, float)):
        return "a number"
    return "a list" if isinstance(value, list) else None


def check_choices(hparams: dict, choices: dict) -> None:
    """Stop at a key whose value is not one of those there are.

    Arguments
    ---------
    hparams : dict
        As :func:`load_hparams` returns it.
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
        if hparams[key] not in allowed:
            near = difflib.get_close_matches(str(hparams[key]), list(allowed), 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(
                f"{key}: is '{hparams[key]}'; expected one of: "
                f"{', '.join(map(str, allowed))}{hint}"
            )


def check_ranges(hparams: dict, least: dict) -> None:
    """Stop at a number that is too small.

    Arguments
    ---------
    hparams : dict
        As :func:`load_hparams` returns it.
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
        if not hparams[key] >= bound:
            raise UserError(f"{key}: is {hparams[key]}; expected {bound} or more")


def check_rule(hparams: dict) -> None:
    """Stop at a rule or an option of it that there is not.

    Arguments
    ---------
    hparams : dict
        As :func:`load_hparams` returns it; ``rule`` and ``rule_options`` are looked at.

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
    except ValueError as error:
        near = difflib.get_close_matches(str(hparams["rule"]), RULES, 1)
        unknown = hparams["rule"] not in RULES and near
        hint = f"; did you mean '{near[0]}'?" if unknown else ""
        raise UserError(f"{error}{hint}") from error


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
        A key is left open, or what the file describes cannot be made.
    """
    text = options.hparams_file.read_text(encoding="utf-8")
    placeholders = re.findall(r"^(\w+): *!PLACEHOLDER *(?:#(.*))?$", text, re.MULTILINE)
    for key, comment in placeholders:
        if key in options.overrides:
            continue
        if not options.describe:
            raise UserError(
                f"{key}: not set in {options.hparams_file}; give --{key} VALUE"
                + (f" ({comment.strip()})" if comment else "")
            )
        options.overrides[key] = "unset"
    try:
        if options.describe:  # leaves no folder behind
            with tempfile.TemporaryDirectory() as folder:
                overrides = {**options.overrides, "output_folder": folder}
                return load_hyperpyyaml(io.StringIO(text), overrides)
        return load_hyperpyyaml(io.StringIO(text), options.overrides)
    except (
        ValueError,
        TypeError,
        KeyError,
        ImportError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise UserError(f"{options.hparams_file}: {error}") from error
