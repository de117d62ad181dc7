"""Work that is divided over processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def process_pool(workers: int | None = None) -> Iterator[Callable]:
    """A `map` that keeps the order and runs in so many processes.

    Arguments
    ---------
    workers : int, optional
        Processes; by default as many as there are cores for this one. 1 stays in it.

    Returns
    -------
    contextmanager of callable

    Example
    -------
    >>> with process_pool(1) as run:
    ...     list(run(abs, [-1, 2]))
    [1, 2]
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
            yield executor.map
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def count_cores() -> int:
    """Cores that this process may use.

    Example
    -------
    >>> count_cores() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
