"""A torchaudio that does not fit torch is reported before SpeechBrain fails on it.

Whatever is started imports this first: it ends the program with one message and exit code 2.

SpeechBrain imports torchaudio, whose library is linked to one build of torch. A pair that does
not fit fails in there with a traceback that names a symbol; here it is one message.
"""

from __future__ import annotations

import sys
from importlib import metadata

#: The pair of requirements-lock.txt; torch 2.15 needs Python 3.11.
TESTED = {
    "torch": "2.14.1" if sys.version_info < (3, 11) else "2.15.0",
    "torchaudio": "2.11.1",
}


def torchaudio_fault() -> str | None:
    """The message about a torchaudio that cannot be loaded beside torch; None if it can.

    Example
    -------
    >>> torchaudio_fault()
    """
    try:
        import torch
        import torchaudio  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in TESTED:
            raise
        found = f"{error.name} is not installed"
    except (OSError, ImportError, RuntimeError) as error:
        pair = [f"{name} {_version(name)}" for name in TESTED]
        if "torch" not in sys.modules:
            found = f"{pair[0]} cannot be loaded ({_first_line(error)})"
        elif "cuda" in str(error) and torch.version.cuda is None:
            found = (
                f"{pair[1]} is linked to CUDA, and {pair[0]} is a build for the CPU alone: "
                "they do not fit"
            )
        else:
            found = f"{pair[1]} does not fit {pair[0]} ({_first_line(error)})"
    else:
        return None
    pair = " ".join(f"{name}=={version}" for name, version in TESTED.items())
    return (
        f"{found}. Both must be of releases that fit and come from the same place; this pair "
        f"was tested:\n  {sys.executable} -m pip install --force-reinstall {pair}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(unknown)"


def check() -> None:
    """Leave with one message and exit code 2 if torchaudio does not fit torch."""
    fault = torchaudio_fault()
    if fault:
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)


check()
