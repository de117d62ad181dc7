"""``--check``: everything that a run will do, done once, before it is started."""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import NamedTuple

import numpy as np
import torch
from speechbrain import Stage

from unified_se_ss.data.audit import ADVICE, FAILED, KINDS, WARNING, audit, items_of
from unified_se_ss.data.problems import gathered
from unified_se_ss.data.skipping import SkippedItem
from unified_se_ss.errors import UserError
from unified_se_ss.training.brain import plain_name
from unified_se_ss.training.probe import (
    PeakMemory,
    batch_of,
    checkpoint_bytes,
    free_bytes,
    in_units,
    planned_batches,
    scores,
    usable_item,
)
from unified_se_ss.training.run_folder import check_folder
from unified_se_ss.training.scratch_dir import own_folder

OK = "ok"
LOADED = 16  #: Items of each subset that are loaded.
TIMED = 5  #: Training steps that are timed,
SECONDS = 60.0  #: for so long at most.
ROUNDING = 1e-4  #: Relative difference of scores that a GPU's sums may have.


class Check(NamedTuple):
    """One line of the table: what was looked at, how it went, what to do."""

    name: str
    status: str
    found: str
    advice: str = ""

    def __str__(self):
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.name:<17} {self.status:<8} {self.found}{advice}"


def preflight(brain, loaders: dict, signals_of_id) -> int:
    """Run all checks and print a line for each.

    Arguments
    ---------
    brain : RecipeBrain
        Before its ``fit``; its folder is one aside, its weights are changed.
    loaders : dict
        Of train, dev and test.
    signals_of_id : callable
        As ``train_and_test`` takes it.

    Returns
    -------
    int
        0, or 1 if a check failed.
    """
    checks = []
    print(f"\n{'check':<17} {'result':<8} what was found -> what to do")
    print(f"{'-' * 17} {'-' * 8} {'-' * 50}")
    for method in Preflight(brain, loaders, signals_of_id).methods():
        for check in told(method):
            checks.append(check)
            print(check, flush=True)
    count = {s: sum(c.status == s for c in checks) for s in (OK, WARNING, FAILED)}
    print(f"\n{count[OK]} ok, {count[WARNING]} warning(s), {count[FAILED]} failed")
    return 1 if count[FAILED] else 0


def told(method):
    """The lines of one check; whatever it raises is a line, too."""
    try:
        yield from method()
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        yield Check(method.__name__.replace("_", " "), FAILED, what + one_line(error))


def one_line(error) -> str:
    """A message without its line breaks."""
    return " ".join(str(error).split())


