"""What the rules are measured by: formulas of the papers, torchjd, and 50 digits.

Every oracle takes two gradients, float64 vectors, and gives the shared gradient. None
knows the closed forms of the package. Used by test_rules.py and by
benchmarks/rule_accuracy.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import mpmath
import pytest
import torch
from torchjd import aggregation
from torchjd.linalg import QuadprogProjector

from unified_se_ss.gradients import find_rule

DIGITS = mpmath.MPContext()
DIGITS.dps = 50


def products(g_a, g_m):
    """What a rule is given of two vectors."""
    return g_a @ g_a, g_m @ g_m, g_a @ g_m


def shared_gradient(rule, g_a, g_m):
    """What a rule (or the name of one) makes of two vectors."""
    rule = find_rule(rule) if isinstance(rule, str) else rule
    w_a, w_m = rule(*products(g_a, g_m))
    return w_a * g_a + w_m * g_m


def difference(got, expected) -> float:
    """Length of the difference relative to that of what is expected."""
    return float((got - expected).norm() / expected.norm())


def random_pair(generator, size=7, ratio=100.0):
    """Two gradients: directions at random, lengths apart by up to `ratio` either way."""
    g_a, g_m = torch.randn(2, size, generator=generator, dtype=torch.float64)
    lean = 2 * torch.rand((), generator=generator, dtype=torch.float64) - 1
    g_a = (1 - lean.abs()) * g_a + lean * g_m  # also small and obtuse angles
    exponent = 2 * torch.rand((), generator=generator, dtype=torch.float64) - 1
    return g_a * ratio**exponent * g_m.norm() / g_a.norm(), g_m


# ------------------------------------------------------------- formulas of the papers


def published_projection(g_a, g_m):
    """arXiv 2302.11131, as its training script has it."""
    product = torch.dot(g_a, g_m)
    if product < 0:
        g_a = g_a - product * g_m / (g_m.norm() ** 2)
    return g_m + g_a


def published_remedy(enh_grad, asr_grad, k=5.0):
    """arXiv 2302.11362: remove, add along the ASR gradient, rescale where dominant."""
    tan_theta = enh_grad.norm() / asr_grad.norm()
    product = torch.dot(enh_grad, asr_grad)
    if product < 0:
        enh_grad = enh_grad - product * asr_grad / (asr_grad.norm() ** 2)
        unit = asr_grad / asr_grad.norm()
        enh_grad = enh_grad + enh_grad.norm() / tan_theta * unit
    if enh_grad.norm() / asr_grad.norm() > k:
        cosine = torch.dot(enh_grad, asr_grad) / (enh_grad.norm() * asr_grad.norm())
        if cosine != 0:
            enh_grad, asr_grad = enh_grad * cosine, asr_grad / cosine
    return enh_grad + asr_grad


# --------------------------------------------------------------------------- torchjd


def torchjd(aggregator):
    """The oracle that an aggregator is."""
    return lambda g_a, g_m: aggregator(torch.stack([g_a, g_m]))


NO_ECOS = "NashMTL's solver, ECOS, has no wheel for this system"

#: torchjd adds 1e-4 to the diagonal of the normalised Gramian; here as little as it can.
UPGRAD = aggregation.UPGrad(projector=QuadprogProjector(norm_eps=0.0, reg_eps=1e-12))


def torchjd_nash(g_a, g_m):
    """Nash-MTL of torchjd, without its limit of the length; None where it gave up.

    For about one pair in twelve its solver ends where G w = 1 / w does not hold at all.
    """
    pytest.importorskip("ecos", reason=NO_ECOS)
    aggregator = aggregation.NashMTL(n_tasks=2, max_norm=0.0, optim_niter=100)
    rows = torch.stack([g_a, g_m])
    w = aggregator.weighting(rows)
    return w @ rows if ((rows @ rows.T @ w) * w - 1).abs().max() < 1e-3 else None


# ------------------------------------------------------------------------- 50 digits


def exact(vector):
    """A vector in 50 digits."""
    return DIGITS.matrix([DIGITS.mpf(float(x)) for x in vector])


def inner(x, y):
    """<x, y> in 50 digits."""
    return DIGITS.fsum(p * q for p, q in zip(x, y))


def rounded(vector):
    """Back to float64."""
    return torch.tensor([float(x) for x in vector], dtype=torch.float64)


def smallest(slope, low=0, high=1, steps=130):
    """Where a convex function on an interval is smallest, by bisection of its slope."""
    low, high = DIGITS.mpf(low), DIGITS.mpf(high)
    for _ in range(steps):
        middle = (low + high) / 2
        if slope(middle) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def exact_mgda(g_a, g_m):
    """min ||w g_a + (1 - w) g_m||^2 over 0 <= w <= 1, by bisection."""
    g_a, g_m = exact(g_a), exact(g_m)
    w = smallest(lambda w: inner(w * g_a + (1 - w) * g_m, g_a - g_m))
    return rounded(w * g_a + (1 - w) * g_m)


def exact_cagrad(g_a, g_m, c=0.5):
    """The dual of arXiv 2110.14048, equation 3, by bisection of its derivative."""
    g_a, g_m = exact(g_a), exact(g_m)
    g_0 = (g_a + g_m) / 2
    radius = DIGITS.mpf(c) * DIGITS.sqrt(inner(g_0, g_0))

    def mixture(w):
        return w * g_a + (1 - w) * g_m

    def slope(w):
        g_w = mixture(w)
        turned = inner(g_w, g_a - g_m) / DIGITS.sqrt(inner(g_w, g_w))
        return inner(g_a - g_m, g_0) + radius * turned

    g_w = mixture(smallest(slope))
    return rounded(g_0 + radius * g_w / DIGITS.sqrt(inner(g_w, g_w)))


def exact_nash(g_a, g_m):
    """G w = 1 / w, by Newton's method on the convex function whose minimum it is."""
    g_a, g_m = exact(g_a), exact(g_m)
    a, b, c = inner(g_a, g_a), inner(g_m, g_m), inner(g_a, g_m)
    x, y = 1 / DIGITS.sqrt(a), 1 / DIGITS.sqrt(b)
    for _ in range(200):  # of (a x^2 + 2 c x y + b y^2) / 2 - log x - log y
        slope = (a * x + c * y - 1 / x, c * x + b * y - 1 / y)
        xx, yy = a + 1 / x**2, b + 1 / y**2
        determinant = xx * yy - c**2
        step = (
            (yy * slope[0] - c * slope[1]) / determinant,
            (xx * slope[1] - c * slope[0]) / determinant,
        )
        # Damped as for self-concordant functions, so it stays in x, y > 0.
        size = 1 / (1 + DIGITS.sqrt(abs(slope[0] * step[0] + slope[1] * step[1])))
        x, y = x - size * step[0], y - size * step[1]
    residual = max(abs(x * (a * x + c * y) - 1), abs(y * (c * x + b * y) - 1))
    assert residual < 1e-40
    return rounded(x * g_a + y * g_m)


