"""Conflict-averse gradient descent, as in arXiv 2110.14048."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, rule


@rule(c=(0.0, 1.0))
def cagrad(
    a: torch.Tensor, b: torch.Tensor, product: torch.Tensor, *, c: float = 0.5
) -> Weights:
    """Near the mean gradient, the step that helps the worse-off task most.

    With g_0 = (g_a + g_m) / 2, the d with ||d - g_0|| <= c ||g_0|| whose smaller one of
    <d, g_a> and <d, g_m> is largest. By duality (the paper's equation 3)

        d = g_0 + c ||g_0|| g_w / ||g_w||,  g_w = w g_a + (1 - w) g_m,

    where 0 <= w <= 1 minimises <g_w, g_0> + c ||g_0|| ||g_w||. For two tasks this has a
    closed form, so there is no solver and no tolerance. All g_w, and g_0 too, lie on one
    line; let h be its distance from the origin, and p, p_0 the places of g_w and g_0 on
    it, from the foot of the perpendicular. Then ||g_w||^2 = p^2 + h^2, <g_w, g_0> =
    p p_0 + h^2, and the derivative by p vanishes at

        p = -p_0 h / sqrt(c^2 h^2 - (1 - c^2) p_0^2),

    clipped to the segment between g_m and g_a; where the root is not real, the minimum
    is at the end with the shorter gradient.

    The size is that of the mean, at most (1 + c) / 2 times that of ``sum``; the paper's
    code may divide by (1 + c^2) after, which is not done here. It is zero only where g_0
    is (opposite gradients of one length), or for any opposite gradients if c = 1. With a
    c below 1 it may oppose the shorter of two gradients, as the mean does.

    Source: arXiv 2110.14048, algorithm 1.

    Arguments
    ---------
    a, b, product : torch.Tensor
        ||g_a||^2, ||g_m||^2 and <g_a, g_m> of each group, [G].
    c : float
        Radius of the ball around g_0 in units of ||g_0||, from 0 (the mean) to 1
        (source: the paper's code, 0.5).

    Returns
    -------
    tuple of torch.Tensor
        w_a and w_m, each [G]; they sum to more than 1.

    Example
    -------
    >>> g_a, g_m = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    >>> w_a, w_m = cagrad(g_a @ g_a, g_m @ g_m, g_a @ g_m)
    >>> w_a * g_a + w_m * g_m
    tensor([0.2500, 0.5000])
    """
    unit = torch.maximum(a, b)
    a, b, product = a / unit, b / unit, product / unit
    distance = (a + b - 2 * product).clamp(min=0).sqrt()  # of g_a from g_m
    distance = torch.where(distance > 0, distance, 1.0)  # equal gradients: any w will do
    height_squared = (a * b - product.square()).clamp(min=0) / distance.square()
    place_a, place_m = (a - product) / distance, (product - b) / distance
    place_0 = (a - b) / (2 * distance)

    under_root = c**2 * height_squared - (1 - c**2) * place_0.square()
    real = under_root > 0
    root = torch.where(real, under_root, 1.0).sqrt()
    place = torch.clamp(-place_0 * height_squared.sqrt() / root, place_m, place_a)
    place = torch.where(real, place, torch.where(place_0 > 0, place_m, place_a))
    share = ((place - place_m) / distance).clamp(0, 1)

    def squared_norm(place: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """||g_w||^2 without a difference of like numbers, whatever the angle."""
        mixed = share.square() * a + (1 - share).square() * b
        mixed = mixed + 2 * share * (1 - share) * product
        return torch.where(product < 0, place.square() + height_squared, mixed)

    squared_norm_0 = squared_norm(place_0, torch.full_like(a, 0.5))
    added = c * (squared_norm_0 / squared_norm(place, share)).sqrt()
    return 0.5 + added * share, 0.5 + added * (1 - share)
