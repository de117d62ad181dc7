"""A model as a folder to hand on: weights, configuration, and a card that says what it is."""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from unified_se_ss import __version__
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write
from unified_se_ss.inference.folders import (
    CONFIGURATION,
    TOKENS,
    WEIGHTS,
    as_model,
    read_folder,
    read_tokens,
)
from unified_se_ss.inference.models import Model
from unified_se_ss.inference.onnx_format import write_onnx
from unified_se_ss.inference.speechbrain_format import longest_input, write_speechbrain

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# Keys of a run that say what it was trained on, and how.
QUOTED_KEYS = (
    "mixture mode train_subset segment_seconds dynamic_mixing snr_range rule granularity "
    "se_loss weight_se number_of_epochs system weight_ctc average_checkpoints"
).split()
# A folder that holds none of these, or anything but all of those, is never replaced.
MODELS = {WEIGHTS, "masknet.ckpt", "model.onnx"}
EXPORTED = MODELS | {
    CARD,
    CONFIGURATION,
    TOKENS,
    "hyperparams.yaml",
    "encoder.ckpt",
    "decoder.ckpt",
}


def write_native(model: Model, folder) -> None:
    """Write ``config.json`` and ``model.safetensors``; of a recogniser ``tokens.model``."""
    from safetensors.torch import save

    folder = Path(folder)
    text = json.dumps(model.configuration, indent=2, allow_nan=False) + "\n"
    atomic_write(folder / CONFIGURATION, text)
    state = {name: value.contiguous() for name, value in model.network.state_dict().items()}
    # Its save_file would make a file that nobody else may read.
    atomic_write(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    if model.decoding:
        atomic_write(folder / TOKENS, model.decoding.tokens.read_bytes())


# A new format is one entry: a function of a model and a folder.
FORMATS = {"native": write_native, "speechbrain": write_speechbrain, "onnx": write_onnx}


def export(source, folder, format: str = "native", force: bool = False) -> Path:
    """Write a trained model into a folder that others can use; whole or not at all.

    Arguments
    ---------
    source : str or Path
        A run's folder (its best checkpoint is taken, or the mean of the best, as by its
        test) or an exported folder.
    folder : str or Path
        Where it goes.
    format : str
        ``"native"``: for this project; ``"speechbrain"``: for its ``SepformerSeparation``;
        ``"onnx"``: ``model.onnx``. Each with a model card, ``README.md``.
    force : bool
        Replace what an earlier export left there; never anything else.

    Raises
    ------
    UserError
        No model there, a folder in the way, or a format that cannot hold this model.
    """
    if format not in FORMATS:
        raise UserError(f"--format: is '{format}'; expected one of: {', '.join(FORMATS)}")
    source, folder = Path(source), Path(folder)
    _check_target(source, folder, force)
    contents = read_folder(source)
    model = as_model(contents, "cpu")
    if model.decoding:
        if format != "native":
            raise UserError(
                f"--format {format}: cannot hold a recogniser; take --format native"
            )
        # A damaged one is not handed on.
        read_tokens(model.decoding.tokens, model.network.n_tokens)
    if format != "native" and model.channels > 1:
        raise UserError(
            f"--format {format}: holds models that hear one channel; this {model.kind} model "
            f"hears {model.channels}. Take --format native"
        )
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        FORMATS[format](model, temporary)
        atomic_write(temporary / CARD, model_card(model, contents, source, folder, format))
        _move(temporary, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); "
            "choose a folder with write permission and room on the disk"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_target(source: Path, folder: Path, force: bool) -> None:
    """Stop at a target that would be lost."""
    if not folder.name or folder.is_symlink():
        raise UserError(f"-o: {folder} is a link or no folder's name; choose another")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"-o: {folder} is a file; choose another name")
    if folder.resolve() == source.resolve():
        raise UserError(f"-o: {folder} is the model itself; choose another folder")
    there = {path.name for path in folder.iterdir()}
    if there - EXPORTED or (there and not there & MODELS):
        others = sorted(there - EXPORTED) or sorted(there)
        raise UserError(
            f"-o: {folder} holds what no export wrote ({', '.join(others[:3])}); "
            "choose another folder"
        )
    if there and not force:
        raise UserError(
            f"-o: {folder} is there already; give --force to replace it, or choose another"
        )


def _move(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        temporary.rename(folder)
        return
    replaced = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    folder.rename(replaced)
    try:
        temporary.rename(folder)
    except OSError:
        replaced.rename(folder)
        raise
    with suppress(OSError):
        shutil.rmtree(replaced)


# ------------------------------------------------------------------ the card


def model_card(model, contents, source, folder, format: str) -> str:
    """The card's Markdown: what a model is, how good it is, how it was trained and is used."""
    from huggingface_hub import ModelCard, ModelCardData

    hparams, recognises = contents.hparams or {}, model.decoding is not None
    tag = "speech-recognition" if recognises else "speech-separation"
    data = ModelCardData(
        pipeline_tag="automatic-speech-recognition" if recognises else "audio-to-audio",
        tags=[tag, "speech-enhancement"],
    )
    abilities = {
        "separate": f"separates a mixture of {model.n_sources} talkers",
        "enhance": "removes noise from the mixture",
        "recognise": "recognises what is said",
    }
    longest = longest_input(model.network) if format != "native" else None
    seconds = (longest or 0) / model.sample_rate
    sizes = [model.n_sources] * bool(model.n_sources) + [model.ears] * (model.ears > 1)
    card = ModelCard.from_template(
        data,
        TEMPLATE,
        title=hparams.get("experiment_name", Path(folder).name),
        version=__version__,
        model=model,
        abilities=[abilities[task] for task in model.tasks],
        parameters=lambda module: sum(p.numel() for p in module.parameters()),
        results=_text(Path(source) / "summary.md").strip(),
        averaged=hparams.get("average_checkpoints", 1),
        training=_training(hparams, Path(source)),
        format=format,
        folder=Path(folder).name,
        takes="[B, T]" if model.channels == 1 else f"[B, {model.channels}, T]",
        gives=f"[{', '.join(map(str, ['B', *sizes, 'T']))}]",
        outputs=["sources"] * bool(model.n_sources) + ["enhanced"] * model.can_enhance,
        limit=f" The longest input is {seconds:.0f} s." if longest else "",
    )
    return f"{card}\n"


def _training(hparams: dict, source: Path) -> list[str]:
    if not hparams:
        return []
    known = {"data": Path(str(hparams.get("data_folder", "unknown"))).name}
    known |= {key: hparams[key] for key in QUOTED_KEYS if key in hparams}
    lines = [f"{key}: {value}" for key, value in known.items() if value is not None]
    for line in _text(source / "env.log").splitlines():
        key, colon, value = line.partition(": ")
        if key in ("command", "commit") and colon:
            lines.append(f"{key}: `{value}`")
    return lines


def _text(path: Path) -> str:
    """A small text file of the run; nothing if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[: 1 << 16]
    except OSError:
        return ""