def exact_upgrad(g_a, g_m):
    """Mean of both projections on the dual cone: the nearest of all candidate faces."""
    rows = [exact(g_a), exact(g_m)]
    total = DIGITS.zeros(len(g_a), 1)
    for x in rows:
        total += _nearest_in_dual_cone(x, rows) / 2
    return rounded(total)


def _nearest_in_dual_cone(x, rows):
    """The nearest y to x with <y, g> >= 0 for all rows, by trying each set of equalities."""
    tiny = DIGITS.mpf(10) ** -40 * max(inner(g, g) for g in rows)
    best, distance = None, DIGITS.inf
    for size in range(len(rows) + 1):
        for active in itertools.combinations(rows, size):
            y = x.copy()
            basis = []
            for g in active:  # Gram-Schmidt
                for e in basis:
                    g = g - inner(g, e) * e
                length = DIGITS.sqrt(inner(g, g))
                if length > tiny:
                    basis.append(g / length)
            for e in basis:
                y = y - inner(y, e) * e
            feasible = all(inner(y, g) >= -tiny for g in rows)
            away = inner(x - y, x - y)
            if feasible and away < distance:
                best, distance = y, away
    return best


def exact_imtl_g(g_a, g_m):
    """Equal projections on both, weights that sum to 1: two linear equations."""
    g_a, g_m = exact(g_a), exact(g_m)
    norm_a, norm_m = DIGITS.norm(g_a), DIGITS.norm(g_m)
    apart = g_a / norm_a - g_m / norm_m
    equations = DIGITS.matrix([[inner(g_a, apart), inner(g_m, apart)], [1, 1]])
    w_a, w_m = DIGITS.lu_solve(equations, DIGITS.matrix([0, 1]))
    return rounded(w_a * g_a + w_m * g_m)


def exact_aligned_mtl(g_a, g_m):
    """arXiv 2305.19000, algorithm 1, by the eigenvectors of the Gramian."""
    rows = [exact(g_a), exact(g_m)]
    gramian = DIGITS.matrix([[inner(x, y) for y in rows] for x in rows])
    values, vectors = DIGITS.eigsy(gramian)
    scales = DIGITS.diag([DIGITS.sqrt(min(values) / value) for value in values])
    w_a, w_m = vectors * scales * vectors.T * DIGITS.matrix([0.5, 0.5])
    return rounded(w_a * rows[0] + w_m * rows[1])


