"""The command line, ``HPARAMS.yaml [--key value ...] [run options]``, against the YAML file.

Nothing is made yet: a wrong key or value ends with its name, its line in the file, and what was
expected.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import speechbrain as sb
import torch
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from speechbrain.utils.run_opts import HELP_TEXTS, RunOptions

from unified_se_ss.aliases import with_current_names
from unified_se_ss.errors import UserError, did_you_mean, shortened
from unified_se_ss.plain_yaml import YamlKey, plain_value, yaml_keys

#: SpeechBrain's run options that a command line may hold, and their types.
RUN_OPTIONS = {
    name: kind
    for name, kind in typing.get_type_hints(RunOptions).items()
    if name in HELP_TEXTS or name.endswith("_module_keys")
}
SWITCHES = ("describe", "check")
EXPECTED = "expected: train.py HPARAMS.yaml [--key value ...]"
#: Of ``precision`` and ``batch_seconds``: measured before the first step.
AUTO = "auto"


@dataclass
class Options:
    """A command line, checked.

    Arguments
    ---------
    hparams_file : Path
        The YAML file.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's run options.
    overrides : dict
        Values of the YAML file's keys, as HyperPyYAML takes them.
    describe : bool
        Print the modules and leave.
    check : bool
        Look at everything that the run needs and leave.
    auto_precision : bool
        The command line says ``--precision auto``.
    """

    hparams_file: Path
    run_opts: RunOptions
    overrides: dict
    describe: bool = False
    check: bool = False
    auto_precision: bool = False


def parse_options(arguments: list[str], manual: str) -> Options:
    """Read ``HPARAMS.yaml [--key value ...] [run options]``.

    Words up to the next ``--key`` belong to one value, so that
    ``--speed_percents [95, 100]`` needs no quotes. Of a key that is given twice, the last
    value holds.

    Arguments
    ---------
    arguments : list of str
        Without the name of the program.
    manual : str
        What ``--help`` prints before the keys and SpeechBrain's run options.

    Raises
    ------
    UserError
        No such YAML file, a key that it does not have, or a value that makes no sense.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        _print_help(manual, [a for a in arguments if _is_yaml(a)])
    loose, given = split_arguments(arguments)
    file = HparamsFile(_only_file(loose))
    switches = {name: given.pop(name, None) is not None for name in SWITCHES}
    auto_precision = given.get("precision") == [AUTO]
    if auto_precision:
        del given["precision"]
    run_opts = {name: given.pop(name) for name in RUN_OPTIONS if name in given}
    overrides = read_overrides({key: " ".join(w) or None for key, w in given.items()}, file)
    return Options(
        hparams_file=file.path,
        run_opts=_run_options(run_opts, file.path),
        overrides=overrides,
        auto_precision=auto_precision,
        **switches,
    )


def split_arguments(arguments: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Part the words that belong to no key from those behind each key.

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
            if key in SWITCHES or RUN_OPTIONS.get(key) is bool:
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
    return argument.endswith((".yaml", ".yml")) and not argument.startswith("--")


def _only_file(loose: list[str]) -> Path:
    files = [Path(word) for word in loose if _is_yaml(word)]
    if len(loose) != 1 or not files:
        what = f"not {' '.join(loose)[:200]}" if loose else "no YAML file was named"
        there = sorted(map(str, Path("hparams").glob("*.yaml")))
        raise UserError(f"{EXPECTED}; {what}; there are: {', '.join(there) or 'none here'}")
    if not files[0].is_file():
        there = sorted(map(str, files[0].parent.glob("*.yaml")))
        hint = did_you_mean(files[0], there) or f"; there are: {', '.join(there)}"
        raise UserError(f"{files[0]}: there is no such file{hint}")
    return files[0]


def _print_help(manual: str, files: list[str]) -> None:
    print(manual.strip(), end="\n\n")
    for name in files[:1]:
        if Path(name).is_file():
            print(f"Keys of {name}, each of which --KEY VALUE replaces:\n")
            for line in re.findall(r"^[A-Za-z]\w*:.*", HparamsFile(Path(name)).text, re.M):
                print(f"  --{line}")
            print("\nWithin an object: --optimizer.lr VALUE\n")
    print("SpeechBrain's run options, and --precision auto (bf16 where it is faster):\n")
    sb.parse_arguments(["--help"])


# ------------------------------------------------------------------ kinds of values


class Kind(NamedTuple):
    """The values that a key may hold, in words and as a test.

    Example
    -------
    >>> or_null(number(least=0)).expected, number(least=0).accepts(-1)
    ('a number, 0 or more, or null', False)
    """

    expected: str
    accepts: Callable[[object], bool]


def number(least=-math.inf, most=math.inf, types=(int, float)) -> Kind:
    """Numbers within bounds; whole ones with ``types=(int,)``."""
    words = ["a whole number" if types == (int,) else "a number"]
    words += [f"{least:g} or more"] if least > -math.inf else []
    words += [f"{most:.10g} or less"] if most < math.inf else []

    def accepts(value):
        right = isinstance(value, types) and not isinstance(value, bool)
        return right and math.isfinite(value) and least <= value <= most

    return Kind(", ".join(words), accepts)


def list_of(element: Kind) -> Kind:
    """Lists of one element or more."""

    def accepts(value):
        return isinstance(value, list) and value and all(map(element.accepts, value))

    return Kind(f"a list, each element {element.expected}", accepts)


def or_null(kind: Kind) -> Kind:
    """Null, or what another kind accepts."""
    return Kind(f"{kind.expected}, or null", lambda v: v is None or kind.accepts(v))


def _is_device(text) -> bool:
    """Tell whether torch knows this device and, of GPUs, sees it."""
    try:
        device = torch.device(text)
    except RuntimeError:
        return False
    here = device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
    return here and device.type in ("cpu", "cuda", "mps", "xpu")


count = partial(number, types=(int,))
SWITCH = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str) and value.strip() != "")
MAPPING = Kind("keys with values", lambda value: isinstance(value, dict))
ANYTHING = Kind("anything", lambda value: True)
NOT_NULL = Kind("a value", lambda value: value is not None)
TEXT_OR_NULL = or_null(TEXT)
KIND_OF = {bool: SWITCH, str: TEXT, dict: MAPPING}

