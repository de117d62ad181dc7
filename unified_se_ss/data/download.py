"""Fetch a file over HTTP: go on where it broke off, and keep only what was asked for.

A download grows in ``NAME.part``; beside it, ``NAME.part.json`` notes which version of the
file that is. Under its own name the file appears when its length and checksum are right.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write
from unified_se_ss.progress import progress_bar

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

logger = logging.getLogger(__name__)

BLOCK = 1 << 16
LONGEST_PAUSE = 60.0  # s
PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that are worth another attempt
SPARE = 50_000_000  # bytes that a download leaves free on the disk


@dataclass(frozen=True)
class Patience:
    """How long a download waits and how often it tries again.

    Arguments
    ---------
    attempts : int
        Attempts in a row that bring nothing new, after which it ends (default 6).
    pause : float
        Seconds before the second of them (default 1); doubled each time, up to 60.
    timeout : float
        Seconds in which nothing arrives, after which a connection counts as broken
        (default 30).

    Example
    -------
    >>> [Patience().before(attempt) for attempt in (1, 2, 3, 9)]
    [1.0, 2.0, 4.0, 60.0]
    """

    attempts: int = 6
    pause: float = 1.0
    timeout: float = 30.0

    def before(self, attempt: int, asked: float = 0.0) -> float:
        """Seconds to wait after so many attempts; the server may ask for more."""
        return min(max(self.pause * 2.0 ** (attempt - 1), asked), LONGEST_PAUSE)


@dataclass(frozen=True)
class Wanted:
    """The file that is wanted.

    Arguments
    ---------
    urls : tuple of str
        Where it lies; those after the first are tried where the ones before fail.
    path : Path
        Where it goes.
    length : int or None
        Bytes; None where nobody has published it.
    checksum : str or None
        ``md5:...`` or ``sha256:...``; None where nobody has published one.
    """

    urls: tuple[str, ...]
    path: Path
    length: int | None = None
    checksum: str | None = None

    @property
    def part(self) -> Path:
        """Where it grows."""
        return self.path.with_name(self.path.name + ".part")

    @property
    def notes(self) -> Path:
        """Where it is noted which version of the file grows."""
        return self.path.with_name(self.path.name + ".part.json")


class Broken(Exception):
    """An attempt that failed in a way that may pass; `wait` is what the server asked for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def download(wanted: Wanted, patience: Patience | None = None, show: bool = True) -> Path:
    """Fetch a file, whole and checked.

    What a broken download left is gone on with (``Range``, ``If-Range``). Proxies and
    certificates are taken from the environment (``HTTPS_PROXY``, ``NO_PROXY``,
    ``REQUESTS_CA_BUNDLE``). A file that is there already is checked, and not fetched. Two
    processes that fetch the same file must be kept apart, see :func:`alone`.

    Arguments
    ---------
    wanted : Wanted
        What, from where, and to where.
    patience : Patience, optional
        When to give up.
    show : bool
        Whether to draw a progress bar.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UserError
        It cannot be had, is not what was expected, or has no room on the disk.

    Example
    -------
    >>> path = atomic_write(Path(getfixture("tmpdir")) / "a.txt", "abc")
    >>> there = Wanted((), path, 3, "md5:900150983cd24fb0d6963f7d28e17f72")
    >>> download(there) == path
    True
    """
    patience = patience or Patience()
    if wanted.path.exists():
        check_file(wanted.path, wanted, "move it away to fetch it anew")
        return wanted.path
    try:
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        wanted.part.touch()
        try:
            _fetch_checked(wanted, patience, show)
            os.replace(wanted.part, wanted.path)
            wanted.notes.unlink(missing_ok=True)
        finally:
            _tidy(wanted)
    except OSError as error:
        raise UserError(
            f"{wanted.path}: cannot be written ({error.strerror or error}); what has "
            "arrived is kept in the .part file beside it, and the same command goes on"
        ) from error
    return wanted.path


def _fetch_checked(wanted: Wanted, patience: Patience, show: bool) -> None:
    """Fill the part; if it was patched together and is wrong, once more from the start."""
    for last in (False, True):
        patched = _fetch_from_any(wanted, patience, show)
        try:
            return check_file(wanted.part, wanted, "what was fetched is removed; try again")
        except UserError as error:
            _forget(wanted)
            if last or not patched:
                raise
            logger.warning("%s", error)


def _fetch_from_any(wanted: Wanted, patience: Patience, show: bool) -> None:
    """Fill the part from the first of the places that has the file."""
    for number, url in enumerate(wanted.urls, 1):
        try:
            return _fetch_from(url, wanted, patience, show)
        except UserError as error:
            if number == len(wanted.urls):
                raise
            logger.warning("%s\nTrying %s", error, wanted.urls[number])
    raise UserError(f"{wanted.path.name}: no address was given to fetch it from")


