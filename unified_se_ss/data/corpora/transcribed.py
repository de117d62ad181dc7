"""From a corpus' own folders to a manifest with transcripts, whichever corpus it is."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from unified_se_ss.data import audio
from unified_se_ss.data.cache import count_cores, fingerprint_of
from unified_se_ss.data.manifest import (
    DATA_ROOT,
    is_current,
    write_manifest,
)
from unified_se_ss.data.problems import raise_for
from unified_se_ss.errors import UserError

# From so many files on, there is a progress bar.
PROGRESS_FROM = 1000


@dataclass(frozen=True)
class Spoken:
    """One utterance of a corpus.

    Arguments
    ---------
    id : str
        Unique name.
    speaker : str
        Who says it.
    transcript : str
        What is said.
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


def write_transcribed(
    manifest_path: str | Path,
    folder: str | Path,
    utterances: Iterable[Spoken],
    sample_rate: int,
    resample: bool = False,
) -> Path:
    """Look at every recording of a corpus and write the manifest.

    Arguments
    ---------
    manifest_path : str or Path
        The CSV file to write; if it is there and nothing changed, it is kept.
    folder : str or Path
        The corpus' folder, what `{data_root}` in the manifest stands for.
    utterances : iterable of Spoken
        At least one.
    sample_rate : int
        Hz that the recordings must have.
    resample : bool
        Whether other rates are allowed (default False); they are resampled when they
        are read.

    Returns
    -------
    Path
        The manifest: ID, duration, sample_rate, the stems, speaker, transcript, others.
        Noisy recordings without a clean counterpart get a column has_clean, "no" for
        them, whose column clean only repeats the noisy file.

    Raises
    ------
    UserError
        If there are no utterances, two have one name, or a recording is missing,
        unreadable, of another rate, of several channels, or not as long as its pair.
    """
    folder, manifest_path = Path(folder), Path(manifest_path)
    utterances = sorted(utterances, key=lambda spoken: spoken.id)
    _check_names(folder, utterances, manifest_path.stem)
    files = [name for spoken in utterances for name in spoken.files.values()]
    missing = [
        f"{folder / name}: does not exist" for name in files if not _is_file(folder, name)
    ]
    raise_for(missing, "data_folder", "make these files again, or leave their items out")
    told = [[s.id, s.speaker, s.transcript, s.files, s.attributes] for s in utterances]
    choices = {"utterances": told, "sample_rate": sample_rate, "resample": resample}
    fingerprint = fingerprint_of(folder, files, choices)
    if is_current(manifest_path, fingerprint):
        return manifest_path
    found = _all(lambda s: _look(folder, s, sample_rate, resample), utterances, folder)
    problems = [problem for problem, _ in found if problem]
    raise_for(problems, "data_folder", "mend or remove these recordings")
    rows = [_row(spoken, info) for spoken, (_, info) in zip(utterances, found)]
    _mark_without_clean(rows)
    write_manifest(manifest_path, rows, fingerprint)
    return manifest_path


def read_text(path: str | Path, role: str) -> str:
    """The text of a corpus' file.

    Arguments
    ---------
    path : str or Path
        The file, in UTF-8.
    role : str
        What it should hold, for the message.

    Returns
    -------
    str

    Raises
    ------
    UserError
        If it is missing, or not text.

    Example
    -------
    >>> read_text("no_such.txt", "what a.wav says")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: no_such.txt cannot be read (No such file \
or directory); expected what a.wav says
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror
    except UnicodeDecodeError:
        reason = "it is not text in UTF-8"
    raise UserError(f"data_folder: {path} cannot be read ({reason}); expected {role}")


def _is_file(folder, name) -> bool:
    return (folder / name).is_file()


def _check_names(folder, utterances, subset) -> None:
    """Stop if there is nothing, or if two utterances have one name."""
    if not utterances:
        raise UserError(
            f"data_folder: {folder} holds no utterance that has a transcript ({subset})"
        )
    for one, next_one in zip(utterances, utterances[1:]):
        if one.id == next_one.id:
            raise UserError(f"data_folder: {folder} holds two utterances named {one.id}")


def _all(look, utterances, folder) -> list:
    """What `look` says of every utterance, with a progress bar if they are many."""
    with ThreadPoolExecutor(4 * count_cores()) as pool:
        results = pool.map(look, utterances)
        if len(utterances) >= PROGRESS_FROM:
            from unified_se_ss.progress import progress_bar

            checking = f"checking {folder.name}"
            results = progress_bar(results, checking, len(utterances), "item")
        return list(results)


def _look(folder, spoken, sample_rate, resample):
    """What is wrong with an utterance, in words, or None; and what its files are."""
    try:
        infos = {stem: audio.info(str(folder / n)) for stem, n in spoken.files.items()}
    except UserError as error:
        return str(error), None
    first, *others = infos.values()
    names = ", ".join(str(folder / name) for name in spoken.files.values())
    if any(info.channels != 1 for info in infos.values()):
        return f"{names}: of several channels, one was expected", None
    if any(info[:2] != first[:2] for info in others):
        return f"{names}: differ in length or sampling rate", None
    if not first.frames:
        return f"{names}: holds no samples", None
    if first.sample_rate != sample_rate and not resample:
        return f"{names}: {first.sample_rate} Hz, {sample_rate} Hz was expected", None
    return None, first


def _row(spoken, info) -> dict:
    """The line of an utterance."""
    return {
        "ID": spoken.id,
        "duration": info.frames / info.sample_rate,
        "sample_rate": info.sample_rate,
        **{stem: f"{DATA_ROOT}/{name}" for stem, name in spoken.files.items()},
        "speaker": spoken.speaker,
        "transcript": spoken.transcript,
        **spoken.attributes,
    }


def _mark_without_clean(rows) -> None:
    """Say of every line whether it has a clean recording, where a noisy one lacks it."""
    if not any("noisy" in row and "clean" not in row for row in rows):
        return
    for row in rows:
        row["has_clean"] = "yes" if "clean" in row else "no"
        row.setdefault("clean", row["noisy"])
