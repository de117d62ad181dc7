"""What several rules need of the plane that two gradients span."""

from __future__ import annotations

import torch


def norms_and_cosine(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lengths of the two gradients and the cosine of their angle.

    Nothing is multiplied before it is divided, so squared norms down to 1e-300 are right.

    Arguments
    ---------
    a, b, c : torch.Tensor
        ||g_a||^2, ||g_m||^2 and <g_a, g_m> of each group, [G]; a and b above zero.

    Returns
    -------
    tuple of torch.Tensor
        ||g_a||, ||g_m|| and cos phi, the last within -1 and 1 whatever rounding did, [G].

    Example
    -------
    >>> norms_and_cosine(*torch.tensor([[4.0], [1.0], [-1.0]]))
    (tensor([2.]), tensor([1.]), tensor([-0.5000]))
    """
    norm_a, norm_m = a.sqrt(), b.sqrt()
    return norm_a, norm_m, (c / norm_a / norm_m).clamp(-1, 1)
