"""Folders of mixtures become manifests: LibriMix, WSJ0-2mix, WSJ0-3mix, Binaural-WSJ0Mix.

    {data_folder}/wav8k|wav16k/min|max/train-100|train-360|dev|test/     LibriMix
        mix_both|mix_clean|mix_single/  s1/  s2/  [s3/]  [noise/]    *.wav
    {data_folder}/wav8k|wav16k/min|max/tr|cv|tt/                         WSJ0
        mix|mix_clean|mix_both/  s1/  s2/  [s3/]  [noise/]    *.wav
        placements.csv                                    where this project made it

Every recording is looked at once: header, and as many samples as it takes to know that
it is not silent. After that, the fingerprint beside the manifest says that nothing
changed.

Binaural files have two channels (left, right). Where the public generator of
Binaural-WSJ0Mix made them, their names say who listens and where the talkers are:

    subject_003_011a0101_-45_0.0_01ao030u_30_22.5.wav     CIPIC's azimuth and elevation

CIPIC's angles are interaural-polar, azimuth + to the right; the manifests hold them in
the one convention of `unified_se_ss.spatial.geometry`. The names of its reverberant
set hold azimuths too, but its right ear has both ears' filters, so that no direction
is true there and none is listed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.data import audio
from unified_se_ss.data.binaural import EARS, UNEXPLAINED, unexplained
from unified_se_ss.data.cache import threaded_map
from unified_se_ss.data.corpora import BadItem, check_choice, make_manifest, raise_for
from unified_se_ss.data.manifest import DATA_ROOT, Manifest, read_manifest
from unified_se_ss.errors import UserError, first_names
from unified_se_ss.spatial.geometry import from_interaural_polar

RATES = (8000, 16000)
MODES = ("min", "max")
TRAIN_SUBSETS = ("train-100", "train-360")
FOLDERS = {"train": "tr", "dev": "cv", "test": "tt"}
PLACEMENTS = "placements.csv"
LOOKED_AT = 10
NUMBER = r"-?\d+(?:\.\d+)?"
TALKER = rf"_[^_]+_(?P<azimuth_{{0}}>{NUMBER})_(?P<elevation_{{0}}>{NUMBER})"

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
    check_choice("n_speakers", n_speakers, (1, 2, 3))
    check_choice("train_subset", train_subset, TRAIN_SUBSETS)
    check_choice("mixture", mixture, ("mix_both", "mix_clean", "mix_single"))
    if (n_speakers == 1) != (mixture == "mix_single"):
        advice = "mix_single holds one, mix_both and mix_clean hold two or three"
        raise UserError(f"mixture: {mixture} holds not {n_speakers} speaker(s); {advice}")
    corpus = _Corpus(
        Path(data_folder),
        [f"Libri{n}Mix" for n in ((2, 3) if n_speakers == 1 else (n_speakers,))],
        {"train": train_subset, "dev": "dev", "test": "test"},
        sample_rate,
        made_by="expected are the folders that LibriMix's generate_librimix.sh writes",
    )
    name = f"Libri{n_speakers}Mix_wav{sample_rate // 1000}k_{mode}_{{folder}}_{mixture}.csv"
    return _prepare(corpus, Path(manifest_folder) / name, n_speakers, mode, mixture)


def prepare_wsj0mix(
    data_folder,
    manifest_folder,
    n_speakers=2,
    sample_rate=8000,
    mode="min",
    mixture="mix",
    channels=1,
):
    """Checks WSJ0-2mix, WSJ0-3mix or Binaural-WSJ0Mix and writes manifests.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds wav8k or wav16k, or the one that holds it as `2speakers`
        (`3speakers`). It is what `{data_root}` in the manifests stands for.
    manifest_folder : str or Path
        Where the manifests go.
    n_speakers : int
        2 (default) or 3.
    sample_rate : int
        8000 (default) or 16000 Hz.
    mode : str
        "min" (default): cut to the shortest source; "max": padded to the longest.
    mixture : str
        "mix" (default); of the set with noise "mix_both", or "mix_clean" without it.
    channels : int
        1 (default), or 2 of the binaural set, which `prepare_binaural_wsj0mix` chooses.

    Returns
    -------
    dict of Path
        The manifests, by "train", "dev" and "test": stems mixture, s1, ... and noise
        (of mix_both); of two channels attributes head, azimuth_1, elevation_1, ... where
        known.

    Raises
    ------
    UserError
        If a key has no such value, a folder is not of this shape, or recordings are
        missing, unreadable, silent, of other channels, or of unequal length.

    Example
    -------
    >>> prepare_wsj0mix("/no/such", "manifests")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: /no/such does not exist; ...
    """
    check_choice("n_speakers", n_speakers, (2, 3))
    check_choice("mixture", mixture, ("mix", "mix_clean", "mix_both"))
    corpus = _Corpus(
        Path(data_folder),
        [f"{n_speakers}speakers"],
        FOLDERS,
        sample_rate,
        channels,
        "expected are the folders of WSJ0-2mix, or of Binaural-WSJ0Mix as its public "
        "generator or make_binaural_corpus writes them",
    )
    kind = "binaural_" * (channels == EARS) + f"wsj0-{n_speakers}mix"
    name = f"{kind}_wav{sample_rate // 1000}k_{mode}_{{split}}_{mixture}.csv"
    return _prepare(corpus, Path(manifest_folder) / name, n_speakers, mode, mixture)


prepare_binaural_wsj0mix = partial(prepare_wsj0mix, channels=EARS)


class _Corpus(NamedTuple):
    """Where a corpus of mixtures lies, and what its recordings must be.

    roots : names of what `data_folder` may hold instead of wav8k and wav16k;
    folders : by "train", "dev" and "test"; made_by : for messages.
    """

    data_folder: Path
    roots: list[str]
    folders: dict[str, str]
    sample_rate: int
    channels: int = 1
    made_by: str = ""


def _prepare(corpus, manifest_path, n_speakers, mode, mixture) -> dict[str, Path]:
    """The manifests of all subsets; `manifest_path` holds {split} or {folder}."""
    check_choice("sample_rate", corpus.sample_rate, RATES)
    check_choice("mode", mode, MODES)
    place = _find_root(corpus) / f"wav{corpus.sample_rate // 1000}k" / mode
    _check_folder(place, "sample_rate and mode", corpus)
    subsets = {split: place / folder for split, folder in corpus.folders.items()}
    # All folders are looked at before the first recording is.
    stems = {
        split: _stem_folders(corpus, split, subset, n_speakers, mixture)
        for split, subset in subsets.items()
    }
    manifests = {}
    for split, subset in subsets.items():
        name = manifest_path.name.format(split=split, folder=subset.name)
        manifests[split] = path = manifest_path.with_name(name)
        binaural = corpus.channels == EARS
        columns = _placements(subset, mixture, n_speakers) if binaural else None
        _prepare_subset(corpus, subset, stems[split], path, columns)
        if binaural:
            _warn_of_wrapped(read_manifest(path, corpus.data_folder), n_speakers)
    return manifests


# ------------------------------------------------------------------ folders


def _find_root(corpus: _Corpus) -> Path:
    """The folder that holds wav8k or wav16k: data_folder or one of the names in it."""
    data_folder, names = corpus.data_folder, corpus.roots
    if not data_folder.is_dir():
        raise UserError(f"data_folder: {data_folder} does not exist; {corpus.made_by}")
    for folder in (data_folder, *(data_folder / name for name in names)):
        if any((folder / f"wav{rate // 1000}k").is_dir() for rate in RATES):
            return folder
    raise UserError(
        f"data_folder: {data_folder} has neither wav8k, wav16k nor {names[0]} in it, but "
        f"{_listed(data_folder)}; {corpus.made_by}; or set n_speakers to match"
    )


def _check_folder(folder: Path, key: str, corpus: _Corpus) -> None:
    """Raises a UserError that says which folder was looked for and which exist."""
    if not folder.is_dir():
        parent = next(parent for parent in folder.parents if parent.is_dir())
        there = f"in {parent} there are: {_listed(parent)} ({corpus.made_by})"
        raise UserError(f"{key}: the folder {folder} does not exist; {there}")


def _listed(folder: Path) -> str:
    return first_names(sorted(path.name for path in folder.iterdir())) or "no files"


def _stem_folders(corpus, split, subset: Path, n_speakers, mixture) -> dict[str, str]:
    """Name of the folder of each stem of a subset; raises a UserError if one is missing."""
    chosen = split == "train" and subset.name in TRAIN_SUBSETS
    _check_folder(subset, "train_subset" if chosen else "data_folder", corpus)
    if n_speakers > 1 and (subset / f"s{n_speakers + 1}").is_dir():
        more = f"{subset} holds mixtures of more speakers (folder s{n_speakers + 1})"
        raise UserError(f"n_speakers: is {n_speakers}, but {more}; set it to match")
    _check_folder(subset / mixture, "data_folder", corpus)
    others = [f"s{j}" for j in range(1, n_speakers + 1)]
    for folder in others:
        _check_folder(subset / folder, f"n_speakers: is {n_speakers}", corpus)
    if mixture in ("mix_both", "mix_single") and (subset / "noise").is_dir():
        others.append("noise")
    return {"mixture": mixture, **{name: name for name in others}}


# ------------------------------------------------------------------ recordings


def _prepare_subset(corpus, subset: Path, stems: dict, manifest_path: Path, columns):
    """Checks a folder with a folder for each stem and writes its manifest.

    Arguments
    ---------
    stems : dict
        Name of the folder of each stem.
    columns : dict of dict or None
        Further columns of each item, the same for all, by its ID.
    """
    sample_rate, channels = corpus.sample_rate, corpus.channels
    names = {stem: _wav_names(subset / folder) for stem, folder in stems.items()}
    if not names["mixture"]:
        folder = subset / stems["mixture"]
        raise UserError(f"data_folder: {folder} holds no wav files; {corpus.made_by}")
    relative = subset.relative_to(corpus.data_folder).as_posix()
    choices = {"subset": relative, "stems": stems, "sample_rate": sample_rate}
    if channels != 1 or columns:
        attributes = json.dumps(columns, sort_keys=True).encode()
        digest = hashlib.sha256(attributes).hexdigest()
        choices |= {"channels": channels, "attributes": digest}
    files = [f"{stems[stem]}/{name}" for stem in stems for name in names[stem]]

    def rows() -> Iterator[dict]:
        everything = sorted(set().union(*names.values()))
        lengths = _check_items(subset, stems, everything, sample_rate, channels)
        for name, frames in lengths.items():
            identity = name.removesuffix(".wav")
            row = {"ID": identity, "duration": frames / sample_rate}
            row["sample_rate"] = sample_rate
            row |= {s: f"{DATA_ROOT}/{relative}/{f}/{name}" for s, f in stems.items()}
            yield row | (columns[identity] if columns else {})

    make_manifest(manifest_path, subset, files, choices, rows)


def _wav_names(folder: Path) -> set[str]:
    """Names of the wav files in a folder, hidden ones left out."""
    return {
        name
        for name in os.listdir(folder)
        if name.endswith(".wav") and not name.startswith(".")
    }


def _check_items(subset, stems, names, sample_rate, channels) -> dict[str, int]:
    """Samples of the items whose recordings were all found in order, by name."""
    paths = [{s: str(subset / f / name) for s, f in stems.items()} for name in names]
    check = partial(_check_item, sample_rate=sample_rate, channels=channels)
    results = threaded_map(check, paths, f"checking {subset.name}")
    problems = [problem for result in results for problem in result.problems]
    advice = "make these files again, or remove the items they belong to"
    bad = [
        BadItem(subset.name.split("-")[0], name.removesuffix(".wav"), sample_rate, of)
        for name, of, result in zip(names, paths, results)
        if result.problems
    ]
    raise_for(problems, "data_folder", advice, bad)
    silent = [result.silent_noise for result in results if result.silent_noise]
    if silent:
        logger.warning(
            "%d silent noise recording(s), the first: %s", len(silent), silent[0]
        )
    lengths = {n: r.frames for n, r in zip(names, results) if not r.problems}
    if not lengths:
        raise UserError(f"data_folder: {subset} holds no item that could be used")
    return lengths


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
            rates = f"has {file.samplerate} Hz, {sample_rate} Hz was expected"
            raise UserError(f"{path}: {rates} (key sample_rate)")
        # Integers are finite, so that one loud second is enough; floats may not be.
        floating = file.subtype in ("FLOAT", "DOUBLE")
        silent = True
        for _, block in audio.read_blocks(file, path, sample_rate):
            if floating and not np.isfinite(block).all():
                raise UserError(f"{path}: holds values that are not finite (NaN, infinity)")
            silent = silent and audio.is_silent(block)
            if not silent and not floating:
                break
        return file.frames, silent


# ------------------------------------------------------------------ binaural mixtures


def placement_in_name(name, n_speakers):
    """Reads listener and directions from a file name of the public anechoic set.

    Arguments
    ---------
    name : str
        Without its ending.
    n_speakers : int
        Talkers in the mixture.

    Returns
    -------
    dict of str
        head, azimuth_1, elevation_1, ..., in degrees, + = left and + = up; empty if the
        name is another one.

    Example
    -------
    >>> placement_in_name("subject_003_011a0101_-45_0.0_01ao030u_30_0.0", 2)
    {'head': 'subject_003', 'azimuth_1': '45.00', 'elevation_1': '0.00', \
'azimuth_2': '-30.00', 'elevation_2': '0.00'}
    """
    talkers = "".join(TALKER.format(j) for j in range(1, n_speakers + 1))
    match = re.fullmatch(rf"(?P<head>subject_?[^_]+){talkers}", name)
    if match is None:
        return {}
    placements = {"head": match["head"]}
    for j in range(1, n_speakers + 1):
        lateral, polar = -float(match[f"azimuth_{j}"]), float(match[f"elevation_{j}"])
        azimuth, elevation = from_interaural_polar(lateral, polar)
        # Adding 0 makes -0.00 a 0.00.
        placements[f"azimuth_{j}"] = f"{azimuth.round(2) + 0.0:.2f}"
        placements[f"elevation_{j}"] = f"{elevation.round(2) + 0.0:.2f}"
    return placements


def _placements(subset: Path, mixture: str, n_speakers: int) -> dict[str, dict] | None:
    """Columns of each item from placements.csv or the names: head, directions; or None."""
    names = [path.stem for path in (subset / mixture).glob("*.wav")]
    listed = subset / PLACEMENTS
    if not listed.is_file():
        placements = {name: placement_in_name(name, n_speakers) for name in names}
        return placements if all(placements.values()) else None
    remedy = "make the corpus again, or remove this file if the directions do not matter"
    try:
        with open(listed, encoding="utf-8", newline="") as file:
            placements = {row.pop("ID"): row for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        what = f"is no CSV file in UTF-8 with a column ID ({error})"
        raise UserError(f"{listed}: {what}; {remedy}") from error
    if missing := sorted(set(names) - set(placements)):
        raise UserError(f"{listed}: does not list {missing[0]}; {remedy}")
    return placements


def _warn_of_wrapped(manifest: Manifest, n_speakers: int) -> None:
    """Says if mixtures are not the sum of their sources, as those of 16 bits often."""
    if "noise" in manifest.stems:
        return
    looked_at = manifest.items[:: max(1, len(manifest) // LOOKED_AT)]
    wrapped = 0
    for item in looked_at:
        stems = ("mixture", *(f"s{j + 1}" for j in range(n_speakers)))
        read = [audio.read(item.paths[stem], channels=EARS)[0] for stem in stems]
        mixture, total = read[0], sum(read[1:])
        differs = abs(mixture - total).max() > 1.0
        wrapped += bool(differs and unexplained(mixture, total) < UNEXPLAINED)
    if wrapped:
        counts = f"in {wrapped} of {len(looked_at)} mixtures looked at"
        what = "16 bits have wrapped around; the sum of the sources is used instead"
        logger.warning("%s: %s, %s", manifest.path, counts, what)
