"""Corpora with transcripts: from a corpus' own folders to manifests; utterances within limits."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from unified_se_ss.data import audio
from unified_se_ss.data.cache import threaded_map
from unified_se_ss.data.corpora import make_manifest, raise_for
from unified_se_ss.data.manifest import DATA_ROOT, Item, Manifest
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write, csv_text

USES = ("leave_out", "error")
SHOWN = 5  #: Utterances that a message names.

logger = logging.getLogger(__name__)

# ------------------------------------------------------------------ manifests


@dataclass(frozen=True)
class Utterance:
    """One utterance of a corpus.

    Arguments
    ---------
    id : str
        Unique name.
    speaker : str
        Name of the speaker.
    transcript : str
        Text of what is said.
    files : dict
        Recording by stem (clean, noisy), relative to the corpus' folder. Where other
        utterances have a clean counterpart and this one has none, the manifest says so.
    attributes : dict
        Further columns, the same for all utterances.
    """

    id: str
    speaker: str
    transcript: str
    files: dict
    attributes: dict = field(default_factory=dict)


def write_subsets(
    manifest_folder: Path,
    name: str,
    folder: Path,
    subsets: dict[str, list[Utterance]],
    sample_rate: int,
    resample: bool = False,
) -> dict[str, list[tuple[str, Path, Path]]]:
    """Checks every recording of a corpus and writes a manifest NAME_SUBSET.csv of each subset.

    Arguments
    ---------
    manifest_folder : Path
        Where the manifests go; one that is there is kept if nothing changed.
    name : str
        Of the corpus.
    folder : Path
        The corpus' folder, `{data_root}` in the manifests.
    subsets : dict of list of Utterance
        At least one in each.
    sample_rate : int
        Hz that the recordings must have.
    resample : bool
        Allow other rates (default False), to be resampled when they are read.

    Returns
    -------
    dict
        By subset: kind of manifest (speech), its path, and its data root. A manifest has
        ID, duration, sample_rate, the stems, speaker, transcript, others. Noisy recordings
        without a clean counterpart get a column has_clean, "no" for them, whose column
        clean only repeats the noisy file.

    Raises
    ------
    UserError
        If there are no utterances, two have one name, or a recording is missing,
        unreadable, of another rate, of several channels, or not as long as its pair.
    """
    found = {}
    for subset, utterances in subsets.items():
        path = manifest_folder / f"{name}_{subset}.csv"
        utterances = sorted(utterances, key=lambda utterance: utterance.id)
        _write_subset(path, folder, utterances, sample_rate, resample)
        found[subset] = [("speech", path, folder)]
    return found


def _write_subset(path, folder, utterances, sample_rate, resample) -> None:
    _check_names(folder, utterances, path.stem)
    files = [name for utterance in utterances for name in utterance.files.values()]
    missing = [
        f"{folder / name}: does not exist"
        for name in files
        if not (folder / name).is_file()
    ]
    raise_for(missing, "data_folder", "make these files again, or leave their items out")
    listed = [[u.id, u.speaker, u.transcript, u.files, u.attributes] for u in utterances]
    choices = {"utterances": listed, "sample_rate": sample_rate, "resample": resample}

    def rows() -> list[dict]:
        check = partial(_check_files, folder, sample_rate, resample)
        found = threaded_map(check, utterances, f"checking {folder.name}")
        problems = [result for result in found if isinstance(result, str)]
        raise_for(problems, "data_folder", "mend or remove these recordings")
        return _rows(utterances, found)

    make_manifest(path, folder, files, choices, rows)


def read_text(path: str | Path, role: str) -> str:
    """Reads a text file of a corpus, in UTF-8.

    Arguments
    ---------
    path : str or Path
        The file.
    role : str
        Its expected content, for the message.

    Raises
    ------
    UserError
        If it is missing, or not text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror
    except UnicodeDecodeError:
        reason = "it is not text in UTF-8"
    raise UserError(f"data_folder: {path} cannot be read ({reason}); expected {role}")


