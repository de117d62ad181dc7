"""Impartial multi-task learning, the part for gradients (IMTL-G)."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.geometry import norms_and_cosine
from unified_se_ss.gradients.rules.registry import Weights, rule


@rule
def imtl_g(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The mixture with equal projections on both gradients.

    <g, g_a> / ||g_a|| = <g, g_m> / ||g_m|| with w_a + w_m = 1. For two tasks that is the
    bisector of the angle, and the weights do not depend on it:

        w_a = ||g_m|| / (||g_a|| + ||g_m||),  w_m = ||g_a|| / (||g_a|| + ||g_m||).

    The weights are normalised to sum to 1: both gradients enter with one and the same
    length, less than that of the shorter one, so the step is half of that of ``sum`` for
    equal gradients and smaller than that for others. Exactly opposite gradients give zero.
    For parallel ones any weights qualify; these are the limit.

    Source: Liu et al., Towards impartial multi-task learning, ICLR 2021, equation 6.

    Example
    -------
    >>> imtl_g(*torch.tensor([[9.0], [1.0], [-1.0]]))
    (tensor([0.2500]), tensor([0.7500]))
    """
    norm_a, norm_m, _ = norms_and_cosine(a, b, c)
    return norm_m / (norm_a + norm_m), norm_a / (norm_a + norm_m)
