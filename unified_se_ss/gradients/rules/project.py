"""Gradient modulation, as in arXiv 2302.11131."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, rule


@rule
def project(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """Take out of g_a what opposes g_m, where the tasks conflict; then g_m + g_a.

    If c < 0, g_a becomes g_a - (c / b) g_m, its projection on the normal plane of g_m.
    This is not PCGrad, which projects both gradients.

    Source: arXiv 2302.11131; the published code does so tensor by tensor.

    Example
    -------
    >>> g_a, g_m = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    >>> w_a, w_m = project(g_a @ g_a, g_m @ g_m, g_a @ g_m)
    >>> w_a * g_a + w_m * g_m
    tensor([1., 1.])
    """
    return torch.ones_like(a), 1 - c.clamp(max=0) / b
