"""Learned analysis and synthesis: waveform to representation and back.

Axes: B batch, T samples, N basis functions, L frames.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from unified_se_ss.padding import Count

INITIAL = ("random", "fourier")


def _fourier_basis(n_basis: int, kernel_size: int) -> torch.Tensor:
    """Windowed cosines and sines, each with both signs, [N, 1, kernel_size].

    With a hop of half the kernel, analysis with a ReLU and synthesis by the same functions
    give the signal back: relu(x) - relu(-x) = x, the frequencies are a tight frame, and the
    squared sine window adds up to one.

    Source of both signs: Ditter and Gerkmann, "A multi-phase gammatone filterbank for speech
    separation via TasNet", ICASSP 2020.

    Example
    -------
    >>> basis = _fourier_basis(64, 32)
    >>> basis.shape, bool((basis[:32] == -basis[32:]).all())
    (torch.Size([64, 1, 32]), True)
    """
    functions = n_basis // 2
    if n_basis % 4 or functions < kernel_size:
        raise ValueError(
            f"a fourier basis needs n_basis to be a multiple of 4 and at least twice "
            f"kernel_size, not {n_basis} and {kernel_size}"
        )
    time = torch.arange(kernel_size, dtype=torch.float64)
    # Half a bin off, no frequency is its own mirror image, so all weigh the same.
    frequency = (torch.arange(functions // 2, dtype=torch.float64) + 0.5) / functions
    angle = 2 * math.pi * frequency.unsqueeze(1) * time
    window = torch.sin(math.pi * (time + 0.5) / kernel_size)
    basis = torch.cat((angle.cos(), angle.sin())) * window * math.sqrt(2 / functions)
    return torch.cat((basis, -basis)).unsqueeze(1).to(torch.get_default_dtype())


def _initialise(convolution: nn.Conv1d | nn.ConvTranspose1d, initial: str) -> None:
    if initial not in INITIAL:
        raise ValueError(f"initial is '{initial}'; expected one of: {', '.join(INITIAL)}")
    if initial == "fourier":
        n_basis, _, kernel_size = convolution.weight.shape
        convolution.weight.data = _fourier_basis(n_basis, kernel_size)


class Encoder(nn.Module):
    """Waveform to non-negative representation: one convolution and a ReLU.

    Arguments
    ---------
    n_basis : int
        Number of basis functions N.
    kernel_size, stride : int
        Length of a basis function and hop between frames, in samples.
    initial : str
        Weights to start from: ``"random"`` (published) or ``"fourier"``, windowed cosines
        and sines, see :func:`_fourier_basis`. Both are trained.

    Source: Luo and Mesgarani, "Conv-TasNet", arXiv 1809.07454.

    Example
    -------
    >>> encoder = Encoder(n_basis=64, kernel_size=16, stride=8)
    >>> encoder(torch.randn(2, 800)).shape
    torch.Size([2, 64, 99])
    """

    def __init__(
        self, n_basis: int, kernel_size: int, stride: int, initial: str = "random"
    ):
        super().__init__()
        self.convolution = nn.Conv1d(1, n_basis, kernel_size, stride, bias=False)
        _initialise(self.convolution, initial)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """[B, T] to [B, N, L]."""
        return self.convolution(signal.unsqueeze(1)).relu()

    def frames(self, samples: Count) -> Count:
        """Frames that lie wholly within so many samples (int or tensor of them)."""
        kernel_size, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        return (samples - kernel_size) // stride + 1


class Decoder(nn.Module):
    """Representation to waveform: one transposed convolution; arguments as of :class:`Encoder`.

    Where both start from ``"fourier"``, the network first gives the mixture back.

    Example
    -------
    >>> decoder = Decoder(n_basis=64, kernel_size=16, stride=8)
    >>> decoder(torch.randn(2, 64, 99), 803).shape
    torch.Size([2, 803])
    """

    def __init__(
        self, n_basis: int, kernel_size: int, stride: int, initial: str = "random"
    ):
        super().__init__()
        self.convolution = nn.ConvTranspose1d(n_basis, 1, kernel_size, stride, bias=False)
        _initialise(self.convolution, initial)

    def forward(self, representation: torch.Tensor, samples: int) -> torch.Tensor:
        """Synthesise exactly so many samples, [B, N, L] to [B, T]; zeros fill the end."""
        signal = self.convolution(representation).squeeze(1)
        return nn.functional.pad(signal, (0, samples - signal.shape[-1]))
