"""The sequence model of SepFormer: a pre-norm transformer encoder.

Axes: B batch, H heads, L steps, N features, D features of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from unified_se_ss.padding import real_elements


def normed(norm: nn.LayerNorm, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """``layer(norm(x))``, [..., K] to [..., N], of which x alone is kept for the backward pass.

    The norm, a small part of the work, is taken again there: a layer of SepFormer keeps a
    sixth less.

    Example
    -------
    >>> norm, layer, x = nn.LayerNorm(16), nn.Linear(16, 4), torch.randn(2, 5, 16)
    >>> torch.equal(normed(norm, layer, x), layer(norm(x)))
    True
    """
    if not torch.is_grad_enabled() or _is_captured():
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


# Weights that are worked on at once: what stays in the cache of a core.
WEIGHTS_AT_ONCE = 1 << 19


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(query key^T / sqrt(D)) value, [B, H, L, D]; `mask`, [B, L]: steps to attend to.

    PyTorch's fused attention but for bf16 on a CPU, where it is slower than plain matrix
    products (on a Zen 5 core 1.6 times for 250 steps and 9 times for 34).

    Example
    -------
    >>> query, key, value = torch.randn(3, 2, 4, 10, 8, generator=torch.manual_seed(0))
    >>> expected = torch.softmax(query @ key.mT / 8**0.5, -1) @ value
    >>> torch.allclose(attend(query, key, value), expected, atol=1e-5)
    True
    """
    on_cpu = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    if on_cpu and not dropout and not _is_captured():
        return _MatrixAttention.apply(query, key, value, mask)
    mask = None if mask is None else mask[:, None, None, :]
    return nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout)


def _is_captured() -> bool:
    """True while a compiler, which decides itself what to keep, or a tracer runs the code."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class _MatrixAttention(torch.autograd.Function):
    """Attention by matrix products over few sequences at a time; weights are made twice."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value, mask)
        parts = _in_parts(mask, query, key, value)
        with torch.autocast("cpu", enabled=False):
            attended = [_weights(q, k, m) @ v for m, q, k, v in parts]
        return torch.cat(attended).view(query.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        parts = _in_parts(mask, query, key, value, gradient)
        found = [_gradients(q, k, v, m, g, scale) for m, q, k, v, g in parts]
        return (*(torch.cat(of).view(query.shape) for of in zip(*found)), None)


def _in_parts(mask: torch.Tensor | None, *tensors: torch.Tensor) -> Iterable[tuple]:
    """Mask and tensors of few sequences each, as matrices: [n, 1, L], [n, L, D]."""
    _, heads, length, _ = tensors[0].shape
    size = max(1, WEIGHTS_AT_ONCE // length**2)
    rows = [x.flatten(0, 1).split(size) for x in tensors]
    if mask is None:
        return zip([None] * len(rows[0]), *rows)
    return zip(mask.repeat_interleave(heads, 0).unsqueeze(1).split(size), *rows)


def _weights(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Weights of attention, [n, L, L]."""
    scale = query.shape[-1] ** -0.5
    unused = query.new_zeros(())
    scores = torch.baddbmm(unused, query, key.mT, beta=0, alpha=scale)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return torch.softmax(scores, -1)


def _gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    gradient: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    weights = _weights(query, key, mask)
    of_value = weights.mT @ gradient
    of_weights = gradient @ value.mT
    of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    unused = query.new_zeros(())
    of_query = torch.baddbmm(unused, of_scores, key, beta=0, alpha=scale)
    of_key = torch.baddbmm(unused, of_scores.mT, query, beta=0, alpha=scale)
    return of_query, of_key, of_value


def sinusoidal_positions(length: int, n_features: int) -> torch.Tensor:
    """Absolute positions as sines and cosines, [length, n_features].

    Source: Vaswani et al., "Attention is all you need", section 3.5.
    """
    position = torch.arange(length, dtype=torch.float32).unsqueeze(1)
    exponent = torch.arange(0, n_features, 2).float() * -(math.log(10000.0) / n_features)
    angle = position * exponent.exp()
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


class _SelfAttention(nn.Module):
    """Multi-head self-attention that never forms the attention weights for the caller."""

    def __init__(self, n_features: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if n_features % heads:
            raise ValueError(f"{heads} heads do not divide {n_features} features")
        self.heads = heads
        self.dropout = dropout
        self.projection = nn.Linear(n_features, 3 * n_features)
        self.output = nn.Linear(n_features, n_features)
        # As torch.nn.MultiheadAttention starts, which SepFormer was trained from.
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, x: torch.Tensor, norm: nn.LayerNorm, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend within norm(x), [B, L, N] to [B, L, N]; `mask`, [B, L]: the real steps."""
        # [B, L, 3N] to three of [B, heads, L, N / heads]
        query, key, value = (
            normed(norm, self.projection, x)
            .unflatten(-1, (3, self.heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        dropout = self.dropout if self.training else 0.0
        attended = attend(query, key, value, mask, dropout)
        return self.output(attended.transpose(1, 2).flatten(2))


class _TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each behind a norm and a skip."""

    def __init__(
        self, n_features: int, heads: int, feed_forward: int, dropout: float = 0.0
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(n_features, eps=1e-6)
        self.attention = _SelfAttention(n_features, heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(n_features, eps=1e-6)
        self.feed_forward = nn.Sequential(
            nn.Linear(n_features, feed_forward),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(feed_forward, n_features),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, L, N] to [B, L, N]."""
        x = x + self.dropout(self.attention(x, self.attention_norm, mask))
        first, *rest = self.feed_forward
        hidden = normed(self.feed_forward_norm, first, x)  # type: ignore[arg-type]  # linear
        for module in rest:
            hidden = module(hidden)
        return x + self.dropout(hidden)


class Transformer(nn.Module):
    """Transformer encoder with sinusoidal positions and a final norm, [B, L, N] to [B, L, N].

    Source: Subakan et al., "Attention is all you need in speech separation",
    arXiv 2010.13154.

    Example
    -------
    >>> model = Transformer(n_features=64, layers=2, heads=4, feed_forward=128)
    >>> model(torch.randn(3, 20, 64)).shape
    torch.Size([3, 20, 64])
    """

    positions: torch.Tensor

    def __init__(
        self,
        n_features: int,
        layers: int = 8,
        heads: int = 8,
        feed_forward: int = 1024,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.n_features = self.n_outputs = n_features
        sizes = n_features, heads, feed_forward, dropout
        self.layers = nn.ModuleList(_TransformerLayer(*sizes) for _ in range(layers))
        self.norm = nn.LayerNorm(n_features, eps=1e-6)
        positions = sinusoidal_positions(2500, n_features)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Run along the sequences; only the first `lengths`, [B], steps are attended to."""
        if x.shape[1] > len(self.positions):  # longer than ever before: make more
            positions = sinusoidal_positions(2 * x.shape[1], self.n_features)
            self.positions = positions.to(self.positions)
        mask = None if lengths is None else real_elements(lengths, x.shape[1], x.device)
        x = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)