def find_files(folder: Path, pattern: str, expected: str) -> list[Path]:
    """Files of a glob pattern in a folder, sorted; raises a UserError if there are none.

    Arguments
    ---------
    expected : str
        The corpus, for the message.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise UserError(f"data_folder: {folder} holds no {pattern}; expected {expected}")
    return found


def _check_names(folder, utterances, subset) -> None:
    if not utterances:
        raise UserError(
            f"data_folder: {folder} holds no utterance that has a transcript ({subset})"
        )
    for one, next_one in zip(utterances, utterances[1:]):
        if one.id == next_one.id:
            raise UserError(f"data_folder: {folder} holds two utterances named {one.id}")


def _check_files(folder, sample_rate, resample, utterance) -> audio.AudioInfo | str:
    """The header of an utterance's files, or in words what is wrong with them."""
    paths = [str(folder / name) for name in utterance.files.values()]
    try:
        infos = [audio.info(path) for path in paths]
    except UserError as error:
        return str(error)
    first = infos[0]
    names = ", ".join(paths)
    if any(info.channels != 1 for info in infos):
        return f"{names}: of several channels, one was expected"
    if any(info != first for info in infos):
        return f"{names}: differ in length or sampling rate"
    if first.sample_rate != sample_rate and not resample:
        return f"{names}: {first.sample_rate} Hz, {sample_rate} Hz was expected"
    return first


def _rows(utterances, infos) -> list[dict]:
    """The lines of the manifest."""
    rows = [
        {
            "ID": utterance.id,
            "duration": info.frames / info.sample_rate,
            "sample_rate": info.sample_rate,
            **{stem: f"{DATA_ROOT}/{name}" for stem, name in utterance.files.items()},
            "speaker": utterance.speaker,
            "transcript": utterance.transcript,
            **utterance.attributes,
        }
        for utterance, info in zip(utterances, infos)
    ]
    if any("noisy" in row and "clean" not in row for row in rows):
        for row in rows:
            row["has_clean"] = "yes" if "clean" in row else "no"
            row.setdefault("clean", row["noisy"])
    return rows


# ------------------------------------------------------------------ limits of utterances


class UtteranceLimits(NamedTuple):
    """Conditions on an utterance that a recognizer can learn from.

    Arguments
    ---------
    max_duration : float or None
        Seconds.
    encode : callable
        Takes a transcript, returns its tokens.
    unknown : callable
        Takes a transcript, returns what in it no token stands for.
    count_frames : callable
        Takes a number of samples, returns the number of frames that CTC aligns with.
    sample_rate : int
        Hz of the samples.
    """

    max_duration: float | None
    encode: object
    unknown: object
    count_frames: object
    sample_rate: int

    def violation(self, item: Item) -> str | None:
        """Says what is wrong with an utterance; None if nothing is."""
        text = item.attributes["transcript"]
        if not text.strip():
            return "its transcript is empty"
        if self.max_duration is not None and item.duration > self.max_duration:
            return f"it lasts {item.duration:.1f} s, longer than max_duration"
        if unknown := self.unknown(text):
            return f"no token stands for {', '.join(map(repr, unknown))}"
        tokens = self.encode(text)
        # CTC needs a frame for each token, and one between two that are equal.
        needed = len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:]))
        frames = self.count_frames(round(item.duration * self.sample_rate))
        if frames < needed:
            return f"its {len(tokens)} tokens need {needed} frames, and it has {frames}"
        return None


def filter_utterances(
    manifest: Manifest, limits: UtteranceLimits, use: str, path
) -> Manifest:
    """Leaves out the utterances of a manifest that cannot be trained on.

    Arguments
    ---------
    manifest : Manifest
        With transcripts.
    limits : UtteranceLimits
        Conditions on an utterance.
    use : str
        ``"leave_out"``: the others are counted, and named in a CSV file with the reason;
        ``"error"``: the first ones are named in an error.
    path : str or Path
        The CSV file; it is not written if all can be used, and removed if it is there.

    Returns
    -------
    Manifest

    Raises
    ------
    UserError
        Some cannot be used and `use` is ``"error"``, or none can.
    """
    reasons = {item.id: limits.violation(item) for item in manifest.items}
    broken = {name: reason for name, reason in reasons.items() if reason}
    path.unlink(missing_ok=True)
    if not broken:
        return manifest
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(broken.items())[:SHOWN])
    more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    if use == "error" or len(broken) == len(manifest):
        raise UserError(
            f"{manifest.path}: {len(broken)} of {len(manifest)} utterances cannot be "
            f"trained on: {shown}{more}. Mend them"
            + (", or leave them out with --unusable leave_out" if use == "error" else "")
        )
    rows = [{"ID": name, "reason": reason} for name, reason in broken.items()]
    atomic_write(path, csv_text(rows))
    logger.warning(
        "%s: %d of %d utterances are left out of training (%s names them): %s%s",
        manifest.path,
        len(broken),
        len(manifest),
        path,
        shown,
        more,
    )
    kept = tuple(item for item in manifest.items if item.id not in broken)
    return replace(manifest, items=kept)
