"""One message for all that is wrong with a folder of recordings."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from unified_se_ss.errors import UserError

SHOWN = 10


class BadItem(NamedTuple):
    """An item with which something is wrong: where it is, and its file of each stem."""

    subset: str
    id: str
    sample_rate: int
    paths: dict


_gathered: ContextVar[list | None] = ContextVar("gathered", default=None)


@contextmanager
def collect_errors():
    """Inside, items with which something is wrong are gathered; nothing is raised.

    For an audit, which shall see them all. What is prepared meanwhile lacks these items
    and is not to be trained on.

    Returns
    -------
    contextmanager of list of BadItem

    Example
    -------
    >>> with gathering() as bad:
    ...     raise_for(["a.wav: is empty"], "data_folder", "make it again",
    ...               [BadItem("train", "a", 8000, {"speech": "a.wav"})])
    >>> [item.id for item in bad]
    ['a']
    """
    token = _gathered.set([])
    try:
        yield _gathered.get()
    finally:
        _gathered.reset(token)


def gathered() -> list:
    """What was gathered so far; nothing outside of :func:`collect_errors`."""
    return list(_gathered.get() or ())


def raise_for(problems, key, advice, items=()):
    """Raises one error that names the first problems, if there is any.

    Arguments
    ---------
    problems : list of str
        Each names a file and says what is wrong with it; ten are shown.
    key : str
        The option that names the folder.
    advice : str
        What to do.
    items : list of BadItem
        The items that the problems are of, for :func:`collect_errors`; whoever gives them goes
        on without these items then.

    Raises
    ------
    UserError
        If there are problems.

    Example
    -------
    >>> raise_for(["a.wav: is empty"], "data_folder", "make it again")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: 1 problem(s) with its recordings:
      a.wav: is empty
    What to do: make it again.
    """
    if not problems:
        return
    if items and _gathered.get() is not None:
        _gathered.get().extend(items)
        return
    lines = [f"{key}: {len(problems)} problem(s) with its recordings:"]
    lines += [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    raise UserError("\n".join([*lines, f"What to do: {advice}."]))
