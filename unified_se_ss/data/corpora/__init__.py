"""Folders of other people's corpora become manifests: the steps that all of them share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from unified_se_ss.data.cache import fingerprint_of
from unified_se_ss.data.manifest import is_current, write_manifest
from unified_se_ss.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg")
SHOWN = 10  #: Problems of a folder that one message names.

# ------------------------------------------------------------------ steps


def check_choice(key: str, value, allowed: tuple) -> None:
    """Raises a UserError for a key with a value that a corpus does not have."""
    if value not in allowed:
        expected = ", ".join(map(str, allowed))
        raise UserError(f"{key}: {value!r}, but one of {expected} was expected")


def list_audio(folder: Path) -> list[str]:
    """Names of the wav, flac and ogg files below a folder, relative to it, sorted.

    Hidden files are left out; links are followed unless they lead back.

    Raises
    ------
    UserError
        If there is no such folder, no such file, or a folder that cannot be read, since its
        recordings would be missing.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: does not exist; a folder of wav, flac or ogg files was expected"
        )
    names = []
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not _leads_back(parent, name)
        ]
        here = Path(parent).relative_to(folder)
        names += [
            (here / name).as_posix()
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    if not names:
        raise UserError(f"{folder}: holds no wav, flac or ogg file")
    return sorted(names)


def _refuse(error: OSError) -> None:
    what = f"cannot be looked into ({error.strerror})"
    raise UserError(f"{error.filename}: {what}") from error


def _leads_back(parent: str, name: str) -> bool:
    path = os.path.join(parent, name)
    if not os.path.islink(path):
        return False
    target, here = os.path.realpath(path), os.path.realpath(parent)
    return os.path.commonpath([target, here]) == target


def make_manifest(
    path: Path,
    folder: Path,
    files: Iterable[str],
    choices: dict,
    measure: Callable[[], Iterable[dict]],
) -> Path:
    """Writes a manifest, unless it is there and nothing that it follows from changed.

    Arguments
    ---------
    path : Path
        The CSV file.
    folder : Path
        The folder that the files are in.
    files : iterable of str
        Names relative to it.
    choices : dict
        Everything else that decides what the manifest will be, ready for JSON.
    measure : callable
        Returns the rows; called only where they are needed.

    Returns
    -------
    Path
        The manifest.

    Raises
    ------
    UserError
        A file is missing, or the manifest is out of date but was edited by hand.
    """
    fingerprint = fingerprint_of(folder, files, choices)
    if not is_current(path, fingerprint):
        write_manifest(path, list(measure()), fingerprint)
    return path


# ------------------------------------------------------------------ all that is wrong


class BadItem(NamedTuple):
    """An item with which something is wrong: where it is, and its file of each stem."""

    subset: str
    id: str
    sample_rate: int
    paths: dict


_collected: list[BadItem] | None = None


@contextmanager
def collect_errors() -> Iterator[list[BadItem]]:
    """Inside, items with which something is wrong are collected; nothing is raised.

    For an audit, which shall see them all. What is prepared meanwhile lacks these items
    and is not to be trained on.

    Returns
    -------
    contextmanager of list of BadItem

    Example
    -------
    >>> with collect_errors() as bad:
    ...     raise_for(["a.wav: is empty"], "data_folder", "make it again",
    ...               [BadItem("train", "a", 8000, {"speech": "a.wav"})])
    >>> [item.id for item in bad]
    ['a']
    """
    global _collected
    _collected = []
    try:
        yield _collected
    finally:
        _collected = None


def collected_errors() -> list[BadItem]:
    """The items that were collected so far; none outside of :func:`collect_errors`."""
    return list(_collected or ())


def raise_for(
    problems: list[str], key: str, advice: str, items: Iterable[BadItem] = ()
) -> None:
    """Raises one error that names the first problems, if there is any.

    Arguments
    ---------
    problems : list of str
        Each names a file and says what is wrong with it; ten are shown.
    key : str
        The option that names the folder.
    advice : str
        What to do.
    items : iterable of BadItem
        The items that the problems are of, for :func:`collect_errors`; whoever gives them
        goes on without these items then.

    Raises
    ------
    UserError
        If there are problems.
    """
    items = list(items)
    if not problems:
        return
    if items and _collected is not None:
        _collected.extend(items)
        return
    lines = [f"{key}: {len(problems)} problem(s) with its recordings:"]
    lines += [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    raise UserError("\n".join([*lines, f"What to do: {advice}."]))
