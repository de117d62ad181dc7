"""``--batch_seconds auto``: as many seconds of audio in a batch as the memory holds.

Found before the first step by training steps that leave no trace
(:mod:`unified_se_ss.training.dry_run`), agreed on by all ranks, and kept in the run's folder, so
that the same command goes on with the same batches.

* On a GPU batches of 1, 2, 4 … of the longest items are tried until one is too large, then
  those in between; a tenth of the memory is left.
* On a CPU, where a process that takes too much is killed, small batches are measured and the
  rest is foretold: memory that grows with the items, their length, and its square
  (attention). A fifth of what is free is left.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.distributed import if_main_process

from unified_se_ss.crash import NO_MEMORY
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write
from unified_se_ss.training.dry_run import TrialSteps, as_it_was
from unified_se_ss.training.probe import PeakMemory, in_units, planned_batches
from unified_se_ss.training.scratch_dir import BATCH_SECONDS
from unified_se_ss.training.values import AUTO

logger = logging.getLogger(__name__)

GPU_MARGIN = 0.1  #: Of the memory, for what fragments and what other lengths need.
CPU_MARGIN = 0.2  #: Likewise, and for the processes that read.
CROP_SECONDS = 4.0  #: Items measured on a CPU are no longer.
ENOUGH = 512 * 2**20  #: Bytes by which two measurements on a CPU shall differ,
PATIENCE = 30.0  #: unless a step takes more seconds than this.
FEW_STEPS = 100  #: An epoch of fewer is worth a warning.
NO_ROOM = re.compile(r"CU\w+_STATUS_ALLOC_FAILED")  # what cuBLAS and cuDNN say instead


def load_batch_seconds(brain) -> None:
    """Take over what an earlier start of the run has found, if there was one.

    Arguments
    ---------
    brain : RecipeBrain
        With its ``loaders``; nothing is done unless its ``batch_seconds`` is auto.

    Raises
    ------
    UserError
        The run has checkpoints, but what it had found is not there any more.
    """
    if brain.option("batch_seconds", None) != AUTO:
        return
    path = Path(brain.hparams.output_folder) / BATCH_SECONDS
    if path.is_file():
        try:
            seconds = float(json.loads(path.read_text(encoding="utf-8"))["batch_seconds"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}: does not hold batch_seconds any more; mend it, or start anew "
                "with another --output_folder"
            ) from error
        _use(brain, seconds)
        logger.info("batch_seconds: %g, as found when this run began (%s)", seconds, path)
    elif brain.checkpointer is not None and brain.checkpointer.list_checkpoints():
        raise UserError(
            f"{path}: is not there, but checkpoints are; the run cannot go on with the same "
            "batches. Put it back, or start anew with another --output_folder"
        )


def find_batch_seconds(brain) -> None:
    """Find how many seconds fit, unless that is known, and have the Brain train with them.

    Arguments
    ---------
    brain : RecipeBrain
        As its ``on_fit_start`` leaves it, with its ``loaders``; all ranks call this.

    Raises
    ------
    UserError
        Not even the longest item fits, or this kind of device cannot be asked.
    """
    options = brain.option("options", None)
    if brain.option("batch_seconds", None) != AUTO or getattr(options, "replay", None):
        return  # a replay has its batch
    began = time.perf_counter()
    memory = memory_of(brain.device)
    with as_it_was(brain):
        steps = TrialSteps(brain)
        world = brain.train_sampler.world_size
        # No batch is larger than an epoch; all ranks begin with the same items.
        most = max(1, int(steps.durations.sum() / world / steps.longest))
        search = _tried if memory.can_be_tried else _foretold
        items, peak = search(steps, memory, most)
    seconds = items * steps.longest
    _use(brain, seconds)
    found = {
        "batch_seconds": seconds,
        "longest_item_seconds": steps.longest,
        "longest_items": items,
        "device": str(brain.device),
        "peak_bytes": peak,
        "peak_is": "measured" if memory.can_be_tried else "foretold",
        "limit_bytes": memory.limit,
        "margin": memory.margin,
    }
    if if_main_process():
        _tell(brain, found, time.perf_counter() - began)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # nobody trains before it is written down


def _use(brain, seconds: float) -> None:
    """Have batches of so many seconds."""
    brain.hparams.batch_seconds = seconds
    brain.train_sampler.set_batch_seconds(seconds)


def _tell(brain, found: dict, took: float) -> None:
    """Write down what was found, and say so."""
    path = Path(brain.hparams.output_folder) / BATCH_SECONDS
    atomic_write(path, json.dumps(found, indent=2) + "\n")
    steps = len(brain.loaders["train"])
    print(
        f"batch_seconds: {found['batch_seconds']:g} ({found['longest_items']} of the longest "
        f"items, {found['longest_item_seconds']:g} s): {in_units(found['peak_bytes'])} "
        f"{found['peak_is']} of {in_units(found['limit_bytes'])}, which leave "
        f"{100 * found['margin']:.0f} % free; {steps} batches an epoch; found in {took:.1f} s "
        f"and kept in {path.name}"
    )
    if steps < FEW_STEPS:
        logger.warning(
            "An epoch has %d steps only with batches of %g s. What fits need not be what "
            "learns best: with fewer, larger steps raise lr or number_of_epochs, or set "
            "batch_seconds yourself",
            steps,
            found["batch_seconds"],
        )


# ------------------------------------------------------------------ searching


def _tried(steps, memory, most: int) -> tuple[int, int]:
    """The largest number of items by trying, and what it takes."""
    peaks = {}

    def fits(items: int) -> bool:
        batch, share = steps.batch(items)
        peaks[items] = _peak(steps.forward_and_backward, batch, memory, share)
        return agreed_least(peaks[items] <= memory.limit, steps.brain.device) == 1

    batch, share = steps.batch(1)
    peak = _peak(steps.whole_step, batch, memory, share)
    if not agreed_least(peak <= memory.limit, steps.brain.device) or not fits(1):
        _stop_at_one(steps, memory)
    items = largest(fits, most)
    while items > 1 and not (fits(items) and _many_short_fit(steps, memory, items)):
        items -= max(1, items // 16)
    return items, int(peaks[items])


def _peak(step, batch, memory, share: float) -> float:
    """What a step takes at the size that its items' durations promise; inf: too much."""
    idle = memory.now()
    peak = memory.peak(lambda: step(batch))
    return float("inf") if peak is None else idle + max(0, peak - idle) / share


