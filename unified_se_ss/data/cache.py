"""Folders of many files that are made as a whole, or not at all.

A fingerprint lies in such a folder and says what all of it follows from. The folder is
built beside its place and moved there when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unified_se_ss.errors import UserError

FINGERPRINT = "fingerprint.json"
# What a killed build left behind is removed by the first build after this time.
LEFT_OVER_SECONDS = 3600.0


def is_made_from(folder: str | Path, fingerprint: dict) -> bool:
    """Tells whether a folder was made from just this.

    Arguments
    ---------
    folder : str or Path
        It need not exist.
    fingerprint : dict
        All that it follows from, as JSON would give it back.

    Returns
    -------
    bool

    Example
    -------
    >>> is_made_from(Path(getfixture("tmpdir")) / "none", {})
    False
    """
    try:
        return json.loads((Path(folder) / FINGERPRINT).read_text()) == fingerprint
    except (OSError, ValueError):
        return False


def check_folder_replaceable(folder: str | Path, ours: set[str], what: str) -> None:
    """Refuses to replace a folder that holds anything that this program did not make.

    Arguments
    ---------
    folder : str or Path
        It need not exist.
    ours : set of str
        Names that may be in it, beside the fingerprint.
    what : str
        What is to be made there, such as "demo corpus".

    Raises
    ------
    UserError
        If it is a file, has no fingerprint, or holds something else as well.

    Example
    -------
    >>> check_folder_replaceable(Path(getfixture("tmpdir")) / "none", set(), "corpus")
    """
    folder = Path(folder)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give another folder for the {what}")
    entries = {path.name for path in folder.iterdir()}
    if not entries:
        return
    if FINGERPRINT not in entries:
        raise UserError(
            f"{folder}: exists, but is no {what} (it has no {FINGERPRINT}), so it "
            f"is left as it is; give another folder for the {what}, or remove this"
        )
    others = entries - ours - {FINGERPRINT}
    if others:
        raise UserError(
            f"{folder}: holds a {what} that has to be made anew, but also "
            f"{', '.join(sorted(others))}, which it does not remove; move that "
            f"elsewhere, or give another folder for the {what}"
        )


@contextmanager
def atomic_folder(folder: str | Path, fingerprint: dict, what: str) -> Iterator[Path]:
    """Gives a temporary folder, which takes the place of `folder` when all is in it.

    Arguments
    ---------
    folder : str or Path
        The place; what is there is replaced (`check_folder_replaceable` comes before).
    fingerprint : dict
        All that the folder follows from; written into it.
    what : str
        What is made there, for messages.

    Returns
    -------
    contextmanager of Path
        The folder to build in. If the block ends with an exception, nothing is left
        behind and `folder` is as it was.

    Raises
    ------
    UserError
        If the disk refuses.

    Example
    -------
    >>> place = Path(getfixture("tmpdir")) / "corpus"
    >>> with atomic_folder(place, {"seed": 1}, "corpus") as building:
    ...     _ = (building / "a.txt").write_text("all of it")
    >>> is_made_from(place, {"seed": 1}), sorted(path.name for path in place.iterdir())
    (True, ['a.txt', 'fingerprint.json'])
    """
    folder = Path(os.path.abspath(folder))
    prefix = f".{folder.name}.incomplete-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(folder.parent, prefix)
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    except OSError as error:
        raise _cannot_write(folder, what, error) from error
    try:
        building = temporary / "new"
        building.mkdir()
        yield building
        (building / FINGERPRINT).write_text(json.dumps(fingerprint, indent=2) + "\n")
        # Another process may have built the same while we did: either will do.
        if not is_made_from(folder, fingerprint):
            if folder.exists():
                os.rename(folder, temporary / "old")
            os.rename(building, folder)
    except OSError as error:
        raise _cannot_write(folder, what, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cannot_write(folder: Path, what: str, error: OSError) -> UserError:
    """What to tell when the disk refuses."""
    return UserError(
        f"{folder}: the {what} cannot be written ({error.strerror or error}); "
        "choose a folder with write permission and room on the disk"
    )


def _remove_left_over(parent: Path, prefix: str) -> None:
    """Remove what builds that were killed long ago left behind."""
    for left_over in parent.glob(f"{prefix}*"):
        if time.time() - left_over.stat().st_mtime > LEFT_OVER_SECONDS:
            shutil.rmtree(left_over, ignore_errors=True)