def _fetch_from(url: str, wanted: Wanted, patience: Patience, show: bool) -> None:
    """Fill the part from one place, in as many attempts as bring something new."""
    failed, most = 0, wanted.part.stat().st_size
    while True:
        try:
            return _attempt(url, wanted, patience.timeout, show)
        except Broken as error:
            reached = wanted.part.stat().st_size
            failed = 1 if reached > most else failed + 1
            most = max(most, reached)
            if failed >= patience.attempts:
                raise UserError(
                    f"{url}: {error}; gave up after {failed} attempts that brought nothing "
                    f"new, at {reached:,} bytes. They are kept: the same command goes on. "
                    "Behind a proxy, set HTTPS_PROXY"
                ) from error
            time.sleep(patience.before(failed, error.wait))


# ------------------------------------------------------------------ one attempt


def _attempt(url: str, wanted: Wanted, timeout: float, show: bool) -> bool:
    """Ask once for what is missing, and add it to the part; was there something before?"""
    import requests
    from urllib3.exceptions import HTTPError

    have = _usable(url, wanted)
    if wanted.length is not None and have == wanted.length:
        return True
    headers = {"Accept-Encoding": "identity", **_range(url, wanted, have)}
    try:
        with requests.Session() as session:
            session.max_redirects = 10
            with session.get(
                url, headers=headers, stream=True, timeout=timeout
            ) as response:
                _check_scheme(url, response.url)
                return _take(response, url, wanted, have, show)
    except requests.RequestException as error:
        _say_what_lasts(url, error)
        raise Broken(f"the connection failed ({_reason(error)})") from error
    except HTTPError as error:
        raise Broken(f"the connection broke ({_reason(error)})") from error


def _usable(url: str, wanted: Wanted) -> int:
    """Bytes of the part that can be gone on with; none, if their version is unknown."""
    have = wanted.part.stat().st_size
    known = wanted.checksum is not None or _noted(wanted, url) is not None
    too_long = wanted.length is not None and have > wanted.length
    return have if known and not too_long else 0


def _range(url: str, wanted: Wanted, have: int) -> dict:
    """Headers that ask for the rest, of the same version where the server tells versions."""
    if not have:
        return {}
    version = _noted(wanted, url)
    return {"Range": f"bytes={have}-"} | ({"If-Range": version} if version else {})


