"""The code is clean under ruff and mypy, and what it needs is declared and pinned."""

import ast
import importlib.util
import re
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import unified_se_ss

ROOT = Path(__file__).resolve().parent.parent

#: Distributions that are not named as what they are imported as.
DISTRIBUTIONS = {"PIL": "pillow", "ruamel": "ruamel.yaml", "yaml": "pyyaml"}
#: What is required though nothing here imports it, and why.
NOT_IMPORTED = {"mir-eval": "the judge of the tests and benchmarks"}


# ------------------------------------------------------------------ clean


def clean(tool, *arguments):
    """Run a tool over the whole project; fail with what it says."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed; pip install -e '.[dev]'")
    command = [sys.executable, "-m", tool, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_ruff_has_nothing_to_say():
    clean("ruff", "check", ".")


def test_the_code_is_formatted():
    clean("ruff", "format", "--check", ".")


def test_the_types_are_right():
    if tuple(map(int, version("torch").split(".")[:2])) < (2, 14):
        pytest.skip("an older torch states other types")
    clean("mypy")


# ------------------------------------------------------------------ declared


def imported():
    """Distributions of all that is imported, at the top of a file or within it."""
    sources = [ROOT / "train.py", ROOT / "ablate.py", *(ROOT / "recipes").rglob("*.py")]
    here = {"unified_se_ss", *(path.stem for path in sources)}
    names = set()
    for path in [*sources, *(ROOT / "unified_se_ss").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
    names = {name.partition(".")[0] for name in names}
    foreign = names - here - sys.stdlib_module_names
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in foreign}


@pytest.fixture
def declared(monkeypatch):
    """Requirements by the extra that asks for them; those of all under an empty name."""
    given = {}
    pretended = SimpleNamespace(setup=given.update, find_packages=lambda **_: [])
    monkeypatch.setitem(sys.modules, "setuptools", pretended)
    runpy.run_path(str(ROOT / "setup.py"))
    declared = {"": given["install_requires"], **given["extras_require"]}
    return {extra: list(map(Requirement, lines)) for extra, lines in declared.items()}


def names_of(requirements):
    return {canonicalize_name(requirement.name) for requirement in requirements}


def test_every_import_is_declared(declared):
    missing = imported() - names_of(sum(declared.values(), []))
    assert not missing, "name it in requirements.txt or in an extra of setup.py"


def test_every_requirement_is_imported(declared):
    assert names_of(declared[""]) - imported() == set(NOT_IMPORTED)


def test_the_lock_pins_what_is_asked_for(declared):
    lines = (ROOT / "requirements-lock.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in lines:
        if not line.startswith("#"):
            pin = re.fullmatch(r"([a-z0-9-]+)==([^\s;*]+)( ; [^;]+)?", line)
            assert pin, line
            pins.setdefault(pin[1], []).append(pin[2])
    for extra in ("", "demo", "test", "dev"):
        for wanted in declared[extra]:
            pinned = pins.get(canonicalize_name(wanted.name), [])
            assert pinned and all(map(wanted.specifier.contains, pinned)), (extra, wanted)


def test_what_is_to_be_cited_is_this_version():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {unified_se_ss.__version__}\n" in cited
