"""Rules: how two gradients of the same parameters become one.

With two tasks a rule is a closed form of three numbers per group of parameters,

    a = ||g_a||^2,   b = ||g_m||^2,   c = <g_a, g_m>,

for g_a the gradient of the auxiliary and g_m that of the main task. It gives two
weights, and the shared gradient is w_a * g_a + w_m * g_m. A rule is a pure function of
batched tensors, one entry per group; it never waits for the device.
"""

from __future__ import annotations

import torch

RULES = {}


def rule(function):
    """Make a function known as a rule, under its own name."""
    RULES[function.__name__.rstrip("_")] = function
    return function


@rule
def sum_(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor):
    """Plain multi-task learning: g_m + g_a.

    Example
    -------
    >>> sum_(*torch.tensor([[2.0], [1.0], [-1.0]]))
    (tensor([1.]), tensor([1.]))
    """
    return torch.ones_like(a), torch.ones_like(b)


@rule
def project(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor):
    """Where the tasks conflict, take out of g_a what opposes g_m; then g_m + g_a.

    If c < 0, g_a becomes g_a - (c / b) g_m, its projection on the normal plane of g_m.
    A main gradient of zero opposes nothing and leaves g_a as it is. This is not PCGrad,
    which projects both gradients.

    Source: arXiv 2302.11131, equations 4 and 5.

    Example
    -------
    >>> g_a, g_m = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    >>> w_a, w_m = project(g_a @ g_a, g_m @ g_m, g_a @ g_m)
    >>> w_a * g_a + w_m * g_m
    tensor([1., 1.])
    """
    conflict = (c < 0) & (b > 0)
    # The inner where keeps 0 / 0 out of the branch that is not taken.
    removed = torch.where(conflict, c / torch.where(conflict, b, 1.0), 0.0)
    return torch.ones_like(a), 1.0 - removed


def find_rule(name: str):
    """Look a rule up by its name.

    Arguments
    ---------
    name : str
        A key of ``RULES``.

    Returns
    -------
    callable
        ``rule(a, b, c) -> (w_a, w_m)``.

    Raises
    ------
    ValueError
        There is no such rule; the message names those there are.

    Example
    -------
    >>> find_rule("project").__name__
    'project'
    """
    if name not in RULES:
        raise ValueError(f"rule is '{name}'; expected one of: {', '.join(RULES)}")
    return RULES[name]
