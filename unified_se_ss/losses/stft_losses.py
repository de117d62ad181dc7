"""Distance of two signals' short-time spectra: what GSENet is trained on.

Every loss here tells a signal from its negative, and what pads an item changes nothing.

Axes: B batch, T samples, L frames, F bins.
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

    Silence stands before and behind, so each sample lies in window / hop frames, the
    first and the last too. What is padding counts as that silence.

    Arguments
    ---------
    signal : torch.Tensor
        [B, T].
    window, hop : int
        Samples.
    lengths : torch.Tensor, optional
        Real samples of each item, [B].

    Returns
    -------
    spectrum : torch.Tensor
        Complex, [B, L, F]; zero from an item's last real frame on.
    frames : torch.Tensor
        Real frames of each item, [B].

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
    """Square root less a constant: sqrt(p + e) - sqrt(e), of finite slope, 0 at 0."""
    return power / ((power + EPSILON).sqrt() + EPSILON**0.5)


def _compressed(
    estimate: torch.Tensor, target: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    """Squared distances of compressed magnitudes, and of compressed spectra with phase."""
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
    """Absolute distances of real parts, of imaginary parts and of magnitudes, added up."""
    of_parts = torch.view_as_real(estimate - target).abs().sum(-1)
    of_magnitudes = (_root(_power(estimate)) - _root(_power(target))).abs()
    return (of_parts + of_magnitudes).sum((1, 2)) / count


def _l1_spectral_convergence(
    estimate: torch.Tensor, target: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    """Absolute distance of magnitudes over their norms, and the relative distance."""
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

    Means are over an item's real frames. Computed in at least float32, whatever
    autocast says. Silence, of either or both, gives finite losses and gradients.

    Arguments
    ---------
    estimate : torch.Tensor
        Estimated signals, [B, T].
    target : torch.Tensor
        True signals, [B, T].
    lengths : torch.Tensor, optional
        Real samples of each item, [B], best on the CPU; the rest is padding and is
        ignored. By default everything is real.
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

    Raises
    ------
    ValueError
        The kind is not known, or the shapes are not both [B, T].

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
