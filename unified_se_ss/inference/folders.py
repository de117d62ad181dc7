"""A model's folder, an exported one or a run's: read and compared, never executed."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from unified_se_ss.aliases import with_current_names
from unified_se_ss.errors import UserError, first_line, first_names
from unified_se_ss.files import load_whole, read_checkpoint
from unified_se_ss.inference import models
from unified_se_ss.plain_yaml import plain_yaml

FORMAT = 1
CONFIGURATION, WEIGHTS, TOKENS = "config.json", "model.safetensors", "tokens.model"
RUN = "hyperparams.yaml"
KEYS = {"format", "kind", "sample_rate", "network"}
SEARCH = "search"  # the key of a recogniser
SEARCH_DEFAULTS = {"beam_size": 60, "ctc_weight": 0.3}  # those of BeamSearch
LARGEST_BEAM = 1000
LARGEST_TOKENIZER = 1 << 24  # bytes
AVERAGED = (1, 1000)  # checkpoints
SAMPLE_RATES = (1000, 768000)  # Hz


@dataclass(frozen=True)
class Decoding:
    """The search from a recogniser's network to words; `ctc_weight` is of 0 to 1 in their score."""

    tokens: Path
    beam_size: int
    ctc_weight: float

    def __post_init__(self):
        if type(self.beam_size) is not int or not 1 <= self.beam_size <= LARGEST_BEAM:
            raise UserError(
                f"beam_size: is {self.beam_size!r:.60}; expected 1 to {LARGEST_BEAM}"
            )
        if type(self.ctc_weight) not in (int, float) or not 0 <= self.ctc_weight <= 1:
            raise UserError(f"ctc_weight: is {self.ctc_weight!r:.60}; expected 0 to 1")


@dataclass(frozen=True)
class Contents:
    """A model as its folder holds it, whose weights are not yet compared.

    `network` is a description for
    :func:`~unified_se_ss.inference.models.build_network`; `hparams` a run's keys as
    plain data, None of an exported model.
    """

    kind: str
    sample_rate: int
    network: dict
    state: dict[str, torch.Tensor]
    configuration_path: Path
    weights_path: Path
    hparams: dict | None = None
    decoding: Decoding | None = None

    def configuration(self) -> dict:
        """The content of ``config.json``."""
        found = {
            "format": FORMAT,
            "kind": self.kind,
            "sample_rate": self.sample_rate,
            "network": self.network,
        }
        if self.decoding:
            found[SEARCH] = {key: getattr(self.decoding, key) for key in SEARCH_DEFAULTS}
        return found


