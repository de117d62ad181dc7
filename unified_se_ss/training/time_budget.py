"""``budget_minutes``: training that ends in time on any machine, with its schedule."""

from __future__ import annotations

import time

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)


@register_checkpoint_hooks
class TimeBudget:
    """Wall time of training, over all starts of a run, and the share of it that is used.

    A machine that is fast enough trains all epochs, and nothing follows from the clock. On
    a slower one the learning rate is at any time that of the epoch which a run of the full
    length would have reached with the same share, and training ends when the budget is
    used up, within an epoch. A checkpoint holds the time that was used.

    Arguments
    ---------
    minutes : float, optional
        By default there is no limit.
    epochs : int
        What the schedule is made for (default 1).

    Example
    -------
    >>> budget = TimeBudget(minutes=2, epochs=8)
    >>> budget.used = 61.0
    >>> budget.scheduled_epoch(epoch=2), budget.scheduled_epoch(epoch=7), budget.is_spent
    (5, 7, False)
    """

    def __init__(self, minutes: float | None = None, epochs: int = 1):
        self.seconds = None if minutes is None else 60.0 * minutes
        self.epochs = epochs
        self.used = 0.0
        self._since = None

    @property
    def is_spent(self) -> bool:
        """Whether training is to end."""
        return self.seconds is not None and self.used >= self.seconds

    def start(self) -> None:
        """Have the time count from now on."""
        self._since = time.monotonic()

    def look(self) -> None:
        """Bring ``used`` up to now: the first rank's time, where there are several."""
        self._count()
        if self.seconds is not None and torch.distributed.is_initialized():
            used = [self.used]
            torch.distributed.broadcast_object_list(used, src=0)
            self.used = used[0]

    def _count(self) -> None:
        if self._since is not None:
            now = time.monotonic()
            self.used, self._since = self.used + now - self._since, now

    def scheduled_epoch(self, epoch: int) -> int:
        """The epoch whose learning rate holds in an epoch: it, or a later one."""
        if self.seconds is None:
            return epoch
        reached = 1 + int(self.epochs * min(1.0, self.used / self.seconds))
        return max(epoch, min(self.epochs, reached))

    def __str__(self):
        return f"{self.used / 60:.1f} of {self.seconds / 60:g} minutes"

    @mark_as_saver
    def _save(self, path):
        self._count()
        with open(path, "w", encoding="utf-8") as file:
            file.write(repr(self.used))

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        with open(path, encoding="utf-8") as file:
            self.used = float(file.read())
