"""Beamformers: several microphones' spectra to one.

A beamformer goes two ways: `beamformer(mixture, target, noise)` with one set of weights for
the whole item, and `beamformer.recursive(...)` frame by frame, with a state.

Axes: B batch, C microphones (times taps, where frames are stacked), F bins, L frames.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from unified_se_ss.spatial.covariance import (
    MeanCovariance,
    at_least_complex64,
    diffuse_coherence,
    is_silent,
    load_diagonal,
    mean_power,
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
    positive part of the mixture's less the noise's. A ValueError says which shape or type
    is wrong, or that the noise is missing.

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

        Weights are as `offline_weights` or `recursive_weights` gives them; those of one item
        serve for all. From [B, C, F, L] to [B, F, L].
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

        Returns the output, [B, F, L], and the state for the next block.
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
        of_noise = covariance("noise", noise) if self.needs_noise else None
        if not self.needs_target:
            return self.weights(None, of_noise)
        if target is not None:
            return self.weights(covariance("target", target), of_noise)
        return self.weights(positive_part(covariance("mixture", None) - of_noise), of_noise)

    def _covariance(self, mixture, name, guide):
        spectrum, mask = _spectrum_and_mask(mixture, guide)
        return spatial_covariance(stack_taps(spectrum, self.taps)[0], mask)

    def _recursive_covariance(self, states, mixture, name, guide):
        spectrum, mask = _spectrum_and_mask(mixture, guide)
        stacked, past = stack_taps(spectrum, self.taps, states[name].past)
        mean = states[name].mean
        covariances, mean = recursive_covariance(stacked, mask, self.forgetting, mean)
        states[name] = _StatisticState(past, mean)
        return covariances

    def _checked(self, mixture, target, noise):
        mixture = at_least_complex64(mixture)
        if mixture.dim() != 4:
            raise ValueError(f"mixture: shape {[*mixture.shape]}, but not [B, C, F, L]")
        if self.needs_noise and noise is None:
            what = f"{type(self).__name__} needs to know the noise"
            raise ValueError(f"{what}: give its spectrum, a mask or `noise_context`")
        for name, guide in (("target", target), ("noise", noise)):
            if guide is not None and guide.is_complex() and guide.shape != mixture.shape:
                shapes = f"{[*guide.shape]}, but the mixture's is {[*mixture.shape]}"
                raise ValueError(f"{name}: shape {shapes}")
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


# Sensor noise 40 dB below the noise: far above the rounding of complex64, and deep enough
# for nulls of more than 30 dB.
LOADING = 1e-4
# Loadings between which the one that keeps the white-noise gain is sought, as log10.
_LEAST_LOADING, _MOST_LOADING = -12.0, 6.0
_BISECTIONS = 60


class _FixedBeamformer(Beamformer):
    """Weights [F, C] or [B, F, C] that are known when it is made."""

    def __init__(self, weights: torch.Tensor):
        super().__init__()
        self.register_buffer("fixed_weights", weights, persistent=False)

    def weights(self, target=None, noise=None) -> torch.Tensor:
        return self.fixed_weights


class DelayAndSum(_FixedBeamformer):
    """w = d / (d^H d): the best for noise that is independent between microphones.

    Arguments
    ---------
    steering : torch.Tensor
        Steering vectors towards the target, [F, C], or one for each item, [B, F, C].

    Source: Van Trees, "Optimum Array Processing", 2002, section 2.4.

    Example
    -------
    >>> DelayAndSum(torch.tensor([[1.0, 1.0j]])).weights()
    tensor([[0.5000+0.0000j, 0.0000+0.5000j]])
    """

    def __init__(self, steering: torch.Tensor):
        super().__init__(steering / steering.abs().square().sum(-1, keepdim=True))


class Superdirective(_FixedBeamformer):
    """MVDR for diffuse noise, held back where it would amplify the sensors' own noise.

    Weights are computed in complex128.

    Arguments
    ---------
    steering : torch.Tensor
        Steering vectors towards the target, [F, C], or one for each item, [B, F, C].
    microphones : torch.Tensor
        Positions in metres, [C, 3].
    frequencies : torch.Tensor
        Hz, [F].
    loading : float
        Above 0, added to the diagonal of the coherence (default 0.01: sensor noise 20 dB
        below the diffuse noise).
    white_noise_gain : float, optional
        dB; where the gain against sensor noise would be less, the loading is raised
        until it is not. Below 10 log10 C, which delay-and-sum has. By default the
        loading alone counts.

    Source: Cox et al., "Robust adaptive beamforming", IEEE Trans. ASSP 35(10), 1987;
    Bitzer and Simmer in "Microphone Arrays", 2001, chapter 2.

    Example
    -------
    >>> from unified_se_ss.spatial import geometry
    >>> microphones, frequencies = geometry.line_array(4), torch.tensor([500.0, 1000.0])
    >>> steering = torch.ones(2, 4, dtype=torch.complex64)  # broadside
    >>> beamformer = Superdirective(steering, microphones, frequencies, white_noise_gain=-10)
    >>> beamformer(torch.randn(1, 4, 2, 5, dtype=torch.complex64)).shape
    torch.Size([1, 2, 5])
    """

    def __init__(
        self,
        steering: torch.Tensor,
        microphones: torch.Tensor,
        frequencies: torch.Tensor,
        loading: float = 0.01,
        white_noise_gain: float | None = None,
    ):
        if not loading > 0:
            raise ValueError(f"superdirective: loading is {loading}, but has to be above 0")
        d = steering.to(torch.complex128)
        coherence = diffuse_coherence(microphones, frequencies, dtype=torch.complex128)
        coherence = coherence.to(d.device)
        loadings = torch.full_like(d[..., 0].real, loading)
        if white_noise_gain is not None:
            loadings = loadings.maximum(_loading_for(d, coherence, white_noise_gain))
        super().__init__(_superdirective(d, coherence, loadings).to(steering.dtype))


def _superdirective(d, coherence, loadings):
    identity = torch.eye(d.shape[-1], dtype=d.dtype, device=d.device)
    return _distortionless(d, coherence + loadings[..., None, None] * identity)


def _loading_for(d, coherence, white_noise_gain):
    """The least loading with that white-noise gain in dB, [..., F], by bisection."""
    most = 10 * math.log10(d.abs().square().sum(-1).min().item())
    if not white_noise_gain < most:
        given = f"white_noise_gain: {white_noise_gain} dB"
        raise ValueError(f"{given}, but delay-and-sum has the most, {most:.2f} dB")
    low = torch.full_like(d[..., 0].real, _LEAST_LOADING)
    high = torch.full_like(low, _MOST_LOADING)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        weights = _superdirective(d, coherence, 10**middle)
        gain = -10 * torch.log10(weights.abs().square().sum(-1))
        enough = gain >= white_noise_gain
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, middle)
    return 10**high


class MVDR(Beamformer):
    """Towards a known steering vector: w = N^-1 d / (d^H N^-1 d), so that w^H d = 1.

    Without any noise so far, it is delay-and-sum. If the target is part of what is given
    as noise (a mixture), errors of the steering cancel the target: then raise the loading.

    Arguments
    ---------
    steering : torch.Tensor
        d towards the target, [F, C], or one for each item, [B, F, C].

    Source: Capon, "High-resolution frequency-wavenumber spectrum analysis", 1969.

    Example
    -------
    >>> noise = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]) + 0j
    >>> MVDR(torch.ones(1, 2), loading=0.0).weights(None, noise)
    tensor([[0.7500+0.j, 0.2500+0.j]])
    """

    needs_noise = True

    def __init__(
        self, steering: torch.Tensor, loading: float = LOADING, forgetting: float = 0.99
    ):
        super().__init__(forgetting)
        self.loading = loading
        self.register_buffer("steering", steering, persistent=False)

    def weights(self, target, noise) -> torch.Tensor:
        steering = self.steering
        if steering.dim() == 3 and noise.dim() == 5:
            steering = steering.unsqueeze(1)
        return _mvdr(steering, noise, self.loading)


class _CovarianceBeamformer(Beamformer):
    """Weights from the covariances of target and noise, for a reference microphone.

    Arguments
    ---------
    reference : int
        Number of the microphone (default 0).
    loading : float
        Of the noise's diagonal, to its mean power (default 1e-4).
    **options
        As for `Beamformer`.
    """

    needs_target = True
    needs_noise = True

    def __init__(self, reference: int = 0, loading: float = LOADING, **options):
        super().__init__(**options)
        self.reference = reference
        self.loading = loading


class SoudenMVDR(_CovarianceBeamformer):
    """From covariances, without a steering vector: w = N^-1 S u / trace(N^-1 S).

    While there is no target at all, the reference microphone passes.

    Source: Souden et al., "On optimal frequency-domain multichannel linear filtering
    for noise reduction", IEEE Trans. ASLP 18(2), 2010.

    Example
    -------
    >>> target, noise = torch.ones(2, 2) + 0j, torch.diag(torch.tensor([1.0, 3.0])) + 0j
    >>> SoudenMVDR(loading=0.0).weights(target, noise)
    tensor([0.7500+0.j, 0.2500+0.j])
    """

    def weights(self, target, noise) -> torch.Tensor:
        scaled = target / mean_power(target)[..., None, None]
        ratio = torch.linalg.solve(load_diagonal(noise, self.loading), scaled)
        trace = ratio.diagonal(dim1=-2, dim2=-1).sum(-1).real
        silent = is_silent(target)
        weights = ratio[..., self.reference] / torch.where(silent, 1.0, trace)[..., None]
        return _or_reference(weights, silent, self.reference)


class RTFMVDR(_CovarianceBeamformer):
    """Towards the relative transfer function h that the covariances hold.

    w = N^-1 h conj(h_r) / (h^H N^-1 h): MVDR for h of any scale, also with h_r = 0. While
    there is no target at all, the reference microphone passes.

    Arguments
    ---------
    iterations : int
        Of the power method that finds h (default 3); see `relative_transfer_function`.

    Source: Markovich et al., "Multichannel eigenspace beamforming in a reverberant
    noisy environment with multiple interfering speech signals", IEEE Trans. ASLP 17(6),
    2009 (covariance whitening).

    Example
    -------
    >>> target, noise = torch.ones(2, 2) + 0j, torch.diag(torch.tensor([1.0, 3.0])) + 0j
    >>> RTFMVDR(loading=0.0).weights(target, noise)
    tensor([0.7500+0.j, 0.2500+0.j])
    """

    def __init__(self, reference: int = 0, iterations: int = 3, **options):
        super().__init__(reference, **options)
        if iterations < 1:
            raise ValueError(f"iterations: {iterations}, but at least 1 is needed")
        self.iterations = iterations

    def weights(self, target, noise) -> torch.Tensor:
        options = self.reference, self.iterations, self.loading
        h = relative_transfer_function(target, noise, *options)
        nothing = (h == 0).all(-1)
        h = torch.where(nothing[..., None], torch.ones_like(h), h)
        h = h / torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        weights = _mvdr(h, noise, self.loading) * h[..., self.reference, None].conj()
        return _or_reference(weights, nothing, self.reference)


class MultichannelWiener(_CovarianceBeamformer):
    """Least squared error over all microphones now and in K - 1 frames before.

    w = (S + mu N)^-1 S u; zero where the target is silent. x stacks K frames of C
    microphones, this frame and those before it, so it is causal and takes no look ahead.

    The beamformer in front of GSENet. How it is supervised:

    - oracle: target and noise given as spectra (simulated rooms);
    - noise statistics alone: `noise=noise_context(mixture, frames)`, from a stretch at
      the beginning that holds no target, or a mask; the target's covariance is then
      what the mixture's has more. `recursive` keeps the noise as it was learnt.

    Sources: Doclo et al., "Frequency-domain criterion for the speech distortion weighted
    multichannel Wiener filter", Speech Communication 49, 2007; contextual frames from Wang
    et al., "Sequential multi-frame neural beamforming", arXiv 1911.07953; learning from the
    noise before the speech from "Streaming noise context aware enhancement", arXiv
    2205.08555 (its Speech Cleaner). That GSENet (arXiv 2303.07486) joins them this way,
    the number of taps, the loading and the weight are inferred.

    Arguments
    ---------
    taps : int
        Frames K that are filtered together (default 3).
    noise_weight : float
        mu. 1 is the Wiener filter (default); above, less noise and more distortion of
        the speech; towards 0, none of both.

    Example
    -------
    >>> target, noise = torch.ones(1, 1) + 0j, torch.full((1, 1), 3.0) + 0j
    >>> MultichannelWiener(loading=0.0).weights(target, noise)
    tensor([0.2500+0.j])
    """

    def __init__(
        self, taps: int = 3, reference: int = 0, noise_weight: float = 1.0, **options
    ):
        super().__init__(reference, taps=taps, **options)
        if not noise_weight > 0:
            raise ValueError(f"noise_weight: {noise_weight}, but has to be above 0")
        self.noise_weight = noise_weight

    def weights(self, target, noise) -> torch.Tensor:
        total = target + self.noise_weight * noise
        wanted = target[..., self.reference] / mean_power(total)[..., None]
        loaded = load_diagonal(total, self.loading)
        return torch.linalg.solve(loaded, wanted.unsqueeze(-1)).squeeze(-1)


def relative_transfer_function(
    target: torch.Tensor,
    noise: torch.Tensor,
    reference: int = 0,
    iterations: int = 3,
    loading: float = LOADING,
) -> torch.Tensor:
    """Transfer functions of the strongest source, by the power method on N^-1 S.

    With many iterations, h = N v with v the principal generalised eigenvector of S and
    N (covariance whitening). Its scale is left open, for the target may not reach the
    reference microphone at all: divide by h[..., reference] for the relative one.

    From covariances S of the target and N of the noise, [..., C, C], to norm 1, [..., C];
    zero where the target is silent. It starts at the `reference` microphone's unit vector;
    of `iterations` products with S, one is exact for a target of rank one.

    Example
    -------
    >>> h = torch.tensor([1.0, 2.0]) + 0j
    >>> found = relative_transfer_function(torch.outer(h, h.conj()), torch.eye(2) + 0j)
    >>> torch.allclose(found / found[0], h)
    True
    """
    scaled = target / mean_power(target)[..., None, None]
    loaded = load_diagonal(noise, loading)
    h = scaled[..., reference]
    for _ in range(iterations - 1):
        # S N^-1 S N^-1 ... S u: each step leaves h where the target can be.
        v = torch.linalg.solve(loaded, _unit(h).unsqueeze(-1))
        h = (scaled @ v).squeeze(-1)
    return _unit(h)


def _mvdr(steering, noise, loading):
    d = steering.to(noise.dtype).expand(noise.shape[:-1])
    return _distortionless(d, load_diagonal(noise, loading))


def _distortionless(d, covariance):
    """N^-1 d / (d^H N^-1 d), [..., C], for steering d [..., C] and N [..., C, C]."""
    solved = torch.linalg.solve(covariance, d.unsqueeze(-1)).squeeze(-1)
    return solved / (d.conj() * solved).sum(-1, keepdim=True).real


def _unit(vector: torch.Tensor) -> torch.Tensor:
    """Vectors [..., C] of norm 1; zero stays zero, with a gradient of zero."""
    nothing = (vector == 0).all(-1, keepdim=True)
    norm = torch.linalg.vector_norm(torch.where(nothing, 1.0, vector), dim=-1, keepdim=True)
    return vector / norm


def _or_reference(weights, nothing, reference):
    """The reference microphone alone where there is nothing to aim at."""
    alone = torch.zeros_like(weights)
    alone[..., reference] = 1.0
    return torch.where(nothing[..., None], alone, weights)


#: The beamformers by the name that a YAML gives them.
BEAMFORMERS = {
    "delay_and_sum": DelayAndSum,
    "superdirective": Superdirective,
    "mvdr": MVDR,
    "souden_mvdr": SoudenMVDR,
    "rtf_mvdr": RTFMVDR,
    "multichannel_wiener": MultichannelWiener,
}
