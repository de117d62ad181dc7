"""Spatial covariances: how the microphones' spectra go together.

Axes: B batch, C microphones (times taps, where frames are stacked), F bins, L frames.

A covariance is E[x x^H], so entry (c, e) is the mean of x_c times the conjugate of x_e.
Spectra are complex tensors [B, C, F, L]; complex32 is raised to complex64 and masks of
any real type to its real type, so that no covariance is ever computed in half
precision, whatever autocast says. complex128 stays complex128.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from unified_se_ss.spatial.geometry import SPEED_OF_SOUND

# Power of a microphone below which there is nothing to learn from: -300 dB.
SILENCE = 1e-30


class MeanCovariance(NamedTuple):
    """State of a recursive covariance.

    covariance : [B, F, C, C], the weighted mean so far.
    evidence : [B, F], the sum of the weights, less what was forgotten.
    """

    covariance: torch.Tensor
    evidence: torch.Tensor


def at_least_complex64(spectrum: torch.Tensor) -> torch.Tensor:
    """The spectrum in complex64 or complex128; ValueError if it is not complex.

    Example
    -------
    >>> at_least_complex64(torch.zeros(2, dtype=torch.complex32)).dtype
    torch.complex64
    """
    if not spectrum.is_complex():
        raise ValueError(f"a spectrum has to be complex, but is {spectrum.dtype}")
    return spectrum.to(torch.promote_types(spectrum.dtype, torch.complex64))


def spatial_covariance(
    spectrum: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted mean over time of x x^H.

    From a complex spectrum [B, C, F, L] to [B, F, C, C], Hermitian and positive
    semi-definite. The mask holds weights of at least 0, of a shape that broadcasts to
    [B, F, L]; by default all frames weigh the same. A weight of 0 leaves padding out; the
    covariance of a bin with no weight is zero.

    Example
    -------
    >>> spectrum = torch.tensor([1.0, 1j])[None, :, None, None].expand(1, 2, 1, 5)
    >>> spatial_covariance(spectrum)[0, 0, 1, 0]  # E[x_1 conj(x_0)]
    tensor(0.+1.j)
    """
    spectrum = at_least_complex64(spectrum)
    if mask is None:
        total = torch.einsum("bcfl,befl->bfce", spectrum, spectrum.conj())
        return _hermitian(total) / max(spectrum.shape[-1], 1)
    mask = _frame_weights(mask, spectrum)
    weight = mask.sum(-1)
    mask = mask / torch.where(weight > 0, weight, 1.0)[..., None]
    weighted = spectrum * mask.unsqueeze(1)
    return _hermitian(torch.einsum("bcfl,befl->bfce", weighted, spectrum.conj()))


def recursive_covariance(
    spectrum: torch.Tensor,
    mask: torch.Tensor | None = None,
    forgetting: float = 0.99,
    state: MeanCovariance | None = None,
) -> tuple[torch.Tensor, MeanCovariance]:
    """Exponential average of x x^H, frame by frame.

    Frame l with weight m moves the mean by m / n towards its own x x^H, where n is the
    evidence, n <- (1 - (1 - forgetting) m) n + m. So the first frame counts in full, a
    frame of weight 0 changes and forgets nothing (a noise covariance holds its value
    while the target speaks), and with a forgetting of 1 the covariance at frame l is
    `spatial_covariance` of the frames up to l.

    Arguments
    ---------
    spectrum : torch.Tensor
        Complex, [B, C, F, L]: any number of frames.
    mask : torch.Tensor, optional
        Weights in 0...1, of a shape that broadcasts to [B, F, L]; by default 1.
    forgetting : float
        Above 0, at most 1 (default 0.99: a memory of 100 frames).
    state : MeanCovariance, optional
        What the frames before gave.

    Returns
    -------
    Covariances up to and with each frame, [B, L, F, C, C], and the state after them.

    Example
    -------
    >>> spectrum = torch.randn(1, 2, 3, 8, dtype=torch.complex64)
    >>> covariances, _ = recursive_covariance(spectrum, forgetting=1.0)
    >>> torch.allclose(covariances[:, -1], spatial_covariance(spectrum), atol=1e-6)
    True
    """
    spectrum = at_least_complex64(spectrum)
    B, C, F, L = spectrum.shape
    if state is None:
        state = MeanCovariance(
            spectrum.new_zeros(B, F, C, C), spectrum.real.new_zeros(B, F)
        )
    mean, evidence = state
    frames = spectrum.permute(3, 0, 2, 1)
    if mask is not None:
        mask = _frame_weights(mask, spectrum)
    covariances = []
    for number, x in enumerate(frames):
        m = torch.ones_like(evidence) if mask is None else mask[..., number]
        evidence = (1 - (1 - forgetting) * m) * evidence + m
        gain = m / torch.where(evidence > 0, evidence, 1.0)
        product = x.unsqueeze(-1) * x.conj().unsqueeze(-2)
        mean = mean + gain[..., None, None] * (_hermitian(product) - mean)
        covariances.append(mean)
    stacked = torch.stack(covariances, 1) if L else spectrum.new_zeros(B, 0, F, C, C)
    return stacked, MeanCovariance(mean, evidence)


