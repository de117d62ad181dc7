"""Signal-to-noise ratios, SI-SNR and SNR, and the best assignment of estimates to sources.

Axes: B batch, J sources, E ears, T samples.
"""

from __future__ import annotations

import itertools

import torch

from unified_se_ss.padding import real_elements

EPSILON = 1e-8  # source: speechbrain.nnet.losses.cal_si_snr


def zero_mean(signal: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Subtract each signal's mean over its real samples; padding becomes zero, fp32 at least."""
    if signal.dtype in (torch.float16, torch.bfloat16):
        signal = signal.float()
    if lengths is None:
        return signal - signal.mean(-1, keepdim=True)
    mask = real_elements(lengths, signal.shape[-1], signal.device)
    mask = mask.view(mask.shape[0], *[1] * (signal.dim() - 2), mask.shape[-1])
    # where, not a product: what stands in the padding may be anything, even NaN.
    signal = torch.where(mask, signal, 0.0)
    samples = mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask, signal - signal.sum(-1, keepdim=True) / samples, 0.0)


def centred_si_snr(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """SI-SNR in dB over the last axis of signals whose mean is zero already."""
    product = (estimate * target).sum(-1, keepdim=True)
    energy = (target * target).sum(-1, keepdim=True) + EPSILON
    projection = product * target / energy
    noise = estimate - projection
    ratio = (projection * projection).sum(-1) / ((noise * noise).sum(-1) + EPSILON)
    return 10 * torch.log10(ratio + EPSILON)


def si_snr(
    estimate: torch.Tensor,
    target: torch.Tensor,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scale-invariant signal-to-noise ratio in dB, higher is better.

    Means are removed, so a constant offset does not count. A silent target and a silent
    estimate have a value, -80 dB, and a gradient of zero. Computed in at least float32.

    Arguments
    ---------
    estimate, target : torch.Tensor
        [B, T] or [B, ..., T], of shapes that broadcast.
    lengths : torch.Tensor, optional
        Real samples of each item, [B]; by default everything is real.

    Returns
    -------
    torch.Tensor
        dB, [B] or [B, ...].

    Source: Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, with
    the epsilons of ``speechbrain.nnet.losses.cal_si_snr``.

    Example
    -------
    >>> target = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    >>> noise = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    >>> si_snr(3 * (target + 0.1 * noise), target).round()
    tensor([20.])
    """
    return centred_si_snr(zero_mean(estimate, lengths), zero_mean(target, lengths))


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

    Unlike SI-SNR, it holds each ear's level, so the level difference between two ears. Means,
    silence, precision, arguments and result as of :func:`si_snr`.

    Source: Han, Luo, Mesgarani, arXiv 2002.06637, with the means and epsilons of
    ``speechbrain.nnet.losses.cal_snr``.

    Example
    -------
    >>> target = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    >>> snr(0.9 * target, target).round(), snr(-target, target).round()
    (tensor([20.]), tensor([-6.]))
    """
    return centred_snr(zero_mean(estimate, lengths), zero_mean(target, lengths))


def best_permutation(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the assignment with the highest mean score, trying all.

    From the score of estimate i as source j, [B, J, J], to the best mean, [B], and the
    permutation, [B, J], whose entry j is the estimate that belongs to source j.

    Example
    -------
    >>> best_permutation(torch.tensor([[[0.0, 9.0], [7.0, 1.0]]]))
    (tensor([8.]), tensor([[1, 0]]))
    """
    sources = scores.shape[-1]
    permutations = torch.tensor(list(itertools.permutations(range(sources))))
    # Made on the device, it would be sent there and waited for.
    permutations = permutations.to(scores.device, non_blocking=True)
    # [B, J!]: the mean of scores[b, permutation[j], j] over j
    means = scores[:, permutations, torch.arange(sources, device=scores.device)].mean(-1)
    score, index = means.max(-1)
    return score, permutations[index]


def permutation_invariant_si_snr(
    estimates: torch.Tensor,
    sources: torch.Tensor,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean SI-SNR over the sources under the best assignment of each item.

    Arguments
    ---------
    estimates, sources : torch.Tensor
        [B, J, T].
    lengths : torch.Tensor, optional
        Real samples of each item, [B].

    Returns
    -------
    score : torch.Tensor
        dB, [B]; its negative is the utterance-level PIT loss.
    permutation : torch.Tensor
        Integer, [B, J]; entry j is the estimate that belongs to source j.

    Source: Kolbaek et al., "Multitalker speech separation with utterance-level
    permutation invariant training", arXiv 1703.06284.

    Example
    -------
    >>> sources = torch.randn(4, 2, 800, generator=torch.Generator().manual_seed(0))
    >>> score, permutation = permutation_invariant_si_snr(sources.flip(1), sources)
    >>> permutation[0].tolist()
    [1, 0]
    """
    estimates = zero_mean(estimates, lengths).unsqueeze(2)
    sources = zero_mean(sources, lengths).unsqueeze(1)
    return best_permutation(centred_si_snr(estimates, sources))


def permutation_invariant_snr(
    estimates: torch.Tensor,
    sources: torch.Tensor,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean SNR over ears and sources under the best assignment, as with SI-SNR.

    Signals are [B, J, E, T] or [B, J, T]. Ears are averaged in dB before sources are
    assigned, so that both ears of an estimate belong to the same source.

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


def reorder_sources(estimates: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    """Put the estimates of each item, [B, J, T], into the order of its sources.

    Example
    -------
    >>> reorder_sources(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[1, 0]])).flatten()
    tensor([2., 1.])
    """
    index = permutation.unsqueeze(-1).expand(-1, -1, estimates.shape[-1])
    return estimates.gather(1, index)
