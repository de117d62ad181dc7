"""Delay-and-sum: bring the target into phase at all microphones, and average.

Axes: B batch, C microphones, F bins, L frames.
"""

from __future__ import annotations

import torch

from unified_se_ss.spatial.beamformers.base import Beamformer


class DelayAndSum(Beamformer):
    """w = d / (d^H d): the best for noise that is independent between microphones.

    Arguments
    ---------
    steering : torch.Tensor
        Steering vectors towards the target, [F, C], or one for each item, [B, F, C].

    Source: Van Trees, "Optimum Array Processing", 2002, section 2.4.

    Example
    -------
    >>> beamformer = DelayAndSum(torch.ones(3, 2, dtype=torch.complex64))
    >>> beamformer(torch.randn(1, 2, 3, 5, dtype=torch.complex64)).shape
    torch.Size([1, 3, 5])
    """

    def __init__(self, steering: torch.Tensor):
        super().__init__()
        fixed = delay_and_sum_weights(steering)
        self.register_buffer("fixed_weights", fixed, persistent=False)

    def weights(self, target=None, noise=None) -> torch.Tensor:
        """[F, C] or [B, F, C]; covariances do not matter."""
        return self.fixed_weights


def delay_and_sum_weights(steering: torch.Tensor) -> torch.Tensor:
    """Weights of delay-and-sum.

    Arguments
    ---------
    steering : torch.Tensor
        [..., C].

    Returns
    -------
    torch.Tensor
        [..., C].

    Example
    -------
    >>> delay_and_sum_weights(torch.tensor([1.0, 1.0j]))
    tensor([0.5000+0.0000j, 0.0000+0.5000j])
    """
    return steering / steering.abs().square().sum(-1, keepdim=True)
