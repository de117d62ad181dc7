"""The command line: ``HPARAMS.yaml [--key value ...] [run options]``."""

from __future__ import annotations

import difflib
import os
import re
import typing
from dataclasses import dataclass
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.run_opts import HELP_TEXTS, RunOptions

from unified_se_ss.errors import UserError, shortened
from unified_se_ss.training.overrides import KnownKeys, read_overrides
from unified_se_ss.training.values import AUTO, Number, Whole

# SpeechBrain's run options that a command line may hold, and their types.
RUN_OPTIONS = {
    name: kind
    for name, kind in typing.get_type_hints(RunOptions).items()
    if name in HELP_TEXTS or name.endswith("_module_keys")
}
# Of those that are numbers, what makes sense.
RUN_NUMBERS = {
    "debug_batches": Whole(1),
    "grad_accumulation_factor": Whole(1),
    "max_grad_norm": Number(more_than=0),
    "nonfinite_patience": Whole(0),
    "optimizer_step_limit": Whole(1),
    "profile_warmup": Whole(0),
    "profile_steps": Whole(1),
}
DEVICES = ("cpu", "cuda", "mps", "xpu")
OWN_SWITCHES = ("describe", "check")
EXPECTED = "expected: train.py HPARAMS.yaml [--key value ...]"


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
    check : bool
        Whether to look at everything that the run needs and leave.
    auto_precision : bool
        Whether the command line says ``--precision auto``.
    """

    hparams_file: Path
    run_opts: RunOptions
    overrides: dict
    describe: bool
    check: bool = False
    auto_precision: bool = False


def parse_options(arguments: list[str], manual: str) -> Options:
    """Read ``HPARAMS.yaml [--key value ...] [run options]``.

    A key that is given twice has the last value. Words up to the next ``--key`` belong to
    one value, so that ``--speed_percents [95, 100]`` needs no quotes.

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
        No such YAML file, a key that it does not have, or a value that makes no sense.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        _print_help(manual, [a for a in arguments if _is_yaml(a)])
    loose, given = split_arguments(arguments)
    hparams_file = _only_file(loose)
    known = KnownKeys(hparams_file)
    own = {name: given.pop(name, None) is not None for name in OWN_SWITCHES}
    own["auto_precision"] = given.get("precision") == [AUTO]
    if own["auto_precision"]:
        del given["precision"]
    run_opts = _run_options(
        {name: given.pop(name) for name in RUN_OPTIONS if name in given}, hparams_file
    )
    joined = {key: " ".join(words) if words else None for key, words in given.items()}
    others = [*RUN_OPTIONS, *OWN_SWITCHES, "help"]
    overrides = read_overrides(joined, known, others)
    return Options(hparams_file, run_opts, overrides, **own)


def split_arguments(arguments: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Words that belong to no key, and the words behind each key.

    Example
    -------
    >>> split_arguments(["a.yaml", "--lr", "1e-3", "--speed_percents", "[95,", "100]"])
    (['a.yaml'], {'lr': ['1e-3'], 'speed_percents': ['[95,', '100]']})
    """
    loose: list[str] = []
    given: dict[str, list[str]] = {}
    words = loose
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            words = given[key] = [value] if equals else []
            if _is_switch(key):
                if equals:
                    raise UserError(f"--{key}: is a switch; it takes no value")
                words = loose
        # A YAML file may stand behind the value of a key.
        elif words and _is_yaml(argument):
            loose.append(argument)
        else:
            words.append(argument)
    return loose, given


def _is_yaml(argument: str) -> bool:
    """Whether a word names a YAML file."""
    return bool(re.search(r"\.ya?ml$", argument)) and not argument.startswith("--")


def _is_switch(key: str) -> bool:
    """Whether an option takes no value."""
    return key in OWN_SWITCHES or RUN_OPTIONS.get(key) is bool


def _only_file(loose: list[str]) -> Path:
    """The one YAML file among the words that belong to no key."""
    files = [word for word in loose if _is_yaml(word)]
    others = [word for word in loose if not _is_yaml(word)]
    if not files:
        there = ", ".join(sorted(map(str, Path("hparams").glob("*.yaml"))))
        what = f"what is {shortened(others[0])}? " if others else ""
        raise UserError(
            f"{what}no YAML file was named; {EXPECTED}; there are: {there or 'none here'}"
        )
    if others:
        raise UserError(
            f"{shortened(others[0])}: was not understood; {EXPECTED}; a switch such as "
            "--debug takes no value"
        )
    if len(files) > 1:
        raise UserError(f"{files[1]}: a second YAML file, after {files[0]}; {EXPECTED}")
    hparams_file = Path(files[0])
    if not hparams_file.is_file():
        raise UserError(_no_such_file(hparams_file))
    return hparams_file


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


def _print_help(manual: str, files: list[str]) -> None:
    """Print the manual, the keys of the YAML file if one was named, and the run options."""
    print(manual.strip(), end="\n\n")
    for name in files[:1]:
        if Path(name).is_file():
            print(f"Keys of {name}, each of which --KEY VALUE replaces:\n")
            for line in KnownKeys(Path(name)).text.splitlines():
                if re.match(r"[A-Za-z]\w*:", line):
                    print(f"  --{line}")
            print(
                "\nWithin an object: --optimizer.lr VALUE, or --optimizer '{lr: VALUE}'\n"
            )
    print("SpeechBrain's run options, and --precision auto (bf16 where it is faster):\n")
    sb.parse_arguments(["--help"])


# ------------------------------------------------------------------ run options


def _run_options(given: dict[str, list[str]], hparams_file: Path) -> RunOptions:
    """SpeechBrain's run options, each of its type."""
    values = {name: _run_option(name, words) for name, words in given.items()}
    if "device" in values:
        _check_device(values["device"])
    asked_for = set(values)
    if "RANK" in os.environ and not torch.cuda.is_available():
        values.setdefault("distributed_backend", "gloo")  # the default needs GPUs
        asked_for.add("distributed_backend")
    return RunOptions(**values, param_file=str(hparams_file), overridden_args=asked_for)


def _run_option(name: str, words: list[str]):
    """The value of a run option."""
    kind = RUN_OPTIONS[name]
    if kind is bool:
        return True
    if not words:
        raise UserError(
            f"--{name}: no value was given; {HELP_TEXTS.get(name, '')}".rstrip()
        )
    if "list" in str(kind):
        return words
    text = " ".join(words)
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal and text not in choices:
        raise UserError(
            f"--{name}: is {shortened(text)}; expected one of: {', '.join(choices)}"
            + (f" or {AUTO}" if name == "precision" else "")
        )
    for number in (int, float):
        if number in (kind, *choices):
            return _number(name, text, number)
    return text


def _number(name: str, text: str, kind):
    """The number that a run option stands for."""
    try:
        number = kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"--{name}: is {shortened(text)}; expected {what}") from error
    expected = RUN_NUMBERS[name].error_for(number) if name in RUN_NUMBERS else None
    if expected:
        raise UserError(f"--{name}: is {shortened(number)}; expected {expected}")
    return number


def _check_device(text: str) -> None:
    """Stop at a device that there is not."""
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in DEVICES:
        raise UserError(
            f"--device: is {shortened(text)}; expected cpu, cuda, or such as cuda:0"
        )
    if device.type != "cuda":
        return
    there = torch.cuda.device_count()
    if not torch.cuda.is_available():
        raise UserError(f"--device: is {text}, but torch sees no CUDA device; use cpu")
    if (device.index or 0) >= there:
        raise UserError(f"--device: is {text}, but there are {there}, counted from 0")
