"""The multichannel Wiener filter over microphones and a few frames.

Axes: B batch, C microphones, K taps, F bins, L frames.
"""

from __future__ import annotations

import torch

from unified_se_ss.spatial.beamformers.base import Beamformer
from unified_se_ss.spatial.beamformers.mvdr import LOADING
from unified_se_ss.spatial.covariance import load_diagonal, mean_power


class MultichannelWiener(Beamformer):
    """Least squared error over all microphones now and in the few frames before.

    The beamformer in front of GSENet. x stacks K frames of C microphones, this frame
    and those before it, so it is causal and takes no look ahead. How it is supervised:

    - oracle: target and noise given as spectra (simulated rooms);
    - noise statistics alone: `noise=noise_context(mixture, frames)`, from a stretch at
      the beginning that holds no target, or a mask; the target's covariance is then
      what the mixture's has more. `recursive` keeps the noise as it was learnt.

    What comes from where: to beamform with contextual frames is from Wang et al.,
    "Sequential multi-frame neural beamforming", arXiv 1911.07953, and to learn a filter
    from the noise before the speech from "Streaming noise context aware enhancement",
    arXiv 2205.08555 (its Speech Cleaner). That GSENet (arXiv 2303.07486) joins them this
    way, the number of taps, the loading and the weight are inferred.

    Arguments
    ---------
    taps : int
        Frames K that are filtered together (default 3).
    reference : int
        Microphone as which the target is wanted (default 0).
    noise_weight : float
        1 is the Wiener filter (default); above, less noise and more distortion of the
        speech; towards 0, none of both.
    loading : float
        Diagonal loading, relative to the mean power of target and noise (default 1e-4).
    forgetting : float
        Of the recursive covariances (default 0.99).

    Example
    -------
    >>> from unified_se_ss.spatial.beamformers import noise_context
    >>> mixture = torch.randn(1, 2, 3, 50, dtype=torch.complex64)
    >>> MultichannelWiener(taps=2)(mixture, noise=noise_context(mixture, 20)).shape
    torch.Size([1, 3, 50])
    """

    needs_target = True
    needs_noise = True

    def __init__(
        self,
        taps: int = 3,
        reference: int = 0,
        noise_weight: float = 1.0,
        loading: float = LOADING,
        forgetting: float = 0.99,
    ):
        super().__init__(forgetting, taps)
        if not noise_weight > 0:
            raise ValueError(f"noise_weight: {noise_weight}, but has to be above 0")
        self.reference = reference
        self.noise_weight = noise_weight
        self.loading = loading

    def weights(self, target, noise) -> torch.Tensor:
        """[..., K C] from covariances [..., K C, K C]."""
        return wiener_weights(
            target, noise, self.reference, self.noise_weight, self.loading
        )


def wiener_weights(
    target: torch.Tensor,
    noise: torch.Tensor,
    reference: int = 0,
    noise_weight: float = 1.0,
    loading: float = LOADING,
) -> torch.Tensor:
    """w = (S + mu N)^-1 S u.

    Arguments
    ---------
    target, noise : torch.Tensor
        Covariances S and N, [..., C, C]; C counts stacked frames too.
    reference : int
        Microphone with the unit vector u (default 0).
    noise_weight : float
        mu (default 1).
    loading : float
        Relative to the mean power of S + mu N (default 1e-4).

    Returns
    -------
    torch.Tensor
        [..., C]; zero where the target is silent.

    Source: Doclo et al., "Frequency-domain criterion for the speech distortion weighted
    multichannel Wiener filter", Speech Communication 49, 2007.

    Example
    -------
    >>> target, noise = torch.ones(1, 1) + 0j, torch.full((1, 1), 3.0) + 0j
    >>> wiener_weights(target, noise, loading=0.0)
    tensor([0.2500+0.j])
    """
    total = target + noise_weight * noise
    wanted = target[..., reference] / mean_power(total)[..., None]
    loaded = load_diagonal(total, loading)
    return torch.linalg.solve(loaded, wanted.unsqueeze(-1)).squeeze(-1)
