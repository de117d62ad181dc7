"""From the folders that LibriMix writes to manifests.

    {data_folder}/wav8k|wav16k/min|max/train-100|train-360|dev|test/
        mix_both|mix_clean|mix_single/  s1/  s2/  [s3/]  [noise/]    *.wav

Every recording is looked at once: header, and as many samples as it takes to know that
it is not silent. After that, the fingerprint beside the manifest says that nothing
changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.data import audio
from unified_se_ss.data.cache import threaded_map
from unified_se_ss.data.corpora import BadItem, check_choice, make_manifest, raise_for
from unified_se_ss.data.manifest import DATA_ROOT
from unified_se_ss.errors import UserError

RATES = (8000, 16000)
MODES = ("min", "max")
TRAIN_SUBSETS = ("train-100", "train-360")
MIXTURES = ("mix_both", "mix_clean", "mix_single")
MADE_BY = "expected are the folders that LibriMix's generate_librimix.sh writes"

logger = logging.getLogger(__name__)


def prepare_librimix(
    data_folder,
    manifest_folder,
    n_speakers=2,
    sample_rate=8000,
    mode="min",
    train_subset="train-360",
    mixture="mix_both",
):
    """Checks LibriMix folders and writes a manifest each for train, dev and test.

    Arguments
    ---------
    data_folder : str or Path
        The folder Libri2Mix (Libri3Mix), or the one that holds it. It is what
        `{data_root}` in the manifests stands for.
    manifest_folder : str or Path
        Where the manifests go.
    n_speakers : int
        Speakers in a mixture (default 2).
    sample_rate : int
        8000 (default) or 16000 Hz.
    mode : str
        "min" (default): cut to the shortest source; "max": padded to the longest.
    train_subset : str
        "train-360" (default) or "train-100".
    mixture : str
        "mix_both" (default): all speakers and noise; "mix_clean": no noise;
        "mix_single": the first speaker and noise, for n_speakers 1.

    Returns
    -------
    dict of Path
        The manifests, by "train", "dev" and "test". Their stems are mixture, s1, ...
        and noise, where the mixture has noise and LibriMix kept it.

    Raises
    ------
    UserError
        If a key has no such value, a folder is not LibriMix-shaped, or recordings
        are missing, unreadable, silent, of several channels, or of unequal length.

    Example
    -------
    >>> prepare_librimix("/no/such", "manifests")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: /no/such does not exist; ...
    """
    for key, value, allowed in (
        ("n_speakers", n_speakers, (1, 2, 3)),
        ("sample_rate", sample_rate, RATES),
        ("mode", mode, MODES),
        ("train_subset", train_subset, TRAIN_SUBSETS),
        ("mixture", mixture, MIXTURES),
    ):
        check_choice(key, value, allowed)
    if (n_speakers == 1) != (mixture == "mix_single"):
        raise UserError(
            f"mixture: {mixture} does not hold {n_speakers} speaker(s); mix_single"
            " holds one, mix_both and mix_clean hold two or three"
        )
    data_folder = Path(data_folder)
    names = [f"Libri{n}Mix" for n in ((2, 3) if n_speakers == 1 else (n_speakers,))]
    root = find_root(data_folder, names, MADE_BY)
    place = root / f"wav{sample_rate // 1000}k" / mode
    check_folder(place, "sample_rate and mode", MADE_BY)
    subsets = {"train": place / train_subset, "dev": place / "dev", "test": place / "test"}
    for split, subset in subsets.items():
        key = "train_subset" if split == "train" else "data_folder"
        check_folder(subset, key, MADE_BY)
    # All folders are looked at before the first recording is.
    stems = {}
    for split, subset in subsets.items():
        noise = mixture != "mix_clean" and (subset / "noise").is_dir()
        stems[split] = stem_folders(subset, n_speakers, mixture, noise, MADE_BY)
    kind = f"Libri{n_speakers}Mix_{place.parent.name}_{mode}"
    manifests = {}
    for split, subset in subsets.items():
        path = Path(manifest_folder) / f"{kind}_{subset.name}_{mixture}.csv"
        prepare_subset(data_folder, subset, stems[split], sample_rate, path)
        manifests[split] = path
    return manifests


# ------------------------------------------------------------------ folders


def find_root(data_folder: Path, names: Sequence[str], made_by: str) -> Path:
    """The folder that holds wav8k or wav16k: data_folder or one of these names in it."""
    if not data_folder.is_dir():
        raise UserError(f"data_folder: {data_folder} does not exist; {made_by}")
    for folder in (data_folder, *(data_folder / name for name in names)):
        if any((folder / f"wav{rate // 1000}k").is_dir() for rate in RATES):
            return folder
    there = ", ".join(_listed(data_folder))
    raise UserError(
        f"data_folder: {data_folder} has neither wav8k, wav16k nor {names[0]} in it,"
        f" but {there or 'is empty'}; {made_by}; or set n_speakers to match"
    )


def check_folder(folder: Path, key: str, made_by: str) -> None:
    """Raises a UserError that says which folder was looked for and which exist."""
    if not folder.is_dir():
        parent = folder
        while not parent.is_dir():
            parent = parent.parent
        raise UserError(
            f"{key}: the folder {folder} does not exist; in {parent} there are: "
            f"{', '.join(_listed(parent)) or 'no files'} ({made_by})"
        )


def _listed(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir())
    return names if len(names) <= 8 else [*names[:8], f"and {len(names) - 8} more"]


def stem_folders(
    subset: Path, n_speakers: int, mixture: str, noise: bool, made_by: str
) -> dict[str, str]:
    """Name of the folder of each stem of a subset; raises a UserError if one is missing."""
    if n_speakers > 1 and (subset / f"s{n_speakers + 1}").is_dir():
        raise UserError(
            f"n_speakers: is {n_speakers}, but {subset} holds mixtures of more speakers"
            f" (there is a folder s{n_speakers + 1}); set n_speakers to match, or give"
            " another data_folder"
        )
    stems = {"mixture": mixture, **{f"s{j}": f"s{j}" for j in range(1, n_speakers + 1)}}
    if noise:
        stems["noise"] = "noise"
    for stem, folder in stems.items():
        key = (
            "data_folder"
            if stem in ("mixture", "noise")
            else f"n_speakers: is {n_speakers}"
        )
        check_folder(subset / folder, key, made_by)
    return stems


# ------------------------------------------------------------------ recordings


def prepare_subset(
    data_folder: Path,
    subset: Path,
    stems: dict[str, str],
    sample_rate: int,
    manifest_path: Path,
    channels: int = 1,
    attributes: dict[str, dict] | None = None,
    made_by: str = MADE_BY,
) -> None:
    """Checks a folder with a folder for each stem and writes its manifest.

    Arguments
    ---------
    data_folder : Path
        What `{data_root}` in the manifest stands for.
    subset : Path
        The folder, somewhere in it.
    stems : dict
        Name of the folder of each stem.
    sample_rate : int
        Hz that all recordings must have.
    manifest_path : Path
        The CSV file; if it is there and nothing changed, it is kept.
    channels : int
        That all recordings must have (default 1).
    attributes : dict of dict, optional
        Further columns of each item, the same for all, by its ID.
    made_by : str
        For messages: what was expected to have made the folder.

    Raises
    ------
    UserError
        If a recording is missing, unreadable, silent, of another rate or number of
        channels, or not as long as the item's others.
    """
    names = {stem: _wav_names(subset / folder) for stem, folder in stems.items()}
    if not names["mixture"]:
        raise UserError(
            f"data_folder: {subset / stems['mixture']} holds no wav files; {made_by}"
        )
    relative = subset.relative_to(data_folder).as_posix()
    choices = {"subset": relative, "stems": stems, "sample_rate": sample_rate}
    if channels != 1 or attributes:
        columns = json.dumps(attributes, sort_keys=True).encode()
        choices |= {
            "channels": channels,
            "attributes": hashlib.sha256(columns).hexdigest(),
        }
    files = [f"{stems[stem]}/{name}" for stem in stems for name in names[stem]]

    def rows() -> list[dict]:
        more = attributes or {}
        complete = _check_complete(subset, stems, names, sample_rate)
        lengths = _check_items(subset, stems, complete, sample_rate, channels)
        return [
            {
                "ID": name.removesuffix(".wav"),
                "duration": frames / sample_rate,
                "sample_rate": sample_rate,
                **{s: f"{DATA_ROOT}/{relative}/{f}/{name}" for s, f in stems.items()},
                **(more and more[name.removesuffix(".wav")]),
            }
            for name, frames in lengths.items()
        ]

    make_manifest(manifest_path, subset, files, choices, rows)


def _wav_names(folder: Path) -> set[str]:
    """Names of the wav files in a folder, hidden ones left out."""
    with os.scandir(folder) as entries:
        return {
            entry.name
            for entry in entries
            if entry.name.endswith(".wav") and not entry.name.startswith(".")
        }


def _check_complete(subset, stems, names, sample_rate) -> list[str]:
    """Names in the folders of all stems; raises a UserError if they do not agree."""
    everything = set().union(*names.values())
    complete = set.intersection(*names.values())
    problems = [
        f"{subset / folder / name}: does not exist, though the item's other stems do"
        for stem, folder in stems.items()
        for name in sorted(everything - names[stem])
    ]
    advice = "make the missing files again, or remove the items' other files"
    bad = _bad_items(subset, stems, sorted(everything - complete), sample_rate)
    raise_for(problems, "data_folder", advice, bad)
    return sorted(complete)


def _check_items(subset, stems, names, sample_rate, channels) -> dict[str, int]:
    """Samples of the items whose recordings were all found in order, by name."""
    paths = [{s: str(subset / f / name) for s, f in stems.items()} for name in names]
    check = partial(_check_item, sample_rate=sample_rate, channels=channels)
    results = threaded_map(check, paths, f"checking {subset.name}")
    problems = [problem for result in results for problem in result.problems]
    advice = "make these files again, or remove the items they belong to"
    bad = [name for name, result in zip(names, results) if result.problems]
    raise_for(problems, "data_folder", advice, _bad_items(subset, stems, bad, sample_rate))
    silent = [result.silent_noise for result in results if result.silent_noise]
    if silent:
        logger.warning(
            "%d silent noise recording(s), the first: %s", len(silent), silent[0]
        )
    lengths = {n: r.frames for n, r in zip(names, results) if not r.problems}
    if not lengths:
        raise UserError(f"data_folder: {subset} holds no item that could be used")
    return lengths


def _bad_items(subset, stems, names, sample_rate) -> list[BadItem]:
    return [
        BadItem(
            subset.name.split("-")[0],
            name.removesuffix(".wav"),
            sample_rate,
            {stem: str(subset / folder / name) for stem, folder in stems.items()},
        )
        for name in names
    ]


class _ItemCheck(NamedTuple):
    """Length of an item, what is wrong with it, and its noise file if that is silent."""

    frames: int
    problems: list
    silent_noise: str | None


def _check_item(paths: dict[str, str], sample_rate: int, channels: int) -> _ItemCheck:
    """Looks at all recordings of one item."""
    lengths, problems, silent_noise = {}, [], None
    for stem, path in paths.items():
        try:
            lengths[path], silent = _check_recording(path, sample_rate, channels)
        except UserError as error:
            problems.append(str(error))
            continue
        if silent and stem == "noise":
            silent_noise = path
        elif silent:
            problems.append(f"{path}: is silent (below -80 dB of full scale)")
    first, frames = next(iter(lengths.items()), ("", 0))
    problems += [
        f"{path}: has {length} samples, but {first} has {frames}; the same length was expected"
        for path, length in lengths.items()
        if length != frames
    ]
    return _ItemCheck(frames, problems, silent_noise)


def _check_recording(path: str, sample_rate: int, channels: int) -> tuple[int, bool]:
    """Number of samples of a recording, and whether it is silent."""
    with audio.opened(path) as file:
        if fault := audio.channel_fault(file.channels, channels):
            raise UserError(f"{path}: {fault}")
        if file.samplerate != sample_rate:
            raise UserError(
                f"{path}: has a sampling rate of {file.samplerate} Hz, {sample_rate} Hz"
                " was expected (key sample_rate)"
            )
        # Integers are finite, so that one loud second tells enough; floats may not be.
        floating = file.subtype in ("FLOAT", "DOUBLE")
        silent = True
        for _, block in audio.read_blocks(file, path, sample_rate):
            if floating and not np.isfinite(block).all():
                raise UserError(f"{path}: holds values that are not finite (NaN, infinity)")
            silent = silent and audio.is_silent(block)
            if not silent and not floating:
                break
        return file.frames, silent
