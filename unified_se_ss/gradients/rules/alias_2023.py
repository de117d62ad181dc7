"""What the code published with arXiv 2302.11131 did under the torch that it pins."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.rules.registry import Weights, rule


@rule(guarded=False)
def alias_2023(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Weights:
    """Twice the main gradient: 2 g_m, whatever the auxiliary one is.

    The published training script keeps references to ``p.grad.data`` of the auxiliary
    loss and then calls ``zero_grad()``, which under the pinned torch 1.8.1 zeroes in
    place. The kept references are then the memory that the main backward pass fills: both
    gradients are one tensor, no conflict is ever seen, and their sum is 2 g_m. So this is
    the rule for comparing with results of that code; ``project`` is what the paper says.
    See docs/gradients.md, "The published code".

    The auxiliary task does not train what it shares with the main one; a vanishing main
    gradient gives zero.

    Example
    -------
    >>> alias_2023(*torch.tensor([[2.0], [1.0], [-1.0]]))
    (tensor([0.]), tensor([2.]))
    """
    return torch.zeros_like(a), torch.full_like(b, 2.0)
