"""Rules by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

#: w_a and w_m of each group.
Weights = tuple[torch.Tensor, torch.Tensor]

RULES: dict[str, Rule] = {}
INFINITY = float("inf")
#: What the names of torchjd's aggregators start with.
TORCHJD = "torchjd."


@dataclass(frozen=True)
class Rule:
    """A named function that makes one gradient of two, with its options.

    Arguments
    ---------
    function : callable
        ``function(a, b, c, **options) -> (w_a, w_m)``, batched over groups, or, with a
        memory, ``function(a, b, c, memory, **options) -> (w_a, w_m, memory)``.
    has_memory : bool
        One number per group is carried from step to step; it starts at 0.
    guarded : bool
        A group with a vanishing gradient gets the plain sum without asking the function,
        which then need not divide by zero.
    limits : dict
        The smallest and the largest value that make sense, by option.
    options : dict
        Values of keyword-only arguments that differ from the defaults.

    Example
    -------
    >>> project = find_rule("project")
    >>> project(*torch.tensor([[2.0], [1.0], [-1.0]]))
    (tensor([1.]), tensor([2.]))
    """

    name: str
    function: Callable
    has_memory: bool = False
    guarded: bool = True
    limits: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)

    def __call__(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
        """Weights (w_a, w_m) of each group at a first step."""
        return self.step(a, b, c, torch.zeros_like(a))[:2]

    def step(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights w_a and w_m of each group, and its new memory, each [G].

        `a`, `b`, `c` are ||g_a||^2, ||g_m||^2 and <g_a, g_m> of each group; `memory` is what the
        last step returned, zeros at first.
        """
        if not self.guarded:
            return self._ask(a, b, c, memory)
        vanishing = (a <= 0) | (b <= 0)
        a, b = torch.where(vanishing, 1.0, a), torch.where(vanishing, 1.0, b)
        c = torch.where(vanishing, 0.0, c)
        w_a, w_m, new = self._ask(a, b, c, memory)
        return (
            torch.where(vanishing, 1.0, w_a),
            torch.where(vanishing, 1.0, w_m),
            torch.where(vanishing, memory, new),
        )

    def _ask(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.has_memory:
            return self.function(a, b, c, memory, **self.options)
        return *self.function(a, b, c, **self.options), memory

    def with_options(self, options: dict) -> Rule:
        """The same rule with other options; ValueError if it does not take them."""
        defaults = self.defaults()
        for key, value in options.items():
            if key not in defaults:
                known = ", ".join(defaults) or "none"
                raise ValueError(
                    f"rule_options: rule '{self.name}' has no option '{key}'; it has: {known}"
                )
            self._check_option(key, value, defaults[key])
        return replace(self, options=dict(options))

    def defaults(self) -> dict:
        """The options there are, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def _check_option(self, key: str, value: object, default: object) -> None:
        """Stop at an option of another kind than its default, or one out of its limits."""
        if isinstance(default, bool):
            right, expected = isinstance(value, bool), "True or False"
        else:
            least, most = self.limits.get(key, (-INFINITY, INFINITY))
            right = isinstance(value, (int, float)) and not isinstance(value, bool)
            right = right and least <= value <= most
            expected = "a number"
            if key in self.limits:
                expected += (
                    f" of {least:g} or more"
                    if most == INFINITY
                    else f" from {least:g} to {most:g}"
                )
        if not right:
            raise ValueError(
                f"rule_options: {key} of rule '{self.name}' is {value!r}; expected {expected}"
            )


def rule(
    function: Callable | None = None,
    /,
    *,
    has_memory: bool = False,
    guarded: bool = True,
    **limits: float | tuple[float, float],
) -> Callable:
    """Register a function as a rule, under its own name (a last underscore apart).

    Its keyword-only arguments are the rule's options; `limits` has, by option, the smallest
    value or the smallest and the largest. For the others see :class:`Rule`.
    """

    def register(function: Callable) -> Callable:
        name = function.__name__.rstrip("_")
        if name in RULES and RULES[name].function.__module__.startswith(__package__):
            raise ValueError(f"there is a rule '{name}' already; choose another name")
        pairs = {
            key: limit if isinstance(limit, tuple) else (limit, INFINITY)
            for key, limit in limits.items()
        }
        RULES[name] = Rule(name, function, has_memory, guarded, pairs)
        return function

    return register if function is None else register(function)


def find_rule(name: str, options: dict | None = None) -> Rule:
    """The rule of a name in ``RULES``, or an aggregator of torchjd as ``torchjd.NAME``.

    Raises
    ------
    ValueError
        There is no such rule or option; the message names those there are.

    Example
    -------
    >>> find_rule("remedy", {"strict": True}).options
    {'strict': True}
    """
    if str(name).startswith(TORCHJD):
        # Here and not above: it knows Rule, and torchjd is an optional extra.
        from unified_se_ss.gradients.aggregators import torchjd_rule

        return torchjd_rule(name.removeprefix(TORCHJD), options)
    if name not in RULES:
        known = ", ".join(sorted(RULES))
        raise ValueError(f"rule is '{name}'; expected one of: {known}; or torchjd.NAME")
    return RULES[name].with_options(options or {})


def norms_and_cosine(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """||g_a||, ||g_m|| and cos phi within [-1, 1], from ||g_a||^2, ||g_m||^2 > 0 and <g_a, g_m>.

    Nothing is multiplied before it is divided, so squared norms down to 1e-300 are right.
    """
    norm_a, norm_m = a.sqrt(), b.sqrt()
    return norm_a, norm_m, (c / norm_a / norm_m).clamp(-1, 1)
