"""``--batch_seconds auto`` and ``--precision auto``: found by training steps before the first.

The steps leave no trace (:func:`restoring`).

* Batches of 1, 2, 4 … of the longest items are tried until one is too large for the GPU,
  then those in between; a tenth of the memory is left. All ranks agree on the result, and
  it is kept in the run's folder, so that the same command goes on with the same batches.
* bf16 is taken where the processor multiplies in it and it is measured to be faster. A
  checkpoint holds what was chosen.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from speechbrain import Stage
from speechbrain.utils.autocast import TorchAutocast
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process

from unified_se_ss.data.batching import EmptyBatch
from unified_se_ss.errors import NO_MEMORY, UserError
from unified_se_ss.files import atomic_write
from unified_se_ss.gradients import NonFiniteMonitor
from unified_se_ss.training.distributed import sum_of_ranks
from unified_se_ss.training.hparams import BATCH_SECONDS
from unified_se_ss.training.loaders import batch_of, longest_axis, planned_batches
from unified_se_ss.training.log import SkippedItems
from unified_se_ss.training.options import AUTO
from unified_se_ss.training.signals import AsyncScalar

logger = logging.getLogger(__name__)

MARGIN = 0.1  #: Of the memory, for what fragments and what other lengths need.
FASTER = 1.1  #: Times that bf16 must be as fast as fp32 to be taken.
STEPS = 3  #: Timed in each precision, after one that is not.
# Flags of Linux for x86 and Arm processors that multiply in bf16.
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
FEW_STEPS = 100  #: An epoch of fewer is worth a warning.
ANEW = "put it back to go on with the same batches, or choose another --output_folder"


def load_batch_seconds(brain) -> None:
    """Take over the result of an earlier start of the run, if there was one.

    Raises
    ------
    UserError
        The run has checkpoints, but the result is not there any more; or the device is no
        GPU.
    """
    if brain.option("batch_seconds", None) != AUTO:
        return
    path = Path(brain.hparams.output_folder) / BATCH_SECONDS
    if path.is_file():
        try:
            seconds = float(json.loads(path.read_text(encoding="utf-8"))["batch_seconds"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: does not hold batch_seconds; {ANEW}") from error
        _use(brain, seconds)
        logger.info("batch_seconds: %g, as found when this run began (%s)", seconds, path)
    elif brain.checkpointer is not None and brain.checkpointer.list_checkpoints():
        raise UserError(f"{path}: is not there, but checkpoints are; {ANEW}")
    else:
        memory_of(brain.device)  # an error where it cannot be asked


def find_batch_seconds(brain) -> None:
    """Find how many seconds fit, unless that is known, and have the Brain train with them.

    All ranks call this, after ``on_fit_start``.

    Raises
    ------
    UserError
        Not even the longest item fits.
    """
    if brain.option("batch_seconds", None) != AUTO:
        return
    began = time.perf_counter()
    memory = memory_of(brain.device)
    with restoring(brain):
        steps = TrialSteps(brain)
        # No batch is larger than an epoch; all ranks begin with the same items.
        epoch_seconds = steps.durations.sum() / brain.train_sampler.world_size
        items, peak = _search(steps, memory, max(1, int(epoch_seconds / steps.longest)))
    seconds = items * steps.longest
    _use(brain, seconds)
    found = {
        "batch_seconds": seconds,
        "longest_item_seconds": steps.longest,
        "longest_items": items,
        "device": str(brain.device),
        "peak_bytes": peak,
        "limit_bytes": memory.limit,
        "margin": MARGIN,
    }
    if if_main_process():
        _report(brain, found, time.perf_counter() - began)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # nobody trains before it is written down


def _use(brain, seconds: float) -> None:
    brain.hparams.batch_seconds = seconds
    brain.train_sampler.set_batch_seconds(seconds)


def _report(brain, found: dict, took: float) -> None:
    path = Path(brain.hparams.output_folder) / BATCH_SECONDS
    atomic_write(path, json.dumps(found, indent=2) + "\n")
    steps = len(brain.loaders["train"])
    print(
        f"batch_seconds: {found['batch_seconds']:g} ({found['longest_items']} of the longest "
        f"items, {found['longest_item_seconds']:g} s): {in_units(found['peak_bytes'])} "
        f"of {in_units(found['limit_bytes'])}, which leave {100 * MARGIN:.0f} % free; "
        f"{steps} batches an epoch; found in {took:.1f} s and kept in {path.name}"
    )
    if steps < FEW_STEPS:
        logger.warning(
            f"An epoch has {steps} steps only with batches of {found['batch_seconds']:g} s; "
            "raise lr or number_of_epochs, or set batch_seconds yourself"
        )


# ------------------------------------------------------------------ steps without a trace


class TrialSteps:
    """Steps of a Brain on the longest items of its training set, within :func:`restoring`."""

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
        rate, samples = self.brain.option("sample_rate", None), longest_axis(batch)
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


# ------------------------------------------------------------------ the search


def _search(steps, memory, most: int) -> tuple[int, int]:
    """The largest number of items by trying, and the bytes that it takes."""
    peaks = {}

    def fits(items: int, step=steps.forward_and_backward) -> bool:
        batch, share = steps.batch(items)
        peaks[items] = _peak(step, batch, memory, share)
        return _all_ranks(peaks[items] <= memory.limit, steps.brain.device)

    if not (fits(1, steps.optimizer_step) and fits(1)):
        raise UserError(
            f"batch_seconds: auto finds that the longest item ({steps.longest:.1f} s) alone "
            f"does not fit into {in_units(memory.limit)} of {steps.brain.device}; cut items "
            "with --segment_seconds, or make the network smaller"
        )
    items = _largest(fits, most)
    while items > 1 and not (fits(items) and _many_short_fit(steps, memory, items)):
        items -= max(1, items // 16)
    return items, int(peaks[items])


def _peak(step, batch, memory, share: float) -> float:
    """Bytes of a step at the size that its items' durations promise; inf: too much."""
    idle = memory.now()
    peak = memory.peak(lambda: step(batch))
    return float("inf") if peak is None else idle + max(0, peak - idle) / share


