"""Watch how two tasks get along, without waiting for the device."""

from __future__ import annotations

import torch

from unified_se_ss.gradients.two_task import CombinedGradients


class ConflictMonitor:
    """Count conflicts and non-finite gradients over steps, on the device.

    Example
    -------
    >>> monitor = ConflictMonitor()
    >>> one, yes = torch.ones(2).double(), torch.tensor(True)
    >>> product = torch.tensor([-0.5, 0.1]).double()
    >>> monitor.update(CombinedGradients(one, one, product, one, one, one[0], yes, yes))
    >>> monitor.read()["conflict_rate"], monitor.read()["steps"]
    (0.5, 1)
    """

    FIELDS = (
        "steps",
        "compared",
        "conflicts",
        "cosines",
        "auxiliary_nonfinite",
        "main_nonfinite",
    )

    def __init__(self):
        self._sums = None

    def update(self, combined: CombinedGradients) -> None:
        """Add what one step found."""
        a, b, c = combined.auxiliary_squared, combined.main_squared, combined.product
        compared = (a > 0) & (b > 0) & combined.auxiliary_finite & combined.main_finite
        cosine = torch.where(compared, c / (a * b).sqrt(), 0.0)
        sums = torch.stack(
            [
                torch.ones_like(c.sum()),
                compared.sum().double(),
                (compared & (c < 0)).sum().double(),
                cosine.sum(),
                (~combined.auxiliary_finite).double(),
                (~combined.main_finite).double(),
            ]
        )
        self._sums = sums if self._sums is None else self._sums + sums

    def read(self) -> dict:
        """Fetch the counts (one transfer); all steps since the last :meth:`reset`.

        Returns
        -------
        dict
            ``steps``; ``conflict_rate``, the share of compared groups with c < 0, and
            ``mean_cosine`` (None where nothing was compared); ``auxiliary_nonfinite``
            and ``main_nonfinite``, numbers of steps.
        """
        sums = [0.0] * len(self.FIELDS) if self._sums is None else self._sums.tolist()
        found = dict(zip(self.FIELDS, sums))
        compared = found.pop("compared")
        conflicts, cosines = found.pop("conflicts"), found.pop("cosines")
        return {
            **{name: int(count) for name, count in found.items()},
            "conflict_rate": conflicts / compared if compared else None,
            "mean_cosine": cosines / compared if compared else None,
        }

    def reset(self) -> None:
        """Forget all counts."""
        self._sums = None
