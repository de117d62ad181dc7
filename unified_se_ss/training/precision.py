"""``precision: auto``: bf16 where the hardware has it and it is measured to be faster."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from speechbrain.utils.autocast import TorchAutocast
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process

from unified_se_ss.training.dry_run import TrialSteps, as_it_was

FASTER = 1.1  #: Times that bf16 must be as fast as fp32 to be taken.
STEPS = 3  #: Timed in each precision, after one that is not.
# What Linux says of x86 and of Arm processors that multiply in bf16.
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


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

    Arguments
    ---------
    brain : RecipeBrain
        As its ``on_fit_start`` leaves it, with its ``loaders``; all ranks call this. Nothing
        is done unless its ``auto_precision`` is set.
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


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bf16 by itself.

    Example
    -------
    >>> isinstance(has_bf16(torch.device("cpu")), bool)
    True
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return bool(CPU_FLAGS & set(Path("/proc/cpuinfo").read_text("utf-8").split()))
    except OSError:  # not Linux
        return False


def _measured(brain) -> tuple[str, str]:
    """The precision to train in, and why."""
    if not has_bf16(torch.device(brain.device)):
        return "fp32", "auto: this processor does not multiply in bf16"
    with as_it_was(brain):
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
    """Seconds of the fastest of some steps."""
    times = []
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        steps.forward_and_backward(batch)
        if steps.brain.device_type == "cuda":
            torch.cuda.synchronize(steps.brain.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _use_bf16(brain) -> None:
    """Have training's forward passes run in bf16, as with ``--precision bf16``."""
    brain.precision = "bf16"
    brain.training_ctx = TorchAutocast(device_type=brain.device_type, dtype=torch.bfloat16)
