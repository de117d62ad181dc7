"""One task alone on the shared parameters: the ends between which all rules lie."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, rule


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

    For enhancement and separation this is a cascade in one network: the front is
    trained to enhance and for nothing else, the back to separate what it gets.

    Example
    -------
    >>> auxiliary_only(*torch.tensor([[2.0], [1.0], [-1.0]]))
    (tensor([1.]), tensor([0.]))
    """
    return torch.ones_like(a), torch.zeros_like(b)
