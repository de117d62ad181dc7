"""Linear layers whose fp32 products on a CPU are oneDNN's.

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


class _OneDNNLinear(torch.autograd.Function):
    """A linear layer over rows, [M, K] to [M, N]; all three products are oneDNN's."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _product(gradient, weight.t())
        if ctx.needs_input_grad[1]:
            # The same product in two orders; this one is the faster of them.
            if weight.shape[0] > weight.shape[1]:
                of_weight = _product(x.t(), gradient.t()).t()
            else:
                of_weight = _product(gradient.t(), x.t())
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        return of_x, of_weight, of_bias


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
