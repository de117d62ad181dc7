"""Watch how two tasks get along, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from sys import intern

import torch

from unified_se_ss.gradients.statistics import (
    Statistics,
    Steps,
    scopes_of,
    statistics,
)
from unified_se_ss.gradients.two_task import CombinedGradients

#: Longest ring: 1000 steps of 800 groups are 32 MB.
MOST_KEPT = 1000


class ConflictMonitor:
    """Keep the numbers of each step on the device; make statistics of them now and then.

    A step costs two kernels, which copy its numbers into a ring on the device, and no
    look at the device. When the ring is full, or when somebody asks, all that it holds
    comes to the host in one transfer, and
    :func:`~unified_se_ss.gradients.statistics.statistics` says there what it means. An
    epoch is divided into windows of a fixed number of steps, wherever the looks fall.

    Arguments
    ---------
    groups : list of str
        Names of the groups that the rule is applied to, [G].
    granularity : str
        What they are, as :class:`~unified_se_ss.gradients.TwoTaskGradients` takes it.
    capacity : int
        Steps that the ring holds, of 5 G + 2 numbers each; 1000 at most.

    Example
    -------
    >>> monitor = ConflictMonitor(["network.weight", "network.bias"])
    >>> one, yes = torch.ones(2).double(), torch.tensor(True)
    >>> product = torch.tensor([-0.5, 0.25]).double()
    >>> monitor.update(CombinedGradients(one, one, product, one, one, one[0], yes, yes))
    >>> monitor.read()["conflict_rate"], monitor.read()["steps"]
    (0.5, 1)
    >>> [(row["step"], row["scope"], row["mean_cosine"]) for row in monitor.windows()]
    [(1, 'all', -0.125), (1, 'network', -0.125)]
    """

    def __init__(
        self, groups: Iterable[str], granularity: str = "parameter", capacity: int = 50
    ):
        self.scopes, self._members = scopes_of(list(groups), granularity)
        self.capacity = min(max(1, capacity), MOST_KEPT)
        self._ring: torch.Tensor | None = None
        self.reset()

    def reset(self, step: int = 0, window: int | None = None) -> None:
        """Begin an epoch: forget everything.

        Arguments
        ---------
        step : int
            Steps that were done before.
        window : int, optional
            Steps of a window; by default the epoch is one.
        """
        self._step, self._window = step, window
        self._filled = 0
        self._closed: list[dict] = []
        self._open = self._epoch = Statistics.none(len(self.scopes))

    def update(self, combined: CombinedGradients) -> None:
        """Take down what one step found."""
        if self._ring is None:
            self._allocate(combined.product)
        *numbers, scale, auxiliary_finite, main_finite = combined
        row = self._filled
        torch.cat([*numbers, scale.view(1)], out=self._numbers[row])
        torch.stack([auxiliary_finite, main_finite], out=self._flags[row])
        self._filled += 1
        if self._filled == self.capacity:
            self._fetch()

    def _allocate(self, like: torch.Tensor) -> None:
        """A row per step; the flags lie in the bytes of its last number."""
        columns = 5 * len(like) + 2
        self._ring = torch.zeros(
            self.capacity, columns, dtype=torch.float64, device=like.device
        )
        self._numbers = self._ring[:, :-1]
        self._flags = self._ring[:, -1:].view(torch.bool)[:, :2]

    def _fetch(self) -> None:
        """Take all rows off the device, in one transfer, and add them to the statistics."""
        if self._ring is None or not self._filled:
            return
        rows, self._filled = self._ring[: self._filled].cpu().numpy(), 0
        flags = rows[:, -1:].view(bool)
        numbers = rows[:, :-2].reshape(len(rows), 5, self._members.shape[1])
        a, b, c, w_a, w_m = numbers.swapaxes(0, 1)
        self._add(Steps(a, b, c, w_a, w_m, rows[:, -2], flags[:, 0], flags[:, 1]))

    def _add(self, steps: Steps) -> None:
        """Add steps to their windows and to the epoch."""
        while count := len(steps.auxiliary_scale):
            if self._window is not None:
                count = min(count, self._window - self._open.steps)
            found = statistics(steps.select(slice(count)), self._members)
            self._open, self._epoch = self._open + found, self._epoch + found
            self._step += count
            if self._open.steps == self._window:
                self._closed += self._open_rows()
                self._open = Statistics.none(len(self.scopes))
            steps = steps.select(slice(count, None))

    def _open_rows(self) -> list[dict]:
        """What is known of the window that is not full yet."""
        if not self._open.steps:
            return []
        return [{"step": self._step, **row} for row in self._open.rows(self.scopes)]

    def read(self) -> dict:
        """What is known of the epoch so far; at most one transfer.

        Returns
        -------
        dict
            ``steps``; ``conflict_rate``, the share of compared groups with c < 0, and
            ``mean_cosine`` (None where nothing was compared); ``auxiliary_nonfinite``
            and ``main_nonfinite``, numbers of steps.
        """
        self._fetch()
        steps, auxiliary_nonfinite, main_nonfinite, *_ = self._epoch.whole
        return {
            "steps": int(steps),
            "auxiliary_nonfinite": int(auxiliary_nonfinite),
            "main_nonfinite": int(main_nonfinite),
            "conflict_rate": self._epoch.mean("conflict_rate"),
            "mean_cosine": self._epoch.mean("mean_cosine"),
        }

    def windows(self) -> list[dict]:
        """The windows of the epoch so far, the last of which may be short.

        Returns
        -------
        list of dict
            One per window and scope: ``step``, the last one's number; ``scope``,
            ``"all"`` or a module's name; ``steps``, ``compared`` and what
            :func:`~unified_se_ss.gradients.statistics.statistics` explains. Non-finite
            steps, the mean of auxiliary_scale and histograms (lists of counts; the name
            says what their bins span) are in the rows of ``"all"``.
        """
        self._fetch()
        return self._closed + self._open_rows()

    def state_dict(self) -> dict:
        """All that is known of the epoch so far."""
        self._fetch()
        tensors = {
            name: {key: torch.from_numpy(value) for key, value in asdict(found).items()}
            for name, found in (("open", self._open), ("epoch", self._epoch))
        }
        return {
            "step": self._step,
            "window": self._window,
            # A pickle holds one text once, by identity: the same bytes after a resume.
            "closed": [
                {intern(k): _interned(v) for k, v in r.items()} for r in self._closed
            ],
            **tensors,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.reset(state["step"], state["window"])
        self._closed = list(state["closed"])
        self._open, self._epoch = (
            Statistics(**{key: value.numpy() for key, value in state[name].items()})
            for name in ("open", "epoch")
        )


def _interned(value: object) -> object:
    """A text as the one object that stands for all equal ones; others as they are."""
    return intern(value) if isinstance(value, str) else value
