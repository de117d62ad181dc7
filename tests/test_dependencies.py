"""Who may know whom: each room in a fresh interpreter, and what came along."""

import subprocess
import sys
from pathlib import Path

import pytest

SOUND = {"soundfile", "soxr", "pyloudnorm", "espeakng_loader"}
OTHERS = {"speechbrain", "torchaudio", "hyperpyyaml", "matplotlib", "h5py", *SOUND}

# Room: (rooms that may come along, packages that must not)
ROOMS = {
    "gradients": ({"gradients"}, OTHERS),
    "objectives": ({"objectives", "padding"}, OTHERS),
    "networks": ({"networks", "padding"}, OTHERS),
    "spatial": ({"spatial"}, OTHERS),
    "data": (
        {"data", "errors", "files", "progress", "spatial"},
        OTHERS - SOUND,
    ),
    "evaluation": ({"evaluation", "errors", "files", "objectives", "spatial"}, OTHERS),
    "inference": (
        {
            "inference",
            "networks",
            "errors",
            "files",
            "padding",
            "plain_yaml",
        },
        OTHERS - {"soundfile", "soxr"},
    ),
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_whom_it_may(room):
    allowed, forbidden = ROOMS[room]
    code = f"import sys, unified_se_ss.{room}; print(*sys.modules)"
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    loaded = [name.split(".") for name in done.stdout.split()]
    rooms = {name[1] for name in loaded if name[0] == "unified_se_ss" and len(name) > 1}
    assert rooms <= allowed
    assert not forbidden & {name[0] for name in loaded}
