"""Signal-to-noise ratio, which keeps level and sign, of one ear or of both.

Axes: B batch, J sources, E ears, T samples.
"""

from __future__ import annotations

import torch

from unified_se_ss.losses.permutation import best_permutation
from unified_se_ss.losses.si_snr import EPSILON, zero_mean


def centred_snr(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """SNR in dB over the last axis of signals whose mean is zero already."""
    # The difference itself, not energies and a product: exact where little is left of it.
    noise = (estimate - target).square().sum(-1)
    ratio = target.square().sum(-1) / (noise + EPSILON)
    return 10 * torch.log10(ratio + EPSILON)


def snr(
    estimate: torch.Tensor,
    target: torch.Tensor,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """Signal-to-noise ratio in dB, higher is better; a wrong level counts.

    Unlike SI-SNR, it holds each ear's level, so the level difference between two ears.
    Means are removed, so a constant offset does not count. A silent target has a value,
    -80 dB, and a gradient of zero. Computed in at least float32, whatever autocast says;
    inputs are left as they are.

    Arguments
    ---------
    estimate : torch.Tensor
        Estimated signals, [B, T] or [B, ..., T].
    target : torch.Tensor
        True signals, of a shape that broadcasts with the estimate's.
    lengths : torch.Tensor, optional
        Real samples of each item, [B]; the rest is padding and is ignored.
        By default everything is real.

    Returns
    -------
    torch.Tensor
        dB, [B] or [B, ...].

    Source: Han, Luo, Mesgarani, arXiv 2002.06637, with the means and
    epsilons of ``speechbrain.nnet.losses.cal_snr``.

    Example
    -------
    >>> target = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    >>> snr(0.9 * target, target).round(), snr(-target, target).round()
    (tensor([20.]), tensor([-6.]))
    """
    return centred_snr(zero_mean(estimate, lengths), zero_mean(target, lengths))


def permutation_invariant_snr(
    estimates: torch.Tensor,
    sources: torch.Tensor,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean SNR over ears and sources under the best assignment of each item.

    Ears are averaged in dB before sources are assigned, so that both ears of an
    estimate belong to the same source.

    Arguments
    ---------
    estimates : torch.Tensor
        Estimated sources, [B, J, E, T] or [B, J, T].
    sources : torch.Tensor
        True sources, of the same shape.
    lengths : torch.Tensor, optional
        Real samples of each item, [B].

    Returns
    -------
    score : torch.Tensor
        dB, [B]; its negative is the loss.
    permutation : torch.Tensor
        Integer, [B, J]; entry j is the estimate that belongs to source j.

    Source: Han, Luo, Mesgarani, arXiv 2002.06637; ``get_snr_with_pitwrapper`` in
    ``speechbrain.nnet.losses``.

    Example
    -------
    >>> sources = torch.randn(4, 2, 2, 800, generator=torch.Generator().manual_seed(0))
    >>> score, permutation = permutation_invariant_snr(0.9 * sources.flip(1), sources)
    >>> score.round().tolist(), permutation[0].tolist()
    ([20.0, 20.0, 20.0, 20.0], [1, 0])
    """
    estimates = zero_mean(estimates, lengths).unsqueeze(2)
    sources = zero_mean(sources, lengths).unsqueeze(1)
    scores = centred_snr(estimates, sources)  # [B, J, J] or [B, J, J, E]
    return best_permutation(scores.flatten(3).mean(-1) if scores.dim() > 3 else scores)
