"""Recipes run as a user runs them, and what they leave."""

import atexit
import csv
import faulthandler
import logging
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent


#: A picture of one dot, as PNG.
DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550"
    "000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)


def draw_nothing():
    """Pictures of matplotlib are a dot from now on; drawing them is half of a small run."""
    Figure.savefig = lambda figure, file, **how: file.write(DOT)


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


def run_script(script, *arguments, expected=0):
    """Run a script like `run_python`, in a fork of this process, which spares its imports."""
    import unified_se_ss.training  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, "stdout"), Path(folder, "stderr")]
        pid = fork(lambda: run_here(str(script), *arguments), *files)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        stdout, stderr = (file.read_text(encoding="utf-8") for file in files)
    assert code == expected, stdout[-2000:] + stderr[-4000:]
    return SimpleNamespace(stdout=stdout, stderr=stderr)


def run_here(script, *arguments):
    """Run a script in this process."""
    sys.argv = [script, *map(str, arguments)]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def fork(function, stdout, stderr=None):
    """Call a function in a fork of this process, which ends with it; its number.

    What it prints is appended to files; to one, if there is no other for errors.
    """
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)  # OpenMP would wait for threads that a fork does not have
    faulthandler.disable()  # pytest's
    logging.root.handlers.clear()
    for number, file in enumerate([stdout, stderr or stdout], 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    atexit._clear()  # this process' own
    code = 0
    try:
        function()
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


def rows(path):
    """A CSV file's lines as dicts."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
