"""What a check of a run looks at: batches of a loader, one item's scores, space on disk."""

from __future__ import annotations

import os
import re
import resource
import shutil
from contextlib import suppress
from pathlib import Path

import torch

from unified_se_ss.data.dataset import ItemKey
from unified_se_ss.data.skipping import SkippedItem

GIB = 2**30


def batch_of(loader, indices, epoch: int = 1):
    """A batch of some items, as the loader makes it; those that cannot be used left out."""
    return loader.collate_fn([loader.dataset[ItemKey(epoch, int(i))] for i in indices])


def usable_item(loader, most: int = 20) -> int | None:
    """The shortest of the first items that last a second and can be read, or None."""
    durations = list(loader.dataset.durations)[:1000]
    by_length = sorted(
        range(len(durations)), key=lambda i: (durations[i] < 1, durations[i])
    )
    for index in by_length[:most]:
        if not isinstance(loader.dataset[ItemKey(1, index)], SkippedItem):
            return index
    return None


def planned_batches(loader) -> list[tuple[float, list]]:
    """An epoch's batches with the seconds of audio of each, padding included."""
    durations = loader.dataset.durations
    batches = []
    for keys in loader.batch_sampler:
        indices = [key[1] if isinstance(key, tuple) else key for key in keys]
        longest = max(durations[index] for index in indices)
        batches.append((len(indices) * longest, indices))
    return batches


def middle_of(batch, share: float):
    """The middle of all signals of a batch, in its place.

    Arguments
    ---------
    batch : object
        A batch whose items are equally long; its signals are the tensors with the longest
        last axis.
    share : float
        Of their length.
    """
    tensors, longest = _signals(batch), longest_axis(batch)
    kept = max(1, int(share * longest))
    for name, tensor in tensors.items():
        if tensor.shape[-1] == longest:
            setattr(batch, name, tensor.narrow(-1, (longest - kept) // 2, kept))
    if hasattr(batch, "lengths"):
        batch.lengths = batch.lengths.clamp(max=kept)
    return batch


def longest_axis(batch) -> int:
    """Samples of a batch's signals, padding included; 0 where it has no tensors."""
    return max((tensor.shape[-1] for tensor in _signals(batch).values()), default=0)


def _signals(batch) -> dict:
    """A batch's tensors of floating-point numbers, by name."""
    return {
        name: value
        for name, value in getattr(batch, "__dict__", {}).items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim()
    }


@torch.no_grad()
def scores(brain, batch, stage) -> list[dict]:
    """The rows that a Brain makes of a batch in validation or test."""
    before = getattr(brain, "stage", None), getattr(brain, "rows", [])
    training = brain.modules.training
    brain.stage, brain.rows = stage, []
    brain.modules.eval()
    try:
        brain.evaluate_batch(batch, stage)
        return brain.rows
    finally:
        brain.stage, brain.rows = before
        brain.modules.train(training)


def checkpoint_bytes(brain) -> int:
    """About what a checkpoint takes: the weights, and as much twice for the optimizer."""
    tensors = [*brain.modules.parameters(), *brain.modules.buffers()]
    return 3 * sum(t.numel() * t.element_size() for t in tensors)


def free_bytes(folder) -> int:
    """Free space where a folder is or would be."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def in_units(size: float) -> str:
    """A number of bytes for people.

    Example
    -------
    >>> in_units(3 * 2**30), in_units(5e6)
    ('3.0 GiB', '4.8 MiB')
    """
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


class PeakMemory:
    """The most memory that a block took: of a GPU, else of the process as a whole."""

    def __init__(self, device):
        self.cuda = torch.device(device).type == "cuda"
        self.device = device

    def __enter__(self):
        if self.cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # Linux: forget the peak so far
                Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *_):
        self.bytes = self._device_peak() if self.cuda else self._process_peak()

    def _device_peak(self) -> int:
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    @staticmethod
    def _process_peak() -> int:
        with suppress(OSError):
            status = Path("/proc/self/status").read_text()
            if peak := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE):
                return 1024 * int(peak[1])
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if os.uname().sysname == "Darwin" else 1024 * size

    def __str__(self):
        if not self.cuda:
            return f"{in_units(self.bytes)} (the whole process)"
        total = torch.cuda.get_device_properties(self.device).total_memory
        return f"{in_units(self.bytes)} of {in_units(total)} on the GPU"
