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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from unified_se_ss.data import audio
from unified_se_ss.data.cache import fingerprint_of
from unified_se_ss.data.manifest import (
    DATA_ROOT,
    is_current,
    write_manifest,
)
from unified_se_ss.data.problems import BadItem, raise_for
from unified_se_ss.errors import UserError

RATES = (8000, 16000)
MODES = ("min", "max")
TRAIN_SUBSETS = ("train-100", "train-360")
MIXTURES = ("mix_both", "mix_clean", "mix_single")
MADE_BY = "expected are the folders that LibriMix's generate_librimix.sh writes"
PROGRESS_FROM = 2000

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
    _check_choices(n_speakers, sample_rate, mode, train_subset, mixture)
    data_folder = Path(data_folder)
    root = _libri_folder(data_folder, n_speakers)
    place = root / f"wav{sample_rate // 1000}k" / mode
    _check_folder(place, "sample_rate and mode")
    subsets = {
        "train": place / train_subset,
        "dev": place / "dev",
        "test": place / "test",
    }
    for split, subset in subsets.items():
        _check_folder(subset, "train_subset" if split == "train" else "data_folder")
    # All folders are looked at before the first recording is.
    stems = {s: _stem_folders(subsets[s], n_speakers, mixture) for s in subsets}
    kind = f"Libri{n_speakers}Mix_{place.parent.name}_{mode}"
    manifests = {}
    for split, subset in subsets.items():
        path = Path(manifest_folder) / f"{kind}_{subset.name}_{mixture}.csv"
        prepare_subset(data_folder, subset, stems[split], sample_rate, path)
        manifests[split] = path
    return manifests


def _check_choices(n_speakers, sample_rate, mode, train_subset, mixture):
    """Raises a UserError for a key with a value that LibriMix does not have."""
    for key, value, allowed in (
        ("n_speakers", n_speakers, (1, 2, 3)),
        ("sample_rate", sample_rate, RATES),
        ("mode", mode, MODES),
        ("train_subset", train_subset, TRAIN_SUBSETS),
        ("mixture", mixture, MIXTURES),
    ):
        if value not in allowed:
            expected = ", ".join(map(str, allowed))
            raise UserError(
                f"{key}: {value!r} is not in LibriMix; expected one of {expected}"
            )
    if (n_speakers == 1) != (mixture == "mix_single"):
        raise UserError(
            f"mixture: {mixture} does not hold {n_speakers} speaker(s); mix_single"
            " holds one, mix_both and mix_clean hold two or three"
        )


def _libri_folder(data_folder, n_speakers):
    """The folder that holds wav8k or wav16k: data_folder or a folder in it."""
    if not data_folder.is_dir():
        raise UserError(
            f"data_folder: {data_folder} does not exist; give the folder Libri2Mix or "
            f"Libri3Mix ({MADE_BY})"
        )
    names = [f"Libri{n}Mix" for n in ((2, 3) if n_speakers == 1 else (n_speakers,))]
    for folder in (data_folder, *(data_folder / name for name in names)):
        if any((folder / f"wav{rate // 1000}k").is_dir() for rate in RATES):
            return folder
    there = _listed(data_folder)
    other = [name for name in there if name.startswith("Libri") and name.endswith("Mix")]
    advice = f"set n_speakers to match {other[0]}" if other else MADE_BY
    raise UserError(
        f"data_folder: {data_folder} has neither wav8k, wav16k nor {names[0]} in it,"
        f" but {', '.join(there) if there else 'is empty'}; {advice}"
    )


def _check_folder(folder, key):
    """Raises a UserError that says which folder was looked for and which exist."""
    if not folder.is_dir():
        parent = folder
        while not parent.is_dir():
            parent = parent.parent
        raise UserError(
            f"{key}: the folder {folder} does not exist; in {parent} there are: "
            f"{', '.join(_listed(parent)) or 'no files'} ({MADE_BY})"
        )


def _listed(folder):
    """Names of the first folders and files in a folder."""
    names = sorted(path.name for path in folder.iterdir())
    return names if len(names) <= 8 else [*names[:8], f"and {len(names) - 8} more"]


def _stem_folders(subset, n_speakers, mixture):
    """Name of the folder of each stem of a subset."""
    if n_speakers > 1 and (subset / f"s{n_speakers + 1}").is_dir():
        raise UserError(
            f"n_speakers: is {n_speakers}, but {subset} holds mixtures of more speakers"
            f" (there is a folder s{n_speakers + 1}); set n_speakers to match, or give"
            f" the folder Libri{n_speakers}Mix as data_folder"
        )
    stems = {"mixture": mixture, **{f"s{j}": f"s{j}" for j in range(1, n_speakers + 1)}}
    for folder in stems.values():
        key = f"n_speakers: is {n_speakers}" if folder[1:].isdigit() else "data_folder"
        _check_folder(subset / folder, key)
    if mixture != "mix_clean" and (subset / "noise").is_dir():
        stems["noise"] = "noise"
    return stems


