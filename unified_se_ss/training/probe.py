"""Look at a Brain's batches, and take training steps that leave no trace."""

from __future__ import annotations

import copy
import logging
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from speechbrain import Stage
from speechbrain.utils.distributed import ddp_barrier, if_main_process

from unified_se_ss.data.batching import EmptyBatch, SkippedItem
from unified_se_ss.data.dataset import ItemKey
from unified_se_ss.errors import UserError
from unified_se_ss.gradients import NonFiniteMonitor
from unified_se_ss.training.log import SkippedItems
from unified_se_ss.training.signals import AsyncScalar

# ------------------------------------------------------------------ batches


def batch_of(loader, indices, epoch: int = 1):
    """A batch of some items, as the loader makes it; unusable ones are left out."""
    return loader.collate_fn([loader.dataset[ItemKey(epoch, int(i))] for i in indices])


def short_item(loader, most: int = 20) -> int | None:
    """Index of a short item that lasts a second and can be read, or None.

    Of the first 1000 items, the `most` shortest are tried.
    """
    durations = list(loader.dataset.durations)[:1000]
    by_length = sorted(
        range(len(durations)), key=lambda i: (durations[i] < 1, durations[i])
    )
    for index in by_length[:most]:
        if not isinstance(loader.dataset[ItemKey(1, index)], SkippedItem):
            return index
    return None


def planned_batches(loader) -> list[tuple[float, list]]:
    """Seconds of audio, padding included, and items' indices of an epoch's batches."""
    durations = loader.dataset.durations
    batches = []
    for keys in loader.batch_sampler:
        indices = [key[1] if isinstance(key, tuple) else key for key in keys]
        longest = max(durations[index] for index in indices)
        batches.append((len(indices) * longest, indices))
    return batches


def center_crop(batch, share: float):
    """Cut a batch's signals, the tensors with the longest last axis, to their middle."""
    longest = _longest_axis(batch)
    kept = max(1, int(share * longest))
    for name, tensor in _signals(batch).items():
        if tensor.shape[-1] == longest:
            setattr(batch, name, tensor.narrow(-1, (longest - kept) // 2, kept))
    if hasattr(batch, "lengths"):
        batch.lengths = batch.lengths.clamp(max=kept)
    return batch


def _longest_axis(batch) -> int:
    """Samples of a batch's signals, padding included; 0 where it has no tensors."""
    return max((tensor.shape[-1] for tensor in _signals(batch).values()), default=0)


def _signals(batch) -> dict:
    return {
        name: value
        for name, value in getattr(batch, "__dict__", {}).items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim()
    }


# ------------------------------------------------------------------ room


def checkpoint_bytes(brain) -> int:
    """About the size of a checkpoint: the weights, and twice as much for the optimizer."""
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
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def peak_memory(device) -> str:
    """Most memory in use so far: of a GPU since its statistics were reset, else of the process."""
    if torch.device(device).type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        peak = torch.cuda.max_memory_allocated(device)
        return f"{in_units(peak)} of {in_units(total)} on the GPU"
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size *= 1 if os.uname().sysname == "Darwin" else 1024
    return f"{in_units(size)} (the whole process)"


# ------------------------------------------------------------------ steps


class TrialSteps:
    """Steps of a Brain on the longest items of its training set, within :func:`restoring`.

    Arguments
    ---------
    brain : RecipeBrain
        As its ``on_fit_start`` leaves it, with its ``loaders``.
    """

    def __init__(self, brain):
        self.brain, self.loader = brain, brain.loaders["train"]
        self.durations = np.asarray(self.loader.dataset.durations, dtype=np.float64)
        self._by_length = np.argsort(-self.durations, kind="stable")
        self.longest = float(self.durations.max())
        brain.on_stage_start(Stage.TRAIN, 1)
        brain.modules.train()
        brain.zero_grad(set_to_none=True)

    def batch(self, items: int):
        """A batch of the longest items, and its share of the size that these promise.

        It is less than 1 where recordings are played faster or cannot be used.
        """
        indices = self._by_length[:items]
        batch = self.batch_of(indices)
        promised = float(self.durations[indices].max()) * items
        rate, samples = self.brain.option("sample_rate", None), _longest_axis(batch)
        if rate and samples:
            return batch, min(1.0, samples * len(batch) / rate / promised)
        return batch, len(batch) / items

    def batch_of(self, indices):
        """A batch of items; an error where none of them can be used."""
        batch = batch_of(self.loader, indices)
        if isinstance(batch, EmptyBatch):
            raise UserError(
                "the longest items of the training set cannot be used: "
                f"{batch.skipped[0].reason}; --check looks at all of the data"
            )
        if getattr(batch, "skipped", ()):
            batch.skipped = ()  # training will meet them, and write them down
        return batch

    def forward_and_backward(self, batch) -> None:
        """Everything of a step that grows with the batch; no exchange with other ranks."""
        try:
            self._fit(batch, n_batches=3, accumulation=2)
        finally:
            self.brain.gradients.pending = 0

    def optimizer_step(self, batch) -> None:
        """A full step, after which the optimizer has its memory; all ranks call this."""
        self._fit(batch, n_batches=1, accumulation=1)

    def _fit(self, batch, n_batches: int, accumulation: int) -> None:
        brain = self.brain
        brain.step, brain._batches = 1, n_batches
        brain.grad_accumulation_factor = accumulation
        brain.fit_batch(copy.copy(batch))


@contextmanager
def restoring(brain):
    """Leave a Brain and all random generators as they were, to the last bit.

    A checkpoint of everything that a run resumes from is written, and loaded afterwards.
    All ranks call this.

    Arguments
    ---------
    brain : RecipeBrain
        As its ``on_fit_start`` leaves it, with a checkpointer.
    """
    folder = Path(brain.checkpointer.checkpoints_dir).with_name(".trial")
    scratch = copy.copy(brain.checkpointer)
    scratch.checkpoints_dir = folder
    if if_main_process():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    attributes = dict(vars(brain))
    scratch.save_checkpoint(verbosity=logging.DEBUG)
    brain.nonfinite, brain._votes = NonFiniteMonitor(), AsyncScalar()
    brain.skipped = SkippedItems(folder, 1.0)
    brain.ranks_agree = True  # all have the same batch here, on purpose
    try:
        yield
    finally:
        vars(brain).clear()
        vars(brain).update(attributes)
        brain.zero_grad(set_to_none=True)
        scratch.recover_if_possible()
        ddp_barrier()  # until all ranks have read it
        if if_main_process():
            shutil.rmtree(folder)