def read_folder(folder) -> Contents:
    """Read an exported model, or the best checkpoint of a run.

    Raises
    ------
    UserError
        Says what is missing or wrong, and where.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if (folder / CONFIGURATION).is_symlink() or (folder / CONFIGURATION).exists():
        return _read_export(folder)
    if (folder / RUN).is_file():
        return _read_run(folder, folder / RUN)
    raise UserError(
        f"{folder}: holds no model; expected a folder that `export` wrote "
        f"({CONFIGURATION}, {WEIGHTS}) or a run's folder ({RUN}, save/)"
    )


def _whole_number(
    found: dict, key: str, bounds: tuple[int, int], path, default=None
) -> int:
    value, (least, most) = found.get(key, default), bounds
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{path}: {key} is {value!r:.60}; expected {least} to {most}")
    return value


# ------------------------------------------------------------------ an exported folder


def _read_export(folder: Path) -> Contents:
    """Read what ``export`` wrote, or what a stranger says it did."""
    path = _inside(folder, CONFIGURATION)
    found = models.read_json(path)
    kind, network = found.get("kind"), found.get("network")
    family = models.KINDS.get(kind) if isinstance(kind, str) else None
    known = type(found.get("format")) is int and found["format"] == FORMAT
    if not known or family is None:
        raise UserError(
            f"{path}: format is {found.get('format')!r:.60}, kind is {kind!r:.60}; this "
            f"version reads format {FORMAT} and the kinds {', '.join(models.KINDS)}"
        )
    keys = KEYS | {SEARCH} if family.recognises else KEYS
    if set(found) != keys:
        different = ", ".join(repr(key)[:60] for key in sorted(set(found) ^ keys))
        raise UserError(
            f"{path}: keys missing or unknown: {different}; expected: "
            f"{', '.join(sorted(keys))}"
        )
    rate = _whole_number(found, "sample_rate", SAMPLE_RATES, path)
    outermost = network.get("class") if isinstance(network, dict) else network
    if outermost != family.network.__name__:
        raise UserError(
            f"{path}: network: is {outermost!r:.60}; a model of kind {kind} is a "
            f"{family.network.__name__}"
        )
    weights = _inside(folder, WEIGHTS)
    search = _decoding(folder, found[SEARCH], path) if family.recognises else None
    state = read_safetensors(weights)
    return Contents(kind, rate, network, state, path, weights, decoding=search)


def _decoding(folder: Path, settings, path: Path) -> Decoding:
    """The search of a recogniser, from the settings that a file gives."""
    if not isinstance(settings, dict) or set(settings) != set(SEARCH_DEFAULTS):
        raise UserError(
            f"{path}: {SEARCH}: is {settings!r:.60}; expected {' and '.join(SEARCH_DEFAULTS)}"
        )
    try:
        return Decoding(_inside(folder, TOKENS), **settings)
    except UserError as error:
        raise UserError(f"{path}: {SEARCH}: {error}") from error


def _inside(folder: Path, name: str) -> Path:
    """A plain file of a folder; a link that leads out of it is refused."""
    path = folder / name
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: there is no such file in the model's folder") from error
    if not (target.is_file() and target.is_relative_to(folder.resolve())):
        raise UserError(
            f"{path}: is no file, or a link out of the folder; put the file there"
        )
    return path


# ------------------------------------------------------------------ a run's folder


def _read_run(folder: Path, path: Path) -> Contents:
    """Read the configuration of a training run, and its best checkpoint.

    Where its test took the mean of several, of these.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    hparams = plain_yaml(with_current_names(text, path), path)
    if "pretrainer" in hparams:
        raise UserError(
            f"{folder}: is a model in SpeechBrain's form; load it with SpeechBrain's "
            "SepformerSeparation.from_hparams, or export the run once more with "
            "--format native"
        )
    rate = _whole_number(hparams, "sample_rate", SAMPLE_RATES, path)
    kind, network, parts = _network_of_run(hparams, path)
    family = models.KINDS[kind]
    averaged = _whole_number(hparams, "average_checkpoints", AVERAGED, path, default=1)
    best = best_checkpoints(folder, family.best)[:averaged]
    state = {}
    for part in parts:
        mean = _mean([checkpoint / f"{part}.ckpt" for checkpoint in best])
        prefix = "" if part == "network" else f"{part}."
        state |= {prefix + name: value for name, value in mean.items()}
    decoding = None
    if family.recognises:
        decoding = _decoding(folder, _search_settings(hparams, path), path)
    return Contents(kind, rate, network, state, path, best[0], hparams, decoding)


def _network_of_run(hparams: dict, path: Path) -> tuple[str, dict, list[str]]:
    """Kind and description of a run's network, and the modules that it is made of."""
    modules = hparams.get("modules")
    modules = modules if isinstance(modules, dict) else {}
    for kind, family in models.KINDS.items():
        if family.parts[0] == "network" or family.parts[0] not in modules:
            continue
        names = family.parts[:1] if hparams.get("system") == "noisy" else family.parts
        if missing := [name for name in names if name not in modules]:
            raise UserError(f"{path}: no {missing[0]} under modules")
        parts = {name: models.describe_network(modules[name], path) for name in names}
        return kind, {"class": family.network.__name__, "arguments": parts}, list(names)
    if "network" not in modules:
        raise UserError(f"{path}: no network under modules; not a run of this project")
    network = models.describe_network(modules["network"], path)
    outermost = network.get("class") if isinstance(network, dict) else None
    for kind, family in models.KINDS.items():
        if family.network.__name__ == outermost:
            return kind, network, ["network"]
    raise UserError(
        f"{path}: modules: the network is {outermost!r:.60}; expected one of: "
        f"{', '.join(family.network.__name__ for family in models.KINDS.values())}"
    )


