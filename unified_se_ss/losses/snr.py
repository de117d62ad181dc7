"""Signal-to-noise ratios: SI-SNR, and SNR, which keeps level and sign.

Axes: B batch, J sources, E ears, T samples.
"""

from __future__ import annotations

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
