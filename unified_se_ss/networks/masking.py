"""Enhancement in front of a recogniser: a recurrent network masks the noisy spectrum.

Axes: B batch, T samples, L frames, F bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from torch import nn

from unified_se_ss.networks.recurrent import Recurrent
from unified_se_ss.padding import Count, real_elements

# Bins that hardly vary over the training set are not blown up by normalisation.
SMALLEST_DEVIATION = 1e-5


class Enhanced(NamedTuple):
    """Signal, [B, T], magnitude of its spectrum, [B, L, F], and real frames, [B], on the CPU.

    Signal and magnitude are zero in the padding.
    """

    signal: torch.Tensor
    magnitude: torch.Tensor
    frames: torch.Tensor


class MaskingFront(nn.Module):
    """Bidirectional LSTM that masks the complex noisy spectrum.

    Spectrum, global mean and variance normalisation of its magnitude, LSTM, linear layer,
    ReLU; the mask times the noisy spectrum; inverse. Every item is enhanced as it would be
    alone. Spectra are fp32 in any precision.

    Arguments
    ---------
    n_fft, hop : int
        Window of the spectrum, with F = n_fft / 2 + 1 bins, and its hop, which divides
        n_fft / 2; samples.
    hidden : int
        Units per direction.
    dropout : float
        Between the layers of the LSTM.

    Source: arXiv 2302.11362 and YUCHEN005/Gradient-Remedy, train_gradient_remedy.yaml
    (enh_conf), whose sizes are the defaults. There the signal is mirrored at its ends; here
    silence stands around it, so that an item's end does not depend on the batch.

    Example
    -------
    >>> front = MaskingFront(n_fft=64, hop=32, hidden=8, layers=1)
    >>> enhanced = front(torch.randn(2, 1000), torch.tensor([1000, 500]))
    >>> enhanced.signal.shape, enhanced.magnitude.shape, enhanced.frames.tolist()
    (torch.Size([2, 1000]), torch.Size([2, 33, 33]), [33, 17])
    """

    window: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self,
        n_fft: int = 512,
        hop: int = 256,
        hidden: int = 896,
        layers: int = 3,
        dropout: float = 0.5,
    ):
        super().__init__()
        if n_fft % 2 or (n_fft // 2) % hop:
            raise ValueError(f"hop is {hop}; expected a divisor of n_fft / 2 = {n_fft / 2}")
        self.n_fft, self.hop = n_fft, hop
        bins = n_fft // 2 + 1
        self.rnn = Recurrent(bins, hidden, layers, dropout if layers > 1 else 0.0)
        self.linear = nn.Linear(self.rnn.n_outputs, bins)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("mean", torch.zeros(bins))
        self.register_buffer("deviation", torch.ones(bins))

    def forward(self, noisy: torch.Tensor, lengths: torch.Tensor | None = None) -> Enhanced:
        """Enhance noisy signals, [B, T], of `lengths`, [B], real samples, on the CPU."""
        spectrum, frames = self.analyse(noisy, lengths)
        magnitude = spectrum.abs()
        normalised = (magnitude - self.mean) / self.deviation
        padded = None if lengths is None else frames
        mask = _at_least_float(self.linear(self.rnn(normalised, padded)).relu())
        real = real_elements(frames, mask.shape[1], mask.device).unsqueeze(-1)
        mask = torch.where(real, mask, 0.0)
        signal = self.synthesise(mask * spectrum, noisy.shape[-1])
        if lengths is not None:
            real = real_elements(lengths, noisy.shape[-1], noisy.device)
            signal = torch.where(real, signal, 0.0)
        return Enhanced(signal, mask * magnitude, frames)

    def analyse(
        self, signal: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Spectra, complex [B, L, F], and the real frames of each item, [B], on the CPU.

        Every real sample lies in as many frames as any other; beyond an item's real frames all
        is zero.
        """
        batch, samples = signal.shape
        signal = _at_least_float(signal)
        if lengths is None:
            lengths = torch.full((batch,), samples)
        else:
            real = real_elements(lengths, samples, signal.device)
            signal = torch.where(real, signal, 0.0)
        frames = self.count_frames(lengths.cpu())
        count = self.count_frames(samples)
        edge = self.n_fft // 2
        behind = (count - 1) * self.hop + edge - samples
        padded = nn.functional.pad(signal, (edge, behind))
        with torch.autocast(signal.device.type, enabled=False):
            windows = padded.unfold(-1, self.n_fft, self.hop) * self.window
            spectrum = torch.fft.rfft(windows)
        real = real_elements(frames, count, signal.device).unsqueeze(-1)
        return torch.where(real, spectrum, 0.0), frames

    def synthesise(self, spectrum: torch.Tensor, samples: int) -> torch.Tensor:
        """The signal [B, T] whose spectrum comes nearest to a complex [B, L, F]."""
        with torch.autocast(spectrum.device.type, enabled=False):
            frames = torch.fft.irfft(spectrum, self.n_fft) * self.window
            # As torch.istft, which would look on the host whether it divides by zero: it
            # does not, since the hop divides half of the window.
            envelope = self.window.square().expand(1, spectrum.shape[1], -1)
            edge = self.n_fft // 2
            signal, envelope = (
                self._overlap_add(x)[:, edge : edge + samples] for x in (frames, envelope)
            )
        return signal / envelope

    def _overlap_add(self, frames: torch.Tensor) -> torch.Tensor:
        """Add frames up where they overlap, [B, L, n_fft] to [B, (L - 1) * hop + n_fft]."""
        hops = frames.unflatten(-1, (-1, self.hop)).unbind(2)
        last = len(hops) - 1
        placed = (nn.functional.pad(x, (0, 0, k, last - k)) for k, x in enumerate(hops))
        return reduce(torch.add, placed).flatten(1)

    def count_frames(self, samples: Count) -> Count:
        """Frames of a signal of so many samples, a number or a tensor of them."""
        return -(-samples // self.hop) + self.n_fft // 2 // self.hop

    @torch.no_grad()
    def fit_normalisation(self, signals: Iterable[torch.Tensor]) -> None:
        """Take mean and variance of each bin's magnitude over noisy signals of the task, [T] each."""
        count = 0
        total = squares = torch.zeros_like(self.mean, dtype=torch.float64)
        for signal in signals:
            magnitude = self.analyse(signal.to(self.mean).unsqueeze(0))[0].abs().double()[0]
            count += len(magnitude)
            total = total + magnitude.sum(0)
            squares = squares + magnitude.square().sum(0)
        if not count:
            raise ValueError("there are no signals to normalise by")
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=SMALLEST_DEVIATION))


def _at_least_float(x: torch.Tensor) -> torch.Tensor:
    """The same in fp32, or as it is if it is in fp64."""
    return x if x.dtype == torch.float64 else x.float()
