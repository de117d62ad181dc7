"""Manifests of single utterances and of noise, for dynamic mixing.

What costs time is measured once and kept: the length of a recording and its loudness.
"""

from __future__ import annotations

import logging
import math
import re
from functools import partial
from pathlib import Path

from unified_se_ss.data import audio
from unified_se_ss.data.cache import process_map
from unified_se_ss.data.corpora import BadItem, list_audio, make_manifest, raise_for
from unified_se_ss.data.manifest import DATA_ROOT
from unified_se_ss.data.mixing import measure_loudness
from unified_se_ss.errors import UserError

KINDS = ("speech", "noise")
# Above the speakers, LibriSpeech has folders of this form.
LIBRISPEECH_SUBSET = re.compile(r"(train|dev|test)-(clean|other)(-[0-9]+)?")
# Starting processes takes seconds, in which one alone measures about this many files.
PROCESSES_FROM = 200

logger = logging.getLogger(__name__)


def prepare_speech_folder(
    folder, manifest_path, sample_rate, kind="speech", resample=False, channel=None
):
    """Measures all recordings below a folder and writes a manifest of them.

    Arguments
    ---------
    folder : str or Path
        Any tree of wav, flac and ogg files. For speech, the first folder below it names
        the speaker (SPEAKER/x.wav, or LibriSpeech's train-clean-360/SPEAKER/CHAPTER/
        x.flac, with or without its first part). It is what `{data_root}` in the
        manifest stands for.
    manifest_path : str or Path
        The CSV file to write; if it is there and nothing changed, it is kept.
    sample_rate : int
        Hz that the mixtures will have.
    kind : str
        "speech" (default) or "noise".
    resample : bool
        Whether recordings of other rates are allowed (default False). They are
        resampled when they are read; the manifest holds their own rate and loudness.
    channel : int, optional
        The channel to take from recordings of several, such as 0 for WHAM noise (as
        LibriMix does). By default they must have one.

    Returns
    -------
    Path
        The manifest: ID, duration, sample_rate, speech or noise (path), speaker (of
        speech), loudness (LUFS), channel (if given). Silent recordings are left out.

    Raises
    ------
    UserError
        If the folder is missing or holds no recordings, speech lies outside of a
        speaker's folder, or recordings are unreadable, of another rate, or of several
        channels.

    Example
    -------
    >>> import numpy as np
    >>> folder = Path(getfixture("tmpdir"))
    >>> audio.write(folder / "in" / "Ann" / "1.wav", np.full(8000, 0.5), 8000)
    >>> path = prepare_speech_folder(folder / "in", folder / "speech.csv", 8000)
    >>> print(path.read_text()[:78])
    ID,duration,sample_rate,speech,speaker,loudness
    Ann/1.wav,1.0,8000,{data_root}
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {KINDS}")
    folder, manifest_path = Path(folder), Path(manifest_path)
    names = list_audio(folder)
    choices = {
        "kind": kind,
        "sample_rate": sample_rate,
        "resample": resample,
        "channel": channel,
    }

    def rows() -> list[dict]:
        speakers = _speakers(folder, names) if kind == "speech" else None
        measure = partial(_measure, folder, sample_rate, resample, channel)
        few = len(names) < PROCESSES_FROM
        workers = 1 if few else None
        what = f"measuring {folder.name}"
        results = process_map(measure, names, what, "file", workers, disable=few)
        measured = dict(zip(names, results))
        faults = {name: m for name, m in measured.items() if isinstance(m, str)}
        bad = [
            BadItem("train", name, sample_rate, {kind: str(folder / name)})
            for name in faults
        ]
        raise_for(list(faults.values()), str(folder), "mend or remove these files", bad)
        good = {name: m for name, m in measured.items() if name not in faults}
        found = _rows(good, kind, speakers, channel)
        if not found:
            raise UserError(f"{folder}: all of its {len(names)} recordings are silent")
        if silent := len(good) - len(found):
            logger.warning("%s: %d silent left out", folder, silent)
        return found

    return make_manifest(manifest_path, folder, names, choices, rows)


def _speakers(folder, names):
    """The speaker of each file by its name: the first folder on its way."""
    speakers = {}
    for name in names:
        folders = name.split("/")[:-1]
        if folders and LIBRISPEECH_SUBSET.fullmatch(folders[0]):
            folders = folders[1:]
        if not folders:
            what = "lies in no speaker's folder; one folder for each was expected"
            raise UserError(f"{folder / name}: {what}")
        speakers[name] = folders[0]
    return speakers


def _measure(folder, sample_rate, resample, channel, name):
    """Length, rate and loudness of a recording, or in words what is wrong with it."""
    path = str(folder / name)
    try:
        rate = audio.info(path).sample_rate
        if rate != sample_rate and not resample:
            return (
                f"{path}: has a sampling rate of {rate} Hz, {sample_rate} Hz was"
                " expected (resample the files, or allow it to be done while reading)"
            )
        signal, _ = audio.read(path, channel=channel)
        return len(signal), rate, measure_loudness(signal, rate)
    except UserError as error:
        return str(error)
    except ValueError as error:
        return f"{path}: {error}"


def _rows(measured, kind, speakers, channel):
    """The rows of the manifest, without silent recordings."""
    rows = []
    for name, (frames, rate, loudness) in measured.items():
        if not math.isfinite(loudness):
            continue
        row = {"ID": name, "duration": frames / rate, "sample_rate": rate}
        row[kind] = f"{DATA_ROOT}/{name}"
        if speakers is not None:
            row["speaker"] = speakers[name]
        row["loudness"] = loudness
        if channel is not None:
            row["channel"] = channel
        rows.append(row)
    return rows
