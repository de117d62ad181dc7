"""Make .venv in this folder and install into it what requirements-lock.txt pins.

    python3 scripts/install.py      the same as `make install`, where there is no make

Safe to repeat, and to start twice: a second one waits for the first. What was interrupted
is mended by the same command.
"""

from __future__ import print_function  # so that an old Python can say that it is old

import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
LOG = os.path.join(VENV, "install.log")
INSTALLED = os.path.join(VENV, "installed")
LOCK = os.path.join(ROOT, "requirements-lock.txt")
GIGABYTES = 8  # of the disk; what is installed takes 6.7, and pip unpacks beside it
AGAIN = "Then the same command goes on."
# What pip prints of it, and what is to be done.
CAUSES = [
    (
        r"No space left on device|Disk quota exceeded",
        "The disk is full: make room in %s and in %s. "
        % (ROOT, os.environ.get("TMPDIR", "/tmp"))
        + AGAIN,
    ),
    (
        r"Could not find a version|No matching distribution|ConnectionError|Temporary failure"
        r"|Name or service not known|Connection (broken|refused|reset|timed out)|Max retries"
        r"|Read timed out|SSLError|ProxyError|HTTP error|IncompleteRead",
        "The packages cannot be reached, or the connection broke: look at the network, the "
        "proxy and pip's settings (pip config list). " + AGAIN,
    ),
    (
        r"(gcc|g\+\+|clang|cc|c\+\+)'? ?(failed|: command|: No such)|No such file or directory: '(gcc|g\+\+|cc)|"
        r"unable to execute|error: Microsoft Visual|Failed building wheel|Failed to build",
        "A package has no wheel for this system and needs a C and C++ compiler: install one "
        "(Debian: apt install build-essential python3-dev), or take a Python for which there "
        "are wheels (make PYTHON=python3.12). " + AGAIN,
    ),
    (r"Permission denied", "No permission: %s must be yours. " % ROOT + AGAIN),
]


def stop(message):
    """End with one message, and the exit code of what the user can mend."""
    print("\nerror: " + message, file=sys.stderr)
    sys.exit(2)


def check_python(version=sys.version_info):
    """Stop at a Python that is too old."""
    if tuple(version[:2]) < (3, 10):
        stop(
            "Python 3.10 or later is needed; this one is %d.%d. Name another: "
            "make PYTHON=python3.12, or python3.12 scripts/install.py" % tuple(version[:2])
        )


def wait_for_others():
    """Hold the lock of this folder; the system frees it when this process ends."""
    import fcntl

    lock = open(os.path.join(ROOT, ".install.lock"), "w")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another installation into .venv is going on; waiting for its end")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def is_current():
    """Whether what is installed is newer than all that says what to install."""
    if not os.path.exists(INSTALLED):
        return False
    names = ("requirements-lock.txt", "requirements.txt", "setup.py", "pyproject.toml")
    made = os.path.getmtime(INSTALLED)
    return all(os.path.getmtime(os.path.join(ROOT, name)) <= made for name in names)


def is_usable():
    """Whether .venv is of this Python and has a pip that runs."""
    check = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        found = subprocess.run([PYTHON, "-c", check], capture_output=True, text=True)
    except OSError:
        return False
    return found.stdout.strip() == "%d.%d" % sys.version_info[:2]


def make_venv():
    """Make .venv, or make it anew if it was left half made."""
    if is_usable():
        return
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", VENV],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode or not is_usable():
        cause = cause_of(done.stdout) or (
            "This Python cannot make virtual environments; Debian and Ubuntu keep that in a "
            "package of its own: apt install python3-venv. " + AGAIN
        )
        stop("%s\n%s" % (done.stdout.strip(), cause))


def check_room():
    """Stop if the disk cannot hold what is installed."""
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < GIGABYTES and not os.path.isdir(os.path.join(VENV, "lib")):
        stop(
            "%s has %.1f GB free, and %d are needed (PyTorch brings its GPU libraries): "
            "make room, or put the folder elsewhere. %s" % (ROOT, free, GIGABYTES, AGAIN)
        )


def cause_of(text):
    """The advice that belongs to what pip said, if it is known."""
    return next((advice for what, advice in CAUSES if re.search(what, text)), None)


def count_packages():
    """How many packages the lock may install here, for the progress line."""
    with open(LOCK, encoding="utf-8") as file:
        names = {line.split("==")[0] for line in file if "==" in line}
    return len(names)


def pip(*arguments):
    """Run pip; show one line of progress, and keep all that it says in a file."""
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--progress-bar", "off"] + list(arguments)
    total, done, said = count_packages(), 0, []
    terminal = sys.stdout.isatty()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with open(LOG, "a", buffering=1, encoding="utf-8") as log:
        for line in process.stdout:
            log.write(line)
            said.append(line)
            if line.startswith(("Collecting ", "Requirement already")):
                done += 1
            if terminal and line.startswith(("Collecting", "  Downloading", "Installing")):
                step = line.split(" (")[0].strip()[:56]
                print(
                    "\r\033[K[%d of at most %d] %s" % (done, total, step),
                    end="",
                    flush=True,
                )
    if terminal:
        print("\r\033[K", end="")
    if process.wait():
        text = "".join(said)
        errors = [line for line in said if re.search(r"error", line, re.IGNORECASE)]
        print("".join(errors[-5:]), end="", file=sys.stderr)
        stop("%s All that pip said: %s" % (cause_of(text) or "pip failed.", LOG))


def main():
    """Make and fill .venv, unless that was done."""
    check_python()
    lock = wait_for_others()
    if is_current():
        return
    check_room()
    print("Installing into .venv: some minutes and 7 GB (PyTorch brings its GPU libraries)")
    sys.stdout.flush()
    make_venv()
    if os.path.exists(INSTALLED):
        os.remove(INSTALLED)
    pip("-r", LOCK)
    pip("--no-deps", "--no-build-isolation", "-e", ROOT)
    with open(INSTALLED, "w", encoding="utf-8"):
        pass
    lock.close()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted. The same command goes on.")
    except OSError as error:
        stop("%s. %s" % (error, cause_of(str(error)) or AGAIN))
