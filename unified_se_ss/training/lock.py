"""One run in a folder at a time."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from pathlib import Path

from unified_se_ss.errors import UserError

logger = logging.getLogger(__name__)

NAME = ".lock"
# Locks that this process holds, by file; a lock goes when its file is closed.
_held = {}


def lock_folder(folder) -> None:
    """Have this process be the only one that runs in a folder, until it ends.

    The lock is the operating system's (``fcntl.lockf``): however the process ends, it is
    gone, and nothing needs to be cleared away; the file ``.lock`` only says whose it was.
    It also holds over NFS, where the server has locks; where a file system has none, a
    warning says so. It belongs to this process, not to those that read its data.

    Arguments
    ---------
    folder : str or Path
        Of the run.

    Raises
    ------
    UserError
        Another process runs there; says which.

    Example
    -------
    >>> lock_folder(getfixture("tmpdir"))
    """
    path = Path(folder).resolve() / NAME
    if _held.get(path, (None, 0))[1] == os.getpid():
        return
    try:
        import fcntl
    except ImportError:  # not there on Windows
        return
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, held as long as the process
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"output_folder: {folder} is in use by {holder}; wait until that has "
                "ended, or choose another with --output_folder"
            ) from error
        logger.warning(
            "%s cannot be locked (%s); start one run there at a time", path, error
        )
        return
    file.truncate(0)
    command = " ".join(sys.argv)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()} ({started}: {command})\n")
    file.flush()
    _held[path] = (file, os.getpid())
