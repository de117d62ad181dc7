"""Which elements of a padded batch are real."""

from __future__ import annotations

import torch


def padding_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Mark the elements that are not padding.

    Arguments
    ---------
    lengths : torch.Tensor
        Number of real elements of each item, [B].
    size : int
        Padded length T.

    Returns
    -------
    torch.Tensor
        Boolean, [B, T]; True where an element is real.

    Example
    -------
    >>> padding_mask(torch.tensor([1, 3]), 3)
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(-1)
