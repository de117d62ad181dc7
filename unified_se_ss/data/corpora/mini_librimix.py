"""MiniLibriMix as the folders of Libri2Mix, which is what the recipes take.

MiniLibriMix/train|val/mix_both|mix_clean|s1|s2|noise/*.wav
Libri2Mix/wav8k/min/train-100|dev|test/mix_both|mix_clean|s1|s2|noise/*.wav
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from unified_se_ss.errors import UserError

SUBSETS = {"train-100": "train", "dev": "val", "test": "val"}
NEEDED = ("mix_both", "s1", "s2")


def arrange_mini_librimix(folder: Path) -> str:
    """Make ``Libri2Mix`` beside ``MiniLibriMix``, of links to the same files.

    MiniLibriMix has no test set: the first half of its validation set, by name, becomes
    dev, the second half test. (They share speakers, so what is measured there compares
    runs with each other, and not with papers.) What exists is left as it is.

    Arguments
    ---------
    folder : Path
        The folder that holds ``MiniLibriMix``.

    Returns
    -------
    str
        How to train on it.

    Raises
    ------
    UserError
        The folders of MiniLibriMix are not there, or their stems do not match.
    """
    source, target = folder / "MiniLibriMix", folder / "Libri2Mix"
    names = {subset: _names(source / subset) for subset in ("train", "val")}
    rate = _sample_rate(source / "train" / "mix_both" / names["train"][0])
    if not target.exists():
        aside = folder / f".arranging-{uuid.uuid4().hex}"
        try:
            _link_all(source, aside / f"wav{rate // 1000}k" / "min", names)
            os.rename(aside, target)
        except OSError as error:
            raise UserError(
                f"{target}: cannot be written ({error.strerror or error})"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return (
        "train on it with: python train.py hparams/libri2mix_noisy_dprnn.yaml "
        f"--data_folder {target} --train_subset train-100 --sample_rate {rate}"
    )


def _names(subset: Path) -> list[str]:
    """Names of a subset's mixtures; every needed stem has the same."""
    found = {
        stem: sorted(path.name for path in (subset / stem).glob("*.wav")) for stem in NEEDED
    }
    names = found["mix_both"]
    if not names or any(stem != names for stem in found.values()):
        raise UserError(
            f"{subset}: expected the same wav files in {', '.join(NEEDED)}, found "
            f"{', '.join(str(len(stem)) for stem in found.values())}; is this MiniLibriMix?"
        )
    return names


def _sample_rate(path: Path) -> int:
    """A recording's sampling rate."""
    import soundfile

    try:
        return soundfile.info(path).samplerate
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _link_all(source: Path, target: Path, names: dict[str, list[str]]) -> None:
    """Every stem of every subset."""
    half = len(names["val"]) // 2
    parts = {
        "train-100": names["train"],
        "dev": names["val"][:half],
        "test": names["val"][half:],
    }
    for subset, of in SUBSETS.items():
        for stem in sorted(path for path in (source / of).iterdir() if path.is_dir()):
            place = target / subset / stem.name
            place.mkdir(parents=True)
            for name in parts[subset]:
                _link(stem / name, place / name)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk has no hard links."""
    if not source.is_file():
        return  # a stem that nobody needs may lack some
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
