"""Rules of other papers, as closed forms for two tasks; for comparison with ``project``."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, norms_and_cosine, rule


@rule
def pcgrad(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """In conflict, project each gradient on the normal plane of the other; then add.

    Symmetric, unlike ``project``. Source: arXiv 2001.06782, algorithm 1, for two tasks.

    Example
    -------
    >>> g_a, g_m = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    >>> w_a, w_m = pcgrad(g_a @ g_a, g_m @ g_m, g_a @ g_m)
    >>> w_a * g_a + w_m * g_m
    tensor([0.5000, 1.5000])
    """
    opposed = c.clamp(max=0)
    return 1 - opposed / a, 1 - opposed / b


#: Below this the sine of the target angle is not divided by.
SMALLEST_SINE = 1e-8


@rule(has_memory=True, beta=(0.0, 1.0))
def gradvac(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    target: torch.Tensor,
    *,
    beta: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn both gradients until their cosine is what it used to be, if it is below that.

    With phi the cosine and phi^ its moving average (`target`, [G]), if phi < phi^,

        g_i <- g_i + ||g_i|| (phi^ sqrt(1 - phi^2) - phi sqrt(1 - phi^^2))
                     / (||g_j|| sqrt(1 - phi^^2)) g_j

    for both tasks, then they are added; then phi^ <- (1 - beta) phi^ + beta phi, the third
    number returned. With two tasks the paper's targets of (i, j) and (j, i) are one number.
    It starts at 0, so the first step is that of ``pcgrad``.

    The size is that of ``sum`` where nothing is turned. The nearer the target is to 1, the
    more is added to reach it, without bound; its sine is floored at 1e-8 to keep the weights
    finite. Exactly opposite gradients cannot be turned and give zero.

    Source: arXiv 2010.05874, equations 3 and 4; `beta`: its experiments, 0.01 (other
    implementations take 0.5).

    Example
    -------
    >>> numbers = torch.tensor([[2.0], [1.0], [-1.0]])
    >>> gradvac(*numbers, torch.zeros(1))
    (tensor([1.5000]), tensor([2.]), tensor([-0.0071]))
    """
    norm_a, norm_m, cosine = norms_and_cosine(a, b, c)
    sine = (1 - cosine.square()).sqrt()
    target_sine = (1 - target.square()).clamp(min=SMALLEST_SINE**2).sqrt()
    turn = torch.where(cosine < target, target * sine / target_sine - cosine, 0.0)
    w_a, w_m = 1 + turn * norm_m / norm_a, 1 + turn * norm_a / norm_m
    return w_a, w_m, (1 - beta) * target + beta * cosine