def _many_short_fit(steps, memory, items: int) -> bool:
    """Try the planned batch of most items, whose padding and losses cost memory too."""
    steps.brain.train_sampler.set_batch_seconds(items * steps.longest)
    _, indices = max(planned_batches(steps.loader), key=lambda batch: len(batch[1]))
    peak = _peak(steps.forward_and_backward, steps.batch_of(indices), memory, 1.0)
    return _all_ranks(peak <= memory.limit, steps.brain.device)


def _all_ranks(fits: bool, device) -> bool:
    too_large = sum_of_ranks(torch.tensor(int(not fits), device=device))
    return not too_large


def _largest(fits, most: int) -> int:
    """The largest number up to `most` that fits, if all smaller ones do; 0 if 1 does not.

    Example
    -------
    >>> _largest(lambda n: n <= 37, 1000), _largest(lambda n: True, 5), _largest(bool, 0)
    (37, 5, 0)
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def memory_of(device) -> _GpuMemory:
    """The memory of a GPU; an error for any other device, which would not survive trying."""
    if torch.device(device).type != "cuda":
        raise UserError(
            f"batch_seconds: auto needs a GPU; on {device} set a number of seconds, or "
            "batch_size"
        )
    return _GpuMemory(device)


class _GpuMemory:
    """Bytes of a GPU: ``limit`` may be reserved, the margin left out."""

    def __init__(self, device):
        self.device = device
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        self.limit = int((1 - MARGIN) * (free + self.now()))

    def now(self) -> int:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self.device)

    def peak(self, run) -> int | None:
        """Most bytes reserved while ``run()`` works; None if there were not enough."""
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            run()
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            if not NO_MEMORY.search(str(error)):
                raise
            return None
        return torch.cuda.max_memory_reserved(self.device)


# ------------------------------------------------------------------ precision


@register_checkpoint_hooks
class ChosenPrecision:
    """The precision that ``auto`` has become; a run that is resumed keeps it.

    Example
    -------
    >>> ChosenPrecision().name  # not chosen yet
    """

    name: str | None = None

    @mark_as_saver
    def _save(self, path):
        Path(path).write_text(self.name or "", encoding="utf-8")

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        self.name = Path(path).read_text(encoding="utf-8") or None


def choose_precision(brain) -> None:
    """Train in bf16 if that is faster here, unless that was decided when the run began.

    All ranks call this, after ``on_fit_start``.
    """
    if not brain.option("auto_precision", False):
        return
    chosen = brain.chosen_precision
    if chosen.name is None:
        chosen.name, reason = _measured(brain)
        if if_main_process():
            print(f"precision: {chosen.name} ({reason})")
    if chosen.name == "bf16":
        _use_bf16(brain)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return bool(CPU_FLAGS & set(Path("/proc/cpuinfo").read_text("utf-8").split()))
    except OSError:  # not Linux
        return False


def _measured(brain) -> tuple[str, str]:
    if not _has_bf16(torch.device(brain.device)):
        return "fp32", "auto: this processor does not multiply in bf16"
    with restoring(brain):
        steps = TrialSteps(brain)
        items = brain.option("batch_size", None) or max(
            1, int(brain.hparams.batch_seconds / steps.longest)
        )
        batch, _ = steps.batch(items)
        fp32 = _fastest(steps, batch)
        _use_bf16(brain)
        bf16 = _fastest(steps, batch)
    if torch.distributed.is_initialized():  # the first rank decides
        both = [fp32, bf16]
        torch.distributed.broadcast_object_list(both, src=0)
        fp32, bf16 = both
    taken = "bf16" if fp32 > FASTER * bf16 else "fp32"
    return taken, f"auto: a step takes {fp32:.2g} s in fp32 and {bf16:.2g} s in bf16 here"


def _fastest(steps: TrialSteps, batch) -> float:
    times = []
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        steps.forward_and_backward(batch)
        if steps.brain.device_type == "cuda":
            torch.cuda.synchronize(steps.brain.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _use_bf16(brain) -> None:
    brain.precision = "bf16"
    brain.training_ctx = TorchAutocast(device_type=brain.device_type, dtype=torch.bfloat16)


def in_units(size: float) -> str:
    """A number of bytes for people.

    Example
    -------
    >>> in_units(3 * 2**30), in_units(5e6)
    ('3.0 GiB', '4.8 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
