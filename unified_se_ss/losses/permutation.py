"""Which estimate belongs to which source."""

from __future__ import annotations

import itertools

import torch

from unified_se_ss.losses.snr import centred_si_snr, centred_snr, zero_mean


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
