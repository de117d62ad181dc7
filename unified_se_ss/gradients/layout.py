"""Places of the parameters' gradients in one flat buffer."""

from __future__ import annotations

import torch

# Sums run over blocks in the buffer's own precision (pairwise) and over the blocks of
# a group in float64: exact, deterministic, and a handful of kernels for any number of
# parameters.
BLOCK = 1024

GRANULARITIES = {
    "parameter": lambda name: name,
    "module": lambda name: name.rpartition(".")[0],
    "global": lambda name: "all",
}


class Layout:
    """Flat places for the gradients of named parameters, group by group.

    Each parameter begins at a whole block, what follows it up to the next stays zero,
    and the parameters of a group stand together.

    Arguments
    ---------
    parameters : dict
        Parameters by name.
    granularity : str
        What one application of the rule covers: ``"parameter"``, each tensor on its own;
        ``"module"``, the weights and biases of one layer; ``"global"``, all together.

    Example
    -------
    >>> layout = Layout(dict(torch.nn.Linear(3, 2).named_parameters()), "global")
    >>> layout.groups, layout.size
    (['all'], 2048)
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], granularity: str):
        if granularity not in GRANULARITIES:
            known = ", ".join(GRANULARITIES)
            raise ValueError(f"granularity is '{granularity}'; expected one of: {known}")
        members: dict[str, list[str]] = {}
        for name in parameters:
            members.setdefault(GRANULARITIES[granularity](name), []).append(name)
        self.groups = list(members)
        self.parameters = {
            name: parameters[name] for group in members.values() for name in group
        }
        self.blocks = {
            name: -(-parameter.numel() // BLOCK)
            for name, parameter in self.parameters.items()
        }
        self.blocks_of_group = [
            sum(self.blocks[name] for name in group) for group in members.values()
        ]
        self.size = sum(self.blocks.values()) * BLOCK

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The part of a flat buffer that belongs to each parameter, in its shape."""
        views, start = [], 0
        for name, parameter in self.parameters.items():
            views.append(flat[start : start + parameter.numel()].view(parameter.shape))
            start += self.blocks[name] * BLOCK
        return views
