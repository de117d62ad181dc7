"""One ordered list of checks of what a run needs: a sample at every start, all with ``--check``."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from speechbrain import Stage

from unified_se_ss.data.audit import ADVICE, FAILED, KINDS, WARNING, audit, items_of
from unified_se_ss.data.batching import SkippedItem
from unified_se_ss.data.corpora import collected_errors
from unified_se_ss.data.dataset import ItemKey
from unified_se_ss.data.manifest import header_faults
from unified_se_ss.errors import UserError
from unified_se_ss.training.autotune import in_units
from unified_se_ss.training.brain import plain_name
from unified_se_ss.training.hparams import own_folder
from unified_se_ss.training.loaders import (
    batch_of,
    longest_axis,
    planned_batches,
    signals_of_batch,
)
from unified_se_ss.training.run_folder import check_folder

logger = logging.getLogger(__name__)

OK = "ok"
#: In this order; True: also at every start.
CHECKS = {
    "folder": False,
    "space": True,
    "headers": True,
    "recordings": False,
    "items": False,
    "one_item": True,
    "checkpoints": True,
    "longest_batch": False,
    "gradients": False,
    "evaluation": False,
    "saving": False,
    "test": False,
    "time": False,
}
HEADERS = 24  #: Items of each subset whose headers are read at every start,
HEADER_SECONDS = 1.0  #: for so long at most.
CPU_SECONDS = 1.0  #: Of an item that is evaluated at every start on a CPU.
ITEMS = 16  #: Of each subset that are made by --check.
TRIED = 20  #: Short items of each subset, until one can be used.
STEPS = 5  #: Training steps that --check times,
STEP_SECONDS = 60.0  #: for so long at most.
ROUNDING = 1e-4  #: Relative difference of scores that a GPU's sums may have.
TAKE_OUT = "take them out, freeze them, or use them in compute_objectives"


class Check(NamedTuple):
    """One line: what was checked, how it went, what was found, what to do."""

    name: str
    status: str
    found: str
    advice: str = ""

    def __str__(self):
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.name:<17} {self.status:<8} {self.found}{advice}"


def _judged(name, is_right, found, advice, otherwise=FAILED) -> Check:
    return Check(name, OK, found) if is_right else Check(name, otherwise, found, advice)


def sanity_check(brain, loaders: dict) -> float:
    """Check a sample of everything that a run will need, in seconds.

    Nothing is written, no weight changes, and no random number that training would draw
    is drawn.

    Returns
    -------
    float
        Seconds that it took.

    Raises
    ------
    UserError
        What would end the run later.
    """
    began, checks = time.perf_counter(), SanityCheck(brain, loaders)
    devices = [brain.device] if brain.device_type == "cuda" else []
    with torch.random.fork_rng(devices):
        for name, is_quick in CHECKS.items():
            for check in getattr(checks, name)() if is_quick else ():
                message = f"{check.found}; {check.advice}"
                if check.status == FAILED:
                    raise UserError(message)
                if check.status == WARNING:
                    logger.warning(message)
    seconds = time.perf_counter() - began
    logger.info("Checked a sample of all that the run needs in %.1f s", seconds)
    return seconds


def full_check(brain, loaders: dict) -> int:
    """Run all checks, on everything, and print a line for each.

    Returns
    -------
    int
        0, or 1 if a check failed.
    """
    checks, count = SanityCheck(brain, loaders), Counter()
    print(f"\n{Check('check', 'result', 'what was found', 'what to do')}")
    print(f"{'-' * 17} {'-' * 8} {'-' * 50}")
    for name in CHECKS:
        for check in _survived(name, getattr(checks, name), brain.debug):
            count[check.status] += 1
            print(check, flush=True)
    print(f"\n{count[OK]} ok, {count[WARNING]} warning(s), {count[FAILED]} failed")
    return 1 if count[FAILED] else 0


def _survived(name, method, debug):
    """Have the lines of one check; an exception is a line, too."""
    try:
        yield from method()
    except Exception as error:
        if debug:
            traceback.print_exc()
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        yield Check(name.replace("_", " "), FAILED, " ".join(f"{kind}{error}".split()))


class SanityCheck:
    """The checks of :data:`CHECKS`; each yields lines, and may use results of those before."""

    def __init__(self, brain, loaders):
        self.brain, self.loaders = brain, loaders

    # -------------------------------------------------------------- folder

    def folder(self):
        """The run's own folder can be written to and is no other experiment's."""
        options = self.brain.hparams.options
        folder = own_folder(options)
        if folder.exists():
            check_folder(options, folder)
        yield Check("folder", OK, str(folder))

    def space(self):
        """The disk has space for the first two checkpoints."""
        brain = self.brain
        options, folder = brain.option("options", None), brain.hparams.output_folder
        if options and options.check:  # in a scratch folder
            folder = own_folder(options)
        tensors = [*brain.modules.parameters(), *brain.modules.buffers()]
        # The optimizer's state is about twice as large as the weights.
        size, free = 3 * sum(tensor.nbytes for tensor in tensors), free_bytes(folder)
        found = (
            f"output_folder: {folder} has {in_units(free)} of free space; a checkpoint takes "
            f"about {in_units(size)}, and at least two are kept"
        )
        advice, status = "make room, or choose another --output_folder", WARNING
        if free < 2 * size:
            status = FAILED
        yield _judged("space", free >= 5 * size, found, advice, status)

    def checkpoints(self):
        """Those that are there were chosen by the score that this recipe chooses by."""
        best = self.brain.best
        for checkpoint in self.brain.checkpointer.list_checkpoints():
            meta = checkpoint.meta
            if meta.get("end-of-epoch", True) and "epoch" in meta and best not in meta:
                found = f"{checkpoint.path}: was chosen by another score than {best}"
                yield Check("checkpoints", FAILED, found, "choose another --output_folder")

    # -------------------------------------------------------------- data

    def headers(self):
        """Headers of the files of items evenly over each subset."""
        for subset, loader in self.loaders.items():
            items = items_of(loader.dataset)
            until, n_checked, faults = time.perf_counter() + HEADER_SECONDS, 0, []
            for item in items[:: max(1, len(items) // HEADERS)]:
                if time.perf_counter() > until:
                    break
                n_checked += 1
                faults += header_faults(item)[:1]
            if faults:
                found = (
                    f"{len(faults)} of {n_checked} items of the subset {subset} that were "
                    f"looked at cannot be used; the first: {faults[0]}"
                )
                status = FAILED if 2 * len(faults) > n_checked else WARNING
                advice = "is the data in its place? --check looks at all of it"
                yield Check(f"data: {subset}", status, found, advice)

    def recordings(self):
        """Every sample of every file of every item."""
        subsets = [(s, items_of(loader.dataset)) for s, loader in self.loaders.items()]
        found = audit(subsets, collected_errors())
        for subset, loader in self.loaders.items():
            if subset not in found.items:
                text = f"{len(loader.dataset)} items, of no files that are known"
            else:
                hours = found.seconds[subset] / 3600
                text = f"{found.items[subset]:,} items, {found.files[subset]:,} files"
                text += f", {hours:.2f} h of recordings"
            yield Check(f"data: {subset}", OK, text)
        for kind in KINDS:
            findings = found.of_kind(kind)
            if not findings:
                continue
            for line in found.listed(kind):
                print(f"    {line}")
            severity, text = findings[0].severity, found.summary(kind)
            yield Check(f"data: {kind}", severity, text, ADVICE[kind])
        if not found.findings:
            yield Check("data: faults", OK, f"none ({', '.join(KINDS)})")

    def items(self):
        """Items evenly over each subset, as training will get them."""
        self.item_seconds = {}
        for subset, loader in self.loaders.items():
            dataset, began = loader.dataset, time.perf_counter()
            indices = range(0, len(dataset), -(-len(dataset) // ITEMS))
            made = [dataset[(1, index)] for index in indices]
            self.item_seconds[subset] = (time.perf_counter() - began) / len(made)
            bad = [item for item in made if isinstance(item, SkippedItem)]
            found = f"{len(made)} made, {1000 * self.item_seconds[subset]:.1f} ms each"
            if bad:
                found = f"{len(bad)} of {len(made)} cannot be used: {bad[0].reason}"
                found = " ".join(found.split())
            yield _judged(
                f"items: {subset}", not bad, found, "mend or take out these items"
            )

    # -------------------------------------------------------------- training

    def longest_batch(self):
        """The batch with most seconds, forward and backward, and a step."""
        brain, loader = self.brain, self.loaders["train"]
        brain.on_fit_start()
        self.start_training()
        self.plan = sorted(planned_batches(loader), key=lambda batch: batch[0])
        seconds, indices = self.plan[-1]
        before = [p.detach().clone() for p in brain.modules.parameters()]
        if brain.device_type == "cuda":
            torch.cuda.reset_peak_memory_stats(brain.device)
        self.step(batch_of(loader, indices))
        found = f"{len(indices)} items, {seconds:.1f} s with padding: peak memory "
        yield Check("longest batch", OK, found + peak_memory(brain.device))
        means, steps = brain.means.read(), brain.monitor.read()
        main_finite = means["main"] is not None and not steps["main_nonfinite"]
        finite = main_finite and not steps["auxiliary_nonfinite"]
        losses = ", ".join(f"{k} {v:.4g}" for k, v in means.items() if v is not None)
        found = f"losses ({losses}) and gradients are finite"
        if not finite:
            task = "auxiliary" if main_finite else "main"
            found = f"the {task} loss or its gradient is not finite"
        yield _judged("finite", finite, found, "look at loss, data and precision")
        pairs = zip(before, brain.modules.parameters())
        changed = sum(not torch.equal(old, new) for old, new in pairs)
        found = f"a step changes {changed} of {len(before)} parameter tensors"
        yield _judged("step", changed, found, "look at lr and the optimizer")

    def start_training(self):
        """Bring the Brain where an epoch begins."""
        brain = self.brain
        brain.train_sampler.set_epoch(1)
        brain.on_stage_start(Stage.TRAIN, 1)
        brain.modules.train()
        brain.zero_grad()
        brain.means.reset()
        brain.monitor.reset()

    def step(self, batch) -> float:
        """One optimizer step; the seconds that it took."""
        brain = self.brain
        brain.step = brain._batches = 1  # the last of its epoch, so that a step is taken
        began = time.perf_counter()
        brain.fit_batch(batch)
        if brain.device_type == "cuda":
            torch.cuda.synchronize(brain.device)
        return time.perf_counter() - began

    def gradients(self):
        """Every parameter is reached by the task that trains it."""
        brain = self.brain
        _, indices = self.plan[0]
        self.start_training()
        with brain.training_ctx:
            batch = batch_of(self.loaders["train"], indices[:2])
            _, losses = brain.losses_of(batch, Stage.TRAIN)
        parameters = {
            plain_name(n): p for n, p in brain.modules.named_parameters() if p.requires_grad
        }
        shared, auxiliary = brain.gradients.shared, brain.gradients.auxiliary
        by_auxiliary = {**shared.parameters, **auxiliary.parameters}
        peaks = _gradient_peaks(losses.main, parameters)
        for name, peak in _gradient_peaks(losses.auxiliary, by_auxiliary).items():
            peaks[name] = peaks.get(name, 0) + peak
        faults = {
            "no gradient": [name for name in parameters if name not in peaks],
            "always zero here": [name for name, peak in peaks.items() if peak == 0],
            "not finite": [name for name, peak in peaks.items() if peak.isnan()],
        }
        for fault, names in faults.items():
            if names:
                status = FAILED if fault == "not finite" else WARNING
                yield Check("gradients", status, f"{fault}: {', '.join(names)}", TAKE_OUT)
        if not any(faults.values()):
            yield Check("gradients", OK, f"all {len(parameters)} parameter tensors get one")

    # -------------------------------------------------------------- evaluation

    def one_item(self):
        """One item of each subset; of validation and test through network and metrics."""
        if not self.brain.test_only:
            self.short_batch("train")
            self.rows(self.short_batch("dev"), Stage.VALID)
        self.rows(self.short_batch("test"), Stage.TEST)
        yield Check("one item", OK, "of each subset can be made and evaluated")

    def short_batch(self, subset, crop=True):
        """One item of a subset; its middle where a large network would take long on a CPU.

        The shortest that last a second are tried, of the first 1000.
        """
        loader = self.loaders[subset]
        lengths = enumerate(list(loader.dataset.durations)[:1000])
        by_length = sorted((seconds < 1, seconds, index) for index, seconds in lengths)
        for *_, index in by_length[:TRIED]:
            example = loader.dataset[ItemKey(1, index)]
            if not isinstance(example, SkippedItem):
                break
        else:
            raise UserError(
                f"no item of the subset {subset} that was tried can be used, such as: "
                f"{example.reason}; --check looks at all of them"
            )
        batch, seconds = loader.collate_fn([example]), loader.dataset.durations[index]
        if crop and self.brain.device_type == "cpu" and seconds > CPU_SECONDS:
            batch = center_crop(batch, CPU_SECONDS / seconds)
        return batch

    @torch.no_grad()
    def rows(self, batch, stage) -> list[dict]:
        """The rows that the Brain makes of a batch in validation or test."""
        brain = self.brain
        brain.stage, brain.rows = stage, []
        brain.modules.eval()
        brain.evaluate_batch(batch, stage)
        wanted = {"ID"} if stage == Stage.TEST else {"loss", brain.best}
        columns = list(brain.rows[0]) if brain.rows else []
        if lacking := wanted - set(columns):
            raise UserError(
                f"compute_objectives appends no {', '.join(sorted(lacking))} to self.rows in "
                f"{stage}; there are: {', '.join(columns) or 'no rows'}"
            )
        return brain.rows

    def evaluation(self):
        """The same items, evaluated twice, get the same scores."""
        seconds, indices = planned_batches(self.loaders["dev"])[0]
        self.valid_indices = indices
        began = time.perf_counter()
        first = self.valid_rows()
        self.valid_speed = (time.perf_counter() - began) / seconds
        advice = "something random is left in evaluation, such as dropout"
        yield _same("evaluation", "twice", first, self.valid_rows(), advice)

    def valid_rows(self) -> list[dict]:
        """Scores of the first items of the validation set."""
        return self.rows(batch_of(self.loaders["dev"], self.valid_indices), Stage.VALID)

    def saving(self):
        """Saved and loaded weights give the same scores."""
        brain, before = self.brain, self.valid_rows()
        began = time.perf_counter()
        saved = brain.checkpointer.save_checkpoint(meta={"epoch": 1, brain.best: 0.0})
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in saved.path.rglob("*") if path.is_file())
        with torch.no_grad():
            for tensor in brain.modules.parameters():
                tensor.add_(1.0)
        brain.checkpointer.recover_if_possible()
        found = f"saved ({in_units(size)}, {seconds:.1f} s) and loaded"
        advice = "name every module in the checkpointer's recoverables"
        yield _same("saving", found, before, self.valid_rows(), advice)

    def test(self):
        """One item of the test set with all its metrics, and the signals for the report."""
        batch, began = self.short_batch("test", crop=False), time.perf_counter()
        row = self.rows(batch, Stage.TEST)[0]
        seconds = time.perf_counter() - began
        signals = self.brain.signals_of_id(row["ID"])
        bad = [name for name, x in signals.items() if not np.isfinite(x).all()]
        bad += [k for k, v in row.items() if isinstance(v, float) and not np.isfinite(v)]
        found = f"{len(row) - 1} columns, {seconds:.2f} s an item"
        found = f"not finite: {', '.join(bad)}" if bad else found
        yield _judged("test", not bad, found, "look at them", WARNING)
        self.test_seconds = seconds * len(self.loaders["test"].dataset)

    # -------------------------------------------------------------- time

    def time(self):
        """About how long an epoch and the run will take."""
        brain, loader = self.brain, self.loaders["train"]
        self.start_training()
        spent = audio_seconds = 0.0
        for place in np.linspace(0, len(self.plan) - 1, STEPS).round().astype(int):
            if spent < STEP_SECONDS:
                seconds, indices = self.plan[place]
                spent += self.step(batch_of(loader, indices))
                audio_seconds += seconds
        steps = spent / audio_seconds * sum(seconds for seconds, _ in self.plan)
        reading = self.item_seconds["train"] * len(loader.dataset)
        reading /= max(1, loader.num_workers)
        valid = self.valid_speed * sum(s for s, _ in planned_batches(self.loaders["dev"]))
        epoch, epochs = max(steps, reading) + valid, brain.option("number_of_epochs", 1)
        found = (
            f"an epoch about {_duration(epoch)} ({len(self.plan):,} batches, validation "
            f"{_duration(valid)}), {epochs} epochs and the test "
            f"{_duration(epochs * epoch + self.test_seconds)}"
        )
        yield Check("time", OK, found)
        if reading > 1.2 * steps:
            found = f"reading takes {_duration(reading)}, steps {_duration(steps)} an epoch"
            yield Check("time: data", WARNING, found, "raise num_workers")


def _gradient_peaks(loss, parameters: dict) -> dict:
    """The largest magnitude in each gradient of a loss, where there is one."""
    if loss is None or not loss.total.requires_grad or not parameters:
        return {}
    found = torch.autograd.grad(
        loss.total, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    pairs = zip(parameters, found)
    return {name: gradient.abs().max() for name, gradient in pairs if gradient is not None}


def _same(name: str, how: str, first: list, second: list, advice: str) -> Check:
    """Compare the scores of two evaluations."""
    pairs = [
        (value, other[key])
        for one, other in zip(first, second, strict=True)
        for key, value in one.items()
        if isinstance(value, (int, float))
    ]
    a, b = np.array(pairs, dtype=float).reshape(-1, 2).T
    with np.errstate(invalid="ignore"):
        differences = np.abs(a - b) / np.maximum(np.abs(a), 1.0)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    worst = np.where(equal, 0.0, np.nan_to_num(differences, nan=np.inf)).max(initial=0.0)
    found = f"{how}: scores differ by {worst:.2g}" if worst else f"{how}: the same scores"
    return _judged(name, worst < ROUNDING, found, advice)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ------------------------------------------------------------------ batches and space


def center_crop(batch, share: float):
    """Cut a batch's signals, the tensors with the longest last axis, to their middle."""
    longest = longest_axis(batch)
    kept = max(1, int(share * longest))
    for name, tensor in signals_of_batch(batch).items():
        if tensor.shape[-1] == longest:
            setattr(batch, name, tensor.narrow(-1, (longest - kept) // 2, kept))
    if hasattr(batch, "lengths"):
        batch.lengths = batch.lengths.clamp(max=kept)
    return batch


def free_bytes(folder) -> int:
    """Free space where a folder is or would be."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def peak_memory(device) -> str:
    """Most memory in use so far: of a GPU since its statistics were reset, else of the process."""
    if torch.device(device).type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        peak = torch.cuda.max_memory_allocated(device)
        return f"{in_units(peak)} of {in_units(total)} on the GPU"
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size *= 1 if os.uname().sysname == "Darwin" else 1024
    return f"{in_units(size)} (the whole process)"
