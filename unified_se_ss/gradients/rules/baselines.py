"""Fixed weights: both tasks, one of them, and what a published code did by mistake."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, rule


@rule
def sum_(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """Plain multi-task learning: g_m + g_a.

    Example
    -------
    >>> sum_(*torch.tensor([[2.0], [1.0], [-1.0]]))
    (tensor([1.]), tensor([1.]))
    """
    return torch.ones_like(a), torch.ones_like(b)


@rule(guarded=False)
def main_only(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The main task alone: g_m. The network keeps its size, the auxiliary task is watched.

    Example
    -------
    >>> main_only(*torch.tensor([[2.0], [1.0], [-1.0]]))
    (tensor([0.]), tensor([1.]))
    """
    return torch.zeros_like(a), torch.ones_like(b)


@rule(guarded=False)
def auxiliary_only(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """The auxiliary task alone: g_a. What follows the shared part learns on its output.

    For enhancement and separation this is a cascade in one network: the front learns to
    enhance and nothing else, the back to separate what it gets.

    Example
    -------
    >>> auxiliary_only(*torch.tensor([[2.0], [1.0], [-1.0]]))
    (tensor([1.]), tensor([0.]))
    """
    return torch.ones_like(a), torch.zeros_like(b)


@rule(guarded=False)
def alias_2023(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """Twice the main gradient, 2 g_m, which the published separation code trained with.

    It keeps references to ``p.grad.data`` of the auxiliary loss and then calls
    ``zero_grad()``, which under the pinned torch 1.8.1 zeroes in place: both gradients become
    the memory that the main backward pass fills, no conflict is ever seen, and their sum is
    2 g_m. For comparison with results of that code; ``project`` is what the paper says. See
    docs/gradients.md, "The published code". A vanishing main gradient gives zero.

    Example
    -------
    >>> alias_2023(*torch.tensor([[2.0], [1.0], [-1.0]]))
    (tensor([0.]), tensor([2.]))
    """
    return torch.zeros_like(a), torch.full_like(b, 2.0)
