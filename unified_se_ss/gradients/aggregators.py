"""Aggregators of torchjd as rules: ``rule: torchjd.CAGrad``.

An aggregator makes one vector of a matrix whose rows are gradients. Those that look at
the rows' inner products alone give the same weights for any matrix with those products,
so they are shown one of size 2 x 2, in an orthonormal basis of the plane of g_m and g_a.

Unlike the rules of this package, which are closed forms on the device, all of this
waits for the device, runs group by group on the CPU, and may call a solver.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch

from unified_se_ss.gradients.rules.registry import TORCHJD, Rule, Weights

#: Arguments that torchjd leaves to the caller (source: the papers' codes).
DEFAULTS: dict[str, dict] = {"CAGrad": {"c": 0.5}, "NashMTL": {"n_tasks": 2}}

_COORDINATES = "it looks at single coordinates, not at inner products"
#: Aggregators that cannot be rules, and why.
REFUSED = {
    "ExcessMTL": _COORDINATES,
    "GradDrop": _COORDINATES,
    "TrimmedMean": _COORDINATES,
    "Krum": "it needs three gradients or more",
    "Random": "its weights are drawn at random, so each rank would take its own",
}

_INSTALL = "install the extra: pip install -e '.[torchjd]'"


def torchjd_rule(name: str, options: dict | None = None) -> Rule:
    """An aggregator of torchjd as a rule.

    The rows of its matrix are g_m, g_a in this order: main first, which is the primary task
    of PCD and the first entry of a `pref_vector`. A group where either gradient vanishes
    gets the plain sum. Aggregators that remember (GradVac, NashMTL, PCD) are one per group;
    what they remember is not saved in checkpoints. Lists in `options` become tensors.

    Raises
    ------
    ValueError
        torchjd is not installed, or has no such aggregator, or it cannot be a rule or does
        not take the options.

    Example
    -------
    >>> rule = torchjd_rule("PCGrad")
    >>> rule(*torch.tensor([[2.0], [1.0], [-1.0]], dtype=torch.float64))
    (tensor([1.5000], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    aggregator = _find_aggregator(name)
    arguments = {
        key: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
        for key, value in {**DEFAULTS.get(name, {}), **(options or {})}.items()
    }
    _check_arguments(name, aggregator, arguments)
    build = partial(aggregator, **arguments)
    try:
        _OnePerGroup(build)(*torch.eye(2, dtype=torch.float64)[[0, 0, 1], :1])
    except ImportError as error:
        raise ValueError(f"rule is '{TORCHJD}{name}': {error}; or {_INSTALL}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"rule_options: {TORCHJD}{name} does not take {options}: {error}"
        ) from error
    return Rule(TORCHJD + name, _OnePerGroup(build), guarded=False)


def _find_aggregator(name: str) -> type:
    """The class of that name, if it can be a rule."""
    rule = f"rule is '{TORCHJD}{name}'"
    try:
        from torchjd import aggregation
    except ImportError as error:
        raise ValueError(f"{rule}, but torchjd is missing; {_INSTALL}") from error
    if name in REFUSED:
        raise ValueError(f"{rule}, which is no rule: {REFUSED[name]}")
    known = {
        key: value
        for key, value in vars(aggregation).items()
        if inspect.isclass(value)
        and issubclass(value, aggregation.Aggregator)
        and not key.endswith("Aggregator")  # what the others are built on
        and key not in REFUSED
    }
    if name not in known:
        names = ", ".join(TORCHJD + key for key in sorted(known))
        raise ValueError(f"{rule}; torchjd has: {names}")
    return known[name]


def _check_arguments(name: str, aggregator: type, arguments: dict) -> None:
    parameters = inspect.signature(aggregator).parameters
    known, rule = ", ".join(parameters) or "none", f"rule '{TORCHJD}{name}'"
    for key in arguments:
        if key not in parameters:
            raise ValueError(f"rule_options: {rule} has no option '{key}'; it has: {known}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ValueError(f"rule_options: {rule} needs the option '{key}'")


class _OnePerGroup:
    """One aggregator, made by ``build()``, for each group; called as a rule is."""

    def __init__(self, build: Callable[[], Callable]):
        self.build = build
        self.aggregators: list[Callable] = []

    def __call__(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
        """Weights of each group; 1 and 1 where a gradient vanishes or any is not finite."""
        products = torch.stack([a, b, c], dim=-1).double().cpu()
        groups = products.reshape(-1, 3)
        while len(self.aggregators) < len(groups):
            self.aggregators.append(self.build())
        weights = torch.ones(len(groups), 2, dtype=torch.float64)
        if groups.isfinite().all():  # such a step must not be remembered
            # Some shuffle the rows, which is nothing to two; leave the random state alone.
            with torch.random.fork_rng(devices=[]):
                for i, (aggregator, numbers) in enumerate(zip(self.aggregators, groups)):
                    if numbers[0] > 0 and numbers[1] > 0:
                        weights[i] = _weights(aggregator, *numbers)
        w_m, w_a = weights.to(a).reshape(*a.shape, 2).unbind(-1)
        return w_a, w_m


def _weights(
    aggregator: Callable, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    from torchjd.aggregation import WeightedAggregator

    norm_m = b.sqrt()
    along = c / norm_m
    across = (a - along.square()).clamp(min=0).sqrt()
    rows = torch.stack([norm_m, torch.zeros_like(b), along, across]).reshape(2, 2)
    if isinstance(aggregator, WeightedAggregator):
        return aggregator.weighting(rows)
    return torch.linalg.pinv(rows.T) @ aggregator(rows)
