"""Short-time spectra that end with the newest sample, and back: nothing waits.

Axes: B batch, C channels, T samples, L frames, F bins.
"""

from __future__ import annotations

import torch
from torch import nn


class CausalSTFT(nn.Module):
    """Analysis and synthesis with a square-root Hann window and a hop of half of it.

    Frame l ends where hop l ends: it sees the hops l - 1 and l. Hop h is therefore
    complete when frames h and h + 1 are: a sample comes out one window after it went
    in, at most, and that is all the latency that there is. One hop of silence stands
    before the first sample, so the first sample is restored like any other.

    Arguments
    ---------
    window : int
        Window in samples, even; the hop is half of it, the bins are F = window / 2 + 1.

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
        """Put a hop of silence before a signal and as much behind as its frames need.

        Arguments
        ---------
        signal : torch.Tensor
            [..., T].
        multiple : int
            The number of frames will be a multiple of it.

        Returns
        -------
        torch.Tensor
            [..., (L + 1) * hop], for L frames.
        """
        hops = -(-signal.shape[-1] // self.hop) + 1
        hops += -hops % multiple
        behind = hops * self.hop - signal.shape[-1]
        return nn.functional.pad(signal, (self.hop, behind))

    def analyse(self, signal: torch.Tensor) -> torch.Tensor:
        """Spectra of all whole windows, [..., (L + 1) * hop] to complex [..., L, F]."""
        frames = signal.unfold(-1, 2 * self.hop, self.hop)
        return torch.fft.rfft(frames * self.window)

    def frames(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Windowed frames to be added up, complex [..., L, F] to [..., L, window]."""
        return torch.fft.irfft(spectrum, 2 * self.hop) * self.window

    def synthesise(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Add frames up, complex [..., L, F] to [..., (L - 1) * hop]."""
        older, newer = self.frames(spectrum).split(self.hop, -1)
        return (newer[..., :-1, :] + older[..., 1:, :]).flatten(-2)
