"""Losses of a recogniser, one for each utterance.

Axes: B batch, L frames, U tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from speechbrain.nnet.losses import kldiv_loss

from unified_se_ss.recognition.tokens import BLANK


def ctc_losses(
    log_probabilities: torch.Tensor,
    targets: torch.Tensor,
    frames: torch.Tensor,
    n_tokens: torch.Tensor,
) -> torch.Tensor:
    """Negative log probability of the tokens in any alignment, in nats.

    Arguments
    ---------
    log_probabilities : torch.Tensor
        [B, L, V].
    targets : torch.Tensor
        Tokens, [B, U].
    frames, n_tokens : torch.Tensor
        Real frames and tokens of each utterance, [B], on the CPU.

    Returns
    -------
    torch.Tensor
        [B]; infinite where a transcript has more tokens than can be aligned (one frame
        each, and one more between two that are equal).

    Source: Graves et al., 2006; not divided by the number of tokens, as ESPnet does it.

    Example
    -------
    >>> uniform = torch.full((1, 2, 4), 0.25).log()
    >>> one = torch.tensor([1])
    >>> ctc_losses(uniform, torch.tensor([[3]]), 2 * one, one).exp()  # 16 paths, 3 of them
    tensor([5.3333])
    """
    return torch.nn.functional.ctc_loss(
        log_probabilities.float().transpose(0, 1),
        targets,
        frames,
        n_tokens,
        blank=BLANK,
        reduction="none",
    )


def attention_losses(
    log_probabilities: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.1
) -> torch.Tensor:
    """Divergence of the decoder's predictions from the smoothed targets, in nats.

    Arguments
    ---------
    log_probabilities : torch.Tensor
        [B, U, V].
    targets : torch.Tensor
        Tokens with the end of the sentence, [B, U], padded with ``BLANK``.
    smoothing : float
        Probability that is taken from the target and given to all other tokens.

    Returns
    -------
    torch.Tensor
        Sum over the tokens of each utterance, [B].

    Source: Szegedy et al., arXiv 1512.00567, as SpeechBrain's ``kldiv_loss``; not
    divided by the number of tokens (length_normalized_loss: false in arXiv 2302.11362).

    Example
    -------
    >>> uniform = torch.full((1, 3, 4), 0.25).log()
    >>> attention_losses(uniform, torch.tensor([[3, 2, 0]]), 0.0) / torch.tensor(4.0).log()
    tensor([2.])
    """
    if not smoothing:
        chosen = log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return -torch.where(targets == BLANK, 0.0, chosen).sum(-1)
    losses = kldiv_loss(
        log_probabilities,
        targets,
        label_smoothing=smoothing,
        pad_idx=BLANK,
        reduction="none",
    )
    return losses.view(len(targets), -1).sum(-1)