@rule
def mgda(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The shortest vector among all mixtures of the two gradients.

    The minimum of ||w g_a + (1 - w) g_m|| over 0 <= w <= 1 is at

        w = (b - c) / ||g_a - g_m||^2,  clipped to [0, 1].

    The weights sum to 1, so the step is no longer than the shorter gradient: half of that of
    ``sum`` for equal gradients, far less where one is small, zero where they are exactly
    opposite (Pareto-stationary).

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


@rule(c=(0.0, 1.0))
def cagrad(
    a: torch.Tensor, b: torch.Tensor, product: torch.Tensor, *, c: float = 0.5
) -> Weights:
    """Near the mean gradient, the step that helps the worse-off task most.

    With g_0 = (g_a + g_m) / 2, the d with ||d - g_0|| <= c ||g_0|| whose smaller one of
    <d, g_a> and <d, g_m> is largest. By duality (the paper's equation 3)

        d = g_0 + c ||g_0|| g_w / ||g_w||,  g_w = w g_a + (1 - w) g_m,

    where 0 <= w <= 1 minimises <g_w, g_0> + c ||g_0|| ||g_w||. For two tasks this has a
    closed form: all g_w, and g_0 too, lie on one line. Let h be its distance from the origin
    and p, p_0 the places of g_w and g_0 on it, from the foot of the perpendicular. Then
    ||g_w||^2 = p^2 + h^2, <g_w, g_0> = p p_0 + h^2, and the derivative by p vanishes at

        p = -p_0 h / sqrt(c^2 h^2 - (1 - c^2) p_0^2),

    clipped to the segment between g_m and g_a; where the root is not real, the minimum is at
    the end with the shorter gradient.

    The size is that of the mean, at most (1 + c) / 2 times that of ``sum``; the division by
    (1 + c^2) that the paper's code may add is left out. It is zero only where g_0 is, or for
    any opposite gradients if c = 1. With c < 1 it may oppose the shorter gradient, as the
    mean does.

    Source: arXiv 2110.14048, algorithm 1; `c`, the ball's radius in units of ||g_0||, from 0
    (the mean) to 1: the paper's code, 0.5.

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


@rule
def imtl_g(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The mixture with equal projections on both gradients.

    <g, g_a> / ||g_a|| = <g, g_m> / ||g_m|| with w_a + w_m = 1. For two tasks that is the
    bisector of the angle, and the weights do not depend on it:

        w_a = ||g_m|| / (||g_a|| + ||g_m||),  w_m = ||g_a|| / (||g_a|| + ||g_m||).

    Both gradients enter with one length, below that of the shorter one: the step is half of
    that of ``sum`` for equal gradients, less for others, and zero for exactly opposite ones.
    For parallel ones any weights qualify; these are the limit.

    Source: Liu et al., Towards impartial multi-task learning, ICLR 2021, equation 6.

    Example
    -------
    >>> imtl_g(*torch.tensor([[9.0], [1.0], [-1.0]]))
    (tensor([0.2500]), tensor([0.7500]))
    """
    norm_a, norm_m, _ = norms_and_cosine(a, b, c)
    return norm_m / (norm_a + norm_m), norm_a / (norm_a + norm_m)


#: Below this 1 + cos phi counts as zero: the angle is within 1.5e-6 of opposite.
OPPOSITE = 1e-12


@rule
def nash(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The Nash bargaining solution: both tasks gain in equal proportion.

    The weights solve G w = 1 / w with G the matrix of inner products. With x = ||g_a|| w_a
    and y = ||g_m|| w_m this is x^2 + x y cos phi = 1 = y^2 + x y cos phi, so x = y and

        w_a = 1 / (||g_a|| sqrt(1 + cos phi)),  w_m = 1 / (||g_m|| sqrt(1 + cos phi)).

    So the shared gradient lies on the bisector and always has the length sqrt(2): each group
    takes a step of the same size; choose the learning rate anew. (The published code limits
    the length to 1 and reuses weights over several steps; neither is done here.) Opposite
    gradients (Pareto-stationary) have no solution and give zero where 1 + cos phi < 1e-12.

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


@rule
def aligned_mtl(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The mean of two gradients that were made orthogonal and of equal length.

    With G = [[a, c], [c, b]] and its eigenvalues l_1 >= l_2, the weights are

        sqrt(l_2) G^(-1/2) (1/2, 1/2),

    the closest orthogonal pair, scaled by the smaller singular value as in the paper. With
    s = sqrt(det G) and t = sqrt(a + b + 2 s), sqrt(l_2) G^(-1/2) =
    ((a + b + s) I - G) / (t sqrt(l_1)), in which nothing vanishes.

    The size is that of the mean of two vectors of length sqrt(l_2), at most the shorter
    gradient's, and near zero for nearly parallel ones. Where they are parallel or opposite to
    rounding, one component is left and the paper's algorithm gives the mean itself: equal
    gradients are kept, and only opposite ones of equal length give zero. It may oppose the
    shorter of two gradients at an obtuse angle.

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


@rule
def config(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The direction with equal cosines to both, as long as both project on it together.

    The direction is U^+ (1, 1), with U the matrix of unit gradients. For two tasks that is
    the bisector, with both gradients given their mean length and added:

        w_a = (1 + ||g_m|| / ||g_a||) / 2,  w_m = (1 + ||g_a|| / ||g_m||) / 2.

    The size is that of ``sum``; for parallel gradients, and for such of equal length, it is
    ``sum``. Exactly opposite gradients give zero.

    Source: arXiv 2408.11104, equation 2.

    Example
    -------
    >>> config(*torch.tensor([[9.0], [1.0], [-1.0]]))
    (tensor([0.6667]), tensor([2.]))
    """
    norm_a, norm_m, _ = norms_and_cosine(a, b, c)
    return (1 + norm_m / norm_a) / 2, (1 + norm_a / norm_m) / 2


@rule
def upgrad(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """Project each gradient on the cone of what opposes neither; then the mean.

    The dual cone is {x: <x, g_a> >= 0 and <x, g_m> >= 0}. For two tasks the projection of
    g_a is exact: in conflict only the constraint of g_m is active, so it is g_a - (c / b) g_m,
    whose product with g_a, a - c^2 / b, is never negative; likewise that of g_m. So this is
    half of ``pcgrad``; with more tasks they differ. Exactly opposite gradients
    (Pareto-stationary) give zero.

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
