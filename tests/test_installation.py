"""Packages that do not fit, and what installs them: one message each, by stand-ins."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from unified_se_ss import installation

ROOT = Path(__file__).parent.parent
# What torchaudio 2.11.1 says beside torch 2.11.0, and any beside a torch without CUDA
SYMBOL = "libtorchaudio.so: undefined symbol: torch_exception_get_what_without_backtrace"
NO_CUDA = "libc10_cuda.so: cannot open shared object file: No such file or directory"
CUDA = "class version: cuda = '13'"
STARTED = [
    ["train.py", "hparams/demo.yaml"],
    ["recipes/GradientRemedy/train.py", "hparams/demo.yaml"],
    ["ablate.py", "hparams/demo.yaml", "--grid", "rule=sum"],
    ["-m", "unified_se_ss", "check", "."],
    ["-m", "unified_se_ss", "separate", "model", "a.wav", "-o", "out"],
]


def stand_in(folder, name, version, code):
    """A package that is found before the installed one."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    (folder / f"{name}-{version}.dist-info").mkdir()
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )


def run(arguments, folder):
    variables = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    how = {"cwd": ROOT, "env": variables, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, *arguments], check=False, **how)


NO_RUNTIME = "libcudart.so.13: cannot open shared object file"
OTHERS = [
    ("class version: cuda = None", f"raise OSError({NO_CUDA!r})", "is linked to CUDA, and"),
    (f"raise ImportError({NO_RUNTIME!r})", "", "torch 2.98 cannot be loaded (libcudart"),
    (CUDA, "raise ModuleNotFoundError('no', name='torchaudio')", "torchaudio is not inst"),
]
NO_FIT = f"torchaudio 2.99 does not fit torch 2.98 ({SYMBOL})"
FAULTS = [(words, CUDA, f"raise OSError({SYMBOL!r})", NO_FIT) for words in STARTED]
FAULTS += [(["-m", "unified_se_ss", "check", "."], *fault) for fault in OTHERS]


@pytest.mark.parametrize("arguments, torch, audio, message", FAULTS)
def test_a_pair_that_does_not_fit_is_one_message(
    tmp_path, arguments, torch, audio, message
):
    """By stand-ins for both, so that no start costs an import of the real ones."""
    stand_in(tmp_path, "torchaudio", "2.99", audio)
    stand_in(tmp_path, "torch", "2.98", torch)
    done = run(arguments, tmp_path)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    if message == NO_FIT:
        pinned = " ".join(f"{n}=={v}" for n, v in installation.TESTED.items())
        assert f"-m pip install --force-reinstall {pinned}" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 2


def test_the_pair_that_is_named_is_the_locks():
    pinned = {}
    for line in (ROOT / "requirements-lock.txt").read_text().splitlines():
        if line.startswith("torch"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                pinned[requirement.name] = str(requirement.specifier).removeprefix("==")
    assert {name: pinned[name] for name in installation.TESTED} == installation.TESTED


# ------------------------------------------------------------------ scripts/install.py


@pytest.fixture
def install(tmp_path, monkeypatch):
    """The script, as a module, for a copy of the project in a folder."""
    for name in ("requirements.txt", "setup.py", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / "requirements-lock.txt").write_text("absent==1.0\n")
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts/install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("ROOT", "VENV", "PYTHON", "LOG", "INSTALLED", "LOCK"):
        place = Path(getattr(module, name)).relative_to(ROOT)
        monkeypatch.setattr(module, name, str(tmp_path / place))
    return module


def test_an_old_python_is_told_what_to_do(install, capsys):
    with pytest.raises(SystemExit) as left:
        install.check_python((3, 9))
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "this one is 3.9" in said and "make PYTHON=" in said


@pytest.mark.parametrize(
    "said, advice",
    [
        ("ERROR: [Errno 28] No space left on device", "The disk is full"),
        ("WARNING: Retrying … Name or service not known", "look at the network"),
        ("ERROR: Could not find a version that satisfies x", "look at the network"),
        ("urllib3.exceptions.ReadTimeoutError: Read timed out.", "look at the network"),
        ("error: command '/usr/bin/gcc' failed: No such file", "needs a C and C++"),
        ("ERROR: Failed building wheel for ecos", "needs a C and C++ compiler"),
        ("ERROR: something of its own", "pip failed."),
    ],
)
def test_what_pip_fails_of_is_told(install, capsys, said, advice):
    python = Path(install.PYTHON)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "{said}"; exit 1\n')
    python.chmod(0o755)
    with pytest.raises(SystemExit) as left:
        install.pip("-r", install.LOCK)
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert advice in told and install.LOG in told
    assert said in Path(install.LOG).read_text()


def test_a_full_disk_is_seen_before_anything_is_fetched(
    install, tmp_path, monkeypatch, capsys
):
    usage = type("Usage", (), {"free": 2e9})
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SystemExit):
        install.main()
    assert "2.0 GB free, and 8 are needed" in capsys.readouterr().err
    assert not (tmp_path / ".venv").exists()


def test_a_half_made_environment_is_none(install, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    assert not install.is_usable()


def test_it_installs_once_until_the_lock_changes(install, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(install, "make_venv", lambda: (tmp_path / ".venv").mkdir())
    monkeypatch.setattr(install, "pip", lambda *arguments: calls.append(arguments))
    install.main()
    assert len(calls) == 2 and install.is_current()
    install.main()
    assert len(calls) == 2
    os.utime(install.INSTALLED, (0, 0))
    assert not install.is_current()


def test_a_second_one_waits_for_the_first(install, tmp_path):
    lock = install.wait_for_others()
    code = (
        f"import importlib.util as u; s = u.spec_from_file_location('i', {str(install.__file__)!r});"
        f"m = u.module_from_spec(s); s.loader.exec_module(m); m.ROOT = {str(tmp_path)!r};"
        "m.wait_for_others(); print('mine')"
    )
    second = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert "waiting for its end" in second.stdout.readline()
    lock.close()
    assert second.stdout.readline() == "mine\n"
    assert second.wait() == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_names_a_python_that_is_not_there():
    command = ["make", "-B", "install", "PYTHON=python9.9", "VENV=/no/such/place"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "there is no python9.9" in done.stderr
