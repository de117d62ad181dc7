"""Which frames and chunks of a padded batch are real."""

from __future__ import annotations

import torch


def real_elements(lengths: torch.Tensor, size: int, device: torch.device) -> torch.Tensor:
    """Mark the elements that are not padding, boolean [B, size], on `device`.

    Example
    -------
    >>> real_elements(torch.tensor([1, 2]), 2, torch.device("cpu")).tolist()
    [[True, False], [True, True]]
    """
    lengths = lengths.to(device, non_blocking=True)
    return torch.arange(size, device=device) < lengths.unsqueeze(-1)
