"""Dual-path processing: within chunks, across chunks, and masks from it.

A batch padded to its longest item gives each item what it gets alone: statistics,
attention and recurrence see real chunks only.

Axes: B batch, N basis functions, D features, L frames, K chunk length, S chunks,
J sources.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from unified_se_ss.padding import Count, real_elements

EPSILON = 1e-8  # source: speechbrain.lobes.models.dual_path.select_norm


class GlobalNorm(nn.Module):
    """Normalise each item over everything but the batch; scale and shift by feature.

    What ``torch.nn.GroupNorm(1, D)`` computes, for features in the last axis.

    Example
    -------
    >>> GlobalNorm(8)(torch.randn(2, 5, 8)).var((1, 2), correction=0).round().tolist()
    [1.0, 1.0]
    """

    def __init__(self, n_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_features))
        self.bias = nn.Parameter(torch.zeros(n_features))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise [B, ..., D] by the statistics of what `mask`, [B, ...], is True for."""
        if mask is None:
            # With one group it does not matter which axis is called the channels.
            x = nn.functional.group_norm(x, 1, eps=EPSILON)
        else:
            x = self.masked(x, mask)
        return torch.addcmul(self.bias, x, self.weight)

    @staticmethod
    def masked(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Normalise by the statistics of the unmasked part, in at least fp32."""
        dtype = x.dtype
        x = x.float() if dtype in (torch.float16, torch.bfloat16) else x
        axes = tuple(range(1, x.dim()))
        mask = mask.view(mask.shape + (1,) * (x.dim() - mask.dim()))
        count = mask.sum(axes, keepdim=True) * (x[0].numel() // mask[0].numel())
        mean = torch.where(mask, x, 0.0).sum(axes, keepdim=True) / count
        centred = torch.where(mask, x - mean, 0.0)
        variance = centred.square().sum(axes, keepdim=True) / count
        return (centred * torch.rsqrt(variance + EPSILON)).to(dtype)


class _SequenceModel(Protocol):
    """A module from [B, L, ``n_features``] to [B, L, ``n_outputs``], as ``Recurrent`` is."""

    n_features: int
    n_outputs: int

    def __call__(
        self, x: torch.Tensor, lengths: torch.Tensor | None = None, /
    ) -> torch.Tensor:
        """Run along the sequences; `lengths`, [B]: the real steps of each."""


class _DualPathBlock(nn.Module):
    """One model along each chunk, then one across the chunks.

    A linear layer follows each of them if `linear_after` (DPRNN: yes, SepFormer: no).
    """

    def __init__(self, intra: _SequenceModel, inter: _SequenceModel, linear_after: bool):
        super().__init__()
        width = intra.n_features
        self.intra, self.inter = intra, inter
        self.intra_linear = (
            nn.Linear(intra.n_outputs, width) if linear_after else nn.Identity()
        )
        self.inter_linear = (
            nn.Linear(inter.n_outputs, width) if linear_after else nn.Identity()
        )
        self.intra_norm = GlobalNorm(width)
        self.inter_norm = GlobalNorm(width)

    def forward(self, x: torch.Tensor, chunks: torch.Tensor | None = None) -> torch.Tensor:
        """[B, S, K, D] to [B, S, K, D]; `chunks`, [B]: real chunks of each item."""
        n_batch, n_chunks, length, _ = x.shape
        mask = None if chunks is None else real_elements(chunks, n_chunks, x.device)
        within = self.intra_linear(self.intra(x.flatten(0, 1)))
        x = x + self.intra_norm(within.unflatten(0, (n_batch, n_chunks)), mask)

        across = x.transpose(1, 2).flatten(0, 1)  # [B * K, S, D]
        lengths = None if chunks is None else chunks.repeat_interleave(length)
        across = self.inter_linear(self.inter(across, lengths))
        across = across.unflatten(0, (n_batch, length)).transpose(1, 2)
        return x + self.inter_norm(across.contiguous(), mask)


def count_chunks(frames: Count, length: int) -> Count:
    """Half-overlapping chunks of `length` for so many frames; every frame lies in exactly two."""
    hop = length // 2
    gap = length - (hop + frames % length) % length
    return 2 * (frames + gap + hop) // length


def segment(x: torch.Tensor, length: int) -> torch.Tensor:
    """Cut frames into half-overlapping chunks, [B, L, D] to [B, S, K, D].

    Example
    -------
    >>> segment(torch.arange(1.0, 4).view(1, 3, 1), 2).squeeze().tolist()
    [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """
    hop = length // 2
    total = (count_chunks(x.shape[1], length) + 1) * hop
    x = nn.functional.pad(x, (0, 0, hop, total - hop - x.shape[1]))
    return x.unfold(1, length, hop).transpose(2, 3).contiguous()


def overlap_add(x: torch.Tensor, frames: int) -> torch.Tensor:
    """Add half-overlapping chunks, [B, S, K, D] to [B, L, D]; inverts :func:`segment` times 2.

    Example
    -------
    >>> x = torch.randn(2, 57, 3)
    >>> torch.allclose(overlap_add(segment(x, 10), 57), 2 * x)
    True
    """
    hop = x.shape[2] // 2
    # Chunk s covers hops s and s + 1: its first half meets the second half of s - 1.
    halves = x.unflatten(2, (2, hop))
    added = halves[:, 1:, 0] + halves[:, :-1, 1]
    return added.flatten(1, 2)[:, :frames]


class DualPath(nn.Module):
    """Masks for a representation, by dual-path processing.

    Global norm, bottleneck, half-overlapping chunks, blocks of an intra- and an inter-chunk
    model, PReLU, overlap-add, one tanh-sigmoid gated branch per source, ReLU.

    Arguments
    ---------
    intra, inter : callable
        Make one intra- or inter-chunk model (``Recurrent``, ``Transformer``); called once
        for each block, so that every block starts from weights of its own. (SpeechBrain
        copies one model into all blocks.)
    n_basis, n_features : int
        Basis functions N of the representation, and features D inside.
    n_sources : int
        Masks J.
    chunk_length : int
        Frames K of a chunk, even; the hop is half of it.
    linear_after : bool
        A linear layer follows each intra- and inter-chunk model.

    Attributes
    ----------
    activation_checkpointing : bool
        Training keeps of each block its input alone and runs it again in every backward
        pass (default False): less memory for more time.

    Sources: arXiv 1910.06379 (DPRNN), arXiv 2010.13154 (SepFormer);
    ``speechbrain.lobes.models.dual_path.Dual_Path_Model``, whose weights load by
    :func:`~unified_se_ss.networks.speechbrain_weights.from_speechbrain` and give the same
    masks.

    Example
    -------
    >>> from functools import partial
    >>> from unified_se_ss.networks import Recurrent
    >>> model = partial(Recurrent, n_features=32, hidden=16)
    >>> network = DualPath(model, model, n_basis=64, n_features=32, n_sources=2,
    ...     blocks=2, chunk_length=10, linear_after=True)
    >>> network(torch.rand(3, 64, 99)).shape
    torch.Size([3, 2, 64, 99])
    """

    def __init__(
        self,
        intra: Callable[[], _SequenceModel],
        inter: Callable[[], _SequenceModel],
        n_basis: int,
        n_features: int,
        n_sources: int,
        blocks: int,
        chunk_length: int,
        linear_after: bool,
    ):
        super().__init__()
        if chunk_length < 2 or chunk_length % 2:
            raise ValueError(f"chunk_length is {chunk_length}; expected an even number")
        self.chunk_length = chunk_length
        self.n_sources = n_sources
        self.activation_checkpointing = False
        self.norm = GlobalNorm(n_basis)
        self.bottleneck = nn.Linear(n_basis, n_features, bias=False)
        self.blocks = nn.ModuleList(
            _DualPathBlock(intra(), inter(), linear_after) for _ in range(blocks)
        )
        self.activation = nn.PReLU()
        self.split = nn.Linear(n_features, n_features * n_sources)
        self.output = nn.Linear(n_features, n_features)
        self.gate = nn.Linear(n_features, n_features)
        self.expand = nn.Linear(n_features, n_basis, bias=False)

    def forward(
        self, representation: torch.Tensor, frames: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Estimate masks, non-negative, [B, N, L] to [B, J, N, L].

        `frames`, [B], on the CPU, are the real frames of each item; masks of padding are
        unspecified.
        """
        n_frames = representation.shape[-1]
        x = representation.transpose(1, 2)
        mask = chunks = None
        if frames is not None:
            mask = real_elements(frames, n_frames, x.device)
            chunks = count_chunks(frames, self.chunk_length)
        x = self.bottleneck(self.norm(x, mask))
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), x, 0.0)
        x = segment(x, self.chunk_length)
        for block in self.blocks:
            x = self._through(block, x, chunks)
        x = overlap_add(self.activation(x), n_frames)
        # The published order is split, then overlap-add. Each frame lies in two chunks,
        # so it sums two biases; this way round the large product is half as large.
        x = self.split(x) + self.split.bias
        x = x.unflatten(-1, (self.n_sources, -1)).transpose(1, 2)  # [B, J, L, D]
        x = self.output(x).tanh() * self.gate(x).sigmoid()
        return self.expand(x).relu().transpose(2, 3)

    def _through(
        self, block: nn.Module, x: torch.Tensor, chunks: torch.Tensor | None
    ) -> torch.Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, chunks, use_reentrant=False)
        return block(x, chunks)
