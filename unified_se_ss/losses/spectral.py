"""Distances of short-time spectra, magnitudes and learned representations.

What pads an item changes nothing.

Axes: B batch, T samples, N basis functions, L frames, F bins.
"""

from __future__ import annotations

import torch

from unified_se_ss.padding import real_elements

EXPONENT = 0.3  # source: Braun and Tashev, arXiv 2008.06412
COMPLEX_WEIGHT = 0.3  # of 1; source: the same
# Added to squared magnitudes, so that roots and small powers have a finite slope at
# silence; 80 dB below a squared magnitude of 1, which bins of speech have. (inferred)
EPSILON = 1e-8
# Smallest root mean square magnitude to divide by, so that a silent target gives a
# loss of ordinary size. (inferred)
QUIETEST = 1e-3


def spectra(
    signal: torch.Tensor, window: int, hop: int, lengths: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectra under a Hann window, in which every real sample weighs the same.

    Silence stands before and behind, so each sample lies in window / hop frames, the first
    and the last too. Padding counts as that silence. From [B, T] and real `lengths`, [B], to
    complex [B, L, F], zero from an item's last real frame on, and its real frames, [B].

    Example
    -------
    >>> spectrum, frames = spectra(torch.randn(2, 800), 256, 64, torch.tensor([800, 100]))
    >>> spectrum.shape, frames.tolist()
    (torch.Size([2, 16, 129]), [16, 5])
    """
    batch, samples = signal.shape
    if lengths is None:
        lengths = torch.full((batch,), samples)
    else:
        real = real_elements(lengths, samples, signal.device)
        # where, not a product: what stands in the padding may be anything, even NaN.
        signal = torch.where(real, signal, 0.0)
    frames = -(-(lengths + window - hop) // hop)
    longest = -(-(samples + window - hop) // hop)
    behind = longest * hop - samples
    signal = torch.nn.functional.pad(signal, (window - hop, behind))
    shape = torch.hann_window(window, dtype=signal.dtype, device=signal.device)
    spectrum = torch.fft.rfft(signal.unfold(-1, window, hop) * shape)
    return spectrum, frames.to(signal.device, non_blocking=True)


def _power(spectrum: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(spectrum).square().sum(-1)


def _root(power: torch.Tensor) -> torch.Tensor:
    return power / ((power + EPSILON).sqrt() + EPSILON**0.5)


def _compressed(
    estimate: torch.Tensor, target: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    powers = [_power(spectrum) + EPSILON for spectrum in (estimate, target)]
    magnitude, true_magnitude = (power ** (EXPONENT / 2) for power in powers)
    gain, true_gain = (power ** ((EXPONENT - 1) / 2) for power in powers)
    of_magnitudes = (magnitude - true_magnitude).square()
    of_spectra = _power(gain * estimate - true_gain * target)
    both = (1 - COMPLEX_WEIGHT) * of_magnitudes + COMPLEX_WEIGHT * of_spectra
    return both.sum((1, 2)) / count


def _linear_l1(
    estimate: torch.Tensor, target: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    of_parts = torch.view_as_real(estimate - target).abs().sum(-1)
    of_magnitudes = (_root(_power(estimate)) - _root(_power(target))).abs()
    return (of_parts + of_magnitudes).sum((1, 2)) / count


def _l1_spectral_convergence(
    estimate: torch.Tensor, target: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    powers = [_power(spectrum) for spectrum in (estimate, target)]
    quietest = QUIETEST**2 * count
    norm, true_norm = (power.sum((1, 2)).clamp(min=quietest).sqrt() for power in powers)
    magnitude, true_magnitude = (_root(power) for power in powers)
    normalised = magnitude / norm[:, None, None]
    true_normalised = true_magnitude / true_norm[:, None, None]
    l1 = (normalised - true_normalised).abs().sum((1, 2)) / count
    return l1 + _root(_power(estimate - target).sum((1, 2))) / true_norm


# From complex spectra [B, L, F] of estimate and target, zero where nothing is real, and
# the number of real bins of each item, [B], to losses, [B].
STFT_LOSSES = {
    "compressed": _compressed,
    "linear_l1": _linear_l1,
    "l1_spectral_convergence": _l1_spectral_convergence,
}


def stft_loss(
    estimate: torch.Tensor,
    target: torch.Tensor,
    lengths: torch.Tensor | None = None,
    kind: str = "compressed",
    window: int = 1024,
    hop: int = 256,
) -> torch.Tensor:
    """Distance of each item's short-time spectrum from its target's, lower is better.

    Means are over an item's real frames. Computed in at least float32. Silence, of either or
    both, gives finite losses and gradients.

    Arguments
    ---------
    estimate, target : torch.Tensor
        [B, T] both; other shapes raise ValueError.
    lengths : torch.Tensor, optional
        Real samples of each item, [B], best on the CPU; by default everything is real.
    kind : str
        ``"compressed"``: with C = |X|^0.3 and phase kept, 0.7 · mean (|C_e| − |C_t|)² +
        0.3 · mean |C_e − C_t|². Source: Braun and Tashev, arXiv 2008.06412.
        ``"linear_l1"``: mean of |Re(E − T)| + |Im(E − T)| + ||E| − |T||; grows with the
        level. Source: Wang et al., arXiv 2108.05470 (there RI+Mag).
        ``"l1_spectral_convergence"``: mean of ||E|/‖E‖ − |T|/‖T‖| plus ‖E − T‖/‖T‖,
        norms over an item. Source: SausageMuffins/GSE-Network, losses.py, where the
        second term is of magnitudes too, so that x and −x are one, and its norms are
        over the batch.
    window, hop : int
        Samples. Defaults: arXiv 2303.07486.

    Returns
    -------
    torch.Tensor
        One loss per item, [B].

    Example
    -------
    >>> target = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    >>> stft_loss(target, target)
    tensor([0., 0.])
    >>> stft_loss(0 * target, target, kind="l1_spectral_convergence").round()
    tensor([1., 1.])
    >>> bool((stft_loss(-target, target) > 1).all())
    True
    """
    if kind not in STFT_LOSSES:
        known = ", ".join(STFT_LOSSES)
        raise ValueError(f"stft_loss is '{kind}'; expected one of: {known}")
    if estimate.dim() != 2 or estimate.shape != target.shape:
        raise ValueError(
            f"estimate and target have the shapes {tuple(estimate.shape)} and "
            f"{tuple(target.shape)}; expected the same [batch, samples] of both"
        )
    if estimate.dtype in (torch.float16, torch.bfloat16):
        estimate = estimate.float()
    estimate, frames = spectra(estimate, window, hop, lengths)
    target, _ = spectra(target.to(estimate.real.dtype), window, hop, lengths)
    return STFT_LOSSES[kind](estimate, target, frames * estimate.shape[-1])


def magnitude_loss(
    estimate: torch.Tensor, target: torch.Tensor, frames: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared error of magnitudes, [B, L, F]: summed over bins, mean over real frames; [B].

    Source: arXiv 2302.11362, eq. 1; YUCHEN005/Gradient-Remedy (loss_type magnitude3).

    Example
    -------
    >>> target = torch.ones(2, 5, 3)
    >>> magnitude_loss(0 * target, target, torch.tensor([5, 2]))
    tensor([3., 3.])
    """
    error = (estimate.float() - target.float()).square().sum(-1)
    if frames is None:
        return error.mean(-1)
    real = real_elements(frames, error.shape[-1], error.device)
    total = torch.where(real, error, 0.0).sum(-1)
    return total / frames.to(error.device, error.dtype, non_blocking=True).clamp(min=1)


EPSILON = 1e-8


def _squared_distance(enhanced: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return (enhanced - clean).square().sum((1, 2))


def _relative_distance(enhanced: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return _squared_distance(enhanced, clean) / (clean.square().sum((1, 2)) + EPSILON)


REPRESENTATION_LOSSES = {"sum": _squared_distance, "relative": _relative_distance}


def representation_loss(
    enhanced: torch.Tensor,
    clean: torch.Tensor,
    frames: torch.Tensor | None = None,
    kind: str = "sum",
) -> torch.Tensor:
    """Distance of each item's enhanced representation from its clean one, [B, N, L] to [B].

    The gradient flows into both arguments, as in the published system, where the clean
    mixture's representation is not detached. Computed in at least float32, so that the loss,
    and with it the weight of the task, means the same in every precision.

    Arguments
    ---------
    enhanced, clean : torch.Tensor
        Representations of the enhanced and of the clean mixture, [B, N, L].
    frames : torch.Tensor, optional
        Real frames of each item, [B].
    kind : str
        ``"sum"`` (published: YUCHEN005/Unified-Enhance-Separation, train_unified_gm.py):
        squared distance summed over everything; grows with the length and with the square
        of the level. ``"relative"``: the same over the energy of the clean representation;
        has no scale, 1 for an enhanced representation of zero. A silent clean mixture gives
        a large finite value.

    Example
    -------
    >>> clean = torch.ones(2, 3, 5)
    >>> representation_loss(0 * clean, clean, torch.tensor([5, 4]))
    tensor([15., 12.])
    >>> representation_loss(0 * clean, clean, kind="relative")
    tensor([1., 1.])
    """
    if kind not in REPRESENTATION_LOSSES:
        known = ", ".join(REPRESENTATION_LOSSES)
        raise ValueError(f"se_loss is '{kind}'; expected one of: {known}")
    if enhanced.dtype in (torch.float16, torch.bfloat16):
        enhanced, clean = enhanced.float(), clean.float()
    if frames is not None:
        mask = real_elements(frames, enhanced.shape[-1], enhanced.device).unsqueeze(1)
        enhanced = torch.where(mask, enhanced, 0.0)
        clean = torch.where(mask, clean, 0.0)
    return REPRESENTATION_LOSSES[kind](enhanced, clean)
