"""Conv-TasNet's separator: masks by stacked dilated convolutions (TCN).

Several networks of one shape, each with weights of its own, can run side by side in the
same operations: that is how the two ears of a binaural network are kept busy at once.

Axes: B batch, G networks side by side, L frames, N basis functions, D features,
P kernel size, J sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from unified_se_ss.networks.dual_path import EPSILON, GlobalNorm
from unified_se_ss.padding import real_elements


class _RealFrames:
    """Real frames of a padded batch, and each item's mirror image at its ends.

    `frames`, [B], are on the CPU; `size` is the padded number of frames.

    Example
    -------
    >>> real = _RealFrames(torch.tensor([3]), 4, 1, torch.device("cpu"))
    >>> real.mask.tolist(), real.mirrored(2).tolist()
    ([[True, True, True, False]], [2, 1, 0, 1, 2, 1, 0, 1])
    """

    def __init__(
        self, frames: torch.Tensor, size: int, n_networks: int, device: torch.device
    ):
        self.frames = frames.repeat_interleave(n_networks)
        self.size = size
        self.device = device
        self.mask = real_elements(self.frames, size, device)  # [B * G, L]
        self.known: dict[int, torch.Tensor] = {}

    def mirrored(self, margin: int) -> torch.Tensor:
        """Rows of [B * G * L, D] that make each item `margin` frames longer at both ends.

        An item ends where its own frames end, not where the batch's do. One that is shorter than
        the margin is mirrored again and again.
        """
        if margin not in self.known:
            position = torch.arange(-margin, self.size + margin)
            period = (2 * self.frames.unsqueeze(1) - 2).clamp(min=1)
            position = position.remainder(period)
            position = torch.minimum(position, period - position)
            position += self.size * torch.arange(len(self.frames)).unsqueeze(1)
            rows = position.flatten().to(self.device, non_blocking=True)
            self.known[margin] = rows
        return self.known[margin]


class _FrameNorm(nn.Module):
    """Normalise each frame over its features, scale and shift by feature; causal.

    SpeechBrain's ``cLN``.
    """

    def __init__(self, n_networks: int, n_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_networks, 1, n_features))
        self.bias = nn.Parameter(torch.zeros(n_networks, 1, n_features))

    def forward(
        self, x: torch.Tensor, real: _RealFrames | None = None, memory: dict | None = None
    ) -> torch.Tensor:
        """[B, G, L, D] to [B, G, L, D]."""
        return torch.addcmul(self.bias, self.normalised(x, real, memory), self.weight)

    def normalised(
        self, x: torch.Tensor, real: _RealFrames | None, memory: dict | None
    ) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], eps=EPSILON)


class _UtteranceNorm(_FrameNorm):
    """Normalise each item over its real frames and its features (``gLN``); not causal.

    Source: Luo and Mesgarani, "Conv-TasNet", arXiv 1809.07454.
    """

    def normalised(
        self, x: torch.Tensor, real: _RealFrames | None, memory: dict | None
    ) -> torch.Tensor:
        flat = x.flatten(0, 1)
        if real is None:
            return functional.group_norm(flat, 1, eps=EPSILON).view_as(x)
        return GlobalNorm.masked(flat, real.mask).view_as(x)


class CumulativeNorm(_FrameNorm):
    """Normalise each frame over the features of all frames so far; causal.

    Source: Luo and Mesgarani, "Conv-TasNet", arXiv 1809.07454 (``cLN`` there).
    """

    def normalised(
        self, x: torch.Tensor, real: _RealFrames | None, memory: dict | None
    ) -> torch.Tensor:
        signal = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        variance, mean = torch.var_mean(signal, -1, correction=0)  # [B, G, L]
        # Sums over minutes, and a difference of two of them: float64, three per frame.
        moments = torch.stack((torch.ones_like(mean), mean, variance + mean.square()))
        sums = moments.double().cumsum(-1)
        if memory is not None:
            if self in memory:
                sums = sums + memory[self]
            memory[self] = sums[..., -1:].clone()
        mean, square = sums[1:] / sums[0]
        scale = torch.rsqrt((square - mean.square()).clamp(min=0) + EPSILON)
        mean, scale = mean.to(signal.dtype), scale.to(signal.dtype)
        return ((signal - mean.unsqueeze(-1)) * scale.unsqueeze(-1)).to(x.dtype)


NORMS = {"global": _UtteranceNorm, "frame": _FrameNorm, "cumulative": CumulativeNorm}


def _choose_norm(norm: str | None, causal: bool) -> str:
    if norm is None:
        return "cumulative" if causal else "global"
    allowed = [name for name in NORMS if not (causal and name == "global")]
    if norm not in allowed:
        why = " in a causal network" if causal else ""
        raise ValueError(f"norm is '{norm}'; expected{why} one of: {', '.join(allowed)}")
    return norm


class _Pointwise(nn.Module):
    """Linear layers without bias, side by side: convolutions of kernel 1."""

    def __init__(self, n_networks: int, n_inputs: int, n_outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_networks, n_inputs, n_outputs))
        nn.init.uniform_(self.weight, -1 / math.sqrt(n_inputs), 1 / math.sqrt(n_inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, G, L, n_inputs] to [B, G, L, n_outputs]."""
        # One matrix alone is one product; a batch of one would be copied B times.
        return x @ (self.weight if len(self.weight) > 1 else self.weight[0])


