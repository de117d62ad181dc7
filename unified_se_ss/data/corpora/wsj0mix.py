"""From the folders of WSJ0-2mix, WSJ0-3mix and Binaural-WSJ0Mix to manifests.

    {data_folder}/wav8k|wav16k/min|max/tr|cv|tt/
        mix|mix_clean|mix_both/  s1/  s2/  [s3/]  [noise/]    *.wav
        placements.csv                                        where this project made it

Binaural files have two channels (left, right). Where the public generator of
Binaural-WSJ0Mix made them, their names say who listens and where the talkers are:

    subject_003_011a0101_-45_0.0_01ao030u_30_22.5.wav     CIPIC's azimuth and elevation

CIPIC's angles are interaural-polar, azimuth + to the right; the manifests hold them in
the one convention of `unified_se_ss.spatial.geometry`. The names of its reverberant
set hold azimuths too, but its right ear heard both ears' filters, so that no direction
is true there and none is told.
"""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path

from unified_se_ss.data import audio
from unified_se_ss.data.binaural import EARS, UNEXPLAINED, unexplained
from unified_se_ss.data.corpora import check_choice
from unified_se_ss.data.corpora.librimix import (
    MODES,
    RATES,
    find_root,
    prepare_subset,
    stem_folders,
)
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.spatial.geometry import from_interaural_polar

FOLDERS = {"train": "tr", "dev": "cv", "test": "tt"}
MIXTURES = ("mix", "mix_clean", "mix_both")
PLACEMENTS = "placements.csv"
LOOKED_AT = 10
NUMBER = r"-?\d+(?:\.\d+)?"
TALKER = rf"_[^_]+_(?P<azimuth_{{0}}>{NUMBER})_(?P<elevation_{{0}}>{NUMBER})"
MADE_BY = (
    "expected are the folders of WSJ0-2mix, or of Binaural-WSJ0Mix as its public "
    "generator or make_binaural_corpus writes them"
)

logger = logging.getLogger(__name__)


def prepare_wsj0mix(
    data_folder,
    manifest_folder,
    n_speakers=2,
    sample_rate=8000,
    mode="min",
    mixture="mix",
):
    """Checks WSJ0-2mix or WSJ0-3mix (one channel) and writes manifests.

    Arguments
    ---------
    data_folder, manifest_folder, n_speakers, sample_rate, mode, mixture
        As for `prepare_binaural_wsj0mix`.

    Returns
    -------
    dict of Path
        The manifests, by "train", "dev" and "test".

    Example
    -------
    >>> prepare_wsj0mix("/no/such", "manifests")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: /no/such does not exist; ...
    """
    return _prepare(
        data_folder, manifest_folder, n_speakers, sample_rate, mode, mixture, channels=1
    )


def prepare_binaural_wsj0mix(
    data_folder,
    manifest_folder,
    n_speakers=2,
    sample_rate=8000,
    mode="min",
    mixture="mix",
):
    """Checks Binaural-WSJ0Mix (two channels) and writes manifests.

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

    Returns
    -------
    dict of Path
        The manifests, by "train", "dev" and "test": stems mixture, s1, ... and noise
        (of mix_both); attributes head, azimuth_1, elevation_1, ... where known.

    Raises
    ------
    UserError
        If a key has no such value, a folder is not of this shape, or recordings are
        missing, unreadable, silent, not binaural, or of unequal length.

    Example
    -------
    >>> prepare_binaural_wsj0mix("/no/such", "manifests")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: /no/such does not exist; ...
    """
    return _prepare(
        data_folder, manifest_folder, n_speakers, sample_rate, mode, mixture, channels=2
    )


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
    told = {"head": match["head"]}
    for j in range(1, n_speakers + 1):
        lateral, polar = -float(match[f"azimuth_{j}"]), float(match[f"elevation_{j}"])
        azimuth, elevation = from_interaural_polar(lateral, polar)
        # Adding 0 makes -0.00 a 0.00.
        told[f"azimuth_{j}"] = f"{azimuth.round(2) + 0.0:.2f}"
        told[f"elevation_{j}"] = f"{elevation.round(2) + 0.0:.2f}"
    return told


def _prepare(
    data_folder, manifest_folder, n_speakers, sample_rate, mode, mixture, channels
):
    for key, value, allowed in (
        ("n_speakers", n_speakers, (2, 3)),
        ("sample_rate", sample_rate, RATES),
        ("mode", mode, MODES),
        ("mixture", mixture, MIXTURES),
    ):
        check_choice(key, value, allowed)
    data_folder, binaural = Path(data_folder), channels == 2
    root = find_root(data_folder, [f"{n_speakers}speakers"], MADE_BY)
    place = root / f"wav{sample_rate // 1000}k" / mode
    kind = f"{'binaural_' * binaural}wsj0-{n_speakers}mix_{place.parent.name}"
    noise = mixture == "mix_both"
    stems = {
        folder: stem_folders(place / folder, n_speakers, mixture, noise, MADE_BY)
        for folder in FOLDERS.values()
    }
    manifests = {}
    for split, folder in FOLDERS.items():
        path = Path(manifest_folder) / f"{kind}_{mode}_{split}_{mixture}.csv"
        columns = _placements(place / folder, mixture, n_speakers) if binaural else None
        prepare_subset(
            data_folder,
            place / folder,
            stems[folder],
            sample_rate,
            path,
            channels,
            columns,
            MADE_BY,
        )
        if binaural:
            _warn_of_wrapped(read_manifest(path, data_folder), n_speakers)
        manifests[split] = path
    return manifests


def _placements(subset, mixture, n_speakers):
    """Columns of each item from placements.csv or the names: head, directions; or None."""
    names = [path.stem for path in (subset / mixture).glob("*.wav")]
    listed = subset / PLACEMENTS
    if listed.is_file():
        told = _told(listed)
        missing = sorted(set(names) - set(told))
        if missing:
            raise UserError(
                f"{listed}: does not list {missing[0]}; make the corpus again, or remove "
                "this file if the directions do not matter"
            )
        return told
    told = {name: placement_in_name(name, n_speakers) for name in names}
    return told if all(told.values()) else None


def _told(listed):
    """Columns of each item that a file of placements names."""
    try:
        with open(listed, encoding="utf-8", newline="") as file:
            return {row.pop("ID"): row for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{listed}: is no CSV file in UTF-8 with a column ID ({error}); make the corpus "
            "again, or remove this file if the directions do not matter"
        ) from error


def _warn_of_wrapped(manifest, n_speakers):
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
        logger.warning(
            "%s: in %d of %d mixtures looked at, 16 bits have wrapped around; the sum of "
            "the sources is used instead of these files",
            manifest.path,
            wrapped,
            len(looked_at),
        )
