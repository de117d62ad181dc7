"""Base of all beamformers: statistics, offline or recursive, and weights from them.

Axes: B batch, C microphones (times taps, where frames are stacked), F bins, L frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from unified_se_ss.spatial.covariance import (
    MeanCovariance,
    at_least_complex64,
    positive_part,
    recursive_covariance,
    spatial_covariance,
    stack_taps,
)

# Covariances of so many frames lie in memory at once; it changes no result.
_FRAMES_AT_ONCE = 64


class _StatisticState(NamedTuple):
    """A recursive statistic between two blocks: the last frames, and the mean so far."""

    past: torch.Tensor | None = None
    mean: MeanCovariance | None = None


class BeamformerState(NamedTuple):
    """A recursive beamformer's memory between two blocks of frames.

    `past` are the last taps - 1 frames of the mixture; `mixture`, `target` and `noise` the
    statistics in use, empty where the beamformer does not follow them.
    """

    past: torch.Tensor | None = None
    mixture: _StatisticState = _StatisticState()
    target: _StatisticState = _StatisticState()
    noise: _StatisticState = _StatisticState()


class Beamformer(nn.Module, ABC):
    """A filter over microphones, y = w^H x in every bin.

    The mixture is a complex spectrum [B, C, F, L]. What is known of target and noise is
    given with it, in one of two forms:

    - a complex spectrum [B, C, F, L]: the component itself as the microphones record it
      (oracle, as in training with simulated rooms);
    - a real mask that broadcasts to [B, F, L]: the share of each bin of the mixture
      that belongs to it, from a network, or from a stretch known to hold only noise
      (`noise_context`).

    Where a beamformer needs the target's covariance and no target is given, it is the
    positive part of the mixture's less the noise's. Beamformers that need neither
    accept both, so that all are called alike. A ValueError says which shape or type is
    wrong, or that the noise is missing.

    Everything is computed in complex64, or in complex128 for a mixture of that type;
    silence gives silence, and nothing is ever divided by zero. An item that is padded
    with zeros at its end has the same offline output as without (with several taps,
    nearly: the last frames are then in the statistics a few times more).

    Arguments
    ---------
    forgetting : float
        Of the recursive covariances, above 0 and at most 1 (default 0.99: a memory of
        100 frames).
    taps : int
        Frames that are filtered together, this one and those before (default 1).
    """

    needs_target = False
    needs_noise = False

    def __init__(self, forgetting: float = 0.99, taps: int = 1):
        super().__init__()
        if not 0 < forgetting <= 1:
            raise ValueError(f"forgetting: {forgetting}, but has to be above 0, at most 1")
        if taps < 1:
            raise ValueError(f"taps: {taps}, but at least 1 is needed")
        self.forgetting = forgetting
        self.taps = taps

    @abstractmethod
    def weights(
        self, target: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """Weights [..., C] from covariances [..., C, C], None where not needed.

        The leading axes are [B, F], or for each frame [B, L, F]; weights that depend on
        no covariance may be [F, C].
        """

    def forward(
        self,
        mixture: torch.Tensor,
        target: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Offline, with one set of weights for the whole item.

        Returns [B, F, L], as the reference microphone would record the target.
        """
        return self.filtered(self.offline_weights(mixture, target, noise), mixture)

    def offline_weights(
        self,
        mixture: torch.Tensor,
        target: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weights [B, F, taps * C] or [F, C] that `forward` applies."""
        mixture = self._checked(mixture, target, noise)
        return self._weights_from(partial(self._covariance, mixture), target, noise)

    def filtered(self, weights: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
        """Apply weights to a spectrum: the mixture's, or that of a part of it.

        A filter is linear, so the outputs of the parts add up to that of the mixture.

        Arguments
        ---------
        weights : torch.Tensor
            As `offline_weights` or `recursive_weights` gives them; those of one item
            serve for all that are given.
        spectrum : torch.Tensor
            Complex, [B, C, F, L].

        Returns
        -------
        torch.Tensor
            [B, F, L].
        """
        spectrum = at_least_complex64(spectrum)
        if weights.dim() == 4:
            weights = weights.expand(spectrum.shape[0], *weights.shape[1:])
        return apply_weights(weights, stack_taps(spectrum, self.taps)[0])

    def recursive(
        self,
        mixture: torch.Tensor,
        target: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        state: BeamformerState | None = None,
    ) -> tuple[torch.Tensor, BeamformerState]:
        """Frame by frame: the weights of a frame follow from it and those before.

        Blocks of any number of frames, each with the state that the one before gave (the
        first with None), have together the output of all frames at once. With a
        forgetting of 1, the weights of the last frame are the offline ones.

        Returns
        -------
        output : torch.Tensor
            [B, F, L].
        state : BeamformerState
            For the next block.
        """
        state = state or BeamformerState()
        past, outputs = state.past, []
        for block, weights, following in self._blocks(mixture, target, noise, state):
            stacked, past = stack_taps(block, self.taps, past)
            outputs.append(apply_weights(weights, stacked))
            state = following
        return torch.cat(outputs, -1), state._replace(past=past)

    def recursive_weights(
        self,
        mixture: torch.Tensor,
        target: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weights [B, L, F, taps * C] or [F, C] that `recursive` applies."""
        blocks = self._blocks(mixture, target, noise, BeamformerState())
        weights = [weights for _, weights, _ in blocks]
        return weights[0] if weights[0].dim() < 4 else torch.cat(weights, 1)

    def _blocks(self, mixture, target, noise, state):
        """A few frames of the mixture at a time, their weights, and the state after them."""
        mixture = self._checked(mixture, target, noise)
        for start in range(0, max(1, mixture.shape[-1]), _FRAMES_AT_ONCE):
            frames = slice(start, start + _FRAMES_AT_ONCE)
            block, states = mixture[..., frames], state._asdict()
            weights = self._weights_from(
                partial(self._recursive_covariance, states, block),
                _at_frames(target, frames),
                _at_frames(noise, frames),
            )
            state = BeamformerState(**states)
            yield block, weights, state

    def _weights_from(self, covariance, target, noise):
        """Weights from the covariances that `covariance(name, spectrum or mask)` gives."""
        target_covariance = noise_covariance = None
        if self.needs_noise:
            noise_covariance = covariance("noise", noise)
        if self.needs_target and target is not None:
            target_covariance = covariance("target", target)
        elif self.needs_target:
            target_covariance = positive_part(
                covariance("mixture", None) - noise_covariance
            )
        return self.weights(target_covariance, noise_covariance)

    def _covariance(self, mixture, name, guide):
        spectrum, mask = _spectrum_and_mask(mixture, guide)
        return spatial_covariance(stack_taps(spectrum, self.taps)[0], mask)

    def _recursive_covariance(self, states, mixture, name, guide):
        spectrum, mask = _spectrum_and_mask(mixture, guide)
        stacked, past = stack_taps(spectrum, self.taps, states[name].past)
        covariances, mean = recursive_covariance(
            stacked, mask, self.forgetting, states[name].mean
        )
        states[name] = _StatisticState(past, mean)
        return covariances

    def _checked(self, mixture, target, noise):
        mixture = at_least_complex64(mixture)
        if mixture.dim() != 4:
            raise ValueError(
                f"mixture: shape {tuple(mixture.shape)}, but it has to be [B, C, F, L]"
            )
        if self.needs_noise and noise is None:
            raise ValueError(
                f"{type(self).__name__} needs to know the noise: give its spectrum, a mask, "
                "or `noise_context` where the item begins with noise alone"
            )
        for name, guide in (("target", target), ("noise", noise)):
            if guide is not None and guide.is_complex() and guide.shape != mixture.shape:
                raise ValueError(
                    f"{name}: shape {tuple(guide.shape)}, but a spectrum has to have the "
                    f"mixture's, {tuple(mixture.shape)}"
                )
        return mixture


def apply_weights(weights: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
    """y = w^H x, [B, F, L], in the type of the spectrum [B, C, F, L].

    Weights are [F, C] or [B, F, C], or for each frame [B, L, F, C].

    Example
    -------
    >>> apply_weights(torch.tensor([[0.5j, 0.5j]]), torch.ones(1, 2, 1, 1) + 0j)
    tensor([[[0.-1.j]]])
    """
    weights = weights.to(spectrum.dtype).conj()
    if weights.dim() == 4:
        return torch.einsum("blfc,bcfl->bfl", weights, spectrum)
    weights = weights.expand(spectrum.shape[0], *weights.shape[-2:])
    return torch.einsum("bfc,bcfl->bfl", weights, spectrum)


def noise_context(mixture: torch.Tensor, frames: int) -> torch.Tensor:
    """Mask [1, 1, L] of a mixture whose first frames (at least 1) hold noise alone.

    Example
    -------
    >>> noise_context(torch.zeros(1, 2, 3, 4, dtype=torch.complex64), 2)
    tensor([[[1., 1., 0., 0.]]])
    """
    if frames < 1:
        raise ValueError(f"noise_context: {frames} frames, but at least 1 is needed")
    numbers = torch.arange(mixture.shape[-1], device=mixture.device)
    return (numbers < frames).to(mixture.real.dtype)[None, None]


def _spectrum_and_mask(mixture, guide):
    """Those of a guide, which is a spectrum, a mask or nothing."""
    if guide is None:
        return mixture, None
    if guide.is_complex():
        return guide.to(mixture.dtype), None
    return mixture, guide


def _at_frames(guide, frames):
    """A guide's part at some frames; a mask may be the same for all frames."""
    return guide if guide is None or guide.shape[-1] == 1 else guide[..., frames]