class _Activation(nn.Module):
    """PReLU with one slope for each of the networks side by side.

    Written as an interpolation between relu(x) and x, whose backward pass is several times as
    fast on a CPU as that of ``torch.nn.PReLU``.
    """

    def __init__(self, n_networks: int):
        super().__init__()
        self.slope = nn.Parameter(torch.full((n_networks, 1, 1), 0.25))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, G, L, D] to [B, G, L, D]."""
        return torch.lerp(x.relu(), x, self.slope.to(x.dtype))


class Depthwise(nn.Module):
    """Dilated convolution of each feature by itself, as long as its input.

    Causal: frame l sees the P = `kernel_size` frames l - (P-1)d, …, l - d, l, with silence
    before the first. Otherwise as far to both sides, with each item mirrored at its ends.

    Example
    -------
    >>> convolution = Depthwise(1, 1, kernel_size=3, dilation=2, causal=True)
    >>> _ = torch.nn.init.ones_(convolution.weight)
    >>> convolution(torch.tensor([1.0, 2, 3, 4, 5]).view(1, 1, 5, 1)).flatten().tolist()
    [1.0, 2.0, 4.0, 6.0, 9.0]
    """

    def __init__(
        self,
        n_networks: int,
        n_features: int,
        kernel_size: int,
        dilation: int,
        causal: bool,
    ):
        super().__init__()
        self.dilation, self.causal = dilation, causal
        self.reach = (kernel_size - 1) * dilation
        self.weight = nn.Parameter(torch.empty(n_networks, kernel_size, n_features))
        bound = 1 / math.sqrt(kernel_size)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(
        self, x: torch.Tensor, real: _RealFrames | None = None, memory: dict | None = None
    ) -> torch.Tensor:
        """[B, G, L, D] to [B, G, L, D]."""
        frames = x.shape[2]
        x = self.with_past(x, memory) if self.causal else self.mirrored(x, real)
        taps = self.weight.to(x.dtype).unsqueeze(2).unbind(1)  # P times [G, 1, D]
        y = x[:, :, :frames] * taps[0]
        for number, tap in enumerate(taps[1:], 1):
            start = number * self.dilation
            y = torch.addcmul(y, x[:, :, start : start + frames], tap)
        return y

    def with_past(self, x: torch.Tensor, memory: dict | None) -> torch.Tensor:
        if memory is None:
            return functional.pad(x, (0, 0, self.reach, 0))
        past = memory.get(self)
        if past is None:
            past = x.new_zeros(*x.shape[:2], self.reach, x.shape[-1])
        x = torch.cat((past, x), 2)
        memory[self] = x[:, :, x.shape[2] - self.reach :].clone()
        return x

    def mirrored(self, x: torch.Tensor, real: _RealFrames | None) -> torch.Tensor:
        margin = self.reach // 2
        if real is not None:
            rows = x.flatten(0, 2).index_select(0, real.mirrored(margin))
            return rows.view(*x.shape[:2], -1, x.shape[-1])
        left = x[:, :, 1 : margin + 1].flip(2)
        right = x[:, :, -margin - 1 : -1].flip(2)
        return torch.cat((left, x, right), 2)


class _TemporalBlock(nn.Module):
    """Expand, convolve in time, project, add: one block of the TCN."""

    def __init__(
        self,
        n_networks: int,
        n_features: int,
        hidden: int,
        kernel_size: int,
        dilation: int,
        causal: bool,
        norm: str,
    ):
        super().__init__()
        self.expand = _Pointwise(n_networks, n_features, hidden)
        self.activation = _Activation(n_networks)
        self.norm = NORMS[norm](n_networks, hidden)
        self.depthwise = Depthwise(n_networks, hidden, kernel_size, dilation, causal)
        self.depthwise_activation = _Activation(n_networks)
        self.depthwise_norm = NORMS[norm](n_networks, hidden)
        self.project = _Pointwise(n_networks, hidden, n_features)

    def forward(
        self, x: torch.Tensor, real: _RealFrames | None = None, memory: dict | None = None
    ) -> torch.Tensor:
        """[B, G, L, D] to [B, G, L, D]."""
        y = self.norm(self.activation(self.expand(x)), real, memory)
        y = self.depthwise_activation(self.depthwise(y, real, memory))
        return x + self.project(self.depthwise_norm(y, real, memory))


class TemporalConvNet(nn.Module):
    """Masks for a representation, by Conv-TasNet's separator.

    Frame-wise norm, bottleneck, `repeats` times `blocks` temporal blocks with dilations
    1, 2, 4, …, and a linear layer with a ReLU that gives the masks.

    Arguments
    ---------
    n_basis : int
        Width N of the representation.
    n_sources : int
        Masks J.
    n_features, hidden : int
        Features between blocks (B in the paper) and within them (H).
    kernel_size : int
        Kernel of the depthwise convolutions (P); odd unless causal.
    blocks, repeats : int
        Blocks of one repeat (X) and repeats (R).
    causal : bool
        A frame's masks depend on the past and the frame itself only.
    norm : str, optional
        Within blocks: ``"global"`` (over the utterance, not causal), ``"cumulative"``
        (over the past) or ``"frame"`` (over each frame). By default global, or
        cumulative if causal.
    n_masked : int, optional
        Width of a mask; by default N.
    n_networks : int
        Networks side by side G, each with weights of its own.

    Source: Luo and Mesgarani, "Conv-TasNet", arXiv 1809.07454, without skip connections;
    ``speechbrain.lobes.models.conv_tasnet.MaskNet``, whose weights load by
    :func:`~unified_se_ss.networks.speechbrain_weights.conv_tasnet_from_speechbrain` and give
    the same masks where both are not causal.

    Example
    -------
    >>> network = TemporalConvNet(n_basis=32, n_sources=2, n_features=8, hidden=16,
    ...     blocks=3, repeats=2)
    >>> network(torch.rand(3, 32, 99)).shape
    torch.Size([3, 2, 32, 99])
    """

    def __init__(
        self,
        n_basis: int,
        n_sources: int,
        n_features: int = 64,
        hidden: int = 128,
        kernel_size: int = 3,
        blocks: int = 8,
        repeats: int = 4,
        causal: bool = False,
        norm: str | None = None,
        n_masked: int | None = None,
        n_networks: int = 1,
    ):
        super().__init__()
        if not causal and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; expected odd, unless causal")
        norm = _choose_norm(norm, causal)
        self.causal, self.n_sources, self.n_networks = causal, n_sources, n_networks
        self.norm = _FrameNorm(n_networks, n_basis)
        self.bottleneck = _Pointwise(n_networks, n_basis, n_features)
        self.blocks = nn.ModuleList(
            _TemporalBlock(
                n_networks, n_features, hidden, kernel_size, 2**number, causal, norm
            )
            for _ in range(repeats)
            for number in range(blocks)
        )
        n_masks = n_sources * (n_basis if n_masked is None else n_masked)
        self.masks = _Pointwise(n_networks, n_features, n_masks)

    @property
    def receptive_field(self) -> int:
        """Frames that one frame's masks depend on (without global and cumulative norms)."""
        return 1 + sum(self._reaches())

    def forward(
        self, representation: torch.Tensor, frames: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Estimate masks by a single network, [B, N, L] to [B, J, N, L].

        `frames`, [B], on the CPU, are the real frames of each item; masks of padding are
        unspecified.
        """
        masks = self.side_by_side(representation.transpose(1, 2).unsqueeze(1), frames)
        return masks.squeeze(1).permute(0, 2, 3, 1)

    def side_by_side(
        self,
        x: torch.Tensor,
        frames: torch.Tensor | None = None,
        memory: dict | None = None,
    ) -> torch.Tensor:
        """Estimate masks, each network from an input of its own, [B, G, L, N] to [B, G, L, J, N'].

        `frames`, [B], on the CPU, are the real frames of each item. `memory` is what a causal
        network remembers of the frames before these, by module; it is brought up to date, and
        empty before the first frames.
        """
        real = None if self.causal else self.real_frames(x, frames)
        x = self.bottleneck(self.norm(x))
        for block in self.blocks:
            x = block(x, real, memory)
        return self.masks(x).relu().unflatten(-1, (self.n_sources, -1))

    def _reaches(self) -> list[int]:
        blocks = cast("Iterable[_TemporalBlock]", self.blocks)
        return [block.depthwise.reach for block in blocks]

    def real_frames(
        self, x: torch.Tensor, frames: torch.Tensor | None
    ) -> _RealFrames | None:
        """Mask of real frames; None where all are, and are long enough to be mirrored."""
        size = x.shape[2]
        margin = max(self._reaches(), default=0) // 2
        if frames is None:
            if size > margin:
                return None
            frames = torch.full((len(x),), size)
        return _RealFrames(frames, size, x.shape[1], x.device)
