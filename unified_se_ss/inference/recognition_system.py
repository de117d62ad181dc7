"""A front and a recogniser as one network, so that they are weights of one file.

Axes: B batch, T samples.
"""

from __future__ import annotations

import torch
from torch import nn


class RecognitionSystem(nn.Module):
    """Enhance signals, and recognise what comes out.

    Arguments
    ---------
    recogniser : torch.nn.Module
        A :class:`~unified_se_ss.recognition.RecognitionNetwork`.
    front : torch.nn.Module, optional
        A :class:`~unified_se_ss.networks.MaskingFront`; without it signals are
        recognised as they are.
    """

    def __init__(self, recogniser: nn.Module, front: nn.Module | None = None):
        super().__init__()
        self.recogniser, self.front = recogniser, front
        spectrum = recogniser.features.compute_STFT
        if spectrum.hop_length != recogniser.hop:
            raise ValueError(
                f"hop: is {recogniser.hop} samples; the features' is {spectrum.hop_length}"
            )

    def forward(self, noisy: torch.Tensor, lengths=None, tokens=None):
        """What is enhanced [B, T], None without a front, and what is recognised."""
        enhanced = self.enhance(noisy, lengths)
        heard = noisy if enhanced is None else enhanced
        return enhanced, self.recogniser(heard, lengths, tokens)

    def enhance(self, noisy: torch.Tensor, lengths=None):
        """Signals [B, T] through the front; None without one."""
        return None if self.front is None else self.front(noisy, lengths).signal

    @property
    def n_tokens(self) -> int:
        """Tokens that the recogniser knows."""
        return self.recogniser.attention.w.out_features

    @property
    def minimum_samples(self) -> int:
        """The fewest samples in which the recogniser has a frame to say something of."""
        samples = self.recogniser.hop
        while self.recogniser.count_frames(samples) < 1:
            samples += self.recogniser.hop
        return samples

    @property
    def maximum_samples(self) -> int:
        """The most whose frames and tokens all have positions.

        SpeechBrain's positions end with its transformer's ``max_length``.
        """
        modules = self.recogniser.transformer.modules()
        positions = min(m.max_len for m in modules if hasattr(m, "max_len"))
        samples = 4 * positions * self.recogniser.hop
        while self.recogniser.count_frames(samples) > positions:
            samples -= self.recogniser.hop
        return samples