def _many_short_fit(steps, memory, items: int) -> bool:
    """Whether the batch of most items that would be planned fits, too."""
    sampler = steps.brain.train_sampler
    sampler.set_batch_seconds(items * steps.longest)
    plan = planned_batches(steps.loader)
    _, indices = max(plan, key=lambda batch: len(batch[1]))
    peak = _peak(steps.forward_and_backward, steps.filter_utterances(indices), memory, 1.0)
    return agreed_least(peak <= memory.limit, steps.brain.device) == 1


def _foretold(steps, memory, most: int) -> tuple[int, int]:
    """The largest number of items by what smaller batches take, and what it will take."""
    longest = min(steps.longest, CROP_SECONDS)
    smallest, _ = steps.batch(1, longest / 4)
    steps.whole_step(smallest)
    sizes, peaks = [], []
    for items, seconds in _small_sizes(longest, most):
        batch, _ = steps.batch(items, seconds)
        began = time.perf_counter()
        peaks.append(_peak(steps.forward_and_backward, batch, memory, 1.0))
        sizes.append((items, seconds))
        enough = peaks[-1] - peaks[0] > ENOUGH or time.perf_counter() - began > PATIENCE
        # The next one takes up to four times as much.
        too_near = peaks[0] + 4 * (peaks[-1] - peaks[0]) > memory.limit
        go_on = not (too_near if len(sizes) == 2 else enough or too_near)
        # Every rank measures as often as the others: a model may exchange in its steps.
        if len(sizes) > 1 and not agreed_least(go_on, steps.brain.device):
            break
    needed = memory_model(sizes, peaks)
    items = largest(lambda n: needed(n, steps.longest) <= memory.limit, most)
    items = agreed_least(items, steps.brain.device)
    if items < 1:
        _stop_at_one(steps, memory)
    return items, int(needed(items, steps.longest))


def _small_sizes(longest: float, most: int):
    """Numbers of items and seconds, from small to large."""
    yield from ((1, longest / 4), (1, longest / 2), (1, longest))
    items = 2
    while items <= most:
        yield items, longest
        items *= 2


def memory_model(sizes: list, peaks: list):
    """What a batch takes, from what some smaller ones took.

    Arguments
    ---------
    sizes : list of (int, float)
        Items, and the seconds of each.
    peaks : list of float
        Bytes.

    Returns
    -------
    callable
        Of items n and seconds T: bytes, c + n (a T + b T²) with the c, a, b >= 0 that come
        nearest (least squares); a is 0, the worst case, where there are two sizes only.

    Example
    -------
    >>> needed = memory_model([(1, 1.0), (1, 2.0), (2, 2.0)], [15.0, 22.0, 34.0])
    >>> round(needed(3, 4.0), 6)
    106.0
    """
    from scipy.optimize import nnls

    items, seconds = np.array(sizes, dtype=np.float64).T
    terms = np.stack([np.ones_like(items), items * seconds**2, items * seconds], 1)
    scale, known = terms.max(0), min(3, len(sizes))
    weights = np.zeros(3)
    weights[:known], _ = nnls((terms / scale)[:, :known], np.asarray(peaks, dtype=float))
    constant, square, linear = weights / scale
    return lambda n, t: float(constant + n * (linear * t + square * t * t))


