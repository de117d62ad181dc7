"""Layers and streams that never look ahead: the whole signal, or block by block.

A layer is given frames ``start`` to ``start + L`` of a signal and a *memory*: a list with
one tensor for each layer, what it has to remember of the frames before, or None before the
first. Without a memory
the frames before are silence. So a signal as a whole and the same signal in blocks take
the same path through the same code.

Axes: B batch, C channels, L frames, F bins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


def reduced(frames: int, stride: int) -> int:
    """Frames that are left of so many, every `stride`-th from the first on."""
    return -(-frames // stride)


class CausalConvolution(nn.Module):
    """Convolution whose last tap in time is the frame itself.

    With a stride s in time, the frames 0, s, 2s, … are kept, each at the moment it comes. In
    frequency both sides are padded with zeros: F bins to ceil(F / stride). `kernel_size` is
    odd, `stride` in time and in frequency, `dilation` in time.

    Example
    -------
    >>> layer = CausalConvolution(4, 8, kernel_size=3, stride=(2, 2))
    >>> layer(torch.randn(1, 4, 10, 161)).shape
    torch.Size([1, 8, 5, 81])
    """

    place: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: tuple[int, int] = (1, 1),
        dilation: int = 1,
    ):
        super().__init__()
        self.time_stride = stride[0]
        self.reach = (kernel_size - 1) * dilation
        self.convolution = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=(0, kernel_size // 2),
            dilation=(dilation, 1),
        )

    def forward(
        self, x: torch.Tensor, memory: list | None = None, start: int = 0
    ) -> torch.Tensor:
        """Convolve frames, [B, C_in, L, F] to [B, C_out, L', F']; L may be 0.

        `start` is the index of the first frame, modulo the stride. The item `self.place` of
        `memory` is read and replaced.
        """
        frames = x.shape[2]
        past = memory[self.place] if memory is not None and self.reach else None
        if past is None:
            x = nn.functional.pad(x, (0, 0, self.reach, 0))
        else:
            x = torch.cat((past, x), 2)
        if memory is not None and self.reach:
            memory[self.place] = x[:, :, frames:].clone()
        first = -start % self.time_stride  # the first frame that is kept
        if frames <= first:
            bins = reduced(x.shape[3], self.convolution.stride[1])
            return x.new_empty(x.shape[0], self.convolution.out_channels, 0, bins)
        return self.convolved(x[:, :, first:])

    def convolved(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve whole windows; a single one without the frames between its taps."""
        layer, (dilation, _) = self.convolution, self.convolution.dilation
        if dilation == 1 or x.shape[2] > self.reach + 1:
            return layer(x)
        taps = x[:, :, ::dilation]
        return nn.functional.conv2d(
            taps, layer.weight, layer.bias, layer.stride, layer.padding
        )


class CausalTransposedConvolution(nn.Module):
    """Transposed convolution whose first tap in time is the frame itself.

    The mirror of :class:`CausalConvolution`: reduced frame k, which came with frame s * k,
    gives to the frames s * k and later. The frames between two reduced ones are due at once,
    and wait in the memory. `kernel_size` is odd and no less than the strides; the output has
    F = `bins`.

    Example
    -------
    >>> layer = CausalTransposedConvolution(8, 4, kernel_size=3, stride=(2, 2), bins=161)
    >>> layer(torch.randn(1, 8, 5, 81), frames=10).shape
    torch.Size([1, 4, 10, 161])
    """

    place: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: tuple[int, int],
        bins: int,
    ):
        super().__init__()
        self.time_stride = stride[0]
        self.overlap = kernel_size - stride[0]
        self.bins = bins
        self.convolution = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=(0, kernel_size // 2),
            output_padding=(0, (bins - 1) % stride[1]),
        )

    def forward(
        self, x: torch.Tensor, frames: int, memory: list | None = None, start: int = 0
    ) -> torch.Tensor:
        """Give frames `start` to `start + frames`, [B, C_in, L', F'] to [B, C_out, L, F].

        `x` holds the reduced frames among them, L' may be 0; `frames` is at most as many as are
        due; `start` counts modulo the stride; the item `self.place` of `memory` is replaced.
        """
        due = self.added_up(x, memory, -start % self.time_stride)
        if memory is not None:
            memory[self.place] = due[:, :, frames:].clone()
        return due[:, :, :frames] + self.convolution.bias.view(-1, 1, 1)  # type: ignore[union-attr]  # it has one

    def added_up(self, x: torch.Tensor, memory: list | None, waiting: int) -> torch.Tensor:
        """Frames from `start` on that the reduced frames give, added to the memory."""
        if memory is not None and not x.shape[2]:
            return memory[self.place]
        layer = self.convolution
        padding: tuple[int, ...] = layer.padding  # type: ignore[assignment]  # numbers
        given = nn.functional.conv_transpose2d(
            x, layer.weight, None, layer.stride, padding, layer.output_padding
        )
        remembered = None if memory is None else memory[self.place]
        if remembered is None:
            return given
        given = nn.functional.pad(given, (0, 0, waiting, 0))
        behind = given.shape[2] - remembered.shape[2]
        return given + nn.functional.pad(remembered, (0, 0, 0, behind))