def stack_taps(
    spectrum: torch.Tensor, taps: int, past: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the taps - 1 frames before beside every frame, as further microphones.

    The spectrum is [B, C, F, L], `past` the frames before its first one, [B, C, F,
    taps - 1], zero by default. Returns [B, taps * C, F, L], all microphones now, then one
    frame ago, and so on; and the last taps - 1 frames, for the frames to come.

    Example
    -------
    >>> frames = torch.tensor([1.0, 2.0, 3.0])[None, None, None] + 0j
    >>> stack_taps(frames, 2)[0][0, :, 0].real
    tensor([[1., 2., 3.],
            [0., 1., 2.]])
    """
    B, C, F, L = spectrum.shape
    if past is None:
        past = spectrum.new_zeros(B, C, F, taps - 1)
    joined = torch.cat([past, spectrum], dim=-1)
    delayed = [joined[..., taps - 1 - k : taps - 1 - k + L] for k in range(taps)]
    return torch.cat(delayed, dim=1), joined[..., L:]


def diffuse_coherence(
    microphones: torch.Tensor,
    frequencies: torch.Tensor,
    *,
    dtype: torch.dtype = torch.complex64,
) -> torch.Tensor:
    """Coherence [F, C, C] of noise that comes from everywhere alike: sin(k r) / (k r).

    Microphones are at [C, 3] in metres, frequencies [F] in Hz. Computed in float64.

    Source: Cook et al., "Measurement of correlation coefficients in reverberant sound
    fields", JASA 27(6), 1955.

    Example
    -------
    >>> microphones = torch.tensor([[0.0, 0, 0], [0.1715, 0, 0]])
    >>> diffuse_coherence(microphones, torch.tensor([1000.0]))[0, 0, 1].abs() < 1e-6
    tensor(True)
    """
    microphones = microphones.double()
    distances = torch.linalg.vector_norm(microphones[:, None] - microphones, dim=-1)
    frequencies = frequencies.to(microphones.device, torch.float64)
    # torch.sinc(x) is sin(pi x) / (pi x).
    argument = 2 * frequencies[:, None, None] * distances / SPEED_OF_SOUND
    return torch.sinc(argument).to(dtype)


def mean_power(covariance: torch.Tensor) -> torch.Tensor:
    """Mean power of a covariance [..., C, C] over its microphones; 1 where it is silent.

    To divide by the result is always safe.

    Example
    -------
    >>> mean_power(torch.stack([4 * torch.eye(2), torch.zeros(2, 2)]))
    tensor([4., 1.])
    """
    power = covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    return torch.where(power <= SILENCE, 1.0, power)


def is_silent(covariance: torch.Tensor) -> torch.Tensor:
    """True where a covariance [..., C, C] holds nothing to learn from."""
    power = covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    return power <= SILENCE


def load_diagonal(covariance: torch.Tensor, loading: float) -> torch.Tensor:
    """Scale to a mean power of 1 and add `loading` to the diagonal.

    So the loading is relative to the level: it is the sensor noise that is assumed, and
    no scale of the input makes it too little or too much. A silent covariance becomes
    the identity, with which every beamformer is a delay-and-sum.

    Example
    -------
    >>> load_diagonal(torch.full((2, 2), 4.0), 0.5)
    tensor([[1.5000, 1.0000],
            [1.0000, 1.5000]])
    """
    C = covariance.shape[-1]
    identity = torch.eye(C, dtype=covariance.dtype, device=covariance.device)
    scaled = covariance / mean_power(covariance)[..., None, None]
    loaded = scaled + loading * identity
    return torch.where(is_silent(covariance)[..., None, None], identity, loaded)


def positive_part(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest positive semi-definite matrix: eigenvalues below zero become zero.

    What is left of a mixture's covariance after the noise's was subtracted may have
    such eigenvalues, for both are estimates. The gradient is finite even where
    eigenvalues coincide, where that of `torch.linalg.eigh` is not. [..., C, C].

    Example
    -------
    >>> positive_part(torch.diag(torch.tensor([2.0, -1.0])))
    tensor([[2., 0.],
            [0., 0.]])
    """
    return _PositivePart.apply(_hermitian(matrix))


class _PositivePart(torch.autograd.Function):
    """Eigenvalues clamped at zero; the derivative is that of Daleckii and Krein."""

    @staticmethod
    def forward(context, matrix):
        values, vectors = torch.linalg.eigh(matrix)
        context.save_for_backward(values, vectors)
        return (vectors * values.clamp(min=0).unsqueeze(-2)) @ vectors.mH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        values, vectors = context.saved_tensors
        kept = values.clamp(min=0)
        rise = kept.unsqueeze(-1) - kept.unsqueeze(-2)
        run = values.unsqueeze(-1) - values.unsqueeze(-2)
        same = run == 0
        slope = torch.where(
            same, (values > 0).to(run.dtype).unsqueeze(-1), rise / run.masked_fill(same, 1)
        )
        inner = vectors.mH @ _hermitian(gradient) @ vectors
        return vectors @ (slope * inner) @ vectors.mH


def _frame_weights(mask: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
    B, _, F, L = spectrum.shape
    if mask.is_complex():
        raise ValueError("a mask has to be real; a spectrum stands for itself")
    try:
        return mask.to(spectrum.real.dtype).expand(B, F, L)
    except RuntimeError as error:
        raise ValueError(
            f"mask: shape {tuple(mask.shape)}, but it has to broadcast to "
            f"[B, F, L] = {[B, F, L]}"
        ) from error


def _hermitian(matrix: torch.Tensor) -> torch.Tensor:
    # Rounding leaves a little of the other part.
    return (matrix + matrix.mH) / 2
