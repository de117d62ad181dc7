"""Losses as sums over items, so that means can be taken over all ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch


class TaskLoss(NamedTuple):
    """The loss of one task on one batch: a sum over items, with its graph, and their number.

    Means over the items of all micro-batches and ranks are taken once, after all have been
    added up, so that neither an uneven last batch nor an item that one rank drops gives any
    other item more weight. Both are scalars on one device.
    """

    total: torch.Tensor
    items: torch.Tensor

    @classmethod
    def of(cls, losses: torch.Tensor, keep: torch.Tensor | None = None) -> TaskLoss:
        """Add up the losses of a batch, [B]; of the items with `keep`, boolean [B], where given.

        Example
        -------
        >>> TaskLoss.of(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([True, True, False]))
        TaskLoss(total=tensor(6.), items=tensor(2.))
        """
        if keep is None:
            keep = torch.ones_like(losses, dtype=torch.bool)
        kept = torch.where(keep, losses, 0.0)
        return cls(kept.sum(), keep.sum().to(kept.dtype))

    def mean(self) -> torch.Tensor:
        """Mean over the items, without a graph; 0 where there are none."""
        return self.total.detach() / self.items.clamp(min=1)


class TwoTaskLosses(NamedTuple):
    """The losses of the main task, which must not suffer, and the weighted auxiliary one."""

    main: TaskLoss
    auxiliary: TaskLoss | None = None
