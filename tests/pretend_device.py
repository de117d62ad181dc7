"""A device that there is not, to see on any machine what a step would wait for.

Tensors on the device "meta" have shapes and no values. Operations on them run, and backward
passes too; a number that is fetched from them is an error, as there is none. What a GPU
would do in the background but for a needless wait (a copy that is not `non_blocking`, a
tensor made of Python numbers) is noticed by watching what is dispatched.

:class:`~host_reads.HostReads` sees what this does not: reads within an operation of the CPU.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
TORCH = str(Path(torch.__file__).parent)
COPIES = {"aten::_to_copy", "aten::copy_"}

# What makes a tensor of Python numbers, and sends it to the device while the host waits.
MAKERS = ("tensor", "as_tensor")


def _ctc_shapes(log_probabilities, tokens, *_):
    """Loss of each item, and what its backward pass needs."""
    steps, batch, _ = log_probabilities.shape
    states = log_probabilities.new_empty(batch, steps, 2 * tokens.shape[-1] + 1)
    return log_probabilities.new_empty(batch), states


# What torch cannot run on "meta".
SHAPES = {
    "aten::_ctc_loss": _ctc_shapes,
    "aten::_ctc_loss_backward": lambda _, log_probabilities, *rest: torch.empty_like(
        log_probabilities
    ),
}


class Waits(TorchDispatchMode):
    """Note each wait for the pretended device within a `with` block.

    Example
    -------
    >>> with Waits() as waits:
    ...     x = torch.ones(3).to(DEVICE)
    >>> [wait.partition(" at ")[0] for wait in waits.places]
    ['copy to the device']
    """

    def __init__(self):
        super().__init__()
        self.places = []
        self._patched = [patch.object(torch, name, self._maker(name)) for name in MAKERS]
        optimizers = sys.modules["torch.optim.optimizer"]
        fused = optimizers._get_fused_kernels_supported_devices() + [DEVICE.type]
        name = "_get_fused_kernels_supported_devices"
        self._patched.append(patch.object(optimizers, name, lambda: fused))
        # Autocast does not know the pretended device: nothing is cast there.
        unknown = {
            "autocast": nullcontext(),
            "get_autocast_dtype": torch.float32,
            "is_autocast_enabled": False,
        }
        for name, answer in unknown.items():
            self._patched.append(patch.object(torch, name, _except_there(name, answer)))

    def __enter__(self):
        for patched in self._patched:
            patched.start()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        for patched in self._patched:
            patched.stop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name
        if name in COPIES:
            source, target = _ends(name, args, kwargs)
            blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            if source == target:
                pass
            elif target == DEVICE.type and blocking:
                self._note("copy to the device")
            elif source == DEVICE.type:  # whoever gets it cannot know when it is there
                self._note("copy from the device")
        if name in SHAPES and args[0].device == DEVICE:
            return SHAPES[name](*args)
        return function(*args, **kwargs)

    def _maker(self, name):
        """A function that makes tensors, watched."""
        original = getattr(torch, name)

        def make(*args, **kwargs):
            if _type_of(kwargs.get("device")) == DEVICE.type:
                self._note(f"torch.{name} on the device")
            return original(*args, **kwargs)

        return make

    def _note(self, what):
        """Remember what was waited for, and where outside torch."""
        places = [
            f"{frame.filename}:{frame.lineno}"
            for frame in traceback.extract_stack()
            if not frame.filename.startswith((TORCH, __file__))
        ]
        self.places.append(f"{what} at {places[-1]}")


def _except_there(name, answer):
    """A function of torch that gives another answer for the pretended device."""
    known = getattr(torch, name)

    def asked(device_type=None, *args, **kwargs):
        if device_type == DEVICE.type:
            return answer
        return known(*([] if device_type is None else [device_type]), *args, **kwargs)

    return asked


def _ends(name, args, kwargs):
    """Types of the devices that a copy goes from and to."""
    if name == "aten::copy_":
        return args[1].device.type, args[0].device.type
    source = args[0].device.type
    return source, _type_of(kwargs.get("device")) or source


def _type_of(device):
    """Type of a device that may be given in any way; None where none is given."""
    return None if device is None else torch.device(device).type
