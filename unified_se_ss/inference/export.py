"""A model as a folder to hand on: weights, configuration, and a card that says what it is."""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write
from unified_se_ss.inference.card import model_card
from unified_se_ss.inference.folders import CONFIGURATION, TOKENS, WEIGHTS, read_folder
from unified_se_ss.inference.models import Model, as_model
from unified_se_ss.inference.onnx_format import write_onnx
from unified_se_ss.inference.speechbrain_format import write_speechbrain

CARD = "README.md"
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
    """Write ``config.json`` and ``model.safetensors``; of a recogniser ``tokens.model``.

    Arguments
    ---------
    model : unified_se_ss.inference.Model
        With its ``configuration``.
    folder : str or Path
        Gets the files.
    """
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
        ``"native"``: ``model.safetensors`` and ``config.json``, for this project;
        ``"speechbrain"``: for SpeechBrain's ``SepformerSeparation``;
        ``"onnx"``: ``model.onnx``. Each with a model card, ``README.md``.
    force : bool
        Replace what an earlier export left there; never anything else.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UserError
        No model there, a folder in the way, or a format that cannot hold this model.
    """
    if format not in FORMATS:
        raise UserError(f"--format: is '{format}'; expected one of: {', '.join(FORMATS)}")
    source, folder = Path(source), Path(folder)
    check_target(source, folder, force)
    contents = read_folder(source)
    model = as_model(contents, "cpu")
    if model.decoding:
        if format != "native":
            raise UserError(
                f"--format {format}: cannot hold a recogniser; take --format native"
            )
        check_tokens(model)
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


def check_tokens(model: Model) -> None:
    """Stop at a recogniser whose tokenizer is damaged, before it is handed on."""
    from unified_se_ss.inference.tokenizer import read_tokens

    read_tokens(model.decoding.tokens, model.network.n_tokens)


def check_target(source: Path, folder: Path, force: bool) -> None:
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
    """Put a finished folder in its place; what was there is kept until it is."""
    if not folder.exists():
        temporary.rename(folder)
        return
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    folder.rename(aside)
    try:
        temporary.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    with suppress(OSError):
        shutil.rmtree(aside)


def export_command(options) -> None:
    """``python -m unified_se_ss export``: export, and say where and what."""
    folder = export(options.model, options.output, options.format, options.force)
    for path in sorted(folder.iterdir()):
        print(f"{path}  ({path.stat().st_size:,} bytes)")
    print(
        f"\n{folder / CARD} says what the model is; look it over before you hand it on, "
        "it quotes the command that trained it"
    )