def largest(fits, most: int) -> int:
    """The largest number for which something holds, if it holds for all smaller ones.

    Arguments
    ---------
    fits : callable
        Of a whole number.
    most : int
        Numbers above are not asked for.

    Returns
    -------
    int
        0 if it does not hold for 1.

    Example
    -------
    >>> largest(lambda n: n <= 37, 1000), largest(lambda n: True, 5), largest(bool, 0)
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


def agreed_least(number, device) -> int:
    """The least of all ranks' numbers; all ranks call this."""
    if not torch.distributed.is_initialized():
        return int(number)
    least = torch.tensor(int(number), device=device)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    return int(least)


def _stop_at_one(steps, memory) -> None:
    """Say that not even the longest item fits."""
    raise UserError(
        f"batch_seconds: auto finds that the longest item ({steps.longest:.1f} s) alone does "
        f"not fit into {in_units(memory.limit)} of {steps.brain.device}; cut items with "
        "--segment_seconds, or make the network smaller"
    )


# ------------------------------------------------------------------ memory


def memory_of(device) -> GpuMemory | ProcessMemory:
    """How much memory a device has, and how to see what something takes of it.

    Raises
    ------
    UserError
        It is neither a CUDA device nor the CPU.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return GpuMemory(device)
    if device.type == "cpu":
        return ProcessMemory()
    raise UserError(
        f"batch_seconds: auto cannot ask {device} for its memory; give a number of seconds"
    )


class GpuMemory:
    """Memory of a GPU: who asks for too much is told so, and can go on.

    Attributes
    ----------
    limit : int
        Bytes that may be reserved, the margin left out.
    """

    can_be_tried = True
    margin = GPU_MARGIN

    def __init__(self, device):
        self.device = device
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        self.limit = int((1 - self.margin) * (free + self.now()))

    def now(self) -> int:
        """Bytes that are reserved."""
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
            if not is_out_of_memory(error):
                raise
            return None
        return torch.cuda.max_memory_reserved(self.device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no more memory.

    Example
    -------
    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    True
    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when ..."))
    True
    >>> is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    False
    """
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or bool(
        NO_MEMORY.search(text) or NO_ROOM.search(text)
    )


class ProcessMemory:
    """Memory of this process on a machine that kills who takes too much.

    Attributes
    ----------
    limit : int
        Bytes that the process may have, the margin left out. Processes of one run on
        one machine share what is free.
    """

    can_be_tried = False
    margin = CPU_MARGIN

    def __init__(self):
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.limit = int((1 - self.margin) * (self.now() + free_memory() / processes))

    def now(self) -> int:
        """Bytes that the process has."""
        _give_freed_memory_back()
        with suppress(OSError, ValueError, IndexError):  # Linux
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        return 0

    def peak(self, run) -> int:
        """Most bytes that the process had while ``run()`` worked."""
        _give_freed_memory_back()
        with PeakMemory("cpu") as peak:
            run()
        return peak.bytes


def _give_freed_memory_back() -> None:
    """Have glibc return what it keeps; else a step that fits into it seems to need nothing."""
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> int:
    """Bytes that processes may still take: of the machine, or of the container.

    Raises
    ------
    UserError
        The system does not say.
    """
    free = [found for found in (_of_machine(), _of_container()) if found is not None]
    if not free:
        raise UserError(
            "batch_seconds: auto cannot find how much memory is free on this system; give a "
            "number of seconds"
        )
    return min(free)


def _of_machine() -> int | None:
    """What the system calls available."""
    with suppress(OSError):
        found = re.search(
            r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE
        )
        if found:
            return 1024 * int(found[1])
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a control group leaves, of either version, if it limits memory."""
    for most, now, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
        ),
    ):
        with suppress(OSError, ValueError):  # also "max": no limit
            limit, used = (int((folder / name).read_text()) for name in (most, now))
            cached = re.search(
                r"^(?:total_)?inactive_file (\d+)$", (folder / stat).read_text(), re.M
            )
            return max(0, limit - used + (int(cached[1]) if cached else 0))
    return None
