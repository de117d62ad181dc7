"""Fingerprints, cached arrays and folders (complete or absent), work in parallel."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError, first_names
from unified_se_ss.files import atomic_path, load_whole
from unified_se_ss.progress import progress_bar

FINGERPRINT = "fingerprint.json"
# What a killed build left behind is removed by the first build after this time.
LEFT_OVER_SECONDS = 3600.0
PROGRESS_FROM = 1000  # items in threads that get a progress bar

# ------------------------------------------------------------------ fingerprints


def digest_of(*parts) -> str:
    """SHA-256 of values, arrays and contents of files.

    Arguments
    ---------
    *parts
        Each an array, a Path (the file's name and content count), bytes, or anything that
        JSON can hold.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    UserError
        A file cannot be read.

    Example
    -------
    >>> digest_of({"rate": 8000}, np.zeros(3)) == digest_of({"rate": 8000}, np.zeros(4))
    False
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            head, content = [str(part.dtype), part.shape], part.tobytes()
        elif isinstance(part, Path):
            head, content = part.name, load_whole(part, Path.read_bytes, "a file")
        elif isinstance(part, bytes):
            head, content = None, part
        else:
            head, content = part, b""
        found.update(f"{json.dumps(head)}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()


def fingerprint_of(folder, files: Iterable[str], choices: dict) -> dict:
    """All that something made from a folder of files depends on.

    Arguments
    ---------
    folder : str or Path
        Where it lies does not matter.
    files : iterable of str
        Names relative to the folder; their sizes and modification times count.
    choices : dict
        Everything else that decides what is made, ready for JSON.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        A file is missing, or its name is not UTF-8.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir"))
    >>> _ = (folder / "a.wav").write_bytes(b"1234")
    >>> before = fingerprint_of(folder, ["a.wav"], {"rate": 8000})
    >>> _ = (folder / "a.wav").write_bytes(b"12345")
    >>> before == fingerprint_of(folder, ["a.wav"], {"rate": 8000})
    False
    """
    listing = hashlib.sha256()
    files = sorted(files)
    for name in files:
        status = _status(os.path.join(folder, name))
        listing.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return {"choices": choices, "n_files": len(files), "listing": listing.hexdigest()}


def _status(path: str) -> os.stat_result:
    if any("\ud800" <= letter <= "\udfff" for letter in path):
        raise UserError(f"{ascii(path)}: its name is not text in UTF-8; rename it")
    try:
        return os.stat(path)
    except OSError as error:
        link = f"is a link to {os.readlink(path)}, but " if os.path.islink(path) else ""
        raise UserError(
            f"{path}: {link}cannot be found ({error.strerror}); get it again or remove it"
        ) from error


# ------------------------------------------------------------------ what is kept


def cached_arrays(path: str | Path, make: Callable[[], dict]) -> dict:
    """Arrays of an npz file, which is made if it is missing or damaged.

    Arguments
    ---------
    path : str or Path
        The file. Its name should hold a digest of all that the arrays follow from.
    make : callable
        Returns the arrays by name.

    Returns
    -------
    dict of np.ndarray

    Example
    -------
    >>> path = Path(getfixture("tmpdir")) / "taps.npz"
    >>> cached_arrays(path, lambda: {"taps": np.ones(2)})["taps"]
    array([1., 1.])
    >>> cached_arrays(path, lambda: 1 / 0)["taps"]
    array([1., 1.])
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        arrays = make()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return arrays


def is_made_from(folder: str | Path, fingerprint: dict) -> bool:
    """Tells if a folder, which need not exist, was made from just this."""
    try:
        return json.loads((Path(folder) / FINGERPRINT).read_text()) == fingerprint
    except (OSError, ValueError):
        return False


@contextmanager
def atomic_folder(
    folder: str | Path, fingerprint: dict, what: str, entries: Collection[str] = ()
) -> Iterator[Path]:
    """A temporary folder to build in, which takes the place of `folder` at the end.

    Arguments
    ---------
    folder : str or Path
        The place. An earlier build there is replaced.
    fingerprint : dict
        All that the folder follows from, as JSON would give it back; written into it.
    what : str
        What is made there, for messages.
    entries : collection of str
        Names that an earlier build may hold beside the fingerprint; a folder with anything
        else in it is not replaced.

    Returns
    -------
    contextmanager of Path
        If the block ends with an exception, nothing is left behind and `folder` is as it
        was.

    Raises
    ------
    UserError
        If the folder holds what this program did not make, or the disk refuses.

    Example
    -------
    >>> place = Path(getfixture("tmpdir")) / "corpus"
    >>> with atomic_folder(place, {"seed": 1}, "corpus") as building:
    ...     _ = (building / "a.txt").write_text("all of it")
    >>> is_made_from(place, {"seed": 1}), sorted(path.name for path in place.iterdir())
    (True, ['a.txt', 'fingerprint.json'])
    """
    folder = Path(os.path.abspath(folder))
    _check_replaceable(folder, set(entries), what)
    prefix = f".{folder.name}.incomplete-"
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(folder.parent, prefix)
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        building = temporary / "new"
        building.mkdir()
        yield building
        (building / FINGERPRINT).write_text(json.dumps(fingerprint, indent=2) + "\n")
        # Another process may have built the same meanwhile: either will do.
        if not is_made_from(folder, fingerprint):
            if folder.exists():
                os.rename(folder, temporary / "old")
            os.rename(building, folder)
    except OSError as error:
        fault = f"the {what} cannot be written ({error.strerror or error})"
        raise UserError(f"{folder}: {fault}; choose another folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(folder: Path, ours: set[str], what: str) -> None:
    """Refuses to replace a folder that holds anything that this program did not make."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give another folder for the {what}")
    there = {path.name for path in folder.iterdir()}
    if there and FINGERPRINT not in there:
        fault = f"exists, but is no {what} (it has no {FINGERPRINT})"
        raise UserError(f"{folder}: {fault}; give another folder, or remove this one")
    others = there - ours - {FINGERPRINT}
    if others:
        names = first_names(sorted(others))
        fault = f"holds a {what} that has to be made anew, but also {names}"
        raise UserError(f"{folder}: {fault}; move that away, or give another folder")


def remove_left_over(parent: Path, prefix: str) -> None:
    """Remove files and folders of such names that builds killed long ago left behind."""
    for left_over in parent.glob(f"{prefix}*"):
        if time.time() - left_over.stat().st_mtime > LEFT_OVER_SECONDS:
            if left_over.is_dir():
                shutil.rmtree(left_over, ignore_errors=True)
            else:
                left_over.unlink(missing_ok=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """The same file at a second place; a copy where the disk has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# ------------------------------------------------------------------ in parallel


@contextmanager
def process_pool(workers: int | None = None, chunksize: int = 1) -> Iterator[Callable]:
    """A `map` that keeps the order and runs in several processes.

    Arguments
    ---------
    workers : int, optional
        Processes; by default one for each core. 1 stays in this one.
    chunksize : int
        Jobs that a process takes at a time (default 1).

    Returns
    -------
    contextmanager of callable
    """
    workers = workers or count_cores()
    if workers == 1:
        yield map
        return
    # A fork starts at once; nothing in it may use torch or a device, which could not
    # follow. Elsewhere than on Linux, forks are not safe.
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        try:
            yield functools.partial(executor.map, chunksize=chunksize)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def process_map(
    function: Callable,
    jobs: Collection,
    description: str,
    unit: str = "item",
    workers: int | None = None,
    chunksize: int = 1,
    **bar,
) -> list:
    """Results of a function for each job, in processes, with a progress bar.

    Arguments
    ---------
    function : callable
        Takes a job; what it writes must not depend on other jobs.
    jobs : collection
    description, unit : str
        Of the bar.
    workers, chunksize : int
        As for :func:`process_pool`.
    **bar
        Options of :func:`progress_bar`.

    Example
    -------
    >>> process_map(abs, [-1, 2], "numbers", workers=1)
    [1, 2]
    """
    with process_pool(workers, chunksize) as run:
        return list(progress_bar(run(function, jobs), description, len(jobs), unit, **bar))


def threaded_map(function: Callable, items: Collection, description: str) -> list:
    """Results of a function that mostly waits for the disk, in the order of the items.

    Arguments
    ---------
    function : callable
        Takes an item.
    items : collection
        Many of them get a progress bar.
    description : str
        Stands before the bar.
    """
    count, few = len(items), len(items) < PROGRESS_FROM
    with ThreadPoolExecutor(min(16, 4 * count_cores())) as pool:
        results = pool.map(function, items)
        return list(progress_bar(results, description, count, "item", disable=few))


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
