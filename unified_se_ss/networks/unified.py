"""Enhancement and separation in one network.

Axes: B batch, T samples, N basis functions, L frames, J sources.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from unified_se_ss.padding import real_elements


class UnifiedOutput(NamedTuple):
    """Estimates of the unified network for a noisy mixture.

    Arguments
    ---------
    sources : torch.Tensor
        Separated sources, [B, J, T].
    enhanced : torch.Tensor or None
        Enhanced (denoised) mixture, [B, T]; None if the network has no SE module.
    representation, enhanced_representation : torch.Tensor
        Of the noisy mixture, and h, which the SE task is trained on, [B, N, L].
    frames : torch.Tensor or None
        Real frames of each item, [B].
    """

    sources: torch.Tensor
    enhanced: torch.Tensor | None
    representation: torch.Tensor
    enhanced_representation: torch.Tensor
    frames: torch.Tensor | None


class UnifiedNetwork(nn.Module):
    """Encoder, SE module, SS module, decoder.

    h = mask_SE * encoder(mixture); source i = decoder(mask_i * h).

    Arguments
    ---------
    encoder, decoder : torch.nn.Module
        :class:`~unified_se_ss.networks.Encoder`, :class:`~unified_se_ss.networks.Decoder`.
    separator : torch.nn.Module
        SS module: a mask per source from h.
    enhancer : torch.nn.Module, optional
        SE module: one mask from the representation of the mixture. Without it h is
        the representation itself: a plain separation network.
    use_se : bool
        False leaves the enhancer out, for ablations by one switch.

    Source: arXiv 2302.11131.

    Example
    -------
    >>> from functools import partial
    >>> from unified_se_ss.networks import Decoder, DualPath, Encoder, Recurrent
    >>> model = partial(Recurrent, n_features=16, hidden=8)
    >>> masks = partial(DualPath, model, model, n_basis=32, n_features=16,
    ...     blocks=1, chunk_length=10, linear_after=True)
    >>> network = UnifiedNetwork(
    ...     encoder=Encoder(32, 16, 8), enhancer=masks(n_sources=1),
    ...     separator=masks(n_sources=2), decoder=Decoder(32, 16, 8))
    >>> output = network(torch.randn(3, 801))
    >>> output.sources.shape, output.enhanced.shape
    (torch.Size([3, 2, 801]), torch.Size([3, 801]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        separator: nn.Module,
        decoder: nn.Module,
        enhancer: nn.Module | None = None,
        use_se: bool = True,
    ):
        super().__init__()
        self.encoder = encoder
        self.enhancer = enhancer if use_se else None
        self.separator = separator
        self.decoder = decoder

    def forward(
        self, mixture: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> UnifiedOutput:
        """Enhance and separate a batch of mixtures, [B, T].

        `lengths`, [B], on the CPU (so that nothing waits for a GPU), are the real samples of each
        item, which then gets what it would get alone. By default, and where all lengths are T,
        everything is real.
        """
        representation, h, frames = self._represented(mixture, lengths)
        separated = self.separator(h, frames) * h.unsqueeze(1)
        samples = mixture.shape[-1]
        sources = self.decoder(separated.flatten(0, 1), samples)
        return UnifiedOutput(
            sources=sources.unflatten(0, separated.shape[:2]),
            enhanced=None if self.enhancer is None else self.decoder(h, samples),
            representation=representation,
            enhanced_representation=h,
            frames=frames,
        )

    def enhance(
        self, mixture: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The enhanced mixtures alone, [B, T]; what is left out is most of the work."""
        _, h, _ = self._represented(mixture, lengths)
        return self.decoder(h, mixture.shape[-1])

    def _represented(
        self, mixture: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        frames = self.real_frames(mixture, lengths)
        representation = self.encoder(mixture)
        h = representation
        if self.enhancer is not None:
            h = h * self.enhancer(h, frames).squeeze(1)
        if frames is not None:
            h = self.without_padding(h, frames)
        return representation, h, frames

    def real_frames(
        self, mixture: torch.Tensor, lengths: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Frames of each item, or None where nothing is padding; decided on the host."""
        samples = mixture.shape[-1]
        if lengths is None or bool((lengths == samples).all()):
            return None
        frames = self.encoder.frames(lengths)  # type: ignore[operator]  # as Encoder has it
        return frames.clamp(min=1)

    @staticmethod
    def without_padding(representation: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Set the frames that follow each item's last to zero."""
        mask = real_elements(frames, representation.shape[-1], representation.device)
        return torch.where(mask.unsqueeze(1), representation, 0.0)
