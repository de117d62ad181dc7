"""Count what makes the host wait for the device; usable on a machine without one.

The profiler sees every operation that the host starts, also those that run inside another
operation, where neither a patched method of `torch.Tensor` nor a dispatch mode looks. An
operation that needs a number on the host to go on is one wait on a GPU, whatever the
device it was counted on. (`tolist` and `numpy` copy without an operation on the CPU; they
are counted at the method.)
"""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

# A scalar fetched (item, float, bool, comparison in an `if`), a result whose shape depends
# on values, a check of a solver's error code.
READING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::_linalg_check_errors",
    "aten::linalg_eig",
    "aten::linalg_lstsq",
}

# On the CPU the kernels of fused optimizers read the number of steps as a scalar; those of
# a GPU read it there.
READS_ON_CPU_ONLY = "aten::_fused_"


class HostReads:
    """Count the reads within a `with` block.

    Example
    -------
    >>> with HostReads() as reads:
    ...     positive = bool(torch.ones(3).sum() > 0)
    >>> reads.count, reads.places
    (1, ['aten::_local_scalar_dense < aten::item < aten::is_nonzero'])
    """

    def __init__(self):
        self.places = []
        self._methods = []
        self._profile = profile(activities=[ProfilerActivity.CPU], acc_events=True)

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self.places)

    def __enter__(self):
        for name in ("tolist", "numpy"):
            patched = patch.object(torch.Tensor, name, self._counted(name))
            patched.start()
            self._methods.append(patched)
        self._profile.__enter__()
        return self

    def __exit__(self, *error):
        self._profile.__exit__(*error)
        for patched in self._methods:
            patched.stop()
        for event in self._profile.events():
            if event.name in READING:
                within = list(_chain(event))
                if not any(name.startswith(READS_ON_CPU_ONLY) for name in within):
                    self.places.append(" < ".join(within))

    def _counted(self, name):
        """A method of Tensor that notes that it was called."""
        original = getattr(torch.Tensor, name)

        def method(tensor, *arguments, **keywords):
            self.places.append(f"Tensor.{name}")
            return original(tensor, *arguments, **keywords)

        return method


def _chain(event):
    """Names of an operation and of those it runs in."""
    while event is not None:
        yield event.name
        event = event.cpu_parent
