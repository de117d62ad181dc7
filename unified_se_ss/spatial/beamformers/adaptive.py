"""Beamformers that follow the statistics of target and noise: MVDR and Wiener.

MVDR lets the least noise through while the target passes as the reference microphone has
it. The target is given by a steering vector (`MVDR`), its covariance (`SoudenMVDR`), or
the relative transfer function found in its covariance (`RTFMVDR`).

Arguments that mean the same everywhere: `reference` is the microphone as which the target
is wanted (default 0), `loading` the diagonal loading relative to the mean power (default
1e-4; with 0, a singular covariance is an error of `torch.linalg.solve`), `forgetting` that
of the recursive covariances (default 0.99).

Axes: B batch, C microphones, K taps, F bins, L frames. u is the reference's unit vector.
"""

from __future__ import annotations

import torch

from unified_se_ss.spatial.beamformers.base import Beamformer
from unified_se_ss.spatial.covariance import is_silent, load_diagonal, mean_power

# Sensor noise 40 dB below the noise: far above the rounding of complex64, and deep enough
# for nulls of more than 30 dB.
LOADING = 1e-4


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
    """Weights from the covariances of target and noise, for a reference microphone."""

    needs_target = True
    needs_noise = True

    def __init__(
        self,
        reference: int = 0,
        loading: float = LOADING,
        forgetting: float = 0.99,
        taps: int = 1,
    ):
        super().__init__(forgetting, taps)
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

    def __init__(
        self,
        reference: int = 0,
        iterations: int = 3,
        loading: float = LOADING,
        forgetting: float = 0.99,
    ):
        super().__init__(reference, loading, forgetting)
        if iterations < 1:
            raise ValueError(f"iterations: {iterations}, but at least 1 is needed")
        self.iterations = iterations

    def weights(self, target, noise) -> torch.Tensor:
        h = relative_transfer_function(
            target, noise, self.reference, self.iterations, self.loading
        )
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
        self,
        taps: int = 3,
        reference: int = 0,
        noise_weight: float = 1.0,
        loading: float = LOADING,
        forgetting: float = 0.99,
    ):
        super().__init__(reference, loading, forgetting, taps)
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

    Arguments
    ---------
    target, noise : torch.Tensor
        Covariances S and N, [..., C, C].
    reference : int
        The method starts at this microphone's unit vector (default 0).
    iterations : int
        Products with S (default 3); with a target of rank one, 1 is exact.

    Returns
    -------
    torch.Tensor
        Of norm 1, [..., C]; zero where the target is silent.

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
    """N^-1 d / (d^H N^-1 d), [..., C], in the type of the noise."""
    d = steering.to(noise.dtype).expand(noise.shape[:-1])
    solved = torch.linalg.solve(load_diagonal(noise, loading), d.unsqueeze(-1)).squeeze(-1)
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
