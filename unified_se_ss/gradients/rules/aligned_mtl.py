"""Aligned-MTL, independent component alignment, as in arXiv 2305.19000."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, rule


@rule
def aligned_mtl(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The mean of two gradients that were made orthogonal and of equal length.

    With G = [[a, c], [c, b]] and its eigenvalues l_1 >= l_2, the weights are

        sqrt(l_2) G^(-1/2) (1/2, 1/2),

    the closest orthogonal pair, scaled by the smaller singular value as in the paper. For
    a 2 x 2 matrix G^(-1/2) needs no eigenvectors: with s = sqrt(det G) and
    t = sqrt(a + b + 2 s), sqrt(l_2) G^(-1/2) = ((a + b + s) I - G) / (t sqrt(l_1)), in
    which nothing vanishes.

    The size is that of the mean of two vectors of length sqrt(l_2), which is at most the
    shorter gradient's, so well below that of ``sum``, and near zero where the gradients
    are nearly parallel. Where they are parallel or opposite to rounding, one component is
    left and the paper's algorithm gives the mean itself; so equal gradients are kept, and
    only opposite ones of equal length give zero. It may oppose the shorter of two
    gradients at an obtuse angle.

    Source: arXiv 2305.19000, algorithm 1.

    Example
    -------
    >>> g_a, g_m = torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.0])
    >>> w_a, w_m = aligned_mtl(g_a @ g_a, g_m @ g_m, g_a @ g_m)
    >>> w_a * g_a + w_m * g_m
    tensor([0.5000, 0.5000])
    """
    unit = torch.maximum(a, b)
    a, b, c = a / unit, b / unit, c / unit
    determinant = (a * b - c.square()).clamp(min=0)
    s = determinant.sqrt()
    largest = (a + b + torch.hypot(a - b, 2 * c)) / 2
    # l_2 = det G / l_1; the usual tolerance of a rank, 2 being the size of G
    one_component = determinant <= 2 * torch.finfo(a.dtype).eps * largest.square()
    scale = 2 * ((a + b + 2 * s) * largest).sqrt()
    return (
        torch.where(one_component, 0.5, (b + s - c) / scale),
        torch.where(one_component, 0.5, (a + s - c) / scale),
    )
