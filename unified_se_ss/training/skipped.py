"""Items and steps that a run leaves out: named at once, and not too many of them."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

import torch
from speechbrain.utils.distributed import run_on_main

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write
from unified_se_ss.training.distributed import gather

logger = logging.getLogger(__name__)

MAX_SKIPPED_SHARE = 0.01
COLUMNS = ("epoch", "subset", "batch", "ID", "file", "reason")


class SkippedItems:
    """The file ``skipped.csv`` of a run, one row per item and epoch.

    Each rank adds the rows of its own items as soon as it meets them. A run that is
    resumed forgets what was written after the place from which it goes on, so that the
    file is the same as that of a run which was never stopped.

    Arguments
    ---------
    folder : str or Path
        The run's folder.
    most : float
        The share of a subset's items that may be skipped in one pass (default 0.01).

    Example
    -------
    >>> from unified_se_ss.data.batching import SkippedItem
    >>> items = SkippedItems(getfixture("tmpdir"), most=0.5)
    >>> items.begin("train", epoch=1, n_items=4)
    >>> items.add([SkippedItem("a", "a.wav", "a.wav: does not exist")], batch=3)
    >>> items.count, items.rows[0]["ID"]
    (1, 'a')
    """

    def __init__(self, folder, most: float = MAX_SKIPPED_SHARE):
        self.path = Path(folder) / "skipped.csv"
        if not 0 <= most <= 1:
            raise UserError(f"max_skipped_share: is {most}; expected a share from 0 to 1")
        self.most = most
        self.subset, self.epoch, self.n_items, self.start = "", 0, 0, 0
        self.count = self._before = 0

    @property
    def rows(self) -> list[dict]:
        """All ranks' and epochs' items so far."""
        if not self.path.is_file():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            lines = [line for line in csv.reader(file) if len(line) == len(COLUMNS)]
        # Two ranks that meet their first item at once both write a header.
        return [dict(zip(COLUMNS, line)) for line in lines if line != list(COLUMNS)]

    def begin(self, subset: str, epoch: int, n_items: int, batches: int = 0) -> None:
        """Begin a pass over a subset of `n_items`, or go on in it after some batches."""
        self.subset, self.epoch, self.n_items = subset, int(epoch), n_items
        self.start = batches
        self.count = self._before = sum(self._of_this_pass(row) for row in self.rows)
        run_on_main(self._forget_later)  # before any rank adds rows

    def _forget_later(self) -> None:
        if not self.path.is_file():
            return
        kept = _as_text(filter(self._came_before, self.rows), header=True)
        if kept != self.path.read_text(encoding="utf-8"):
            atomic_write(self.path, kept)

    def _of_this_pass(self, row) -> bool:
        this = (row["subset"], int(row["epoch"])) == (self.subset, self.epoch)
        return this and int(row["batch"]) <= self.start

    def _came_before(self, row) -> bool:
        """True for a row that a run never stopped would have written by now."""
        place = _place(row["subset"], int(row["epoch"]))
        return place < _place(self.subset, self.epoch) or self._of_this_pass(row)

    def add(self, skipped, batch: int) -> None:
        """Write down the items that a batch left out; stop the run at too many.

        Arguments
        ---------
        skipped : sequence of SkippedItem
        batch : int
            Its number in this pass, from 1.
        """
        if not skipped:
            return
        here = {"epoch": self.epoch, "subset": self.subset, "batch": batch}
        rows = [
            {**here, "ID": item.id, "file": item.file, "reason": item.reason}
            for item in skipped
        ]
        self._append(rows)
        self.count += len(rows)
        self.check(self.count, rows[0]["reason"])

    def _append(self, rows) -> None:
        """Add rows in one write, into which no other process can write."""
        try:
            with open(self.path, "ab", buffering=0) as file:
                file.write(_as_text(rows, header=file.tell() == 0).encode("utf-8"))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def check(self, count: int, reason: str = "") -> None:
        """Stop the run if more than the share that is allowed, or all, were skipped."""
        if count <= self.most * self.n_items and count < self.n_items:
            return
        example = f" One of them: {reason}." if reason else ""
        raise UserError(
            f"{count} of the {self.n_items} items of the subset {self.subset} could not be "
            f"used; max_skipped_share allows {self.most:g} of them.{example} {self.path} "
            "names them all; mend these files or take them out of the data, look at all of "
            "it with --check, or set --max_skipped_share"
        )

    def end(self) -> int:
        """All ranks' number of skipped items of this pass; stops the run at too many."""
        total = self._before + sum(gather([self.count - self._before]))
        if total:
            self.check(total)
        return total


def _place(subset: str, epoch: int) -> tuple:
    """Order of a run's passes: training, validation, the next epoch; the test is last."""
    return (subset == "test", epoch, subset != "train")


def _as_text(rows, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class NonFiniteMonitor:
    """Names the batches of a run whose losses or gradients are not finite, in the log.

    A step leaves flags on the device and the items' names on the host. Nothing is fetched
    until :meth:`flush`, which is called where the device is read anyhow.

    Example
    -------
    >>> from unified_se_ss.gradients import TaskLoss, TwoTaskLosses
    >>> monitor = NonFiniteMonitor()
    >>> losses = TwoTaskLosses(TaskLoss.of(torch.tensor([1.0, torch.nan])))
    >>> monitor.record("epoch 1, batch 3", ["a", "b"], losses)
    >>> monitor.flush()
    [{'place': 'epoch 1, batch 3', 'ids': ['a', 'b'], 'found': ['main loss']}]
    """

    def __init__(self):
        self._pending, self._since_step = [], []

    def record(self, place: str, ids, losses, combined=None) -> None:
        """Keep the flags of one batch.

        Arguments
        ---------
        place : str
            Of the batch in the run.
        ids : sequence of str
            Of its items.
        losses : TwoTaskLosses
        combined : CombinedGradients, optional
            Of the step that ends with this batch; its flags concern all batches since the
            last one.
        """
        batch = {"place": place, "ids": list(map(str, ids)), "found": []}
        self._since_step.append(batch)
        flags = {
            f"{task} loss": loss.total.detach().isfinite()
            for task, loss in losses._asdict().items()
            if loss is not None
        }
        self._pending.append((flags, [batch]))
        if combined is not None:
            flags = {
                "main gradient": combined.main_finite,
                "auxiliary gradient": combined.auxiliary_finite,
            }
            self._pending.append((flags, self._since_step))
            self._since_step = []

    def flush(self) -> list[dict]:
        """Fetch the flags in one transfer; log and return the batches that were not finite."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        flags = [flag for of_batch, _ in pending for flag in of_batch.values()]
        finite = iter(torch.stack(flags).tolist())
        bad = []
        for names, batches in pending:
            found = [name for name in names if not next(finite)]
            # A loss that is not finite makes the gradients so, which is no news.
            bad += [b | {"found": found} for b in batches if found and not b["found"]]
            for batch in batches:
                batch["found"] += found
        for batch in bad:
            logger.warning(
                "%s: not finite: %s; its items: %s",
                batch["place"],
                ", ".join(batch["found"]),
                ", ".join(batch["ids"]),
            )
        return bad
