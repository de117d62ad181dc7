"""Progress is seen in a terminal of any size, and takes few lines of a log."""

import ast
import os
import re
import struct
import subprocess
import sys

import pytest
from running import ROOT, run_python

from unified_se_ss.progress import progress_bar

CODE = """
import os, time
from unified_se_ss.progress import progress_bar
for number in progress_bar(range(3), "reading", unit="item"):
    time.sleep(0.15)
"""
MAKE_NARROWER = "    os.system('stty columns 60 <&2')\n"


def drawn(text):
    """Lines of a log, or those that a terminal shows one over the other."""
    return re.split(r"[\r\n]+", text.strip())


def drawn_in_a_terminal(code, columns, rows):
    pty = pytest.importorskip("pty")  # not on Windows
    import fcntl
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, cwd=ROOT) as process:
        os.close(theirs)
        printed = b"".join(iter(lambda: read(ours), b""))
    os.close(ours)
    assert process.returncode == 0, printed
    return drawn(printed.decode())


def read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux says so that the other side is closed
        return b""


@pytest.mark.parametrize("columns, rows, length", [(0, 0, 79), (120, 24, 119)])
def test_a_terminal_of_any_size_shows_all(columns, rows, length):
    lines = drawn_in_a_terminal(CODE, columns, rows)
    assert {len(line) for line in lines} <= {length, length + 1}  # tqdm before 4.68
    assert all(line.startswith("reading: ") and "item" in line for line in lines)
    assert " 0/3 " in lines[0] and " 1/3 " in lines[1] and " 3/3 " in lines[-1]


def test_a_window_that_is_made_narrower_has_narrower_bars():
    lines = drawn_in_a_terminal(CODE + MAKE_NARROWER, 120, 24)
    assert len(lines[0]) in (119, 120) and len(lines[-1]) in (59, 60)
    assert " 3/3 " in lines[-1]


def test_a_log_has_few_lines():
    first, last = drawn(run_python("-c", CODE).stderr)
    assert " 0/3 " in first
    assert last.startswith("reading: 100%") and " 3/3 " in last and "item" in last


def test_a_stream_that_is_no_file_will_do(capsys):
    assert list(progress_bar(iter("ab"), "reading", 2)) == ["a", "b"]
    assert " 2/2 " in capsys.readouterr().err


def test_all_bars_are_of_this_kind():
    paths = [*ROOT.glob("*.py"), *ROOT.glob("unified_se_ss/**/*.py")]
    paths += ROOT.glob("recipes/**/*.py")
    assert len(paths) > 100
    assert [str(path.relative_to(ROOT)) for path in paths if uses_tqdm(path)] == [
        os.path.join("unified_se_ss", "progress.py")
    ]


def uses_tqdm(path):
    """See whether a module imports tqdm by itself."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    return any(name.partition(".")[0] == "tqdm" for name in imported)
