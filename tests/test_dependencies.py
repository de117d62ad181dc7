"""Folder dependencies: all modules of a folder (or file) in a fresh interpreter, and what came along."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOUND = {"soundfile", "soxr", "pyloudnorm", "espeakng_loader"}
FRAMEWORKS = {"speechbrain", "torchaudio", "hyperpyyaml"}
OTHERS = {"matplotlib", "h5py", "pyroomacoustics", *FRAMEWORKS, *SOUND}
FILES = {"crash", "errors", "files", "progress"}

# Folder: (further ones that it may import, packages that it may not)
FOLDERS = {
    "gradients": (set(), {"scipy", *OTHERS}),
    "losses": ({"padding"}, {"scipy", *OTHERS}),
    "networks": ({"padding"}, {"scipy", *OTHERS}),
    "spatial": (set(), OTHERS),
    "data": ({"losses", "spatial", *FILES}, OTHERS - SOUND),
    "evaluation": ({"data", "losses", "padding", "spatial", *FILES}, OTHERS - SOUND),
    "recognition": ({"padding", *FILES}, OTHERS - FRAMEWORKS),
    "inference": (
        {
            "data",
            "spatial",
            "networks",
            "recognition",
            "aliases",
            "padding",
            "plain_yaml",
            *FILES,
        },
        OTHERS - SOUND - FRAMEWORKS,
    ),
}
# Each folder in a fork of a fresh interpreter, which has torch and NumPy alone.
CODE = """
import importlib, json, os, pkgutil, sys, numpy, torch
for name in sys.argv[1:]:
    if os.fork() == 0:
        folder = importlib.import_module("unified_se_ss." + name)
        for module in pkgutil.walk_packages(getattr(folder, "__path__", []), folder.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        print(json.dumps([name, list(sys.modules)]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def loaded():
    """Modules that are there when all of a folder's are, by folder."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", CODE, *FOLDERS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_it_may(loaded, folder):
    allowed, forbidden = FOLDERS[folder]
    names = [name.split(".") for name in loaded[folder]]
    ours = {name[1] for name in names if name[0] == "unified_se_ss" and len(name) > 1}
    assert ours <= {folder, *allowed}
    assert not forbidden & {name[0] for name in names}
