"""Gradient remedy, as in arXiv 2302.11362."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, norms_and_cosine, rule


@rule(guarded=False, k=1.0)
def remedy(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *,
    k: float = 5.0,
    strict: bool = False,
) -> Weights:
    """Turn g_a towards g_m where they conflict; shrink it where it dominates.

    With r = ||g_a|| / ||g_m|| and phi their angle:

    1. In conflict (c < 0), g_a becomes s' = g_a + (sin phi - r cos phi) g_m, which lies
       at the angle arctan r to g_m (eq. 3 to 5 of the paper).
    2. Where ||s'|| > K ||g_m||, with theta' the angle of s' and g_m, s' becomes
       s' cos theta', and g_m becomes g_m / cos theta' (eq. 6 and 7).

    The published form divides by a cosine that nothing bounds: nearly orthogonal gradients
    make a step hundreds of times that of the sum, and one zero main gradient makes NaN of
    all. So by default cos theta' is floored at 1 / sqrt(1 + r^2), its value after 1., which
    bounds the stretch of g_m by the paper's own projection, and where either gradient
    vanishes the plain sum is taken. `strict` is the published code to rounding, with its
    divisions by zero. Source of `k`: the published configuration, 5.

    Example
    -------
    >>> g_a, g_m = torch.tensor([-3.0, 3.0]), torch.tensor([1.0, 0.0])
    >>> w_a, w_m = remedy((g_a @ g_a), (g_m @ g_m), (g_a @ g_m))
    >>> w_a * g_a + w_m * g_m  # s' = (0.707, 3), not longer than 5 * g_m
    tensor([1.7071, 3.0000])
    """
    vanishing = (a <= 0) | (b <= 0)
    if not strict:  # keep 0 / 0 out of what `where` chooses from
        a, b = torch.where(vanishing, 1.0, a), torch.where(vanishing, 1.0, b)
        c = torch.where(vanishing, 0.0, c)
    norm_a, norm_m, cosine = norms_and_cosine(a, b, c)
    r = norm_a / norm_m
    sine = (1 - cosine.square()).sqrt()

    # s' = g_a + added * g_m; its norm and its product with g_m follow from a, b, c.
    added = torch.where(c < 0, sine - r * cosine, 0.0)
    squared = (a + 2 * added * c + added.square() * b).clamp(min=0)
    product = c + added * b
    new_cosine = product / squared.sqrt() / norm_m
    dominant = squared > k**2 * b
    if strict:
        rescaled = dominant & (new_cosine != 0)
    else:
        rescaled = dominant & ~vanishing
        new_cosine = torch.maximum(new_cosine, (1 + a / b).rsqrt())
    shrink = torch.where(rescaled, new_cosine, 1.0)
    return shrink, shrink * added + 1 / shrink
