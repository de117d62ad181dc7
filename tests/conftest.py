"""What all tests share."""

import logging
import os
import sys

import pytest
import speechbrain  # noqa: F401  (its lazy modules must be in sys.modules by now)
import torch
from matplotlib.figure import Figure
from running import draw_nothing
from speechbrain.utils.importutils import LazyModule

# Hypothesis looks at every loaded module; SpeechBrain's lazy ones raise ImportError
# when looked at without their optional packages.
for name, module in list(sys.modules.items()):
    if type(module) is not type(sys) and isinstance(module, LazyModule):
        del sys.modules[name]

savefig = Figure.savefig
draw_nothing()
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """Pictures are drawn in tests that are marked so."""
    if request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture(autouse=True)
def own_log_handlers():
    """Take away the handlers that SpeechBrain adds; they would outlive captured streams."""
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers
