"""Recipes run as a user runs them: in a process of their own; and what they leave."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def as_arguments(keys):
    """The words of a command line that give keys their values."""
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


def run_python(*arguments, expected=0, **how):
    """Run Python on one core; it has to end with the exit code that is expected."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
        **how,
    )
    assert done.returncode == expected, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def rows(path):
    """A CSV file's lines as dicts."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
