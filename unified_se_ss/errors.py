"""Errors that a user can mend, and what is printed of any error that ends a program."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import traceback
from pathlib import Path

#: Values in messages are cut to this many characters.
SHOWN = 60
NAMES_SHOWN = 5
USER_ERROR, BUG, CLOSED_PIPE = 2, 1, 141  #: Exit codes.
# CU…_STATUS_ALLOC_FAILED is what cuBLAS and cuDNN say.
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|Unable to allocate|CU\w+_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
WORKER_KILLED = re.compile(r"DataLoader worker.*(killed|exited unexpectedly)|Bus error")
WORKERS_ERROR = "Caught UserError in DataLoader worker process"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_crash_folder = Path()


class UserError(Exception):
    """Something the user gave is wrong; the message is all that is shown.

    A message says what is wrong, which file or key, what was expected, and what to do.
    The programs print it without a traceback and leave with exit code 2.

    Example
    -------
    >>> raise UserError("data_folder: /data/Libri2Mix does not exist")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: /data/Libri2Mix does not exist
    """


def shortened(value) -> str:
    """A value in few words, as YAML writes it, for messages.

    Example
    -------
    >>> shortened("a" * 1000)[-8:], shortened(None)
    ('aaaaa...', 'null')
    """
    try:
        text = "null" if value is None else repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where there is none."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= 200 else line[:197] + "..."


def first_names(names: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    shown = ", ".join(name[:120] for name in names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} … and {more} more" if more > 0 else shown


def did_you_mean(name, names) -> str:
    """The end of a message about a name that there is not; empty if none is near.

    Example
    -------
    >>> did_you_mean("projekt", ["sum", "project"])
    "; did you mean 'project'?"
    """
    near = difflib.get_close_matches(str(name), list(map(str, names)), 1, 0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def user_message(error: BaseException) -> str | None:
    """Say what to do about an error that is no bug: memory, disk, a missing package.

    Returns
    -------
    str or None
        None for a bug.

    Example
    -------
    >>> user_message(OSError(errno.ENOSPC, "No space left on device", "a.wav"))
    'a.wav: the disk is full; make room or choose another folder'
    >>> user_message(ZeroDivisionError("division by zero"))
    """
    text = str(error)
    if isinstance(error, UserError):
        if text.startswith(WORKERS_ERROR):  # and the worker's traceback
            return text.rpartition("UserError: ")[2].strip()
        return text
    if isinstance(error, MemoryError) or NO_MEMORY.search(text):
        return (
            f"the memory is full ({_summary(error)}); make the batches or the items smaller "
            "(such as batch_size, batch_seconds, segment_seconds), or the network"
        )
    if WORKER_KILLED.search(text):
        return (
            f"a process that reads data was ended ({_summary(error)}); as a rule for want "
            "of memory, or of shared memory (/dev/shm): give it more, or --num_workers 0"
        )
    name = error.name or "" if isinstance(error, ImportError) else None
    if name is not None and not name.startswith("unified_se_ss"):
        package = name.partition(".")[0]
        advice = f"; install it: pip install {package}" if package else ""
        return f"a package is missing or broken: {_summary(error)}{advice}"
    if isinstance(error, OSError) and error.errno is not None:
        full = "the disk is full; make room or choose another folder"
        what = full if error.errno in DISK_FULL else error.strerror
        return f"{str(error.filename)[-200:]}: {what}" if error.filename else what
    return None


def _summary(error: BaseException) -> str:
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def keep_crash_reports_in(folder) -> None:
    """Write later reports of crashes to this folder, not to the working folder."""
    global _crash_folder
    _crash_folder = Path(folder)


def report_error(error: BaseException, debug: bool = False) -> int:
    """Print one message about the error that ends a program.

    Arguments
    ---------
    error : BaseException
        What ended the program.
    debug : bool
        Whether to show the traceback.

    Returns
    -------
    int
        The exit code: 2 for what the user can mend; 1 for a bug, whose traceback is then
        in ``crash.txt``; 141 if whoever read the output has gone.

    Example
    -------
    >>> report_error(UserError("lr: is -1; expected 0 or more"))  # on standard error
    2
    """
    if isinstance(error, BrokenPipeError):
        _discard_output()
        return CLOSED_PIPE
    message = user_message(error)
    code = BUG if message is None else USER_ERROR
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if message is None:
        where = "above" if debug else f"in {_write_crash_report(error)}"
        again = "" if debug else ", or run again with --debug to see it here"
        message = (
            f"this is a bug of ours: {_summary(error)}\n"
            f"The traceback is {where}; please report it{again}"
        )
    # Names of files need not be text.
    text = f"\nerror: {message}".encode("utf-8", "backslashreplace").decode()
    print(text, file=sys.stderr)
    return code


def _discard_output() -> None:
    # Or Python complains at its end that what was printed cannot be delivered.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_crash_report(error: BaseException) -> Path | str:
    rank = os.environ.get("RANK", "0")
    path = _crash_folder / ("crash.txt" if rank == "0" else f"crash.rank{rank}.txt")
    trace = "".join(traceback.format_exception(error))
    report = f"command: {' '.join(sys.argv)}\n\n{trace}"
    try:
        path.write_text(report, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return "no file, for none could be written"
    return path
