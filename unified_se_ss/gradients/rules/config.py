"""ConFIG, conflict-free inverse gradients, as in arXiv 2408.11104."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.geometry import norms_and_cosine
from unified_se_ss.gradients.rules.registry import Weights, rule


@rule
def config(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The direction with equal cosines to both, as long as both project on it together.

    The direction is U^+ (1, 1), with U the matrix of unit gradients, and the length the
    sum of both projections on it. For two tasks that is the bisector with

        w_a = (1 + ||g_m|| / ||g_a||) / 2,  w_m = (1 + ||g_a|| / ||g_m||) / 2:

    both gradients are given their mean length and added. The size is that of ``sum``; for
    parallel gradients, and for such of equal length, it is ``sum``. Exactly opposite
    gradients give zero.

    Source: arXiv 2408.11104, equation 2.

    Example
    -------
    >>> config(*torch.tensor([[9.0], [1.0], [-1.0]]))
    (tensor([0.6667]), tensor([2.]))
    """
    norm_a, norm_m, _ = norms_and_cosine(a, b, c)
    return (1 + norm_m / norm_a) / 2, (1 + norm_a / norm_m) / 2
