"""GSENet: enhancement of a microphone's signal, guided by a beamformer's output.

A U-Net maps the complex spectra of both to that of the enhanced speech. Nothing in it
looks ahead: output sample n depends on input samples up to the end of the hop after its
own, so the algorithmic latency is one window, 320 samples or 20 ms at 16 kHz. Of the
past, the published network sees 4.2 s.

Axes: B batch, C channels, T samples, L frames, F bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import nn

from unified_se_ss.networks.causal import (
    CausalConvolution,
    CausalSTFT,
    CausalTransposedConvolution,
    OverlapAddStream,
    reduced,
)
from unified_se_ss.padding import real_elements

SLOPE = 0.3  # of the leaky ReLU below zero
DILATIONS = (3, 9)  # in time
INPUTS = ("raw", "beamformed")  # the order of the two input signals
EPSILON = 1e-12  # on a mask's squared magnitude, whose root has no slope at zero

# Channels in and out, stride in time and in frequency, dilated in time or not.
PUBLISHED_BLOCKS = [
    [16, 32, 1, 2, False],
    [32, 48, 2, 2, False],
    [48, 48, 1, 2, True],
    [48, 96, 1, 2, True],
    [96, 96, 1, 2, True],
]

# What the head gives: spectra of its own, or a mask for each of these inputs.
HEADS = {
    "mapping": (),
    "mask_raw": ("raw",),
    "mask_beamformed": ("beamformed",),
    "mask_both": INPUTS,
}


class _Block(NamedTuple):
    """One row of the block table."""

    in_channels: int
    out_channels: int
    time_stride: int
    frequency_stride: int
    dilated: bool

    @property
    def stride(self) -> tuple[int, int]:
        """In time and in frequency."""
        return self.time_stride, self.frequency_stride


def read_blocks(rows: list) -> list[_Block]:
    """Check a block table as :data:`PUBLISHED_BLOCKS`, and name its columns."""
    if not rows or any(len(row) != len(_Block._fields) for row in rows):
        expected = ", ".join(_Block._fields)
        raise ValueError(f"blocks: expected one or more rows of: {expected}")
    blocks = [_Block(*row) for row in rows]
    for number, block in enumerate(blocks, start=1):
        if not {*block.stride} <= {1, 2, 3}:
            raise ValueError(f"blocks: row {number}: strides must be 1, 2 or 3")
        if min(block.in_channels, block.out_channels) < 1:
            raise ValueError(f"blocks: row {number}: channels must be at least 1")
    for number, (before, block) in enumerate(zip(blocks, blocks[1:]), start=2):
        if block.in_channels != before.out_channels:
            takes = f"blocks: row {number} takes {block.in_channels} channels"
            raise ValueError(f"{takes}, but row {number - 1} gives {before.out_channels}")
    return blocks


def _remembers(layer: nn.Module) -> bool:
    if isinstance(layer, CausalConvolution):
        return layer.reach > 0
    return isinstance(layer, CausalTransposedConvolution)


def _activate(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.leaky_relu(x, SLOPE)


class _DilatedPair(nn.Module):
    """Time-dilation block: two causal 3×3 convolutions, dilated in time by 3 and 9."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.ModuleList(
            CausalConvolution(channels, channels, 3, dilation=dilation)
            for dilation in DILATIONS
        )

    def forward(self, x: torch.Tensor, memory: list | None = None) -> torch.Tensor:
        """[B, C, L, F] to the same shape; for `memory` see :mod:`.causal`."""
        for layer in self.layers:
            x = _activate(layer(x, memory))
        return x


class _EncoderBlock(nn.Module):
    """3×3, time dilation if asked, strided 3×3, and a strided 1×1 around; by a row of the table."""

    def __init__(self, block: _Block):
        super().__init__()
        channels, out_channels, stride = block.in_channels, block.out_channels, block.stride
        self.time_stride = block.time_stride
        self.first = CausalConvolution(channels, channels, 3)
        self.dilated = _DilatedPair(channels) if block.dilated else None
        self.strided = CausalConvolution(channels, out_channels, 3, stride)
        self.residual = CausalConvolution(channels, out_channels, 1, stride)

    def forward(
        self, x: torch.Tensor, memory: list | None = None, start: int = 0
    ) -> torch.Tensor:
        """[B, C_in, L, F] to [B, C_out, L', F']; arguments as in :mod:`.causal`."""
        y = _activate(self.first(x, memory))
        if self.dilated is not None:
            y = self.dilated(y, memory)
        return _activate(self.strided(y, memory, start) + self.residual(x, memory, start))


