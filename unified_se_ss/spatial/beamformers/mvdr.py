"""MVDR: the least noise while the target passes as the reference microphone has it.

Three ways to say what the target is: a steering vector (`MVDR`), its covariance
(`SoudenMVDR`), or the relative transfer function found in its covariance (`RTFMVDR`).

Axes: B batch, C microphones, F bins, L frames.
"""

from __future__ import annotations

import torch

from unified_se_ss.spatial.beamformers.base import Beamformer
from unified_se_ss.spatial.covariance import is_silent, load_diagonal, mean_power

# Sensor noise 40 dB below the noise: far above the rounding of complex64, and deep enough
# for nulls of more than 30 dB.
LOADING = 1e-4


class MVDR(Beamformer):
    """Minimum variance with no distortion towards a known steering vector.

    Needs the noise. Without any noise so far, it is delay-and-sum. If the target is
    part of what is given as noise (a mixture), errors of the steering cancel the
    target: then raise the loading.

    Arguments
    ---------
    steering : torch.Tensor
        Steering vectors towards the target, [F, C], or one for each item, [B, F, C].
    loading : float
        Diagonal loading, relative to the noise's mean power (default 1e-4).
    forgetting : float
        Of the recursive noise covariance (default 0.99).

    Source: Capon, "High-resolution frequency-wavenumber spectrum analysis", 1969.

    Example
    -------
    >>> beamformer = MVDR(torch.ones(3, 2, dtype=torch.complex64))
    >>> mixture = torch.randn(1, 2, 3, 5, dtype=torch.complex64)
    >>> output, state = beamformer.recursive(mixture, noise=mixture)
    >>> output.shape
    torch.Size([1, 3, 5])
    """

    needs_noise = True

    def __init__(
        self, steering: torch.Tensor, loading: float = LOADING, forgetting: float = 0.99
    ):
        super().__init__(forgetting)
        self.loading = loading
        self.register_buffer("steering", steering, persistent=False)

    def weights(self, target, noise) -> torch.Tensor:
        """[B, F, C] from noise [B, F, C, C], or [B, L, F, C] from [B, L, F, C, C]."""
        steering = self.steering
        if steering.dim() == 3 and noise.dim() == 5:
            steering = steering.unsqueeze(1)
        return mvdr_weights(steering, noise, self.loading)


class SoudenMVDR(Beamformer):
    """MVDR from the covariances of target and noise, without a steering vector.

    Needs the noise, and takes the target from what is left where none is given. While
    there is no target at all, the reference microphone passes.

    Arguments
    ---------
    reference : int
        Microphone as which the target is wanted (default 0).
    loading : float
        Diagonal loading, relative to the noise's mean power (default 1e-4).
    forgetting : float
        Of the recursive covariances (default 0.99).

    Source: Souden et al., "On optimal frequency-domain multichannel linear filtering
    for noise reduction", IEEE Trans. ASLP 18(2), 2010.

    Example
    -------
    >>> mixture = torch.randn(1, 2, 3, 5, dtype=torch.complex64)
    >>> SoudenMVDR()(mixture, noise=torch.rand(1, 3, 5)).shape
    torch.Size([1, 3, 5])
    """

    needs_target = True
    needs_noise = True

    def __init__(
        self, reference: int = 0, loading: float = LOADING, forgetting: float = 0.99
    ):
        super().__init__(forgetting)
        self.reference = reference
        self.loading = loading

    def weights(self, target, noise) -> torch.Tensor:
        """[..., C] from covariances [..., C, C]."""
        return souden_weights(target, noise, self.reference, self.loading)


class RTFMVDR(Beamformer):
    """MVDR towards the relative transfer function that the covariances hold.

    Needs the noise, and takes the target from what is left where none is given. While
    there is no target at all, the reference microphone passes.

    Arguments
    ---------
    reference : int
        Microphone as which the target is wanted (default 0).
    iterations : int
        Of the power method that finds the transfer function (default 3).
    loading : float
        Diagonal loading, relative to the noise's mean power (default 1e-4).
    forgetting : float
        Of the recursive covariances (default 0.99).

    Source: Markovich et al., "Multichannel eigenspace beamforming in a reverberant
    noisy environment with multiple interfering speech signals", IEEE Trans. ASLP 17(6),
    2009 (covariance whitening).

    Example
    -------
    >>> mixture = torch.randn(1, 2, 3, 5, dtype=torch.complex64)
    >>> RTFMVDR()(mixture, noise=torch.rand(1, 3, 5)).shape
    torch.Size([1, 3, 5])
    """

    needs_target = True
    needs_noise = True

    def __init__(
        self,
        reference: int = 0,
        iterations: int = 3,
        loading: float = LOADING,
        forgetting: float = 0.99,
    ):
        super().__init__(forgetting)
        if iterations < 1:
            raise ValueError(f"iterations: {iterations}, but at least 1 is needed")
        self.reference = reference
        self.iterations = iterations
        self.loading = loading

    def weights(self, target, noise) -> torch.Tensor:
        """[..., C] from covariances [..., C, C]."""
        transfer = relative_transfer_function(
            target, noise, self.reference, self.iterations, self.loading
        )
        return rtf_weights(transfer, noise, self.reference, self.loading)


