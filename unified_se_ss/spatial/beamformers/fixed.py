"""Beamformers that depend on the target's direction alone.

Axes: B batch, C microphones, F bins, L frames.
"""

from __future__ import annotations

import math

import torch

from unified_se_ss.spatial.beamformers.base import Beamformer
from unified_se_ss.spatial.covariance import diffuse_coherence

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
        loadings = torch.full(
            d.shape[:-1], float(loading), dtype=torch.float64, device=d.device
        )
        if white_noise_gain is not None:
            loadings = loadings.maximum(_loading_for(d, coherence, white_noise_gain))
        super().__init__(_weights(d, coherence, loadings).to(steering.dtype))


def _weights(d, coherence, loadings):
    """MVDR weights [..., F, C] for steering d [..., F, C] and loadings [..., F]."""
    identity = torch.eye(d.shape[-1], dtype=d.dtype, device=d.device)
    loaded = coherence + loadings[..., None, None] * identity
    solved = torch.linalg.solve(loaded, d.unsqueeze(-1)).squeeze(-1)
    return solved / (d.conj() * solved).sum(-1, keepdim=True).real


def _loading_for(d, coherence, white_noise_gain):
    """The least loading with that white-noise gain in dB, [..., F], by bisection."""
    most = 10 * math.log10(d.abs().square().sum(-1).min().item())
    if not white_noise_gain < most:
        raise ValueError(
            f"white_noise_gain: {white_noise_gain} dB, but delay-and-sum, which has the "
            f"most, has {most:.2f} dB here; give less"
        )
    low = torch.full(d.shape[:-1], _LEAST_LOADING, dtype=torch.float64, device=d.device)
    high = torch.full_like(low, _MOST_LOADING)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        weights = _weights(d, coherence, 10**middle)
        gain = -10 * torch.log10(weights.abs().square().sum(-1))
        enough = gain >= white_noise_gain
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, middle)
    return 10**high
