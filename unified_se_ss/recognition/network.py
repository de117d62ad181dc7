"""The recogniser: features, subsampling, Conformer or Transformer, CTC and attention.

SpeechBrain's modules, called so that what an utterance gets does not depend on what
else is in its batch.

Axes: B batch, T samples, L frames, F mel bands, D model size, U tokens, V vocabulary.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import kldiv_loss
from torch import nn

from unified_se_ss.padding import real_elements
from unified_se_ss.recognition.tokens import BLANK

# SpeechBrain's decoder gives PyTorch a bool and a float mask, which it adds up rightly.
warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")


class Recognised(NamedTuple):
    """Output of the recogniser for a batch.

    Arguments
    ---------
    encoded : torch.Tensor
        The encoder's output, [B, L, D].
    frames : torch.Tensor
        Real frames of each utterance, [B], on the CPU.
    ctc : torch.Tensor
        Log probabilities of tokens in every frame, [B, L, V].
    attention : torch.Tensor or None
        Log probabilities of each next token, [B, U, V]; None without tokens.
    """

    encoded: torch.Tensor
    frames: torch.Tensor
    ctc: torch.Tensor
    attention: torch.Tensor | None


class Subsampling(nn.Module):
    """Two strided convolutions: of four frames, one is left.

    Nothing is padded: each output sees seven frames, all of which exist.

    Source: Gulati et al., arXiv 2005.08100, as ESPnet's Conv2dSubsampling.

    Example
    -------
    >>> Subsampling(80, 16)(torch.randn(2, 100, 80)).shape
    torch.Size([2, 24, 304])
    """

    def __init__(self, n_mels: int, channels: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, channels, 3, 2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 2),
            nn.ReLU(),
        )
        self.n_outputs = channels * self.count_frames(n_mels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, L, F] to [B, L / 4, channels * F / 4]."""
        return self.convolutions(features.unsqueeze(1)).transpose(1, 2).flatten(2)

    @staticmethod
    def count_frames(frames):
        """Frames that are left of so many, a number or a tensor of them."""
        return ((frames - 1) // 2 - 1) // 2


class RecognitionNetwork(nn.Module):
    """From signals to log probabilities of tokens.

    Arguments
    ---------
    features : torch.nn.Module
        Signals [B, T] to log-mel bands [B, L, F], such as SpeechBrain's ``Fbank``.
    hop : int
        Its hop in samples.
    normalisation : torch.nn.Module
        Of features [B, L, F] with relative lengths [B], such as SpeechBrain's
        ``InputNormalization`` by sentence.
    subsampling : Subsampling
        Makes fewer frames of them.
    transformer : speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
        Encoder and decoder; its ``input_size`` is ``subsampling.n_outputs``.
    d_model, n_tokens : int
        Its size D and the vocabulary V.

    Source of the published sizes: YUCHEN005/Gradient-Remedy, train_gradient_remedy.yaml.
    """

    def __init__(
        self, features, hop, normalisation, subsampling, transformer, d_model, n_tokens
    ):
        super().__init__()
        self.features, self.hop = features, hop
        self.normalisation = normalisation
        self.subsampling = subsampling
        self.transformer = transformer
        self.ctc = Linear(n_neurons=n_tokens, input_size=d_model)
        self.attention = Linear(n_neurons=n_tokens, input_size=d_model)
        self._keep_padding_out()

    def forward(self, signals, lengths=None, tokens=None) -> Recognised:
        """Encode signals, [B, T], zero in the padding, and predict tokens.

        `lengths`, [B], on the CPU, are real samples; `tokens`, [B, U], the sentences so far from
        the token that begins them, padded with 0.
        """
        features, frames = self.analyse(signals, lengths)
        features = self.subsampling(features)
        frames = self.subsampling.count_frames(frames)
        relative = (frames / features.shape[1]).to(features.device, non_blocking=True)
        self._real = real_elements(frames, features.shape[1], features.device)
        attention = None
        if tokens is None:
            encoded = self.transformer.encode(features, relative)
        else:
            encoded, decoded = self.transformer(features, tokens, relative, pad_idx=0)
            attention = self.attention(decoded).float().log_softmax(-1)
        ctc = self.ctc(encoded).float().log_softmax(-1)
        return Recognised(encoded, frames, ctc, attention)

    def analyse(self, signals, lengths=None):
        """Normalised log-mel bands [B, L, F], and the real frames of each item."""
        if lengths is None:
            lengths = torch.full((len(signals),), signals.shape[-1])
        frames = lengths.cpu() // self.hop + 1
        with torch.autocast(signals.device.type, enabled=False):
            features = self.features(signals)
            relative = (frames / features.shape[1]).to(features.device, non_blocking=True)
            features = self.normalisation(features, relative)
        real = real_elements(frames, features.shape[1], features.device).unsqueeze(-1)
        return torch.where(real, features, 0.0), frames

    def count_frames(self, samples):
        """Frames that CTC aligns with, of so many samples."""
        return self.subsampling.count_frames(samples // self.hop + 1)

    def _keep_padding_out(self) -> None:
        """Silence what follows an utterance before each depthwise convolution.

        SpeechBrain's Conformer masks padding behind the convolution only, so up to half a kernel
        of it reaches the last frames.
        """
        for layer in self.transformer.encoder.layers:
            if hasattr(layer, "convolution_module"):
                layer.convolution_module.conv.register_forward_pre_hook(self._silence)

    def _silence(self, module, inputs):
        """The inputs [B, D, L] of a convolution, zero in the padding."""
        return (torch.where(self._real.unsqueeze(1), inputs[0], 0.0),)


def ctc_losses(
    log_probabilities: torch.Tensor,
    targets: torch.Tensor,
    frames: torch.Tensor,
    n_tokens: torch.Tensor,
) -> torch.Tensor:
    """Negative log probability of the tokens in any alignment, in nats, [B].

    From log probabilities, [B, L, V], tokens, [B, U], and the real frames and tokens of each
    utterance, [B], on the CPU. Infinite where a transcript has more tokens than can be aligned
    (one frame each, and one more between two that are equal).

    Source: Graves et al., 2006; not divided by the number of tokens, as ESPnet does it.

    Example
    -------
    >>> uniform = torch.full((1, 2, 4), 0.25).log()
    >>> one = torch.tensor([1])
    >>> ctc_losses(uniform, torch.tensor([[3]]), 2 * one, one).exp()  # 16 paths, 3 of them
    tensor([5.3333])
    """
    return torch.nn.functional.ctc_loss(
        log_probabilities.float().transpose(0, 1),
        targets,
        frames,
        n_tokens,
        blank=BLANK,
        reduction="none",
    )


def attention_losses(
    log_probabilities: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.1
) -> torch.Tensor:
    """Divergence of the decoder's predictions from the smoothed targets, in nats.

    From log probabilities, [B, U, V], and tokens with the end of the sentence, [B, U], padded
    with ``BLANK``, to the sum over each utterance's tokens, [B]. `smoothing` is the probability
    that is taken from the target and given to all other tokens.

    Source: Szegedy et al., arXiv 1512.00567, as SpeechBrain's ``kldiv_loss``; not divided by
    the number of tokens (length_normalized_loss: false in arXiv 2302.11362).

    Example
    -------
    >>> uniform = torch.full((1, 3, 4), 0.25).log()
    >>> attention_losses(uniform, torch.tensor([[3, 2, 0]]), 0.0) / torch.tensor(4.0).log()
    tensor([2.])
    """
    if not smoothing:
        chosen = log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return -torch.where(targets == BLANK, 0.0, chosen).sum(-1)
    losses = kldiv_loss(
        log_probabilities,
        targets,
        label_smoothing=smoothing,
        pad_idx=BLANK,
        reduction="none",
    )
    return losses.view(len(targets), -1).sum(-1)
