"""Differentiable losses on interaural cues: how far estimates moved between the ears.

Axes: B batch, J sources, E ears (left, right), T samples, L frames, F bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from unified_se_ss.losses.spectral import spectra

#: Bins of a target more than 20 dB below its loudest have no say.
QUIETEST = 1e-2
#: Share of a target's loudest bin that is added to all powers: the level of a bin in
#: which an ear hears almost nothing says nothing, and its gradient must not blow up.
FLOOR = 1e-6
EPSILON = 1e-12


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
    if estimates.dtype in (torch.float16, torch.bfloat16):
        estimates = estimates.float()
    estimate = _spectra(estimates, lengths, window, hop)
    target = _spectra(sources.to(estimates.dtype), lengths, window, hop)
    power, true_power = (_power(spectrum) for spectrum in (estimate, target))
    loudest = true_power.amax((2, 3, 4), keepdim=True)
    audible = (true_power > QUIETEST * loudest).all(2) & (loudest > EPSILON).squeeze(2)
    floor = FLOOR * loudest + EPSILON
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


def _power(spectrum: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(spectrum).square().sum(-1)


def _geometric_mean(power: torch.Tensor) -> torch.Tensor:
    """Of two ears, [B, J, E, L, F] to [B, J, L, F]; `prod` would fetch a number backwards."""
    left, right = power.sqrt().unbind(2)
    return left * right


def _level(power: torch.Tensor) -> torch.Tensor:
    """Level difference of two ears in dB, [B, J, E, L, F] to [B, J, L, F]."""
    return 10 * (power[:, :, 0].log10() - power[:, :, 1].log10())
