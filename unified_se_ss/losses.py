"""Losses: SNR and SI-SNR with the best assignment, spectra, representations, interaural cues.

Every one of them ignores padding and computes in at least float32.

Axes: B batch, J sources, E ears (left, right), T samples, N basis functions, L frames, F bins.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from unified_se_ss.padding import real_elements

# Source: speechbrain.nnet.losses.cal_si_snr. Added to squared magnitudes too, so that roots
# and small powers have a finite slope at silence: 80 dB below a squared magnitude of 1, which
# bins of speech have (inferred).
EPSILON = 1e-8

# ------------------------------------------------------------------ signals


def _at_least_float(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def zero_mean(signal: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Subtract each signal's mean over its real samples; padding becomes zero, fp32 at least."""
    signal = _at_least_float(signal)
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

    From [B, J, T] and real `lengths`, [B], to the score in dB, [B], whose negative is the
    utterance-level PIT loss, and the permutation, [B, J], whose entry j is the estimate that
    belongs to source j.

    Source: Kolbaek et al., "Multitalker speech separation with utterance-level
    permutation invariant training", arXiv 1703.06284.

    Example
    -------
    >>> sources = torch.randn(4, 2, 800, generator=torch.Generator().manual_seed(0))
    >>> score, permutation = permutation_invariant_si_snr(sources.flip(1), sources)
    >>> permutation[0].tolist()
    [1, 0]
    """
    return best_permutation(centred_si_snr(*_all_pairs(estimates, sources, lengths)))


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
    # [B, J, J] or [B, J, J, E]
    scores = centred_snr(*_all_pairs(estimates, sources, lengths))
    return best_permutation(scores.flatten(3).mean(-1) if scores.dim() > 3 else scores)


def _all_pairs(
    estimates: torch.Tensor, sources: torch.Tensor, lengths: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        zero_mean(estimates, lengths).unsqueeze(2),
        zero_mean(sources, lengths).unsqueeze(1),
    )


def reorder_sources(estimates: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    """Put the estimates of each item, [B, J, T], into the order of its sources.

    Example
    -------
    >>> reorder_sources(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[1, 0]])).flatten()
    tensor([2., 1.])
    """
    index = permutation.unsqueeze(-1).expand(-1, -1, estimates.shape[-1])
    return estimates.gather(1, index)


# ------------------------------------------------------------------ spectra

EXPONENT = 0.3  # source: Braun and Tashev, arXiv 2008.06412
COMPLEX_WEIGHT = 0.3  # of 1; source: the same
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
    estimate, frames = spectra(_at_least_float(estimate), window, hop, lengths)
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


# ------------------------------------------------------------------ representations


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
    enhanced, clean = _at_least_float(enhanced), _at_least_float(clean)
    if frames is not None:
        mask = real_elements(frames, enhanced.shape[-1], enhanced.device).unsqueeze(1)
        enhanced = torch.where(mask, enhanced, 0.0)
        clean = torch.where(mask, clean, 0.0)
    return REPRESENTATION_LOSSES[kind](enhanced, clean)


# ------------------------------------------------------------------ interaural cues

#: Bins of a target more than 20 dB below its loudest have no say.
CUE_RANGE = 1e-2
#: Share of a target's loudest bin that is added to all powers: the level of a bin in
#: which an ear hears almost nothing says nothing, and its gradient must not blow up.
CUE_FLOOR = 1e-6
CUE_SILENCE = 1e-12


class CueLosses(NamedTuple):
    """Errors of an item's interaural cues, lower is better; both [B].

    ild : dB; ipd : 1 − cos of the phase error, 0 to 2.
    """

    ild: torch.Tensor
    ipd: torch.Tensor


def interaural_cue_losses(
    estimates: torch.Tensor,
    sources: torch.Tensor,
    lengths: torch.Tensor | None = None,
    window: int = 256,
    hop: int = 128,
) -> CueLosses:
    """Errors of interaural level and phase differences where the targets are audible.

    In each time-frequency bin in which both ears of a target are within 20 dB of its loudest
    bin: the absolute error of the level difference in dB, and 1 − cos of the error of the
    phase difference. Means over an item's bins and sources. A source that is silent has no
    bins and no say. Computed in at least float32.

    Arguments
    ---------
    estimates, sources : torch.Tensor
        [B, J, 2, T], in the same order; other shapes raise ValueError.
    lengths : torch.Tensor, optional
        Real samples of each item, [B], best on the CPU.
    window, hop : int
        Of the spectra, in samples; the defaults are 32 and 16 ms at 8 kHz.

    Source: after Tokala et al., "Binaural speech enhancement using deep complex
    convolutional transformer networks", arXiv 2403.05393, whose mask is of the bins
    within 20 dB of the loudest and whose phase error is in radians.

    Example
    -------
    >>> sources = torch.randn(3, 2, 2, 4000, generator=torch.Generator().manual_seed(0))
    >>> quieter = sources * torch.tensor([1.0, 0.5]).view(2, 1)  # in the right ear
    >>> losses = interaural_cue_losses(quieter, sources)
    >>> losses.ild.round(), bool((losses.ipd < 1e-3).all())
    (tensor([6., 6., 6.]), True)
    """
    if estimates.dim() != 4 or estimates.shape != sources.shape or estimates.shape[2] != 2:
        raise ValueError(
            f"estimates and sources have the shapes {tuple(estimates.shape)} and "
            f"{tuple(sources.shape)}; expected the same [batch, sources, 2, samples]"
        )
    estimates = _at_least_float(estimates)
    estimate = _spectra(estimates, lengths, window, hop)
    target = _spectra(sources.to(estimates.dtype), lengths, window, hop)
    power, true_power = (_power(spectrum) for spectrum in (estimate, target))
    loudest = true_power.amax((2, 3, 4), keepdim=True)
    audible = (true_power > CUE_RANGE * loudest).all(2)
    audible &= (loudest > CUE_SILENCE).squeeze(2)
    floor = CUE_FLOOR * loudest + CUE_SILENCE
    level, true_level = (_level(x + floor) for x in (power, true_power))
    phase, true_phase = (
        x[:, :, 0] * x[:, :, 1].conj() / _geometric_mean(p + floor)
        for x, p in ((estimate, power), (target, true_power))
    )
    alike = (phase * true_phase.conj()).real
    count = audible.sum((1, 2, 3)).clamp(min=1)
    ild, ipd = (
        torch.where(audible, error, 0.0).sum((1, 2, 3)) / count
        for error in ((level - true_level).abs(), 1 - alike)
    )
    return CueLosses(ild, ipd)


def _spectra(
    signals: torch.Tensor, lengths: torch.Tensor | None, window: int, hop: int
) -> torch.Tensor:
    """Complex spectra of all signals, [B, J, E, T] to [B, J, E, L, F]."""
    shape = signals.shape[:3]
    if lengths is not None:
        lengths = lengths.repeat_interleave(shape[1] * shape[2])
    return spectra(signals.flatten(0, 2), window, hop, lengths)[0].unflatten(0, shape)


def _geometric_mean(power: torch.Tensor) -> torch.Tensor:
    """Of two ears, [B, J, E, L, F] to [B, J, L, F]; `prod` would fetch a number backwards."""
    left, right = power.sqrt().unbind(2)
    return left * right


def _level(power: torch.Tensor) -> torch.Tensor:
    """Level difference of two ears in dB, [B, J, E, L, F] to [B, J, L, F]."""
    return 10 * (power[:, :, 0].log10() - power[:, :, 1].log10())
