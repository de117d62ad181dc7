"""Distance of magnitude spectra: what enhances in front of a recogniser is trained on.

Axes: B batch, L frames, F bins.
"""

from __future__ import annotations

import torch

from unified_se_ss.padding import real_elements


def magnitude_loss(
    estimate: torch.Tensor, target: torch.Tensor, frames: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared error of magnitudes: summed over bins, mean over the frames of each item.

    Arguments
    ---------
    estimate, target : torch.Tensor
        Magnitudes, [B, L, F].
    frames : torch.Tensor, optional
        Real frames of each item, [B]; by default all are.

    Returns
    -------
    torch.Tensor
        One loss per item, [B].

    Source: arXiv 2302.11362, eq. 1; YUCHEN005/Gradient-Remedy (loss_type magnitude3).

    Example
    -------
    >>> target = torch.ones(2, 5, 3)
    >>> magnitude_loss(0 * target, target, torch.tensor([5, 2]))
    tensor([3., 3.])
    """
    error = (estimate.float() - target.float()).square().sum(-1)
    if frames is None:
        return error.mean(-1)
    real = real_elements(frames, error.shape[-1], error.device)
    total = torch.where(real, error, 0.0).sum(-1)
    return total / frames.to(error.device, error.dtype, non_blocking=True).clamp(min=1)
