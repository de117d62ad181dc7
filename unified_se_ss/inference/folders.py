"""What lies in a model's folder, an exported one or a run's; read, never executed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from unified_se_ss.errors import UserError
from unified_se_ss.inference.configuration import describe_network, read_json
from unified_se_ss.inference.families import KINDS
from unified_se_ss.inference.weights import average, read_checkpoint, read_safetensors
from unified_se_ss.plain_yaml import plain_yaml

FORMAT = 1
CONFIGURATION, WEIGHTS = "config.json", "model.safetensors"
TOKENS = "tokens.model"
KEYS = {"format", "kind", "sample_rate", "network"}
SEARCH = "search"  # the key of a recogniser
BEAM_SIZE, CTC_WEIGHT = 60, 0.3  # where a run does not say; those of BeamSearch
LARGEST_BEAM = 1000
MOST_AVERAGED = 1000  # checkpoints
SAMPLE_RATES = (1000, 768000)  # Hz


@dataclass(frozen=True)
class Decoding:
    """How a recogniser gets from what its network says to words.

    Arguments
    ---------
    tokens : Path
        The tokenizer's file, not yet read.
    beam_size : int
        Hypotheses that are followed.
    ctc_weight : float
        Of CTC in their score, 0 to 1; attention has the rest.
    """

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

    def settings(self) -> dict:
        """What ``config.json`` holds of it."""
        return {"beam_size": self.beam_size, "ctc_weight": self.ctc_weight}


@dataclass(frozen=True)
class Contents:
    """What a folder says of its model.

    Arguments
    ---------
    kind : str
        A name in :data:`~unified_se_ss.inference.families.KINDS`.
    sample_rate : int
        Hz.
    network : dict
        Description, for
        :func:`~unified_se_ss.inference.configuration.build_network`.
    state : dict
        Weights by name.
    configuration_path : Path
        Where the description was found.
    weights_path : Path
        Where the weights were found.
    hparams : dict or None
        A run's keys as plain data; None for an exported model.
    decoding : Decoding or None
        Of a recogniser; None for other models.
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
        """What ``config.json`` holds."""
        found = {
            "format": FORMAT,
            "kind": self.kind,
            "sample_rate": self.sample_rate,
            "network": self.network,
        }
        return {**found, SEARCH: self.decoding.settings()} if self.decoding else found


