"""Tensors and weights that are drawn from a seed, for tests of networks and losses."""

import torch


def randn(*shape, seed=0, dtype=torch.float64):
    """Normal numbers that depend on nothing but the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shaken(network, seed=0):
    """The network with every weight drawn, so that no scale is 1 and no shift 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network