def _noted(wanted: Wanted, url: str) -> str | None:
    """The version of which the part is, if it was noted for this address."""
    try:
        notes = json.loads(wanted.notes.read_text(encoding="utf-8"))
        return notes["version"] if notes["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_scheme(asked: str, got: str) -> None:
    """Stop at a redirection from an encrypted address to one that is not."""
    if urlsplit(asked).scheme == "https" and urlsplit(got).scheme != "https":
        raise UserError(f"{asked}: leads to {got}, which is not encrypted; refused")


def _take(response, url: str, wanted: Wanted, have: int, show: bool) -> bool:
    """Write what a response brings, from its place on; was there something before?"""
    if response.status_code == 416:  # there is nothing after what we have
        total = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
        if total and int(total[1]) == have:
            return True
        os.truncate(wanted.part, 0)
        raise Broken("the server has less than what has arrived; it was dropped")
    _check_status(response, url)
    start, total = _place(response, have, wanted)
    if wanted.length is not None and total is not None and total != wanted.length:
        raise UserError(
            f"{url}: the server offers {total:,} bytes of "
            f"{response.headers.get('Content-Type', 'unknown type')}; expected "
            f"{wanted.length:,}. This is another file, or a page of a proxy or a login; "
            "open the address in a browser"
        )
    total = total if wanted.length is None else wanted.length
    check_room(wanted.path.parent, (total or 0) - start)
    _note(response, url, wanted)
    _write(response, wanted, start, total, show)
    return start > 0


def _check_status(response, url: str) -> None:
    """Stop at what no further attempt will change; try again after the rest."""
    status, said = response.status_code, f"{response.status_code} {response.reason}"
    if status in (200, 206):
        return
    if status in PASSING:
        asked = response.headers.get("Retry-After", "")
        raise Broken(f"the server answers {said}", float(asked) if asked.isdigit() else 0)
    raise UserError(
        f"{url}: the server answers {said}; the file has moved, or is not for everybody"
    )


def _place(response, have: int, wanted: Wanted) -> tuple[int, int | None]:
    """Where a response begins, and the length of the whole file, if it says so."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    said = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", said)
    if not found or int(found[1]) != have:
        os.truncate(wanted.part, 0)
        raise Broken(f"the server sends another part than was asked for ({said})")
    return have, None if found[2] == "*" else int(found[2])


def _note(response, url: str, wanted: Wanted) -> None:
    """Note the version of the file; a weak one does not tell two apart."""
    version = response.headers.get("ETag", "")
    if not version or version.startswith("W/"):
        version = response.headers.get("Last-Modified")
    atomic_write(wanted.notes, json.dumps({"url": url, "version": version}))


def _write(response, wanted: Wanted, start: int, total: int | None, show: bool) -> None:
    """Append to the part; more than was announced is never written."""
    with (
        open(wanted.part, "r+b") as file,
        progress_bar(
            description=wanted.path.name,
            total=total,
            unit="B",
            unit_scale=True,
            initial=start,
            disable=not show,
        ) as bar,
    ):
        file.truncate(start)
        file.seek(start)
        done = start
        # What has arrived, at once, so that little is lost with a connection. Undecoded:
        # some servers call a .tar.gz a tar with Content-Encoding gzip.
        read = getattr(response.raw, "read1", response.raw.read)  # urllib3 < 2 has none
        while block := read(BLOCK, decode_content=False):
            done += len(block)
            if total is not None and done > total:
                raise UserError(
                    f"{wanted.path.name}: the server sends more than {total:,} B"
                )
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done < total:
        raise Broken(f"the connection ended {total - done:,} bytes early")


def _say_what_lasts(url: str, error) -> None:
    """Stop at what no further attempt will change: addresses and certificates."""
    import requests

    if isinstance(error, (requests.exceptions.TooManyRedirects, ValueError)):
        raise UserError(f"{url}: {_reason(error)}") from error
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        raise UserError(
            f"{url}: the server's certificate is not trusted; behind a proxy that has its "
            "own, name its file in REQUESTS_CA_BUNDLE"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error, in few words."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


# ------------------------------------------------------------------ checks


def check_file(path: Path, wanted: Wanted, advice: str) -> None:
    """Stop unless a file has the length and the checksum that are wanted.

    Arguments
    ---------
    path : Path
        The file.
    wanted : Wanted
        What it should be; what nobody has published is not checked.
    advice : str
        What to do if it is not.

    Raises
    ------
    UserError
        Says what was found, what was expected, and how the file begins.

    Example
    -------
    >>> page = atomic_write(Path(getfixture("tmpdir")) / "a.zip", "<html>Log in")
    >>> check_file(page, Wanted((), page, 12, "md5:00"), "try again")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: a.zip: its md5 is d50d6b2aea1145d2b097ea6d6e8e3dd5, \
expected 00; it begins with '<html>Log in', so it is a web page and not the file; try again
    """
    found = path.stat().st_size
    if wanted.length is not None and found != wanted.length:
        problem = f"has {found:,} bytes, expected {wanted.length:,}"
    elif wanted.checksum is None:
        return
    else:
        kind, expected = wanted.checksum.split(":")
        digest = digest_of(path, kind)
        if digest == expected:
            return
        problem = f"its {kind} is {digest}, expected {expected}"
    raise UserError(f"{path.name}: {problem}; {_beginning(path)}{advice}")


def digest_of(path, kind: str) -> str:
    """A file's checksum, in hexadecimal digits.

    Example
    -------
    >>> digest_of(atomic_write(Path(getfixture("tmpdir")) / "a.txt", "abc"), "md5")
    '900150983cd24fb0d6963f7d28e17f72'
    """
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _beginning(path: Path) -> str:
    """How a file begins, where that tells what it is instead."""
    with open(path, "rb") as file:
        start = file.read(40)
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        text = start.decode("utf-8", "replace").split("\n")[0]
        return f"it begins with {text!r}, so it is a web page and not the file; "
    return ""


def check_room(folder: Path, needed: int) -> None:
    """Stop if a disk has no room.

    Arguments
    ---------
    folder : Path
        A folder that exists.
    needed : int
        Bytes.

    Raises
    ------
    UserError
        Says how much is needed and how much there is.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise UserError(
            f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; "
            "make room, or choose a folder on another disk"
        )


# ------------------------------------------------------------------ one process, one part


@contextmanager
def alone(path: Path):
    """Hold a file, which is made if need be, so that no other process does the same.

    The hold ends with the process, however that ends.

    Raises
    ------
    UserError
        Another process holds it.
    """
    with open(path, "ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{path}: another process is fetching this; let it finish"
                ) from None
            except OSError:  # a file system without locks
                pass
        yield


def _forget(wanted: Wanted) -> None:
    """Drop what has arrived, because it is wrong."""
    os.truncate(wanted.part, 0)
    wanted.notes.unlink(missing_ok=True)


def _tidy(wanted: Wanted) -> None:
    """Leave no part in which there is nothing."""
    if wanted.part.exists() and wanted.part.stat().st_size == 0:
        wanted.part.unlink()
        wanted.notes.unlink(missing_ok=True)