def prepare_subset(
    data_folder,
    subset,
    stems,
    sample_rate,
    manifest_path,
    channels=1,
    attributes=None,
    made_by=MADE_BY,
):
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
    relative = subset.relative_to(data_folder)
    choices = {
        "subset": relative.as_posix(),
        "stems": stems,
        "sample_rate": sample_rate,
    }
    if channels != 1 or attributes:
        told = json.dumps(attributes, sort_keys=True).encode()
        choices |= {"channels": channels, "attributes": hashlib.sha256(told).hexdigest()}
    files = [f"{stems[stem]}/{name}" for stem in stems for name in names[stem]]
    fingerprint = fingerprint_of(subset, files, choices)
    if is_current(manifest_path, fingerprint):
        return
    complete = _check_names(subset, stems, names, sample_rate)
    rows = _checked_rows(subset, relative, stems, sorted(complete), sample_rate, channels)
    if not rows:
        raise UserError(f"data_folder: {subset} holds no item that could be used")
    for row in rows:
        row.update(attributes[row["ID"]] if attributes else {})
    write_manifest(manifest_path, rows, fingerprint)


def _wav_names(folder):
    """Names of the wav files in a folder, hidden ones left out."""
    with os.scandir(folder) as entries:
        return {
            entry.name
            for entry in entries
            if entry.name.endswith(".wav") and not entry.name.startswith(".")
        }


def _check_names(subset, stems, names, sample_rate):
    """The names in all folders of the stems; raises a UserError if they do not agree."""
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
    return complete


def _bad_items(subset, stems, names, sample_rate):
    """Items with which something is wrong, for an audit."""
    return [
        BadItem(
            subset.name.split("-")[0],
            name.removesuffix(".wav"),
            sample_rate,
            {stem: str(subset / folder / name) for stem, folder in stems.items()},
        )
        for name in names
    ]


def _checked_rows(subset, relative, stems, names, sample_rate, channels):
    """The rows of the manifest, when every recording was found in order."""

    def check(name):
        return _check_item(subset, stems, name, sample_rate, channels)

    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        results = pool.map(check, names)
        if len(names) * len(stems) > PROGRESS_FROM:
            from unified_se_ss.progress import progress_bar

            results = progress_bar(results, f"checking {subset.name}", len(names), "item")
        results = list(results)
    problems = [problem for result in results for problem in result.problems]
    advice = "make these files again, or remove the items they belong to"
    bad = [name for name, result in zip(names, results) if result.problems]
    raise_for(problems, "data_folder", advice, _bad_items(subset, stems, bad, sample_rate))
    _warn_of_silent_noise([result.silent_noise for result in results])
    prefix = f"{DATA_ROOT}/{relative.as_posix()}"
    return [
        {
            "ID": name.removesuffix(".wav"),
            "duration": result.frames / sample_rate,
            "sample_rate": sample_rate,
            **{stem: f"{prefix}/{folder}/{name}" for stem, folder in stems.items()},
        }
        for name, result in zip(names, results)
        if not result.problems
    ]


class _ItemCheck:
    """What was found of one item: its length, what is wrong, a silent noise file."""

    def __init__(self):
        self.frames = None
        self.problems = []
        self.silent_noise = None


def _check_item(subset, stems, name, sample_rate, channels):
    """Looks at all recordings of one item."""
    found = _ItemCheck()
    for stem, folder in stems.items():
        path = str(subset / folder / name)
        try:
            frames, silent = _check_recording(path, sample_rate, channels)
        except UserError as error:
            found.problems.append(str(error))
            continue
        if silent and stem == "noise":
            found.silent_noise = path
        elif silent:
            found.problems.append(f"{path}: is silent (below -80 dB of full scale)")
        if found.frames is None:
            found.frames, first = frames, path
        elif frames != found.frames:
            found.problems.append(
                f"{path}: has {frames} samples, but {first} has {found.frames}; the"
                " same length was expected"
            )
    return found


def _check_recording(path, sample_rate, channels):
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
        for block in file.blocks(sample_rate, dtype="float32"):
            if floating and not np.isfinite(block).all():
                raise UserError(f"{path}: holds values that are not finite (NaN, infinity)")
            silent = silent and audio.is_silent(block)
            if not silent and not floating:
                break
        return file.frames, silent


def _warn_of_silent_noise(paths):
    """Says how many noise recordings are silent, which does no harm."""
    paths = [path for path in paths if path]
    if paths:
        logger.warning("%d silent noise recording(s), the first: %s", len(paths), paths[0])
