"""Nash-MTL, multi-task learning as a bargaining game, as in arXiv 2202.01017."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.geometry import norms_and_cosine
from unified_se_ss.gradients.rules.registry import Weights, rule

#: Below this 1 + cos phi counts as zero: the angle is within 1.5e-6 of opposite.
OPPOSITE = 1e-12


@rule
def nash(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The Nash bargaining solution: both tasks gain in equal proportion.

    The weights solve G w = 1 / w with G the matrix of inner products. With x = ||g_a|| w_a
    and y = ||g_m|| w_m this is x^2 + x y cos phi = 1 = y^2 + x y cos phi, so x = y and

        w_a = 1 / (||g_a|| sqrt(1 + cos phi)),  w_m = 1 / (||g_m|| sqrt(1 + cos phi)).

    So the shared gradient lies on the bisector and always has the length sqrt(2),
    whatever the lengths of the two: each group takes a step of the same size, and weights
    are not those of ``sum``, nor do they sum to 1. Choose the learning rate anew. (The
    published code limits that length to 1, which with two tasks is but another factor,
    and reuses weights over several steps; neither is done here.)

    There is no solution for opposite gradients (Pareto-stationary); they give zero where
    1 + cos phi is below 1e-12.

    Source: arXiv 2202.01017, claim 3.1.

    Example
    -------
    >>> g_a, g_m = torch.tensor([0.0, 4.0]), torch.tensor([0.5, 0.0])
    >>> w_a, w_m = nash(g_a @ g_a, g_m @ g_m, g_a @ g_m)
    >>> w_a * g_a + w_m * g_m
    tensor([1., 1.])
    """
    norm_a, norm_m, cosine = norms_and_cosine(a, b, c)
    opposite = 1 + cosine < OPPOSITE
    length = torch.where(opposite, 0.0, torch.where(opposite, 1.0, 1 + cosine).rsqrt())
    return length / norm_a, length / norm_m