def _search_settings(hparams: dict, path: Path) -> dict:
    tagged = hparams.get("make_search")
    content = tagged[1] if isinstance(tagged, tuple) else None
    if not isinstance(content, dict) or content.get("language_model") is not None:
        raise UserError(
            f"{path}: make_search: expected what makes a search; its language model cannot be "
            "shared, recognise with language_model: null, or with SpeechBrain"
        )
    return {key: content.get(key, value) for key, value in SEARCH_DEFAULTS.items()}


def best_checkpoints(folder: Path, best: str) -> list[Path]:
    """The folders of a run's checkpoints, those with the largest value of `best` first.

    Of equals, the later. A UserError if there is none.
    """
    found = {}
    for path in sorted(folder.glob("*/CKPT+*/CKPT.yaml")):
        meta = plain_yaml(path.read_text(encoding="utf-8", errors="replace"), path)
        value, when = meta.get(best), meta.get("unixtime", 0)
        if isinstance(value, (int, float)) and not math.isnan(value):
            found[path.parent] = (value, when if isinstance(when, (int, float)) else 0)
    if not found:
        raise UserError(
            f"{folder}: no checkpoint of a whole epoch (with {best}) in its save folder; "
            "train for one epoch at least"
        )
    return sorted(found, key=found.get, reverse=True)


def _mean(paths: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of the weights in several checkpoints, as SpeechBrain takes it.

    What is no floating-point number is rounded as a module that loads the mean rounds it.
    """
    sums: dict = {}
    for path in paths:
        state = read_checkpoint(path)
        shapes = {name: value.shape for name, value in state.items()}
        if sums and shapes != {name: value.shape for name, value in sums.items()}:
            raise UserError(
                f"{path}: its weights are not those of the run's other checkpoints"
            )
        sums = {name: sums[name] + x for name, x in state.items()} if sums else state
    count = float(len(paths))
    return {name: (total / count).to(total.dtype) for name, total in sums.items()}


# ------------------------------------------------------------------ files


def read_safetensors(path) -> dict[str, torch.Tensor]:
    """Read an exported model's weights; a pickle is refused unopened, by a UserError."""
    from safetensors.torch import load_file

    def load(path):
        with open(path, "rb") as file:
            start = file.read(9)
        # A pickle, or torch.save's archive. Safetensors begin with the length of their
        # header, in eight bytes of any value, and the header with a brace.
        if start[8:] != b"{" and (start[:1] == b"\x80" or start[:2] == b"PK"):
            raise UserError(
                f"{path}: is a pickle, not safetensors; refused, because opening a pickle "
                "can run code. Export the model again from its run"
            )
        return load_file(path)

    return load_whole(
        path, load, "a whole safetensors file ({}); copy it or export it again"
    )


def read_tokens(path, n_tokens: int):
    """A recogniser's tokenizer, from a sentencepiece file that anybody may have made.

    Raises
    ------
    UserError
        It is too large, no sentencepiece model, holds what is no text, or more tokens
        than the network knows, `n_tokens`.
    """
    from unified_se_ss.recognition import Tokens  # needs SpeechBrain and sentencepiece

    size = load_whole(path, os.path.getsize, "")
    if size > LARGEST_TOKENIZER:
        raise UserError(
            f"{path}: has {size} bytes, more than {LARGEST_TOKENIZER}; no tokenizer of a "
            "recogniser here"
        )
    tokens = Tokens(path)
    if len(tokens) > n_tokens:
        raise UserError(
            f"{path}: holds {len(tokens)} tokens, but the network knows {n_tokens}; take "
            "the file that belongs to these weights"
        )
    return tokens


def check_state(expected: dict, found: dict, path) -> None:
    """Stop unless the weights found are those expected, in name, shape and type.

    Arguments
    ---------
    expected : dict
        State of the network; its tensors may be on the device ``meta``.
    found : dict
        Those of a file.

    Example
    -------
    >>> check_state({"a": torch.zeros(2)}, {"b": torch.zeros(3)}, "w.safetensors")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: w.safetensors: these are not the weights of this network.
      missing (1): a
      unexpected (1): b
    Use the config.json that belongs to these weights, or export the model again.
    """
    both = [name for name in expected if name in found]
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
            for name in both
            if found[name].shape != expected[name].shape
        ],
        "of another type": [
            f"{name} {found[name].dtype} instead of {expected[name].dtype}"
            for name in both
            if found[name].dtype != expected[name].dtype
        ],
        "not finite": [name for name in both if not found[name].isfinite().all()],
    }
    lines = [f"  {what} ({len(n)}): {first_names(n)}" for what, n in problems.items() if n]
    if lines:
        listed = "\n".join(lines)
        raise UserError(
            f"{path}: these are not the weights of this network.\n{listed}\nUse the "
            f"{CONFIGURATION} that belongs to these weights, or export the model again."
        )


