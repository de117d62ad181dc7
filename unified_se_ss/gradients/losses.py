"""Losses as sums over items, so that means can be taken over all ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch


class TaskLoss(NamedTuple):
    """The loss of one task on one batch: a sum over items, and how many they are.

    The mean over the items of all micro-batches and ranks is taken once, after they
    have been added up. So neither an uneven last batch nor an item that one rank drops
    gives any other item more weight.

    Arguments
    ---------
    total : torch.Tensor
        Sum of the items' losses, a scalar with its graph.
    items : torch.Tensor
        Number of items in the sum, a scalar on the same device.
    """

    total: torch.Tensor
    items: torch.Tensor

    @classmethod
    def of(cls, losses: torch.Tensor, keep: torch.Tensor | None = None) -> TaskLoss:
        """Add up the losses of the items of a batch.

        Arguments
        ---------
        losses : torch.Tensor
            One loss per item, [B].
        keep : torch.Tensor, optional
            True for the items that count, [B]. By default all do.

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
    """What a batch costs in both tasks.

    Arguments
    ---------
    main : TaskLoss
        The task that must not suffer.
    auxiliary : TaskLoss or None
        The task that helps, weighted already; None where there is none.
    """

    main: TaskLoss
    auxiliary: TaskLoss | None = None
