"""The sequence model of SepFormer: a pre-norm transformer encoder.

Axes: B batch, L steps, N features.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from unified_se_ss.networks.attention import attend
from unified_se_ss.networks.linear import normed
from unified_se_ss.padding import real_elements


def sinusoidal_positions(length: int, n_features: int) -> torch.Tensor:
    """Absolute positions as sines and cosines, [length, n_features].

    Source: Vaswani et al., "Attention is all you need", section 3.5.

    Example
    -------
    >>> sinusoidal_positions(2, 4)[0]
    tensor([0., 1., 0., 1.])
    """
    position = torch.arange(length, dtype=torch.float32).unsqueeze(1)
    exponent = torch.arange(0, n_features, 2).float() * -(math.log(10000.0) / n_features)
    angle = position * exponent.exp()
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


class SelfAttention(nn.Module):
    """Multi-head self-attention that never forms the attention weights for the caller.

    Arguments
    ---------
    n_features : int
        Features N.
    heads : int
        Number of heads; divides N.
    dropout : float
        Dropout on the attention weights.
    """

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


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each behind a norm and a skip.

    Arguments
    ---------
    n_features : int
        Features N.
    heads : int
        Number of attention heads.
    feed_forward : int
        Hidden units of the feed-forward network.
    dropout : float
        Dropout probability.
    """

    def __init__(
        self, n_features: int, heads: int, feed_forward: int, dropout: float = 0.0
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(n_features, eps=1e-6)
        self.attention = SelfAttention(n_features, heads, dropout)
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
    """Transformer encoder with sinusoidal positions and a final norm.

    Arguments
    ---------
    n_features : int
        Features N of input and output.
    layers : int
        Number of layers.
    heads : int
        Number of attention heads.
    feed_forward : int
        Hidden units of the feed-forward networks.
    dropout : float
        Dropout probability.

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
        self.layers = nn.ModuleList(
            TransformerLayer(n_features, heads, feed_forward, dropout)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(n_features, eps=1e-6)
        self.register_buffer(
            "positions", sinusoidal_positions(2500, n_features), persistent=False
        )

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Run along the sequences, [B, L, N] to [B, L, N].

        Arguments
        ---------
        x : torch.Tensor
            [B, L, N].
        lengths : torch.Tensor, optional
            Real steps of each sequence, [B]; the others are not attended to.
        """
        if x.shape[1] > len(self.positions):  # longer than ever before: make more
            positions = sinusoidal_positions(2 * x.shape[1], self.n_features)
            self.positions = positions.to(self.positions)
        mask = None
        if lengths is not None:
            mask = real_elements(lengths, x.shape[1], x.device)
        x = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)
