"""What the data room may bring along when it is imported."""

import subprocess
import sys

FORBIDDEN = (
    "speechbrain",
    "matplotlib",
    "unified_se_ss.networks",
    "unified_se_ss.brain",
)


def test_import_brings_no_network_along():
    code = "import sys, unified_se_ss.data; print(*sorted(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    came_along = [
        module
        for module in output
        if any(module == name or module.startswith(name + ".") for name in FORBIDDEN)
    ]
    assert "unified_se_ss.data.dataset" in output and came_along == []


def test_public_names_exist():
    import unified_se_ss.data as data

    assert all(hasattr(data, name) for name in data.__all__)