class Preflight:
    """The checks, in the order of :meth:`methods`; each yields lines."""

    def __init__(self, brain, loaders, signals_of_id):
        self.brain, self.loaders, self.signals_of_id = brain, loaders, signals_of_id
        self.item_seconds = {}
        self.valid_speed = None

    def methods(self):
        """The checks."""
        return (
            self.folder,
            self.recordings,
            self.items,
            self.longest_batch,
            self.gradients,
            self.evaluation,
            self.saving,
            self.test,
            self.time,
        )

    # -------------------------------------------------------------- outside

    def folder(self):
        """The run's folder can be written to, is no other experiment's, and has room."""
        options = self.brain.hparams.options
        folder = own_folder(options)
        if folder.exists():
            check_folder(options, folder)
        above = folder.absolute()
        while not above.exists():
            above = above.parent
        if not os.access(above, os.W_OK):
            yield Check("folder", FAILED, f"{above} is not writable", "--output_folder")
            return
        size, free = checkpoint_bytes(self.brain), free_bytes(folder)
        status = FAILED if free < 2 * size else WARNING if free < 5 * size else OK
        advice = "" if status == OK else "make room, or choose another --output_folder"
        room = f"{in_units(free)} free, a checkpoint takes about {in_units(size)}"
        yield Check("folder", status, f"{folder}: {room}", advice)

    # -------------------------------------------------------------- data

    def recordings(self):
        """Every file of every item."""
        subsets = [(s, items_of(loader.dataset)) for s, loader in self.loaders.items()]
        found = audit(subsets, gathered())
        for subset, loader in self.loaders.items():
            if subset not in found.items:
                what = f"{len(loader.dataset)} items, of no files that are known"
            else:
                hours = found.seconds[subset] / 3600
                what = f"{found.items[subset]:,} items, {found.files[subset]:,} files"
                what += f", {hours:.2f} h of recordings"
            yield Check(f"data: {subset}", OK, what)
        for kind in KINDS:
            findings = found.of_kind(kind)
            if not findings:
                continue
            for line in found.listed(kind):
                print(f"    {line}")
            severity, what = findings[0].severity, found.summary(kind)
            yield Check(f"data: {kind}", severity, what, ADVICE[kind])
        if not found.findings:
            yield Check("data: faults", OK, f"none ({', '.join(KINDS)})")

    def items(self):
        """Items evenly over each subset, as training will get them."""
        for subset, loader in self.loaders.items():
            dataset, began = loader.dataset, time.perf_counter()
            indices = range(0, len(dataset), -(-len(dataset) // LOADED))
            made = [dataset[(1, index)] for index in indices]
            self.item_seconds[subset] = (time.perf_counter() - began) / len(made)
            bad = [item for item in made if isinstance(item, SkippedItem)]
            what = f"{len(made)} made, {1000 * self.item_seconds[subset]:.1f} ms each"
            if bad:
                what = (
                    f"{len(bad)} of {len(made)} cannot be used: {one_line(bad[0].reason)}"
                )
            yield Check(
                f"items: {subset}",
                FAILED if bad else OK,
                what,
                "mend or take out these items" if bad else "",
            )

    # -------------------------------------------------------------- training

    def longest_batch(self):
        """The batch with most seconds, forward and backward, and a step."""
        brain, loader = self.brain, self.loaders["train"]
        brain.suspects.files = 0
        brain.on_fit_start()
        self.start_training()
        self.plan = sorted(planned_batches(loader), key=lambda batch: batch[0])
        seconds, indices = self.plan[-1]
        before = [p.detach().clone() for p in brain.modules.parameters()]
        with PeakMemory(brain.device) as peak:
            self.step(batch_of(loader, indices))
        what = f"{len(indices)} items, {seconds:.1f} s with padding: peak memory {peak}"
        yield Check("longest batch", OK, what)
        means, found = brain.means.read(), brain.monitor.read()
        finite = means["main"] is not None and not found["main_nonfinite"]
        told_means = ", ".join(f"{k} {v:.4g}" for k, v in means.items() if v is not None)
        if finite and not found["auxiliary_nonfinite"]:
            yield Check("finite", OK, f"losses ({told_means}) and gradients are finite")
        else:
            which = "auxiliary" if finite else "main"
            advice = "look at the loss, the data, and the precision"
            what = f"the {which} loss or its gradient is not finite"
            yield Check("finite", FAILED, what, advice)
        pairs = zip(before, brain.modules.parameters())
        changed = sum(not torch.equal(old, new) for old, new in pairs)
        what = f"a step changes {changed} of {len(before)} parameter tensors"
        advice = "" if changed else "look at lr and the optimizer"
        yield Check("step", OK if changed else FAILED, what, advice)

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
        by_auxiliary = {**brain.gradients.shared.parameters}
        by_auxiliary |= brain.gradients.auxiliary.parameters
        gradients = dict.fromkeys(parameters)
        for loss, trained in ((losses.main, parameters), (losses.auxiliary, by_auxiliary)):
            if loss is not None and loss.total.requires_grad and trained:
                found = torch.autograd.grad(
                    loss.total, list(trained.values()), retain_graph=True, allow_unused=True
                )
                for name, gradient in zip(trained, found):
                    if gradient is not None:
                        earlier = gradients[name]
                        peak = gradient.detach().abs().max()
                        gradients[name] = peak if earlier is None else earlier + peak
        without = [name for name, peak in gradients.items() if peak is None]
        still = [name for name, peak in gradients.items() if peak is not None and peak == 0]
        wild = [
            name for name, peak in gradients.items() if peak is not None and peak.isnan()
        ]
        advice = "take them out, freeze them, or use them in compute_objectives"
        if without:
            what = f"no gradient: {', '.join(without)}"
            yield Check("gradients", WARNING, what, advice)
        if still:
            yield Check(
                "gradients", WARNING, f"always zero here: {', '.join(still)}", advice
            )
        if wild:
            yield Check("gradients", FAILED, f"not finite: {', '.join(wild)}", "")
        if not without and not still and not wild:
            yield Check("gradients", OK, f"all {len(parameters)} parameter tensors get one")

    # -------------------------------------------------------------- evaluation

    def evaluation(self):
        """The same items, evaluated twice, get the same scores."""
        batch_seconds, indices = planned_batches(self.loaders["dev"])[0]
        self.valid_indices = indices
        began = time.perf_counter()
        self.first = self.valid_scores()
        self.valid_speed = (time.perf_counter() - began) / batch_seconds
        if not self.first:
            raise UserError("compute_objectives appends nothing to self.rows in validation")
        lacking = {"loss", self.brain.best} - set(self.first[0])
        if lacking:
            raise UserError(f"the rows of validation lack {', '.join(sorted(lacking))}")
        advice = "something random is left in evaluation, such as dropout"
        yield _same("evaluation", "twice", self.first, self.valid_scores(), advice)

    def valid_scores(self) -> list[dict]:
        """What the first items of the validation set get."""
        batch = batch_of(self.loaders["dev"], self.valid_indices)
        return scores(self.brain, batch, Stage.VALID)

    def saving(self):
        """What was saved and loaded gives the same scores."""
        brain, before = self.brain, self.valid_scores()
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
        yield _same("saving", found, before, self.valid_scores(), advice)

    def test(self):
        """One item of the test set with all its metrics, and the signals for the report."""
        index = usable_item(self.loaders["test"])
        if index is None:
            raise UserError("no item of the test set could be used, as far as was looked")
        began = time.perf_counter()
        rows = scores(self.brain, batch_of(self.loaders["test"], [index]), Stage.TEST)
        seconds = time.perf_counter() - began
        if not rows or "ID" not in rows[0]:
            raise UserError("the rows of the test lack ID, the name of the item")
        signals = self.signals_of_id(rows[0]["ID"])
        wild = [name for name, x in signals.items() if not np.isfinite(x).all()]
        wild += [
            k for k, v in rows[0].items() if isinstance(v, float) and not np.isfinite(v)
        ]
        what = f"{len(rows[0]) - 1} columns, {seconds:.2f} s an item"
        if wild:
            yield Check("test", WARNING, f"not finite: {', '.join(wild)}", "look at them")
        else:
            yield Check("test", OK, what)
        self.test_seconds = seconds * len(self.loaders["test"].dataset)

    # -------------------------------------------------------------- time

    def time(self):
        """How long an epoch and the run will take."""
        brain, loader = self.brain, self.loaders["train"]
        self.start_training()
        began, spent, audio_seconds = time.perf_counter(), 0.0, 0.0
        places = np.linspace(0, len(self.plan) - 1, TIMED).round().astype(int)
        for place in places:
            seconds, indices = self.plan[place]
            spent += self.step(batch_of(loader, indices))
            audio_seconds += seconds
            if time.perf_counter() - began > SECONDS:
                break
        total = sum(seconds for seconds, _ in self.plan)
        steps = spent / audio_seconds * total
        workers = max(1, loader.num_workers)
        reading = self.item_seconds["train"] * len(loader.dataset) / workers
        valid = self.valid_speed * sum(s for s, _ in planned_batches(self.loaders["dev"]))
        train = max(steps, reading)
        epochs = brain.option("number_of_epochs", 1)
        whole = epochs * (train + valid) + self.test_seconds
        what = (
            f"an epoch about {minutes(train + valid)} ({len(self.plan):,} batches, "
            f"validation {minutes(valid)}), {epochs} epochs and the test {minutes(whole)}"
        )
        yield Check("time", OK, what)
        if reading > 1.2 * steps:
            what = (
                f"reading takes {minutes(reading)} of an epoch, the steps {minutes(steps)}"
            )
            yield Check("time: data", WARNING, what, "raise num_workers")


def _same(name: str, how: str, first: list, second: list, advice: str) -> Check:
    """Whether two times the same scores came out."""
    worst = 0.0
    for one, other in zip(first, second, strict=True):
        for key, value in one.items():
            again = other[key]
            if not isinstance(value, (int, float)) or value == again:
                continue
            if np.isfinite(value) and np.isfinite(again):
                worst = max(worst, abs(value - again) / max(abs(value), 1.0))
            elif not (np.isnan(value) and np.isnan(again)):
                worst = float("inf")
    if worst == 0:
        return Check(name, OK, f"{how}: the same scores to the last bit")
    if worst < ROUNDING:
        return Check(name, OK, f"{how}: the same scores to {worst:.0e}")
    return Check(name, FAILED, f"{how}: scores differ by {worst:.2g}", advice)


def minutes(seconds: float) -> str:
    """A duration for people.

    Example
    -------
    >>> minutes(42), minutes(600), minutes(7200)
    ('42 s', '10 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
