"""Gradient surgery, as in arXiv 2001.06782."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, rule


@rule
def pcgrad(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """In conflict, project each gradient on the normal plane of the other; then add.

    Symmetric, unlike ``project``.

    Source: arXiv 2001.06782, algorithm 1, for two tasks.

    Example
    -------
    >>> g_a, g_m = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    >>> w_a, w_m = pcgrad(g_a @ g_a, g_m @ g_m, g_a @ g_m)
    >>> w_a * g_a + w_m * g_m
    tensor([0.5000, 1.5000])
    """
    opposed = c.clamp(max=0)
    return 1 - opposed / a, 1 - opposed / b
