"""The multiple-gradient descent algorithm, for two tasks."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, rule


@rule
def mgda(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The shortest vector among all mixtures of the two gradients.

    The minimum of ||w g_a + (1 - w) g_m|| over 0 <= w <= 1 is at

        w = (b - c) / ||g_a - g_m||^2,  clipped to [0, 1].

    The weights are normalised to sum to 1, so the step is no longer than the shorter
    gradient: half of that of ``sum`` for equal gradients, and far less where one of them is
    small. Where the gradients are exactly opposite (Pareto-stationary)
    it is zero.

    Source: Désidéri, C. R. Acad. Sci. 350 (2012); closed form in arXiv 1810.04650,
    algorithm 1.

    Example
    -------
    >>> g_a, g_m = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    >>> w_a, w_m = mgda(g_a @ g_a, g_m @ g_m, g_a @ g_m)
    >>> w_a * g_a + w_m * g_m
    tensor([0.2000, 0.4000])
    """
    squared_distance = a + b - 2 * c
    apart = squared_distance > 0  # else they are equal, and so are all mixtures
    share = torch.where(apart, (b - c) / torch.where(apart, squared_distance, 1.0), 0.5)
    w_a = share.clamp(0, 1)
    return w_a, 1 - w_a
