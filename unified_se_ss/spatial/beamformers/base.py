"""What all beamformers share: statistics, offline or recursive, and weights from them.

Axes: B batch, C microphones (times taps, where frames are stacked), F bins, L frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import nn

from unified_se_ss.spatial.covariance import (
    MeanCovariance,
    at_least_complex64,
    check_forgetting,
    positive_part,
    recursive_covariance,
    spatial_covariance,
    stack_taps,
)

# Covariances of so many frames lie in memory at once; it changes no result.
_FRAMES_AT_ONCE = 64


class StatisticState(NamedTuple):
    """A recursive statistic between two blocks: the last frames, and the mean so far."""

    past: torch.Tensor | None
    mean: MeanCovariance | None


class BeamformerState(NamedTuple):
    """What a recursive beamformer remembers between two blocks of frames.

    past : the last taps - 1 frames of the mixture; mixture, target, noise : statistics
    in use, with nothing in them where the beamformer does not follow them.
    """

    past: torch.Tensor | None = None
    mixture: StatisticState = StatisticState(None, None)
    target: StatisticState = StatisticState(None, None)
    noise: StatisticState = StatisticState(None, None)


class Beamformer(nn.Module, ABC):
    """A filter over microphones, y = w^H x in every bin.

    What is known of target and noise is given with the mixture, in one of two forms:

    - a complex spectrum [B, C, F, L]: the component itself as the microphones record it
      (oracle, as in training with simulated rooms);
    - a real mask that broadcasts to [B, F, L]: the share of each bin of the mixture
      that belongs to it, from a network, or from a stretch known to hold only noise
      (`noise_context`).

    Where a beamformer needs the target's covariance and no target is given, it is the
    positive part of the mixture's less the noise's. Beamformers that need neither
    accept both, so that all are called alike.

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
        check_forgetting(forgetting)
        if taps < 1:
            raise ValueError(f"taps: {taps}, but at least 1 is needed")
        self.forgetting = forgetting
        self.taps = taps

    @abstractmethod
    def weights(
        self, target: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """Weights from covariances.

        Arguments
        ---------
        target, noise : torch.Tensor or None
            [B, F, C, C], or for each frame [B, L, F, C, C]; None where not needed.

        Returns
        -------
        torch.Tensor
            [B, F, C] or [B, L, F, C]; [F, C] where they depend on nothing.
        """

    def forward(
        self,
        mixture: torch.Tensor,
        target: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Offline: one set of weights for the whole item.

        Arguments
        ---------
        mixture : torch.Tensor
            Complex, [B, C, F, L].
        target, noise : torch.Tensor, optional
            Spectra or masks; see the class.

        Returns
        -------
        torch.Tensor
            [B, F, L], as the reference microphone would record the target.

        Raises
        ------
        ValueError
            If a shape or type is not as above, or no noise is given where it is needed.
        """
        return self.filtered(self.offline_weights(mixture, target, noise), mixture)

    def offline_weights(
        self,
        mixture: torch.Tensor,
        target: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The one set of weights that `forward` applies to the whole item.

        Arguments
        ---------
        mixture : torch.Tensor
            Complex, [B, C, F, L].
        target, noise : torch.Tensor, optional
            Spectra or masks; see the class.

        Returns
        -------
        torch.Tensor
            [B, F, taps * C], or [F, C] where they depend on nothing.
        """
        mixture = self._checked(mixture, target, noise)
        return self.weights(*self._offline_covariances(mixture, target, noise))

    def filtered(self, weights: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
        """Apply weights to a spectrum: the mixture's, or that of a part of it.

        A filter is linear, so what it makes of the parts adds up to its output.

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

        Blocks of any number of frames, each with the state that the one before gave,
        have together the output of all frames at once. With a forgetting of 1, the
        weights of the last frame are the offline ones.

        Arguments
        ---------
        mixture : torch.Tensor
            Complex, [B, C, F, L].
        target, noise : torch.Tensor, optional
            Spectra or masks of these frames; see the class.
        state : BeamformerState, optional
            What the block before gave; by default this is the first.

        Returns
        -------
        output : torch.Tensor
            [B, F, L].
        state : BeamformerState
            For the next block.

        Raises
        ------
        ValueError
            If a shape or type is not as above, or no noise is given where it is needed.
        """
        mixture = self._checked(mixture, target, noise)
        state = state or BeamformerState()
        outputs = []
        for block in _blocks(mixture, target, noise):
            output, state = self._next_frames(*block, state)
            outputs.append(output)
        return torch.cat(
            [mixture.new_zeros(*mixture[:, 0, :, :0].shape), *outputs], -1
        ), state

    def recursive_weights(
        self,
        mixture: torch.Tensor,
        target: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weights that `recursive` applies to each frame of a whole item.

        Arguments
        ---------
        mixture : torch.Tensor
            Complex, [B, C, F, L].
        target, noise : torch.Tensor, optional
            Spectra or masks; see the class.

        Returns
        -------
        torch.Tensor
            [B, L, F, taps * C], or [F, C] where they depend on nothing.
        """
        mixture = self._checked(mixture, target, noise)
        state, weights = BeamformerState(), []
        for block in _blocks(mixture, target, noise):
            some, state = self._next_weights(*block, state)
            weights.append(some)
        return weights[0] if weights[0].dim() < 4 else torch.cat(weights, 1)

    def _next_frames(self, mixture, target, noise, state):
        """A few frames of `recursive`, all of whose covariances are in memory."""
        weights, state = self._next_weights(mixture, target, noise, state)
        stacked, past = stack_taps(mixture, self.taps, state.past)
        return apply_weights(weights, stacked), state._replace(past=past)

    def _next_weights(self, mixture, target, noise, state):
        """The weights of a few frames, and what is remembered of them."""
        target_covariance = noise_covariance = None
        follow_mixture, follow_target, follow_noise = state[1:]
        if self.needs_noise:
            noise_covariance, follow_noise = self._follow(mixture, noise, follow_noise)
        if self.needs_target and target is not None:
            target_covariance, follow_target = self._follow(mixture, target, follow_target)
        elif self.needs_target:
            covariance, follow_mixture = self._follow(mixture, None, follow_mixture)
            target_covariance = positive_part(covariance - noise_covariance)
        weights = self.weights(target_covariance, noise_covariance)
        return weights, BeamformerState(
            state.past, follow_mixture, follow_target, follow_noise
        )

    def _offline_covariances(self, mixture, target, noise):
        """Covariances of target and noise over the whole item, [B, F, C, C] or None."""
        target_covariance = noise_covariance = None
        if self.needs_noise:
            noise_covariance = self._whole(mixture, noise)
        if self.needs_target and target is not None:
            target_covariance = self._whole(mixture, target)
        elif self.needs_target:
            target_covariance = positive_part(self._whole(mixture, None) - noise_covariance)
        return target_covariance, noise_covariance

    def _whole(self, mixture, guide):
        """Offline covariance of what a spectrum, a mask or nothing points to."""
        spectrum, mask = _pointed_to(mixture, guide)
        return spatial_covariance(stack_taps(spectrum, self.taps)[0], mask)

    def _follow(self, mixture, guide, state):
        """Recursive covariances of what a spectrum, a mask or nothing points to."""
        spectrum, mask = _pointed_to(mixture, guide)
        stacked, past = stack_taps(spectrum, self.taps, state.past)
        covariances, mean = recursive_covariance(stacked, mask, self.forgetting, state.mean)
        return covariances, StatisticState(past, mean)

    def _checked(self, mixture, target, noise):
        """The mixture in at least complex64, if everything has its shape."""
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
    """y = w^H x.

    Arguments
    ---------
    weights : torch.Tensor
        Complex, [F, C] or [B, F, C], or for each frame [B, L, F, C].
    spectrum : torch.Tensor
        Complex, [B, C, F, L].

    Returns
    -------
    torch.Tensor
        [B, F, L], in the type of the spectrum.

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
    """Mask of an item that begins with noise alone, to be given as its noise.

    Arguments
    ---------
    mixture : torch.Tensor
        [B, C, F, L].
    frames : int
        So many frames at the beginning hold noise alone; at least 1.

    Returns
    -------
    torch.Tensor
        [1, 1, L]: 1 in the context, 0 after it.

    Example
    -------
    >>> noise_context(torch.zeros(1, 2, 3, 4, dtype=torch.complex64), 2)
    tensor([[[1., 1., 0., 0.]]])
    """
    if frames < 1:
        raise ValueError(f"noise_context: {frames} frames, but at least 1 is needed")
    numbers = torch.arange(mixture.shape[-1], device=mixture.device)
    return (numbers < frames).to(mixture.real.dtype)[None, None]


def _pointed_to(mixture, guide):
    """Spectrum and mask of a guide, which is a spectrum, a mask or nothing."""
    if guide is None:
        return mixture, None
    if guide.is_complex():
        return guide.to(mixture.dtype), None
    return mixture, guide


def _blocks(mixture, target, noise):
    """A mixture and its guides, a few frames at a time."""
    for start in range(0, mixture.shape[-1], _FRAMES_AT_ONCE):
        frames = slice(start, start + _FRAMES_AT_ONCE)
        yield mixture[..., frames], _at_frames(target, frames), _at_frames(noise, frames)


def _at_frames(guide, frames):
    """A guide's part at some frames; a mask may be the same for all frames."""
    return guide if guide is None or guide.shape[-1] == 1 else guide[..., frames]