def exact_config(g_a, g_m):
    """arXiv 2408.11104, equation 2, by the pseudoinverse of the unit gradients."""
    g_a, g_m = exact(g_a), exact(g_m)
    units = DIGITS.matrix([list(g / DIGITS.norm(g)) for g in (g_a, g_m)])
    direction = units.T * DIGITS.lu_solve(units * units.T, DIGITS.matrix([1, 1]))
    direction = direction / DIGITS.norm(direction)
    return rounded((inner(g_a, direction) + inner(g_m, direction)) * direction)


class Oracle(NamedTuple):
    """What a rule is compared with.

    Arguments
    ---------
    words : str
        What it is.
    gradient : callable
        ``gradient(g_a, g_m)`` is the shared gradient, or None if a solver gave up.
    tolerance : float
        What the relative difference must not pass.
    options : dict
        Of the rule.
    slow : bool
        Whether it takes tens of milliseconds.
    """

    words: str
    gradient: Callable
    tolerance: float
    options: dict = {}
    slow: bool = False


#: By rule; `gradvac` remembers and is compared by :func:`gradvac_differences`.
ORACLES = {
    "sum": [Oracle("g_m + g_a", lambda g_a, g_m: g_m + g_a, 1e-14)],
    "main_only": [Oracle("g_m", lambda g_a, g_m: g_m, 1e-14)],
    "auxiliary_only": [Oracle("g_a", lambda g_a, g_m: g_a, 1e-14)],
    "alias_2023": [Oracle("2 g_m", lambda g_a, g_m: 2 * g_m, 1e-14)],
    "project": [Oracle("formula of arXiv 2302.11131", published_projection, 1e-12)],
    "remedy": [
        Oracle("formula of arXiv 2302.11362", published_remedy, 1e-9, {"strict": True}),
        Oracle(
            "formula of arXiv 2302.11362",
            lambda g_a, g_m: published_remedy(g_a, g_m, k=2.0),
            1e-9,
            {"strict": True, "k": 2.0},
        ),
    ],
    "pcgrad": [Oracle("torchjd PCGrad", torchjd(aggregation.PCGrad()), 1e-11)],
    "mgda": [
        Oracle("bisection in 50 digits", exact_mgda, 1e-11, slow=True),
        Oracle("torchjd MGDA", torchjd(aggregation.MGDA()), 1e-11),
    ],
    "cagrad": [
        Oracle("dual by bisection in 50 digits", exact_cagrad, 1e-11, slow=True),
        Oracle(
            "dual by bisection in 50 digits",
            lambda g_a, g_m: exact_cagrad(g_a, g_m, c=0.9),
            1e-11,
            {"c": 0.9},
            slow=True,
        ),
        Oracle(
            "torchjd CAGrad (solver)", torchjd(aggregation.CAGrad(c=0.5)), 1e-3, slow=True
        ),
    ],
    "imtl_g": [
        Oracle("linear equations in 50 digits", exact_imtl_g, 1e-11),
        Oracle("torchjd IMTLG", torchjd(aggregation.IMTLG()), 1e-9),
    ],
    "nash": [
        Oracle("Newton in 50 digits", exact_nash, 1e-10, slow=True),
        Oracle("torchjd NashMTL (solver)", torchjd_nash, 1e-3, slow=True),
    ],
    "aligned_mtl": [
        Oracle("eigenvectors in 50 digits", exact_aligned_mtl, 1e-10),
        Oracle("torchjd AlignedMTL", torchjd(aggregation.AlignedMTL()), 1e-9),
    ],
    "config": [
        Oracle("pseudoinverse in 50 digits", exact_config, 1e-11),
        Oracle("torchjd ConFIG", torchjd(aggregation.ConFIG()), 1e-10),
    ],
    "upgrad": [
        Oracle("dual cone in 50 digits", exact_upgrad, 1e-11),
        Oracle("torchjd UPGrad (solver, reg_eps 1e-12)", torchjd(UPGRAD), 1e-6),
    ],
}


def gradvac_differences(pairs, beta=0.01, eps=0.0):
    """Relative difference of `gradvac` to torchjd's, step by step as both remember."""
    aggregator = aggregation.GradVac(beta=beta, eps=eps)
    rule, memory, found = find_rule("gradvac", {"beta": beta}), torch.zeros(()), []
    for g_a, g_m in pairs:
        w_a, w_m, memory = rule.step(*products(g_a, g_m), memory.double())
        expected = aggregator(torch.stack([g_a, g_m]))
        found.append(difference(w_a * g_a + w_m * g_m, expected))
    return found