# ------------------------------------------------------------------ loading


def load_model(folder, device=None, precision=None) -> models.Model:
    """Load a model from an exported folder, or the best checkpoint of a run's folder.

    Nothing that the folder holds is executed.

    Arguments
    ---------
    folder : str or Path
        What ``export`` wrote, or what ``train.py`` did (``results/<name>/<seed>``).
    device, precision : optional
        As for :class:`Model`.

    Raises
    ------
    UserError
        The folder holds no model, or its configuration or weights are not what they
        should be; says which file and why.

    Example
    -------
    >>> load_model("results/none/of/them")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: results/none/of/them: there is no such folder
    """
    # What is wrong with the device is said before files are read.
    device = models.choose_device(device)
    precision = models.choose_precision(precision, device)
    contents = read_folder(folder)
    return as_model(contents, device, precision)


def as_model(contents: Contents, device=None, precision=None) -> models.Model:
    """The model that a folder holds.

    Names and shapes are compared first, on a network without memory, and a signal goes
    through that; only then is the network made.
    """
    family, path = models.KINDS[contents.kind], contents.configuration_path
    bare = models.outline(contents.network, path)
    check_state(bare.state_dict(), contents.state, contents.weights_path)
    if not family.recognises:
        _check_shapes(partial(_shape_check, family), bare, path)
    with torch.random.fork_rng(devices=[]):  # first weights, soon replaced
        network = models.build_network(contents.network, path)
    network.load_state_dict(contents.state)
    if family.recognises:  # SpeechBrain's modules need memory
        _check_shapes(models.RecognitionSystem.shape_check, network.eval(), path)
    return models.Model(
        network,
        contents.kind,
        contents.sample_rate,
        device,
        precision,
        contents.configuration(),
        contents.decoding,
    )


def _shape_check(family, bare: nn.Module) -> None:
    found = family.properties(bare)
    channels = found.get("channels", 1)
    samples = 2 * found.get("minimum_samples", 1)
    shape = (1, samples) if channels == 1 else (1, channels, samples)
    family.forward(bare, torch.empty(shape, device="meta"), None)


@torch.no_grad()
def _check_shapes(check, network: nn.Module, path: Path) -> None:
    """Send a signal through a network; whatever goes wrong, modules do not fit together."""
    try:
        check(network)
    except Exception as error:
        raise UserError(
            f"{path}: the parts of the network do not fit together ({first_line(error)})"
        ) from error