#: Kinds of keys and run options of which the value in the file says too little.
KINDS = {
    "seed": count(0, 2**32 - 1),
    "num_workers": count(0),
    "save_waves": count(0),
    "least_angle": number(0, 180),
    "speed_percents": or_null(list_of(count(50, 200))),
    "batch_seconds": Kind(
        f"a number, more than 0, or {AUTO}, or null",
        lambda value: value in (None, AUTO) or number(1e-9).accepts(value),
    ),
    "device": Kind("cpu, cuda, or such as cuda:0, that torch sees", _is_device),
}
for kind, keys in (
    (count(1), "sample_rate number_of_epochs valid_batch_size log_interval"),
    (count(1), "grad_accumulation_factor debug_batches optimizer_step_limit profile_steps"),
    (count(1), "n_speakers n_train n_valid n_test kernel_size stride"),
    (number(0), "lr weight_se weight_si_snr ild_weight ipd_weight"),
    (or_null(count(1)), "batch_size dynamic_items scoring_processes"),
    (or_null(number(0)), "segment_seconds max_duration budget_minutes"),
    (or_null(number()), "loss_threshold"),
    (number(0, 1), "array_share interferer_probability label_smoothing max_skipped_share"),
    (number(0, 1), "weight_ctc search_ctc_weight"),
    (TEXT_OR_NULL, "dynamic_speech_folder dynamic_noise_folder mono_folder rooms_folder"),
    (TEXT_OR_NULL, "demo_speech demo_noise pretrained_ss pretrained_front upload_uri"),
):
    KINDS.update(dict.fromkeys(keys.split(), kind))


def kind_like(value) -> Kind:
    """Infer what a key may hold from its value in the file.

    Example
    -------
    >>> kind_like(0.1).expected, kind_like(("!new:torch.nn.ReLU", {"inplace": True})).expected
    ('a number, 0 or more', 'keys with values')
    """
    if isinstance(value, tuple):  # with a tag
        value = value[1] if isinstance(value[1], dict) or "/" in value[1] else None
    if type(value) in (int, float):
        types = (int,) if type(value) is int else (int, float)
        return number(0 if value > 0 else -math.inf, types=types)
    if isinstance(value, list) and value:
        types = {type(item) for item in value}
        numeric = types <= {int, float}
        alike = KIND_OF.get(type(value[0]), ANYTHING) if len(types) == 1 else ANYTHING
        return list_of(number() if numeric else alike)
    return KIND_OF.get(type(value), ANYTHING)


# ------------------------------------------------------------------ the YAML file's keys


