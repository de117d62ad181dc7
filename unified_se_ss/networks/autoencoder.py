"""Learned analysis and synthesis: waveform to representation and back.

Axes: B batch, T samples, N basis functions, L frames.
"""

from __future__ import annotations

import torch
from torch import nn


class Encoder(nn.Module):
    """Waveform to non-negative representation: one convolution and a ReLU.

    Arguments
    ---------
    n_basis : int
        Number of basis functions N.
    kernel_size : int
        Length of a basis function in samples.
    stride : int
        Hop between frames in samples.

    Source: Luo and Mesgarani, "Conv-TasNet", arXiv 1809.07454, section II.

    Example
    -------
    >>> encoder = Encoder(n_basis=64, kernel_size=16, stride=8)
    >>> encoder(torch.randn(2, 800)).shape
    torch.Size([2, 64, 99])
    """

    def __init__(self, n_basis: int, kernel_size: int, stride: int):
        super().__init__()
        self.convolution = nn.Conv1d(1, n_basis, kernel_size, stride, bias=False)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """Represent signals, [B, T] to [B, N, L]."""
        return self.convolution(signal.unsqueeze(1)).relu()

    def frames(self, samples):
        """Frames that lie wholly within so many samples (int or tensor of them)."""
        kernel_size, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        return (samples - kernel_size) // stride + 1


class Decoder(nn.Module):
    """Representation to waveform: one transposed convolution.

    Arguments
    ---------
    n_basis : int
        Number of basis functions N.
    kernel_size : int
        Length of a basis function in samples.
    stride : int
        Hop between frames in samples.

    Example
    -------
    >>> decoder = Decoder(n_basis=64, kernel_size=16, stride=8)
    >>> decoder(torch.randn(2, 64, 99), 803).shape
    torch.Size([2, 803])
    """

    def __init__(self, n_basis: int, kernel_size: int, stride: int):
        super().__init__()
        self.convolution = nn.ConvTranspose1d(n_basis, 1, kernel_size, stride, bias=False)

    def forward(self, representation: torch.Tensor, samples: int) -> torch.Tensor:
        """Synthesise exactly so many samples, [B, N, L] to [B, T]; zeros fill the end."""
        signal = self.convolution(representation).squeeze(1)
        return nn.functional.pad(signal, (0, samples - signal.shape[-1]))
