"""The bars that say how far a long piece of work is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

# The size taken for a terminal that states none; as tqdm does, a column is left free.
COLUMNS = 80 - 1
ROWS = 24 - 1


def progress_bar(
    iterable: Iterable | None = None,
    description: str = "",
    total: float | None = None,
    unit: str = "it",
    **how,
) -> tqdm:
    """A bar on standard error, as wide as the terminal.

    A terminal that states no size, as in containers, is taken to have 80 columns: tqdm
    itself would show nothing there. A log file gets a line in 10 s.

    Arguments
    ---------
    iterable : iterable, optional
        What is gone through; without it, the caller calls ``update``.
    description : str
        Stands before the bar.
    total : float, optional
        Length of `iterable`, if it has none of its own.
    unit : str
        Name of what is counted.
    **how
        Further options of tqdm, which come before those chosen here.

    Example
    -------
    >>> with progress_bar(range(3), "reading", unit="item", disable=True) as bar:
    ...     sum(bar)
    3
    """
    how = {**_size_and_pace(sys.stderr), **how}
    return tqdm(iterable, description, total, unit=unit, file=sys.stderr, **how)


def _size_and_pace(stream) -> dict:
    """Options of tqdm that depend on where a stream leads."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (AttributeError, OSError, ValueError):  # no terminal
        return {"mininterval": 10}
    if columns and rows:
        return {"mininterval": 0.1, "dynamic_ncols": True}  # follows a window's size
    # Of 0 rows tqdm makes -1, and hides all bars as being further down.
    return {"mininterval": 0.1, "ncols": columns - 1 if columns else COLUMNS, "nrows": ROWS}