class HparamsFile:
    """A YAML file's text and keys, nothing constructed.

    Arguments
    ---------
    path : Path
        The YAML file.

    Raises
    ------
    UserError
        It cannot be read, is not YAML, or has a key twice.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as text in UTF-8 ({error})") from error
        self.text = with_current_names(text, path)
        self.keys: dict[str, YamlKey] = yaml_keys(self.text, path)

    def where(self, key: str) -> str:
        """Name file and line of a key, or of the nearest key above it that the file has."""
        while key and key not in self.keys:
            key = key.rpartition(".")[0]
        return f"{self.path}, line {self.keys[key].line}" if key else str(self.path)

    def kind(self, key: str) -> Kind:
        """Look up what a key may hold; of a reference, what the key that it names may."""
        value = self.keys[key].value if key in self.keys else None
        if isinstance(value, tuple) and value[0] == "!ref":
            named = re.fullmatch(r"<(\w+)>", str(value[1]).strip())
            if named and named[1] in self.keys:
                key, value = named[1], self.keys[named[1]].value
        if value == ("!PLACEHOLDER", ""):
            return TEXT if key.endswith("folder") else NOT_NULL
        return KINDS.get(key) or kind_like(value)

    def check(self, key: str, value) -> None:
        """Stop at a value that makes no sense for a key, or for one within it."""
        kind = self.kind(key)
        if not kind.accepts(value):
            within = (other for other in self.keys if other.startswith(f"{key}."))
            hint = "".join(f", such as --{inner} VALUE" for inner in [*within][:1])
            raise UserError(
                f"--{key}: is {shortened(value)}; expected {kind.expected}{hint} "
                f"({self.where(key)})"
            )
        for inner, item in value.items() if isinstance(value, dict) else ():
            if not isinstance(inner, str):
                raise UserError(f"--{key}: {shortened(inner)} is no key; expected a name")
            self.check(f"{key}.{inner}", item)


def read_overrides(given: dict[str, str | None], file: HparamsFile) -> dict:
    """Read the values of keys from what stands behind them on the command line.

    Numbers, True, False, null, lists and mappings are written as in YAML 1.2: 1e-3 is a
    number. Where the file has a text, the value is taken as it stands.

    Arguments
    ---------
    given : dict
        Text by key, which has dots within an object (``optimizer.lr``); None where no
        value was given.
    file : HparamsFile
        Whose keys they are.

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
    for key, text in given.items():
        _check_key(key, file)
        if text is None:
            raise UserError(
                f"--{key}: no value was given; expected --{key} VALUE "
                f"(null for none; {file.where(key)})"
            )
        value = _read_value(text, file.kind(key))
        file.check(key, value)
        *above, last = key.split(".")
        within = overrides
        for part in above:
            if not isinstance(within.get(part), dict):
                within[part] = {}
            within = within[part]
        within[last] = value
    return overrides


def _check_key(key: str, file: HparamsFile) -> None:
    top, _, below = key.partition(".")
    if top.startswith("__") and top in file.keys:
        raise UserError(
            f"--{key}: belongs to the file ({file.where(top)}); change it there"
        )
    if top in file.keys:
        if below and file.kind(top) not in (MAPPING, ANYTHING):
            raise UserError(
                f"--{key}: {top} has no keys in it; give --{top} VALUE ({file.where(top)})"
            )
        return
    names = [k for k in file.keys if "." not in k and not k.startswith("__")]
    within = [k for k in file.keys if k.endswith(f".{key}")]
    names = [*names, *RUN_OPTIONS, *SWITCHES]
    near = difflib.get_close_matches(top.replace("-", "_"), names, 1) or within[:1]
    hint = f"did you mean --{near[0]}?" if near else "see --help for the keys it has"
    if near and near[0] in file.keys:
        hint += f" ({file.where(near[0])})"
    raise UserError(f"--{key}: {file.path} has no such key; {hint}")


def _read_value(text: str, kind: Kind):
    if kind in (TEXT, TEXT_OR_NULL):
        if text in ("null", "~"):
            return None
        if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]:
            with suppress(ValueError):
                text = str(plain_value(text))
        return _quoted(text)
    with suppress(ValueError):
        value = plain_value(text)
        braced = text.lstrip().startswith(("{", "["))
        if braced or not isinstance(value, (str, list, dict)):
            return value
        text = value if isinstance(value, str) else text  # with a colon or a dash in it
    return _quoted(text)


def _quoted(text: str) -> str:
    """Keep HyperPyYAML from taking a text in parentheses for a tuple."""
    return DoubleQuotedScalarString(text) if text.startswith("(") else text


# ------------------------------------------------------------------ run options


def _run_options(given: dict[str, list[str]], hparams_file: Path) -> RunOptions:
    values = {name: _run_option(name, words) for name, words in given.items()}
    if "RANK" in os.environ and not torch.cuda.is_available():
        values.setdefault("distributed_backend", "gloo")  # the default needs GPUs
    return RunOptions(**values, param_file=str(hparams_file), overridden_args=set(values))


def _run_option(name: str, words: list[str]):
    hint = RUN_OPTIONS[name]
    if hint is bool or "list" in str(hint):
        return words or True
    value, choices = " ".join(words), typing.get_args(hint)
    kind = KINDS.get(name, TEXT)
    if typing.get_origin(hint) is typing.Literal:
        choices += (AUTO,) if name == "precision" else ()
        kind = Kind(f"one of: {', '.join(choices)}", choices.__contains__)
    for type_ in (int, float):
        if type_ in (hint, *choices):
            kind = KINDS.get(name) or number(types=(int, type_))
            with suppress(ValueError):
                value = type_(value)
    if not kind.accepts(value):
        raise UserError(f"--{name}: is {shortened(value)}; expected {kind.expected}")
    return value
