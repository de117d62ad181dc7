"""Which elements of a padded batch are real."""

from __future__ import annotations

from typing import TypeVar

import torch

#: A number, or a tensor with one for each item; what is given one of them returns the same.
Count = TypeVar("Count", int, torch.Tensor)


def real_elements(
    lengths: torch.Tensor, size: int, device: torch.device | None = None
) -> torch.Tensor:
    """Mark the real elements of each item, boolean [B, T], T = `size`, on `device`.

    `lengths`, [B], are best on the CPU: they are sent to the device without waiting for it.

    Example
    -------
    >>> real_elements(torch.tensor([1, 3]), 3)
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    lengths = lengths.to(device or lengths.device, non_blocking=True)
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(-1)