def mvdr_weights(
    steering: torch.Tensor, noise: torch.Tensor, loading: float = LOADING
) -> torch.Tensor:
    """w = N^-1 d / (d^H N^-1 d), so that w^H d = 1.

    Arguments
    ---------
    steering : torch.Tensor
        d, of a shape that broadcasts to [..., C].
    noise : torch.Tensor
        N, covariance of the noise, [..., C, C].
    loading : float
        Relative to the noise's mean power (default 1e-4). With 0, a singular
        covariance is an error of `torch.linalg.solve`.

    Returns
    -------
    torch.Tensor
        [..., C], in the type of the noise.

    Example
    -------
    >>> noise = torch.tensor([[1.0, 0.0], [0.0, 3.0]]) + 0j
    >>> mvdr_weights(torch.ones(2), noise, loading=0.0)
    tensor([0.7500+0.j, 0.2500+0.j])
    """
    d = steering.to(noise.dtype).expand(noise.shape[:-1])
    solved = torch.linalg.solve(load_diagonal(noise, loading), d.unsqueeze(-1)).squeeze(-1)
    return solved / (d.conj() * solved).sum(-1, keepdim=True).real


def souden_weights(
    target: torch.Tensor,
    noise: torch.Tensor,
    reference: int = 0,
    loading: float = LOADING,
) -> torch.Tensor:
    """w = N^-1 S u / trace(N^-1 S).

    Arguments
    ---------
    target, noise : torch.Tensor
        Covariances S and N, [..., C, C].
    reference : int
        Microphone r, with u its unit vector (default 0).
    loading : float
        Relative to the noise's mean power (default 1e-4).

    Returns
    -------
    torch.Tensor
        [..., C]; u where the target is silent.

    Example
    -------
    >>> target, noise = torch.ones(2, 2) + 0j, torch.diag(torch.tensor([1.0, 3.0])) + 0j
    >>> souden_weights(target, noise, loading=0.0)
    tensor([0.7500+0.j, 0.2500+0.j])
    """
    scaled = target / mean_power(target)[..., None, None]
    ratio = torch.linalg.solve(load_diagonal(noise, loading), scaled)
    trace = ratio.diagonal(dim1=-2, dim2=-1).sum(-1).real
    silent = is_silent(target)
    weights = ratio[..., reference] / torch.where(silent, 1.0, trace)[..., None]
    return _or_reference(weights, silent, reference)


def rtf_weights(
    transfer: torch.Tensor,
    noise: torch.Tensor,
    reference: int = 0,
    loading: float = LOADING,
) -> torch.Tensor:
    """w = N^-1 h conj(h_r) / (h^H N^-1 h): MVDR for h of any scale, also with h_r = 0.

    Arguments
    ---------
    transfer : torch.Tensor
        Transfer functions h from the target, up to a factor, [..., C].
    noise : torch.Tensor
        Covariance N, [..., C, C].
    reference : int
        Microphone r (default 0).
    loading : float
        Relative to the noise's mean power (default 1e-4).

    Returns
    -------
    torch.Tensor
        [..., C]; the reference microphone alone where h is zero.

    Example
    -------
    >>> noise = torch.diag(torch.tensor([1.0, 3.0])) + 0j
    >>> rtf_weights(torch.tensor([2.0, 2.0]) + 0j, noise, loading=0.0)
    tensor([0.7500+0.j, 0.2500+0.j])
    """
    nothing = (transfer == 0).all(-1)
    h = torch.where(nothing[..., None], torch.ones_like(transfer), transfer)
    h = h / torch.linalg.vector_norm(h, dim=-1, keepdim=True)
    weights = mvdr_weights(h, noise, loading) * h[..., reference, None].conj()
    return _or_reference(weights, nothing, reference)


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
    reference microphone at all: divide by h[..., reference] for the relative one, or
    give it to `rtf_weights` as it is.

    Arguments
    ---------
    target, noise : torch.Tensor
        Covariances S and N, [..., C, C].
    reference : int
        The method starts at this microphone's unit vector (default 0).
    iterations : int
        Products with S (default 3); with a target of rank one, 1 is exact.
    loading : float
        Relative to the noise's mean power (default 1e-4).

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