class _DecoderBlock(nn.Module):
    """Time dilation if asked, transposed strided 3×3, 3×3; to `bins` bins.

    Mirrors an encoder block, from its output channels and sizes back to its input's. Of the
    orders that mirror it, this one, without a residual, is inferred from the stated size of
    the network, 1.37 M parameters and 1.2 GMAC per second.
    """

    def __init__(self, block: _Block, bins: int):
        super().__init__()
        channels, out_channels = block.out_channels, block.in_channels
        self.dilated = _DilatedPair(channels) if block.dilated else None
        self.transposed = CausalTransposedConvolution(
            channels, out_channels, 3, block.stride, bins
        )
        self.last = CausalConvolution(out_channels, out_channels, 3)

    def forward(
        self, x: torch.Tensor, frames: int, memory: list | None = None, start: int = 0
    ) -> torch.Tensor:
        """[B, C_out, L', F'] to [B, C_in, L, F]; arguments as in :mod:`.causal`."""
        if self.dilated is not None:
            x = self.dilated(x, memory)
        x = _activate(self.transposed(x, frames, memory, start))
        return _activate(self.last(x, memory))


class _Bottleneck(nn.Module):
    """3×3 to fewer channels, time dilation, 3×3 back."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.first = CausalConvolution(channels, inner, 3)
        self.dilated = _DilatedPair(inner)
        self.last = CausalConvolution(inner, channels, 3)

    def forward(self, x: torch.Tensor, memory: list | None = None) -> torch.Tensor:
        """[B, C, L, F] to the same shape; for `memory` see :mod:`.causal`."""
        x = _activate(self.first(x, memory))
        return _activate(self.last(self.dilated(x, memory), memory))


class GSENet(nn.Module):
    """Guided speech enhancement network: raw microphone and beamformer output to speech.

    Causal in time throughout: nothing after the hop that follows a sample's own changes it.
    Sizes chain exactly through any table and any length: 161, 81, 41, 21, 11, 6 bins and back
    with the published one, and whole frames. Leaky ReLUs follow every convolution but the
    head and the 1×1 (inferred).

    Arguments
    ---------
    blocks : list of list
        One row for each encoder block and its mirror: channels in, channels out, stride
        in time, stride in frequency, dilated in time or not. Default:
        :data:`PUBLISHED_BLOCKS`. The first row's channels are the stem's.
    bottleneck : int
        Channels within the bottleneck.
    window : int
        Window of the spectra in samples, the hop is half of it: 320 at 16 kHz.
    kernel_size : int
        Of stem and head, in time and in frequency; odd.
    head : str
        ``"mapping"`` (published): the spectrum itself. ``"mask_raw"``,
        ``"mask_beamformed"``: a complex mask on that input's spectrum; ``"mask_both"``:
        the sum of both masked spectra. Untrained, masks let the input, or the mean of
        both, nearly through. (Masks are not in the paper.)
    mask_limit : float
        Largest magnitude of a mask (inferred).

    Source: Yang et al., "Guided speech enhancement network", arXiv 2303.07486.

    Example
    -------
    >>> network = GSENet()
    >>> f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M"
    '1.37 M'
    >>> network(torch.randn(2, 2, 801)).shape
    torch.Size([2, 801])
    >>> network.latency, network.time_stride
    (320, 2)
    """

    def __init__(
        self,
        blocks: list | None = None,
        bottleneck: int = 48,
        window: int = 320,
        kernel_size: int = 7,
        head: str = "mapping",
        mask_limit: float = 2.0,
    ):
        super().__init__()
        table = read_blocks(PUBLISHED_BLOCKS if blocks is None else blocks)
        if head not in HEADS:
            raise ValueError(f"head is '{head}'; expected one of: {', '.join(HEADS)}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; expected an odd number")
        self.stft = CausalSTFT(window)
        self.masked, self.mask_limit = HEADS[head], mask_limit
        self.time_stride = math.prod(block.time_stride for block in table)
        strides = (block.frequency_stride for block in table)
        bins = accumulate(strides, reduced, initial=self.stft.bins)
        channels = table[0].in_channels
        self.stem = CausalConvolution(2 * len(INPUTS), channels, kernel_size)
        self.encoder = nn.ModuleList(_EncoderBlock(block) for block in table)
        self.bottleneck = _Bottleneck(table[-1].out_channels, bottleneck)
        self.decoder = nn.ModuleList(
            _DecoderBlock(block, size) for block, size in reversed([*zip(table, bins)])
        )
        self.head = CausalConvolution(channels, 2 * max(1, len(self.masked)), kernel_size)
        if self.masked:  # which start as ones
            bias = self.head.convolution.bias.data.view(-1, 2)  # type: ignore[union-attr]  # it has one
            bias[:, 0], bias[:, 1] = 1 / len(self.masked), 0.0
        self._name_places()

    def _name_places(self) -> None:
        """Give each layer that remembers frames its place in the memory."""
        layers = [layer for layer in self.modules() if _remembers(layer)]
        for place, layer in enumerate(layers):
            layer.place = place  # type: ignore[assignment]  # a number
        self.n_places = len(layers)

    @property
    def latency(self) -> int:
        """Algorithmic latency in samples: one window."""
        return 2 * self.stft.hop

    def memory(self, batch: int = 1) -> list[torch.Tensor]:
        """Memory of the layers before the first frame: silence, [B, C, L, F] each."""
        return [torch.zeros_like(x) for x in self.memory_after(self.time_stride, batch)]

    @torch.no_grad()
    def memory_after(self, frames: int, batch: int = 1) -> list[torch.Tensor]:
        """Memory of the layers after so many frames of silence, at least one."""
        memory: list = [None] * self.n_places
        shape = batch, 2 * len(INPUTS), frames, self.stft.bins
        self.map(self.head.convolution.weight.new_zeros(shape), memory)
        return memory

    def forward(
        self, signals: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Enhance raw reference microphone and beamformer output, [B, 2, T] to [B, T].

        Of `lengths`, [B], real samples each item gets what it gets alone; the rest is taken as
        silence, and is silence in the output.
        """
        if signals.dim() != 3 or signals.shape[1] != len(INPUTS) or not signals.shape[2]:
            expected = "[batch, 2, samples]: raw and beamformed, at least one sample"
            raise ValueError(f"signals are {[*signals.shape]}; expected {expected}")
        samples, real = signals.shape[-1], None
        if lengths is not None:
            real = real_elements(lengths, samples, signals.device)
            signals = torch.where(real.unsqueeze(1), signals, 0.0)
        spectra = self.stft.analyse(self.stft.padded(signals, self.time_stride))
        parts = self.map(self.features(spectra))
        enhanced = self.stft.synthesise(self.spectrum(parts, spectra))[..., :samples]
        return enhanced if real is None else torch.where(real, enhanced, 0.0)

    def features(self, spectra: torch.Tensor) -> torch.Tensor:
        """Real and imaginary parts as channels, complex [B, 2, L, F] to [B, 4, L, F]."""
        return torch.view_as_real(spectra).movedim(-1, 2).flatten(1, 2)

    def map(
        self, features: torch.Tensor, memory: list | None = None, start: int = 0
    ) -> torch.Tensor:
        """The U-Net itself, real numbers only, from :meth:`features` to :meth:`spectrum`.

        [B, 4, L, F] to [B, 2, L, F], or [B, 4, L, F] for two masks. The items of `memory`, from
        :meth:`memory`, are replaced; without it, silence is before. With it, `start` is the index
        of the first frame, modulo `time_stride`.
        """
        x = _activate(self.stem(features, memory))
        levels = [(x, start)]  # what is added on the way back, and its first frame
        for block in self.encoder:
            x = block(x, memory, start)
            start = reduced(start, block.time_stride)  # type: ignore[arg-type]  # a number
            levels.append((x, start))
        x = self.bottleneck(x, memory) + levels.pop()[0]
        for block in self.decoder:
            skip, start = levels.pop()
            x = block(x, skip.shape[2], memory, start) + skip
        return self.head(x, memory)

    def spectrum(self, parts: torch.Tensor, spectra: torch.Tensor) -> torch.Tensor:
        """The enhanced spectrum, complex [B, L, F], from :meth:`map` and the inputs' spectra."""
        if parts.dtype in (torch.float16, torch.bfloat16):
            parts = parts.float()
        real, imaginary = parts[:, 0::2], parts[:, 1::2]
        if not self.masked:
            return torch.complex(real, imaginary).squeeze(1)
        magnitude = (real.square() + imaginary.square() + EPSILON).sqrt()
        bounded = self.mask_limit * torch.tanh(magnitude / self.mask_limit) / magnitude
        masks = torch.complex(bounded * real, bounded * imaginary)
        inputs = [INPUTS.index(name) for name in self.masked]
        return (masks * spectra[:, inputs]).sum(1)

    def stream(self, step: Step | None = None) -> GSENetStream:
        """Start a stream: blocks of any length in, the same output as for the whole.

        `step` takes the place of :meth:`map`, for example a compiled one.

        Example
        -------
        >>> network = GSENet([[4, 8, 2, 2, True]], bottleneck=4).eval()
        >>> signals = torch.randn(1, 2, 1000)
        >>> stream = network.stream()
        >>> outputs = [stream(block) for block in signals.split(130, dim=-1)]
        >>> streamed = torch.cat([*outputs, stream.flush()], -1)
        >>> bool((streamed - network(signals)).abs().max() < 1e-5)
        True
        """
        return GSENetStream(self, step)


