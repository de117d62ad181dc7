"""Weights of a SpeechBrain separation model, for a unified network to start from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from unified_se_ss.errors import UserError, first_line, first_names
from unified_se_ss.files import read_checkpoint
from unified_se_ss.networks.speechbrain_weights import from_speechbrain

# SpeechBrain's files, and the parts of a unified network that they stand for.
FILES = {
    "encoder.ckpt": "encoder",
    "masknet.ckpt": "separator",
    "decoder.ckpt": "decoder",
}
LEAST_SHARE = 0.01  # of the parameters; a PReLU has one and always fits
CONVOLUTIONS = {"conv1d.weight", "convolution.conv1d.weight", "weight"}


@dataclass
class Loaded:
    """The weights of a pretrained model by what became of them.

    Names in the network that were loaded, that are of another shape (`misshapen`), in the
    files only (`left`), or keep their first weights (`missing`); and numbers loaded.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    parameters: int = 0

    def __str__(self):
        whole = len(self.loaded) + len(self.missing)
        parts = [
            f"{part} {sum(name.startswith(f'{part}.') for name in self.loaded)}"
            for part in FILES.values()
        ]
        lines = [
            f"Pretrained SS module from {self.source}: {len(self.loaded)} of {whole} tensors "
            f"({', '.join(parts)}), {self.parameters:,} parameters"
        ]
        for what, names in (
            ("of another shape, not loaded", self.misshapen),
            ("in the files only, left", self.left),
            ("keep their first weights", self.missing),
        ):
            if names:
                lines.append(f"  {what} ({len(names)}): {first_names(names)}")
        return "\n".join(lines)


def load_pretrained_ss(network: nn.Module, source) -> Loaded:
    """Give encoder, SS module and decoder the weights of a SpeechBrain separation model.

    What fits by name and shape is loaded; the rest keeps its first weights, and the
    report says so. The SE module is never touched. Weights are read as weights alone,
    and no YAML file is looked at.

    Arguments
    ---------
    network : unified_se_ss.networks.UnifiedNetwork
        Changed in place.
    source : str or Path
        A folder with ``masknet.ckpt``, ``encoder.ckpt``, ``decoder.ckpt`` (any of
        them), or the name of a model on the Hugging Face hub, such as
        ``speechbrain/sepformer-wsj02mix``.

    Raises
    ------
    UserError
        No such model, a damaged file, or next to nothing in it fits.
    """
    own = network.state_dict()
    report, fitting = Loaded(str(source)), {}
    for path in _find_files(source):
        part = FILES[path.name]
        for name, value in _own_names(part, read_checkpoint(path), report.left).items():
            if name not in own:
                report.left.append(name)
            elif own[name].shape != value.shape:
                shapes = f"{list(value.shape)} instead of {list(own[name].shape)}"
                report.misshapen.append(f"{name} {shapes}")
            else:
                fitting[name] = value
    parts = tuple(f"{part}." for part in FILES.values())
    wanted = {name: value for name, value in own.items() if name.startswith(parts)}
    report.loaded = list(fitting)
    report.missing = [name for name in wanted if name not in fitting]
    report.parameters = sum(value.numel() for value in fitting.values())
    if report.parameters < LEAST_SHARE * sum(value.numel() for value in wanted.values()):
        raise UserError(
            f"pretrained_ss: next to nothing of {source} fits this network; choose the sizes "
            f"of the one that was trained. (What would be loaded:)\n{report}"
        )
    network.load_state_dict(fitting, strict=False)
    return report


def _own_names(part: str, state: dict, left: list[str]) -> dict[str, torch.Tensor]:
    """The state of a part under the network's names; what has none is noted in `left`."""
    found = {}
    for name, value in state.items():
        if part != "separator":
            if name in CONVOLUTIONS:
                found[f"{part}.convolution.weight"] = value
            else:
                left.append(f"{part}: {name}")
            continue
        try:
            renamed = from_speechbrain({name: value})
        except KeyError:
            left.append(f"{part}: {name}")
            continue
        found |= {f"{part}.{ours}": tensor for ours, tensor in renamed.items()}
    return found


def _find_files(source) -> list[Path]:
    """The checkpoints of a pretrained model, in a folder here or from the hub."""
    folder = Path(source)
    if not folder.is_dir():
        folder = _from_hub(folder, str(source))
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"pretrained_ss: {source} holds none of {', '.join(FILES)}; expected the "
            "folder of a SpeechBrain separation model or of one of its checkpoints"
        )
    return found


def _from_hub(folder: Path, name: str) -> Path:
    from huggingface_hub import snapshot_download

    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"pretrained_ss: {name} is no folder; expected one with "
            f"{', '.join(FILES)}, or a name on the Hugging Face hub, such as "
            "speechbrain/sepformer-wsj02mix"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's and the network's have no common class
        raise UserError(
            f"pretrained_ss: {name} is no folder here, and cannot be fetched from the "
            f"Hugging Face hub ({first_line(error)})"
        ) from error