class CausalSTFT(nn.Module):
    """Analysis and synthesis with a square-root Hann window and a hop of half of it.

    Frame l ends where hop l ends: it has the hops l - 1 and l. Hop h is therefore complete
    when frames h and h + 1 are: a sample comes out at most one window after it went in, which
    is all the latency. One hop of silence stands before the first sample, which is restored
    like any other. `window` is even, in samples; F = window / 2 + 1.

    Source of the window: inferred; with it, synthesis after analysis is the identity.

    Example
    -------
    >>> stft = CausalSTFT(320)
    >>> signal = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    >>> spectrum = stft.analyse(stft.padded(signal))
    >>> spectrum.shape, spectrum.dtype
    (torch.Size([2, 8, 161]), torch.complex64)
    >>> bool((stft.synthesise(spectrum)[..., :1000] - signal).abs().max() < 1e-6)
    True
    """

    window: torch.Tensor

    def __init__(self, window: int = 320):
        super().__init__()
        if window < 2 or window % 2:
            raise ValueError(f"window is {window}; expected an even number of samples")
        self.hop, self.bins = window // 2, window // 2 + 1
        shape = torch.hann_window(window, dtype=torch.float64).sqrt()
        self.register_buffer(
            "window", shape.to(torch.get_default_dtype()), persistent=False
        )

    def padded(self, signal: torch.Tensor, multiple: int = 1) -> torch.Tensor:
        """A hop of silence, the signal, and as much behind as its frames need.

        [..., T] to [..., (L + 1) * hop], for L frames, a multiple of `multiple`.
        """
        hops = -(-signal.shape[-1] // self.hop) + 1
        hops += -hops % multiple
        behind = hops * self.hop - signal.shape[-1]
        return nn.functional.pad(signal, (self.hop, behind))

    def analyse(self, signal: torch.Tensor) -> torch.Tensor:
        """Spectra of all whole windows, [..., (L + 1) * hop] to complex [..., L, F]."""
        frames = signal.unfold(-1, 2 * self.hop, self.hop)
        return torch.fft.rfft(frames * self.window)

    def synthesise(self, spectrum: torch.Tensor) -> torch.Tensor:
        """The samples that lie in two frames, complex [..., L, F] to [..., (L - 1) * hop]."""
        return self.overlap_add(spectrum)[..., self.hop : -self.hop]

    def overlap_add(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Add all frames up, complex [..., L, F] to [..., (L + 1) * hop]."""
        frames = torch.fft.irfft(spectrum, 2 * self.hop) * self.window
        older, newer = frames.split(self.hop, -1)
        older = nn.functional.pad(older, (0, 0, 0, 1))
        return (older + nn.functional.pad(newer, (0, 0, 1, 0))).flatten(-2)


class OverlapAddStream(ABC):
    """Blocks of any length in, whole hops out: base of the networks' streams.

    `waiting`, [..., T], are samples that a later window needs; `tail` what the windows so far
    give to samples that later windows cover, too.
    """

    waiting: torch.Tensor
    tail: torch.Tensor

    def __init__(self, window: int, hop: int):
        self.window, self.hop = window, hop

    @abstractmethod
    def _synthesised(self, signal: torch.Tensor) -> torch.Tensor:
        """All windows of a signal through the network, added up, as long as the signal."""

    def _advance(self, block: torch.Tensor) -> torch.Tensor:
        """Take a block; give the samples that are complete."""
        signal = torch.cat((self.waiting, block), -1)
        complete = max((signal.shape[-1] - self.window) // self.hop + 1, 0) * self.hop
        self.waiting = signal[..., complete:].clone()
        if not complete:
            return self.tail[..., :0]
        output = self._synthesised(signal[..., : complete + self.window - self.hop])
        output[..., : self.window - self.hop] += self.tail
        self.tail = output[..., complete:].clone()
        return output[..., :complete]
