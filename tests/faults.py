"""Faults of functions at one of their calls: what kills, signals and full disks do there."""

import importlib
import os
import signal
from pathlib import Path


def kill(_function, *_, **__):
    """What the machine does when the power fails."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(function, *arguments, **options):
    """Just after it was done."""
    function(*arguments, **options)
    kill(function)


def truncate_and_kill(function, *arguments, **options):
    """In the middle of a file: of `torch.save(what, path)`."""
    function(*arguments, **options)
    path = Path(arguments[1])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    kill(function)


def interrupt(function, *arguments, **options):
    """What Ctrl-C sends."""
    os.kill(os.getpid(), signal.SIGINT)
    return function(*arguments, **options)


def terminate(function, *arguments, **options):
    """What a scheduler sends."""
    os.kill(os.getpid(), signal.SIGTERM)
    return function(*arguments, **options)


def install(where, what, call=1):
    """Have the call number `call` of a function ("module:attribute") do something else."""
    module, _, attribute = where.partition(":")
    owner = importlib.import_module(module)
    *path, name = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            return what(function, *arguments, **options)
        return function(*arguments, **options)

    setattr(owner, name, counted)
