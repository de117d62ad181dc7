"""What is said of an error that was not foreseen: one message, the rest in a file.

Of errors that the machine is at fault for (memory, disk, permissions, packages) the message
says what to do. All others are bugs of this project, and it says so.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from pathlib import Path

from unified_se_ss.errors import UserError

MENDABLE, BUG, CLOSED_PIPE = 2, 1, 141
WORKERS_ERROR = "Caught UserError in DataLoader worker process"
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|Unable to allocate", re.IGNORECASE
)
WORKER_KILLED = re.compile(r"DataLoader worker.*(killed|exited unexpectedly)|Bus error")
ADVICE = {
    errno.ENOSPC: "the disk is full; make room or choose another folder",
    errno.EDQUOT: "the disk quota is used up; make room or choose another folder",
    errno.EACCES: "permission denied; give yourself permission or choose another folder",
    errno.EPERM: "permission denied; give yourself permission or choose another folder",
    errno.EROFS: "the disk can only be read; choose another folder",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n 65536)",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}

_folder = Path()


def keep_reports_in(folder) -> None:
    """Have reports of crashes written to a folder, instead of the working folder."""
    global _folder
    _folder = Path(folder)


def tell(error: BaseException, debug: bool = False) -> int:
    """Print what is to be said of an error, and return the exit code.

    Arguments
    ---------
    error : BaseException
        What ended the program.
    debug : bool
        Whether to show the traceback.

    Returns
    -------
    int
        2 for what the user can mend; 1 for a bug, whose traceback is then in
        ``crash.txt``; 141 if whoever read the output has gone.

    Example
    -------
    >>> tell(UserError("lr: is -1; expected 0 or more"))  # on standard error
    2
    """
    if isinstance(error, BrokenPipeError):
        _forget_output()
        return CLOSED_PIPE
    message = user_message(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if message is not None:
        _print(f"\nerror: {message}")
        return MENDABLE
    where = "above" if debug else f"in {_report(error)}"
    _print(
        f"\nerror: this is a bug of ours: {_in_short(error)}\n"
        f"The traceback is {where}; please report it"
        + ("" if debug else ", or run again with --debug to see it here")
    )
    return BUG


def _print(message: str) -> None:
    """Print on standard error, also a name that is no text."""
    print(message.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)


def user_message(error: BaseException) -> str | None:
    """What to say of an error that is no bug; None of one that is.

    Example
    -------
    >>> mendable(OSError(errno.ENOSPC, "No space left on device", "a.wav"))
    'a.wav: the disk is full; make room or choose another folder'
    >>> mendable(ZeroDivisionError("division by zero"))
    """
    text = str(error)
    if isinstance(error, UserError):
        return _of_worker(text) if text.startswith(WORKERS_ERROR) else text
    if isinstance(error, MemoryError) or NO_MEMORY.search(text):
        return (
            f"the memory is full ({_in_short(error)}); make the batches or the items smaller "
            "(such as batch_size, batch_seconds, segment_seconds), or the network"
        )
    if WORKER_KILLED.search(text):
        return (
            f"a process that reads data was ended ({_in_short(error)}); as a rule for want "
            "of memory, or of shared memory (/dev/shm): give it more, or --num_workers 0"
        )
    if isinstance(error, ImportError) and not (error.name or "").startswith(
        "unified_se_ss"
    ):
        package = (error.name or "").partition(".")[0]
        advice = f"; install it: pip install {package}" if package else ""
        return f"a package is missing or broken: {_in_short(error)}{advice}"
    if isinstance(error, OSError) and error.errno is not None:
        what = ADVICE.get(error.errno, error.strerror)
        return f"{_end_of(str(error.filename))}: {what}" if error.filename else str(what)
    if "SimpleNamespace' object has no attribute" in text:
        return f"the YAML file has no key {text.split()[-1]}, which this recipe needs"
    if "CUDA error" in text:
        return f"the GPU failed: {_in_short(error)}"
    return None


def _end_of(name: str) -> str:
    """A file's name; the end of one that is too long to be read."""
    return name if len(name) <= 200 else f"...{name[-60:]}"


def _of_worker(text: str) -> str:
    """The message of a UserError that a reading process raised, without its traceback."""
    return text.rpartition("UserError: ")[2].strip()


def _in_short(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0][:300]}" if lines else "")


def _report(error: BaseException) -> Path | str:
    """Write the traceback to a file; its name, or what to do if it cannot be written."""
    rank = os.environ.get("RANK", "0")
    path = _folder / ("crash.txt" if rank == "0" else f"crash.rank{rank}.txt")
    lines = traceback.format_exception(error)
    try:
        path.write_text(
            f"command: {' '.join(sys.argv)}\n\n{''.join(lines)}",
            encoding="utf-8",
            errors="backslashreplace",
        )
    except OSError:
        return "no file, for none could be written"
    return path


def _forget_output() -> None:
    """Have nobody complain at the end that what was printed cannot be delivered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
