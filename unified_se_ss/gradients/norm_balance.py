"""Keep the auxiliary gradient at a stated ratio to the main gradient."""

from __future__ import annotations

import torch


class GradNormEMA:
    """A factor for g_a that keeps its norm at a ratio to that of g_m, on average.

    A fixed weight means nothing where two losses have different units. This factor is
    ratio * sqrt(mean ||g_m||^2 / mean ||g_a||^2), with moving averages of the squared norms
    over all shared parameters, the present step's included.

    Arguments
    ---------
    ratio : float
        The wanted ||g_a|| / ||g_m||, above 0.
    decay : float
        Share of the averages kept at each step, from 0 (this step alone) to below 1.

    Example
    -------
    >>> factor = GradNormEMA(ratio=0.5)
    >>> true = torch.tensor(True)
    >>> factor.update(torch.tensor([400.0]).double(), torch.tensor([4.0]).double(), true)
    tensor(0.0500, dtype=torch.float64)
    """

    def __init__(self, ratio: float = 1.0, decay: float = 0.99):
        if not ratio > 0:
            raise ValueError(f"aux_ratio is {ratio}; expected more than 0")
        if not 0 <= decay < 1:
            raise ValueError(f"aux_decay is {decay}; expected 0 or more and less than 1")
        self.ratio, self.decay = ratio, decay
        self.averages = torch.zeros(2, dtype=torch.float64)

    def update(
        self, a: torch.Tensor, b: torch.Tensor, finite: torch.Tensor
    ) -> torch.Tensor:
        """Factor of g_a, a scalar; 1 as long as either task had no gradient.

        `a` and `b`, [G], are ||g_a||^2 and ||g_m||^2 of a step, which counts if `finite`.
        """
        norms = torch.stack([a.sum(), b.sum()])
        # Both averages start at zero, so their ratio needs no correction of that.
        new = torch.lerp(norms, self.averages.to(norms), self.decay)
        counts = finite & (norms > 0).all()
        self.averages = torch.where(counts, new, self.averages.to(norms))
        of_auxiliary, of_main = self.averages
        there = of_auxiliary > 0
        quotient = of_main / torch.where(there, of_auxiliary, 1.0)
        return torch.where(there, self.ratio * quotient.sqrt(), 1.0)
