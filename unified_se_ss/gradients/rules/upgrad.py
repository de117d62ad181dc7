"""Unconflicting projection of gradients (UPGrad), as in arXiv 2406.16232."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, rule


@rule
def upgrad(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """Project each gradient on the cone of what opposes neither; then the mean.

    The dual cone is {x: <x, g_a> >= 0 and <x, g_m> >= 0}. For two tasks the projection
    of g_a is exact: in conflict only the constraint of g_m is active, so it is
    g_a - (c / b) g_m, whose product with g_a, a - c^2 / b, is never negative; likewise
    that of g_m. So this is the half of ``pcgrad``; with more tasks they differ.

    The size is that of the mean, half of that of ``sum`` without conflict. Exactly
    opposite gradients (Pareto-stationary) give zero.

    Source: arXiv 2406.16232, section 2.2.

    Example
    -------
    >>> g_a, g_m = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    >>> w_a, w_m = upgrad(g_a @ g_a, g_m @ g_m, g_a @ g_m)
    >>> w_a * g_a + w_m * g_m
    tensor([0.2500, 0.7500])
    """
    opposed = c.clamp(max=0)
    return (1 - opposed / a) / 2, (1 - opposed / b) / 2
