"""Which items a run could not use: written down at once, and not too many."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from speechbrain.utils.distributed import run_on_main

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write
from unified_se_ss.training.gather import gather

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
    >>> import tempfile
    >>> from unified_se_ss.data.skipping import SkippedItem
    >>> items = SkippedItems(tempfile.mkdtemp(), most=0.5)
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
        """What was skipped so far, all ranks' and epochs' items."""
        if not self.path.is_file():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            lines = [line for line in csv.reader(file) if len(line) == len(COLUMNS)]
        # Two ranks that meet their first item at once both write a header.
        return [dict(zip(COLUMNS, line)) for line in lines if line != list(COLUMNS)]

    def begin(self, subset: str, epoch: int, n_items: int, batches: int = 0) -> None:
        """Begin a pass over a subset, or go on in it.

        Arguments
        ---------
        subset : str
            "train", "dev" or "test".
        epoch : int
            Its number; 0 for the test.
        n_items : int
            Items of the subset, of all ranks.
        batches : int
            Batches of the pass that are done already.
        """
        self.subset, self.epoch, self.n_items = subset, int(epoch), n_items
        self.start = batches
        self.count = self._before = sum(self._of_this_pass(row) for row in self.rows)
        run_on_main(self._forget_later)  # before any rank adds rows

    def _forget_later(self) -> None:
        """Take out what was written after the place at which this pass begins."""
        if not self.path.is_file():
            return
        kept = _as_text(filter(self._came_before, self.rows), header=True)
        if kept != self.path.read_text(encoding="utf-8"):
            atomic_write(self.path, kept)

    def _of_this_pass(self, row) -> bool:
        """Whether a row was written in this pass, before the place at which it begins."""
        this = (row["subset"], int(row["epoch"])) == (self.subset, self.epoch)
        return this and int(row["batch"]) <= self.start

    def _came_before(self, row) -> bool:
        """Whether a row would have been written by now had the run never been stopped."""
        place = _place(row["subset"], int(row["epoch"]))
        return place < _place(self.subset, self.epoch) or self._of_this_pass(row)

    def add(self, skipped, batch: int) -> None:
        """Write items down; stop the run if they have become too many.

        Arguments
        ---------
        skipped : iterable of SkippedItem
            From one batch.
        batch : int
            Its number in this pass, from 1.

        Raises
        ------
        UserError
            More than the share that is allowed.
        """
        skipped = list(skipped)
        if not skipped:  # also in a look at one item, which begins no pass
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
        """Add rows in one write, which no other process' rows can come into."""
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                text = _as_text(rows, header=os.fstat(handle).st_size == 0)
                os.write(handle, text.encode("utf-8"))
            finally:
                os.close(handle)
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
        """All ranks' number of skipped items of this pass; stops if they are too many."""
        total = self._before + sum(gather([self.count - self._before]))
        if total:
            self.check(total)
        return total


def _place(subset: str, epoch: int) -> tuple:
    """Where a pass stands in a run: training, validation, the next epoch, the test last."""
    return (subset == "test", epoch, subset != "train")


def _as_text(rows, header: bool) -> str:
    """Rows as lines of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