#: (features [B, 4, L, F], memory, start) to [B, 2, L, F].
Step = Callable[[torch.Tensor, list[torch.Tensor], int], torch.Tensor]


class GSENetStream(OverlapAddStream):
    """Enhance blocks as they come; joined, the outputs are the whole signal's output.

    A hop of output is given as soon as the next hop is complete: with n samples taken,
    (n // hop - 1) * hop are given. No gradient flows. Get one from :meth:`GSENet.stream`; one
    signal (or batch of signals) at a time, on the network's device.

    Example
    -------
    >>> stream = GSENet([[4, 8, 2, 2, False]], bottleneck=4).stream()
    >>> [stream(torch.randn(1, 2, 160)).shape[-1] for block in range(3)]
    [0, 160, 160]
    >>> stream(torch.randn(1, 2, 7)).shape[-1], stream.flush().shape[-1]
    (0, 167)
    """

    def __init__(self, network: GSENet, step: Step | None = None):
        super().__init__(2 * network.stft.hop, network.stft.hop)
        self.network = network
        self.step: Step = step or network.map
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next block starts a new signal, of any batch size."""
        self.memory: list[torch.Tensor] = []
        self.start = 0  # of the next frame, modulo the network's stride in time
        self.ahead = self.hop  # what frame 0 gives ahead of the first sample
        self.waiting = self.tail = torch.empty(0)

    @torch.no_grad()
    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        """Take a block, [B, 2, n], n from 0 on; give what is complete, [B, m]."""
        self._check(block)
        if not self.memory:  # silence is behind
            batch = block.shape[0]
            self.memory = self.network.memory(batch)
            self.waiting = block.new_zeros(batch, len(INPUTS), self.hop)
            self.tail = block.new_zeros(batch, self.hop)
        return self._advance(block)

    @torch.no_grad()
    def flush(self) -> torch.Tensor:
        """End the signal: give what is left of it, [B, m], and forget everything.

        Then as many samples have been given as were taken; without any block before, [1, 0].
        """
        if not self.memory:
            return self.network.head.convolution.weight.new_zeros(1, 0)
        waiting = self.waiting.shape[-1]
        left = waiting - self.ahead
        # The last hop is complete with one hop of silence after it.
        silence = -waiting % self.hop + self.hop
        output = self._advance(self.waiting.new_zeros(*self.waiting.shape[:2], silence))
        self.reset()
        return output[:, :left]

    def state_size(self) -> int:
        """Numbers that one signal of the batch keeps between two blocks, at most.

        Memory of the layers, samples that are not yet a hop and the one before, and the overlap
        of the output; 4 bytes each in float32.

        Example
        -------
        >>> GSENet().stream().state_size()
        262486
        """
        # After one frame, every transposed layer has as many frames waiting as it ever has.
        layers = sum(x.numel() for x in self.network.memory_after(1))
        return layers + 2 * (2 * self.hop - 1) + self.hop

    def _check(self, block: torch.Tensor) -> None:
        if block.dim() != 3 or block.shape[1] != len(INPUTS):
            expected = "[batch, 2, samples]: raw and beamformed"
            raise ValueError(f"a block is {[*block.shape]}; expected {expected}")
        if self.memory and len(block) != len(self.waiting):
            counts = f"a block of {len(block)} signals in a stream of {len(self.waiting)}"
            raise ValueError(f"{counts}; call reset() or flush() between signals")

    def _advance(self, block: torch.Tensor) -> torch.Tensor:
        output = super()._advance(block)
        if output.shape[-1]:
            output, self.ahead = output[..., self.ahead :], 0
        return output

    def _synthesised(self, signal: torch.Tensor) -> torch.Tensor:
        network = self.network
        spectra = network.stft.analyse(signal)
        parts = self.step(network.features(spectra), self.memory, self.start)
        self.start = (self.start + parts.shape[2]) % network.time_stride
        return network.stft.overlap_add(network.spectrum(parts, spectra))
