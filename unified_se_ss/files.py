"""Files that are written whole or not at all, and read with one message if they are damaged."""

from __future__ import annotations

import csv
import io
import os
import uuid
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from unified_se_ss.errors import UserError, first_line


@contextmanager
def atomic_path(path):
    """Gives a temporary name beside a file; the file appears when all is written.

    When the block ends well, the temporary file takes the place of `path` in one step.
    When it ends with an exception, nothing is left behind and `path` is as it was.

    Arguments
    ---------
    path : str or Path
        The file to write. Folders that are missing on the way are made.

    Returns
    -------
    contextmanager of Path
        The temporary name to write to, in the same folder.

    Raises
    ------
    UserError
        If the file cannot be written (no permission, disk full).

    Example
    -------
    >>> folder = Path(getfixture("tmpdir"))
    >>> with atomic_path(folder / "note.txt") as temporary:
    ...     _ = temporary.write_text("all of it")
    >>> sorted(p.name for p in folder.iterdir())
    ['note.txt']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "choose a folder with write permission and room on the disk"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write(path, content):
    """Writes a file whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file; one of that name is replaced.
    content : str or bytes
        Text is written as UTF-8.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UserError
        If the file cannot be written.

    Example
    -------
    >>> atomic_write(Path(getfixture("tmpdir")) / "a.txt", "whole").read_text()
    'whole'
    """
    content = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def csv_text(rows, columns=None) -> str:
    """A table as the text of a CSV file: a line of names, then a line for each row.

    Arguments
    ---------
    rows : iterable of dict
        Cells by column; what is missing or None is left empty.
    columns : sequence of str, optional
        By default all that occur, in the order in which they do.

    Example
    -------
    >>> csv_text([{"ID": "a", "seconds": 2}, {"ID": "b", "text": "so, so"}])
    'ID,seconds,text\\na,2,\\nb,,"so, so"\\n'
    """
    rows, text = list(rows), io.StringIO()
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    # Of what ends a line, the writer by itself quotes its own alone.
    returns = any("\r" in str(value) for row in rows for value in row.values())
    quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(text, columns, lineterminator="\n", quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def load_whole(path: Path, load, what: str):
    """Load a file; whatever `load` raises is a UserError: it is not `what` (``{}``: the reason)."""
    try:
        return load(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UserError:
        raise
    except Exception as error:  # a loader fails of a bad file in any way there is
        raise UserError(f"{path}: not {what.format(first_line(error))}") from error


def read_checkpoint(path) -> dict:
    """Read a state dictionary that ``torch.save`` wrote; anything else is a UserError."""
    import torch

    load = partial(torch.load, map_location="cpu", weights_only=True)
    what = "a whole checkpoint of weights ({}); nothing in it was run"
    state = load_whole(path, load, what)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in state.items()
    ):
        raise UserError(f"{path}: expected weights by name; it holds something else")
    return dict(state)
