"""Folder dependencies: all modules of a folder (or file) in a fresh interpreter, and what came along."""

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
CODE = """
import importlib, pkgutil, sys
import unified_se_ss.{0} as folder
for module in pkgutil.walk_packages(getattr(folder, '__path__', []), folder.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sys.modules)
"""


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_it_may(folder):
    allowed, forbidden = FOLDERS[folder]
    command = [sys.executable, "-c", CODE.format(folder)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    loaded = [name.split(".") for name in done.stdout.split()]
    ours = {name[1] for name in loaded if name[0] == "unified_se_ss" and len(name) > 1}
    assert ours <= {folder, *allowed}
    assert not forbidden & {name[0] for name in loaded}
