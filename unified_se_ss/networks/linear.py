"""A linear layer behind a norm, which keeps less for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def normed(norm: nn.LayerNorm, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """``layer(norm(x))``, of which x alone is kept for the backward pass.

    The norm, a small part of the work, is taken again there: a layer of SepFormer keeps
    a sixth less.

    Arguments
    ---------
    norm : torch.nn.LayerNorm
        Over the last axis, with weight and bias.
    layer : torch.nn.Linear
        With a bias.
    x : torch.Tensor
        [..., K].

    Returns
    -------
    torch.Tensor
        [..., N].

    Example
    -------
    >>> norm, layer, x = nn.LayerNorm(16), nn.Linear(16, 4), torch.randn(2, 5, 16)
    >>> torch.equal(normed(norm, layer, x), layer(norm(x)))
    True
    """
    if (
        not torch.is_grad_enabled()
        or torch.jit.is_tracing()
        or torch.compiler.is_compiling()  # which decides itself what to keep
    ):
        return layer(norm(x))
    rows = x.reshape(-1, x.shape[-1])
    parameters = (norm.weight, norm.bias, layer.weight, layer.bias)
    rows = _NormedLinear.apply(rows, *parameters, norm.eps)
    return rows.view(*x.shape[:-1], layer.out_features)


class _NormedLinear(torch.autograd.Function):
    """Over rows, [M, K] to [M, N]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        shift: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        y = nn.functional.layer_norm(x, x.shape[-1:], scale, shift, eps)
        ctx.save_for_backward(x, scale, shift, weight)
        ctx.eps, ctx.dtype = eps, y.dtype
        return nn.functional.linear(y, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, shift, weight = ctx.saved_tensors
        of_norm, of_weight, of_bias = None, None, None
        shape, normal = x.shape[-1:], x.to(ctx.dtype)
        y, *statistics = torch.native_layer_norm(normal, shape, scale, shift, ctx.eps)
        if ctx.needs_input_grad[3]:
            of_weight = gradient.t() @ y.to(gradient.dtype)
        if ctx.needs_input_grad[4]:
            of_bias = gradient.sum(0)
        if any(ctx.needs_input_grad[:3]):
            of_norm = torch.ops.aten.native_layer_norm_backward(
                (gradient @ weight.to(gradient.dtype)).to(ctx.dtype),
                normal,
                shape,
                *statistics,
                scale,
                shift,
                list(ctx.needs_input_grad[:3]),
            )
        return *(of_norm or (None, None, None)), of_weight, of_bias, None
