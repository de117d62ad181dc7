"""Gradient Vaccine, as in arXiv 2010.05874."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.geometry import norms_and_cosine
from unified_se_ss.gradients.rules.registry import rule

#: Below this the sine of the target angle is not divided by.
SMALLEST_SINE = 1e-8


@rule(has_memory=True, beta=(0.0, 1.0))
def gradvac(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    target: torch.Tensor,
    *,
    beta: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the cosine is below what it used to be, turn both gradients until it is that.

    With phi the cosine and phi^ its moving average (the target), if phi < phi^,

        g_i <- g_i + ||g_i|| (phi^ sqrt(1 - phi^2) - phi sqrt(1 - phi^^2))
                     / (||g_j|| sqrt(1 - phi^^2)) g_j

    for both tasks, then they are added; then phi^ <- (1 - beta) phi^ + beta phi. With
    two tasks the paper's targets of (i, j) and (j, i) are one number. It starts at 0, so
    the first step is that of ``pcgrad``.

    The size is that of ``sum`` where nothing is turned. The nearer the target is to 1, the
    more has to be added to reach it, without bound; its sine is floored at 1e-8 to keep
    the weights finite. Exactly opposite gradients cannot be turned and give zero.

    Source: arXiv 2010.05874, equations 3 and 4.

    Arguments
    ---------
    a, b, c : torch.Tensor
        ||g_a||^2, ||g_m||^2 and <g_a, g_m> of each group, [G].
    target : torch.Tensor
        The moving average of the cosine, [G].
    beta : float
        Weight of the newest cosine, from 0 to 1 (source: the paper's experiments, 0.01;
        other implementations take 0.5).

    Returns
    -------
    tuple of torch.Tensor
        w_a, w_m and the new target, each [G].

    Example
    -------
    >>> numbers = torch.tensor([[2.0], [1.0], [-1.0]])
    >>> gradvac(*numbers, torch.zeros(1))
    (tensor([1.5000]), tensor([2.]), tensor([-0.0071]))
    """
    norm_a, norm_m, cosine = norms_and_cosine(a, b, c)
    sine = (1 - cosine.square()).sqrt()
    target_sine = (1 - target.square()).clamp(min=SMALLEST_SINE**2).sqrt()
    turn = torch.where(cosine < target, target * sine / target_sine - cosine, 0.0)
    w_a, w_m = 1 + turn * norm_m / norm_a, 1 + turn * norm_a / norm_m
    return w_a, w_m, (1 - beta) * target + beta * cosine