def read_folder(folder) -> Contents:
    """Read an exported model or the best checkpoint of a run.

    Arguments
    ---------
    folder : str or Path
        A folder with ``config.json``, or one with ``hyperparams.yaml`` and checkpoints.

    Returns
    -------
    Contents
        Not yet compared: whether the weights are those of the network, see
        :func:`~unified_se_ss.inference.weights.check_state`.

    Raises
    ------
    UserError
        Says what is missing or wrong, and where.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "there is no such folder"
        hint = "; name the folder that holds it" if folder.exists() else ""
        raise UserError(f"{folder}: {problem}{hint}")
    if (folder / CONFIGURATION).is_symlink() or (folder / CONFIGURATION).exists():
        return read_export(folder)
    if (folder / "hyperparams.yaml").is_file():
        return read_run(folder)
    raise UserError(
        f"{folder}: holds no model; expected a folder that `export` wrote "
        f"({CONFIGURATION}, {WEIGHTS}) or a run's folder (hyperparams.yaml, save/)"
    )


# ------------------------------------------------------------------ an exported folder


def read_export(folder: Path) -> Contents:
    """Read what ``export`` wrote, or what a stranger says it did."""
    path = inside(folder, CONFIGURATION)
    found = read_json(path)
    recognises = found.get("kind") in [k for k, kind in KINDS.items() if kind.recognises]
    keys = KEYS | {SEARCH} if recognises else KEYS
    if set(found) != keys:
        different = ", ".join(repr(key)[:60] for key in sorted(set(found) ^ keys))
        raise UserError(
            f"{path}: keys missing or unknown: {different}; expected: "
            f"{', '.join(sorted(keys))}"
        )
    if type(found["format"]) is not int or found["format"] != FORMAT:
        raise UserError(
            f"{path}: format is {found['format']!r:.60}; this version reads format {FORMAT}"
        )
    check_rate(found["sample_rate"], path)
    kind, network = found["kind"], found["network"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"{path}: kind is {kind!r:.60}; expected one of: {', '.join(KINDS)}"
        )
    outermost = network.get("class") if isinstance(network, dict) else network
    if outermost != KINDS[kind].network:
        raise UserError(
            f"{path}: network: is {outermost!r:.60}; a model of kind {kind} is a "
            f"{KINDS[kind].network}"
        )
    weights = inside(folder, WEIGHTS)
    state = read_safetensors(weights)
    decoding = read_decoding(folder, found[SEARCH], path) if recognises else None
    return Contents(
        kind, found["sample_rate"], network, state, path, weights, decoding=decoding
    )


def read_decoding(folder: Path, settings, path: Path) -> Decoding:
    """How a recogniser searches, from the settings that a file gives."""
    keys = {"beam_size", "ctc_weight"}
    if not isinstance(settings, dict) or set(settings) != keys:
        raise UserError(
            f"{path}: {SEARCH}: is {settings!r:.60}; expected {' and '.join(sorted(keys))}"
        )
    try:
        return Decoding(inside(folder, TOKENS), **settings)
    except UserError as error:
        raise UserError(f"{path}: {SEARCH}: {error}") from error


def check_rate(rate, path) -> None:
    """Stop at a sample rate that is none."""
    least, most = SAMPLE_RATES
    if type(rate) is not int or not least <= rate <= most:
        raise UserError(
            f"{path}: sample_rate is {rate!r:.60}; expected {least} to {most} (Hz)"
        )


def inside(folder: Path, name: str) -> Path:
    """A plain file of a folder; a link that leads out of it is refused."""
    path = folder / name
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: there is no such file in the model's folder") from error
    if not target.is_relative_to(folder.resolve()):
        raise UserError(
            f"{path}: is a link out of the model's folder; put the file itself there"
        )
    if not target.is_file():
        raise UserError(f"{path}: is not a file")
    return path


# ------------------------------------------------------------------ a run's folder


def read_run(folder: Path) -> Contents:
    """Read the effective configuration and the best checkpoint of a training run."""
    path = folder / "hyperparams.yaml"
    hparams = plain_yaml(path.read_text(encoding="utf-8", errors="replace"), path)
    if "pretrainer" in hparams:
        raise UserError(
            f"{folder}: is a model in SpeechBrain's form; load it with SpeechBrain's "
            "SepformerSeparation.from_hparams, or export the run once more with "
            "--format native"
        )
    modules = hparams.get("modules")
    if isinstance(modules, dict) and "recogniser" in modules:
        return read_recogniser(folder, path, hparams)
    if not isinstance(modules, dict) or "network" not in modules:
        raise UserError(f"{path}: no network under modules; not a run of this project")
    network = describe_network(modules["network"], path)
    kind = kind_of(network, path)
    check_rate(hparams.get("sample_rate"), path)
    weights = best_checkpoint(folder, KINDS[kind].best) / "network.ckpt"
    state = read_checkpoint(weights)
    return Contents(kind, hparams["sample_rate"], network, state, path, weights, hparams)


def read_recogniser(folder: Path, path: Path, hparams: dict) -> Contents:
    """Read a run of Gradient Remedy: front and recogniser, the mean of the best of each."""
    check_rate(hparams.get("sample_rate"), path)
    names = ["recogniser"] if hparams.get("system") == "noisy" else ["recogniser", "front"]
    missing = [name for name in names if name not in hparams["modules"]]
    if missing:
        raise UserError(f"{path}: no {missing[0]} under modules")
    parts = {name: describe_network(hparams["modules"][name], path) for name in names}
    network = {"class": KINDS["recogniser"].network, "arguments": parts}
    count = hparams.get("average_checkpoints", 1)
    if type(count) is not int or not 1 <= count <= MOST_AVERAGED:
        raise UserError(
            f"{path}: average_checkpoints: is {count!r:.60}; expected 1 to {MOST_AVERAGED}"
        )
    best = best_checkpoints(folder, KINDS["recogniser"].best)[:count]
    state = {}
    for name in names:
        found = mean_of_checkpoints([place / f"{name}.ckpt" for place in best])
        state |= {f"{name}.{key}": value for key, value in found.items()}
    decoding = read_decoding(folder, search_settings(hparams, path), path)
    return Contents(
        "recogniser",
        hparams["sample_rate"],
        network,
        state,
        path,
        best[0],
        hparams,
        decoding,
    )


def search_settings(hparams: dict, path: Path) -> dict:
    """What a run's file says of the search that its test made."""
    tagged = hparams.get("make_search")
    content = tagged[1] if isinstance(tagged, tuple) else None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: make_search: expected what makes a search, with its sizes"
        )
    if content.get("language_model") is not None:
        raise UserError(
            f"{path}: make_search: its language model cannot be shared; recognise with "
            "language_model: null, or with SpeechBrain"
        )
    known = {"beam_size": BEAM_SIZE, "ctc_weight": CTC_WEIGHT}
    return {key: content.get(key, default) for key, default in known.items()}


def mean_of_checkpoints(paths: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of the weights in several checkpoints of one run."""
    try:
        return average(read_checkpoint(path) for path in paths)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{paths[0]}: its weights are not those of the run's other checkpoints "
            f"({str(error).splitlines()[0][:200]})"
        ) from error


def kind_of(network, path) -> str:
    """The kind of model whose outermost network this is."""
    outermost = network.get("class") if isinstance(network, dict) else None
    for kind, facts in KINDS.items():
        if facts.network == outermost:
            return kind
    raise UserError(
        f"{path}: modules: the network is {outermost!r:.60}; expected one of: "
        f"{', '.join(kind.network for kind in KINDS.values())}"
    )


def best_checkpoint(folder: Path, best: str) -> Path:
    """The checkpoint of a run that its evaluation would take; as `best_checkpoints`."""
    return best_checkpoints(folder, best)[0]


def best_checkpoints(folder: Path, best: str) -> list[Path]:
    """The checkpoints of a run, the best first.

    Arguments
    ---------
    folder : Path
        The run's folder.
    best : str
        What it is chosen by; the larger the better, and the later of equals.

    Returns
    -------
    list of Path
        Of each the folder.

    Raises
    ------
    UserError
        There is none.
    """
    found = {}
    for path in sorted(folder.glob("*/CKPT+*/CKPT.yaml")):
        meta = _meta(path)
        value, when = meta.get(best), meta.get("unixtime", 0)
        if isinstance(value, (int, float)) and not math.isnan(value):
            found[path.parent] = (value, when if isinstance(when, (int, float)) else 0)
    if not found:
        raise UserError(
            f"{folder}: no checkpoint of a whole epoch (with {best}) in its save folder; "
            "train for one epoch at least"
        )
    return sorted(found, key=found.get, reverse=True)


def _meta(path: Path) -> dict:
    """What a checkpoint says of itself."""
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return meta if isinstance(meta, dict) else {}
