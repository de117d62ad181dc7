"""Linear layers whose fp32 products on a CPU are oneDNN's, alone and behind a norm.

The BLAS that PyTorch is built with (MKL) does not use the widest vector instructions of
processors that are not its maker's; oneDNN, which comes with PyTorch too, does. Measured
on a Zen 5 core: 100 against 220 GFLOP/s, the same digits to rounding.
"""

from __future__ import annotations

import torch
from torch import nn

# Multiplications below which a product is not worth the call.
SMALLEST = 1 << 20


def _available() -> bool:
    """Whether this PyTorch has oneDNN's linear layer and a processor to gain from it."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )


AVAILABLE = _available()


def _product(x, weight, bias=None):
    """x @ weight.T + bias of matrices."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _gradients(x, weight, gradient, needs, by_onednn=True):
    """Of x, weight and bias, from that of the rows; None where it is not needed."""
    of_x = of_weight = of_bias = None
    if needs[0]:
        of_x = _product(gradient, weight.t()) if by_onednn else gradient @ weight
    if needs[1]:
        if not by_onednn:
            of_weight = gradient.t() @ x
        # The same product in two orders; this one is the faster of them.
        elif weight.shape[0] > weight.shape[1]:
            of_weight = _product(x.t(), gradient.t()).t()
        else:
            of_weight = _product(gradient.t(), x.t())
    if needs[2]:
        of_bias = gradient.sum(0)
    return of_x, of_weight, of_bias


class _OneDNNLinear(torch.autograd.Function):
    """A linear layer over rows, [M, K] to [M, N]; all three products are oneDNN's."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        return _gradients(*ctx.saved_tensors, gradient, ctx.needs_input_grad)


class Linear(nn.Linear):
    """``torch.nn.Linear``, faster in fp32 on a CPU; the same parameters and values.

    Elsewhere, in other precisions, under autocast, for small products, and where the
    module is compiled or exported, it is ``torch.nn.Linear`` itself.

    Example
    -------
    >>> layer, x = Linear(256, 512), torch.randn(3, 20, 256)
    >>> torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
    True
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] to [..., N]."""
        if not self.by_onednn(x):
            return super().forward(x)
        rows = _OneDNNLinear.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return rows.view(*x.shape[:-1], self.out_features)

    def by_onednn(self, x: torch.Tensor) -> bool:
        """Whether oneDNN's product is used for this input."""
        return (
            AVAILABLE
            and not torch.jit.is_tracing()
            and not torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.numel() * self.out_features >= SMALLEST
            and not torch.is_autocast_enabled("cpu")
        )


def normed(norm: nn.LayerNorm, layer: Linear, x: torch.Tensor) -> torch.Tensor:
    """``layer(norm(x))``, of which x alone is kept for the backward pass.

    The norm, a small part of the work, is taken again there: a layer of SepFormer keeps
    a sixth less.

    Arguments
    ---------
    norm : torch.nn.LayerNorm
        Over the last axis, with weight and bias.
    layer : Linear
        With a bias.
    x : torch.Tensor
        [..., K].

    Returns
    -------
    torch.Tensor
        [..., N].

    Example
    -------
    >>> norm, layer, x = nn.LayerNorm(16), Linear(16, 4), torch.randn(2, 5, 16)
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
    by_onednn = layer.by_onednn(x)
    rows = _NormedLinear.apply(rows, *parameters, norm.eps, by_onednn)
    return rows.view(*x.shape[:-1], layer.out_features)


class _NormedLinear(torch.autograd.Function):
    """A linear layer behind a norm, over rows, [M, K] to [M, N]."""

    @staticmethod
    def forward(ctx, x, scale, shift, weight, bias, eps, by_onednn):
        y = nn.functional.layer_norm(x, x.shape[-1:], scale, shift, eps)
        ctx.save_for_backward(x, scale, shift, weight)
        ctx.eps, ctx.by_onednn, ctx.dtype = eps, by_onednn, y.dtype
        return (_product if by_onednn else nn.functional.linear)(y, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, scale, shift, weight = ctx.saved_tensors
        of_norm, of_linear = ctx.needs_input_grad[:3], ctx.needs_input_grad[3:5]
        shape, normal = x.shape[-1:], x.to(ctx.dtype)
        y, *statistics = torch.native_layer_norm(normal, shape, scale, shift, ctx.eps)
        of_y, *of_linear = _gradients(
            y.to(gradient.dtype),
            weight.to(gradient.dtype),
            gradient,
            (any(of_norm), *of_linear),
            ctx.by_onednn,
        )
        if any(of_norm):
            arguments = (normal, shape, *statistics, scale, shift, list(of_norm))
            of_norm = torch.ops.aten.native_layer_norm_backward(
                of_y.to(ctx.dtype), *arguments
            )
        else:
            of_norm = None, None, None
        return *of_norm, *of_linear, None, None
