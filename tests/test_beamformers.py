"""Beamformers: against torchaudio, scipy and closed forms."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.spatial import to_vector
from unified_se_ss.spatial.beamformers import (
    BEAMFORMERS,
    LOADING,
    MVDR,
    RTFMVDR,
    DelayAndSum,
    MultichannelWiener,
    SoudenMVDR,
    Superdirective,
    apply_weights,
    noise_context,
    relative_transfer_function,
)
from unified_se_ss.spatial.covariance import (
    diffuse_coherence,
    load_diagonal,
    positive_part,
    recursive_covariance,
    spatial_covariance,
    stack_taps,
)
from unified_se_ss.spatial.geometry import (
    bin_frequencies,
    circle_array,
    line_array,
    near_field_steering,
)

RATE = 16000
FREQUENCIES = bin_frequencies(64, RATE)
B, C, F, L = 2, 4, 33, 40
MICROPHONES = line_array(C, 0.02)  # no direction is ambiguous up to 8 kHz
FAR = 1e4  # metres, from where a wave is plane
LOOK = near_field_steering(MICROPHONES, FAR * to_vector(20), FREQUENCIES)
COHERENT = near_field_steering(MICROPHONES, FAR * to_vector(-50), FREQUENCIES)
NAMES = sorted(BEAMFORMERS)
ADAPTIVE = ["mvdr", "multichannel_wiener", "rtf_mvdr", "souden_mvdr"]


def made(name, **kwargs):
    """A beamformer by its name, looking at `LOOK` where it needs that."""
    if name in ("delay_and_sum", "mvdr"):
        return BEAMFORMERS[name](LOOK, **kwargs)
    if name == "superdirective":
        return Superdirective(LOOK, MICROPHONES, FREQUENCIES)
    return BEAMFORMERS[name](**kwargs)


def drawn(*shape, seed=0, dtype=torch.complex64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.complex128).to(dtype)


def scene(seed=0, dtype=torch.complex128, sensor=0.03):
    """Target from 20, interferer from -50 degrees: mixture, target, noise [B, C, F, L].

    In double precision: covariances have condition numbers up to 1 / LOADING, so two ways
    to the same output agree in complex64 to some 1e-3, and how well depends on the processor.
    """
    source, other = drawn(2, B, 1, F, L, seed=seed, dtype=dtype)
    target = LOOK.T[..., None].to(dtype) * source
    hiss = sensor * drawn(B, C, F, L, seed=seed + 1, dtype=dtype)
    noise = COHERENT.T[..., None].to(dtype) * other + hiss
    return target + noise, target, noise


def decibels(power):
    return 10 * torch.log10(power)


def power(spectrum):
    return spectrum.abs().square().mean()


# Covariances


def test_covariance_is_numpys_and_torchaudios():
    spectrum = drawn(B, C, F, L, dtype=torch.complex128)
    ours = spatial_covariance(spectrum)
    theirs = np.cov(spectrum[1, :, 5].numpy(), bias=True)
    mean = spectrum[1, :, 5].mean(-1)
    np.testing.assert_allclose(
        ours[1, 5] - torch.outer(mean, mean.conj()), theirs, atol=1e-12
    )
    torch.testing.assert_close(ours, torchaudio.functional.psd(spectrum) / L)
    mask = torch.rand(B, F, L, dtype=torch.float64)
    torch.testing.assert_close(
        spatial_covariance(spectrum, mask),
        torchaudio.functional.psd(spectrum, mask, eps=0.0),
    )


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.5, 1.0))
@settings(max_examples=25, deadline=None)
def test_covariances_are_hermitian_and_positive(seed, frames, forgetting):
    spectrum = drawn(1, 3, 2, frames, seed=seed)
    mask = torch.rand(1, 2, frames, generator=torch.Generator().manual_seed(seed))
    every, _ = recursive_covariance(spectrum, mask, forgetting)
    for covariance in (spatial_covariance(spectrum, mask), every):
        assert torch.equal(covariance, covariance.mH)
        assert torch.linalg.eigvalsh(covariance).min() > -1e-5


def test_recursion_is_the_exponential_average():
    """Weights of 1: the mean of x x^H weighted by forgetting^age, in closed form."""
    spectrum = drawn(1, 2, 1, 30, dtype=torch.complex128)
    covariances, _ = recursive_covariance(spectrum, forgetting=0.9)
    ages = torch.arange(29, -1, -1, dtype=torch.float64)
    expected = spatial_covariance(spectrum, (0.9**ages)[None, None])
    torch.testing.assert_close(covariances[:, -1], expected)


@pytest.mark.parametrize("masked", [False, True])
def test_with_forgetting_1_the_recursion_is_the_mean_so_far(masked):
    spectrum = drawn(B, C, F, L, dtype=torch.complex128)
    mask = torch.rand(B, F, L, dtype=torch.float64) if masked else None
    covariances, _ = recursive_covariance(spectrum, mask, 1.0)
    for frames in (1, 7, L):
        part = None if mask is None else mask[..., :frames]
        expected = spatial_covariance(spectrum[..., :frames], part)
        torch.testing.assert_close(covariances[:, frames - 1], expected)


def test_frames_of_no_weight_change_and_forget_nothing():
    """A noise covariance learnt once holds through ten minutes of speech."""
    spectrum = drawn(1, 2, 1, 20)
    _, learnt = recursive_covariance(spectrum, forgetting=0.9)
    speech = 100 * drawn(1, 2, 1, 500, seed=1)
    _, held = recursive_covariance(speech, torch.zeros(1, 1, 500), 0.9, learnt)
    assert torch.equal(held.covariance, learnt.covariance)
    assert torch.equal(held.evidence, learnt.evidence)


def test_positive_part_is_the_nearest_and_has_its_gradient():
    matrix = drawn(3, 4, 4, dtype=torch.complex128)
    matrix = matrix + matrix.mH
    values, vectors = scipy.linalg.eigh(matrix[0].numpy())
    expected = (vectors * values.clip(0)) @ vectors.conj().T
    np.testing.assert_allclose(positive_part(matrix)[0], expected, atol=1e-12)
    matrix.requires_grad_()
    # Hermitian by construction, so that a finite difference stays Hermitian.
    assert torch.autograd.gradcheck(lambda m: positive_part(m + m.mH), matrix)


def test_positive_part_has_a_finite_gradient_where_eigenvalues_coincide():
    matrix = (torch.eye(3) + 0j).requires_grad_()
    positive_part(matrix)[0, 1].real.backward()
    assert matrix.grad.isfinite().all() and matrix.grad.abs().sum() > 0


def test_loading_is_relative_to_the_level():
    covariance = spatial_covariance(drawn(1, C, F, L))
    for scale in (1e-12, 1.0, 1e12):
        torch.testing.assert_close(
            load_diagonal(scale * covariance, 1e-3), load_diagonal(covariance, 1e-3)
        )


# Weights


@pytest.mark.parametrize("loading", [0.0, 1e-3])
def test_weights_are_torchaudios(loading):
    target = spatial_covariance(drawn(B, C, F, L, dtype=torch.complex128))
    noise = spatial_covariance(drawn(B, C, F, L, seed=1, dtype=torch.complex128))
    # Theirs is relative to the trace, and has 1e-8 besides.
    theirs = {"diagonal_loading": loading > 0, "diag_eps": loading / C, "eps": 0.0}
    tolerance = {"rtol": 0, "atol": 1e-12 if loading == 0 else 1e-6}
    f = torchaudio.functional
    for reference in (0, 2):
        transfer = relative_transfer_function(target, noise, reference, 3, loading)
        for ours, expected in (
            (SoudenMVDR, f.mvdr_weights_souden(target, noise, reference, **theirs)),
            (RTFMVDR, f.mvdr_weights_rtf(transfer, noise, reference, **theirs)),
        ):
            weights = ours(reference, loading=loading).weights(target, noise)
            torch.testing.assert_close(weights, expected, **tolerance)
    torch.testing.assert_close(
        MVDR(transfer, loading).weights(None, noise),
        f.mvdr_weights_rtf(transfer, noise, **theirs),
        **tolerance,
    )


def test_the_power_method_ends_at_the_generalised_eigenvector():
    target = spatial_covariance(drawn(1, C, 1, 5, dtype=torch.complex128))[0, 0]
    noise = spatial_covariance(drawn(1, C, 1, L, seed=1, dtype=torch.complex128))[0, 0]
    _, vectors = scipy.linalg.eigh(target.numpy(), noise.numpy())
    expected = noise.numpy() @ vectors[:, -1]
    found = relative_transfer_function(target, noise, 0, 300, loading=0.0).numpy()
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("azimuth", [-80.0, -50.0, 60.0])
def test_mvdr_nulls_an_interferer_and_keeps_the_look_direction(azimuth, dtype):
    """Known covariance: one plane wave and sensor noise 30 dB below it."""
    d = LOOK.to(dtype)
    interferer = near_field_steering(
        MICROPHONES, FAR * to_vector(azimuth), FREQUENCIES, dtype=dtype
    )
    noise = torch.einsum("fc,fe->fce", interferer, interferer.conj())
    noise = (noise + 1e-3 * torch.eye(C)).to(dtype)
    weights = MVDR(d).weights(None, noise)
    response = (weights.conj() * d).sum(-1)
    assert decibels(response.abs().square()).abs().max() <= 0.1
    assert response.angle().abs().max() <= math.radians(0.1)
    # Without a frequency there are no directions.
    depth = -decibels((weights.conj() * interferer).sum(-1).abs().square())[1:]
    assert depth.min() >= 20 and depth.median() >= 60


@pytest.mark.parametrize("name", ["souden_mvdr", "rtf_mvdr", "mvdr"])
def test_mvdr_is_distortionless_and_nulls_with_estimated_covariances(name):
    mixture, target, noise = scene()
    beamformer = made(name)
    weights = beamformer.weights(spatial_covariance(target), spatial_covariance(noise))
    passed = apply_weights(weights, target)
    # The loading of 1e-4 is all that parts it from 1.
    assert power(passed - target[:, 0]) < 1e-4 * power(target[:, 0])
    level = decibels(power(passed) / power(target[:, 0]))
    assert level.abs() < 0.1
    torch.testing.assert_close(
        beamformer(mixture, target, noise), apply_weights(weights, mixture)
    )
    at = FREQUENCIES >= 500
    left = power(apply_weights(weights, noise)[:, at]) / power(noise[:, 0, at])
    assert decibels(left) < -20


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_loses_no_more_than_the_conditioning_allows(name):
    beamformer = made(name)
    exact = beamformer(*scene())
    single = beamformer(*(part.to(torch.complex64) for part in scene()))
    assert single.dtype == torch.complex64
    allowed = C / LOADING * torch.finfo(torch.complex64).eps
    assert power(single - exact) < allowed**2 * power(exact)


def test_delay_and_sum_and_superdirective_are_distortionless():
    for weights in (
        DelayAndSum(LOOK).weights(),
        Superdirective(LOOK, MICROPHONES, FREQUENCIES).weights(),
    ):
        response = (weights.conj() * LOOK).sum(-1)
        torch.testing.assert_close(response, torch.ones(F) + 0j, rtol=0, atol=1e-5)


def test_superdirective_has_more_directivity_and_keeps_the_white_noise_gain():
    microphones, frequencies = circle_array(6, 0.04), bin_frequencies(320, RATE)
    d = near_field_steering(
        microphones, FAR * to_vector(0), frequencies, dtype=torch.complex128
    )
    coherence = diffuse_coherence(microphones, frequencies, dtype=torch.complex128)

    def directivity(w):
        return decibels(1 / torch.einsum("fc,fce,fe->f", w.conj(), coherence, w).real)

    def white_noise_gain(w):
        return -decibels(w.abs().square().sum(-1))

    sum_weights = d / 6
    free = Superdirective(d, microphones, frequencies, 1e-6).weights()
    held = Superdirective(d, microphones, frequencies, 1e-6, white_noise_gain=-5).weights()
    assert (directivity(free) >= directivity(sum_weights) - 1e-6).all()
    assert (directivity(free)[5:80] > directivity(held)[5:80] - 1e-6).all()
    assert (directivity(held)[20:60] > directivity(sum_weights)[20:60] + 2).all()
    assert white_noise_gain(free).min() < -20
    assert white_noise_gain(held).min() >= -5.001
    # Where the floor binds, it is met and no more.
    bound = white_noise_gain(free) < -5
    torch.testing.assert_close(
        white_noise_gain(held)[bound],
        torch.full_like(frequencies[bound], -5.0),
        rtol=0,
        atol=1e-3,
    )
    with pytest.raises(ValueError, match="7.78 dB"):
        Superdirective(d, microphones, frequencies, white_noise_gain=8.0)


def test_wiener_weights_are_the_least_squares_filter():
    """Against numpy's least squares over the very samples, with two taps."""
    mixture, target, noise = scene(dtype=torch.complex128)
    x, s = stack_taps(mixture, 2)[0], stack_taps(target, 2)[0]
    # S such that S u = E[x conj(s_r)], all that least squares knows.
    total = spatial_covariance(x)
    cross = torch.einsum("bcfl,befl->bfce", x, s.conj()) / L
    weights = MultichannelWiener(loading=0.0).weights(cross, total - cross)
    for f in (3, 20):
        heard, wanted = x[0, :, f].numpy().T, target[0, 0, f].numpy()
        expected, *_ = np.linalg.lstsq(heard.conj(), wanted.conj(), rcond=None)
        np.testing.assert_allclose(weights[0, f], expected, rtol=1e-6, atol=1e-8)


def test_one_microphone_and_one_tap_is_the_wiener_gain():
    target, noise = torch.tensor([[[2.0 + 0j]]]), torch.tensor([[[6.0 + 0j]]])
    for weight, gain in ((1.0, 0.25), (3.0, 0.1)):
        beamformer = MultichannelWiener(noise_weight=weight, loading=0.0)
        found = beamformer.weights(target, noise)
        torch.testing.assert_close(found, torch.tensor([[gain + 0j]]))


def test_wiener_learns_from_the_noise_before_the_speech():
    """Context of noise alone, then both: the beamformer in front of GSENet."""
    quiet, frames = 100, 300
    source = drawn(B, 1, F, frames)
    source[..., :quiet] = 0
    other = drawn(B, 1, F, frames, seed=1)
    hiss = 0.03 * drawn(B, C, F, frames, seed=2)
    target = LOOK.T[..., None] * source
    noise = COHERENT.T[..., None] * other + hiss
    mixture = target + noise
    for taps in (1, 2):
        beamformer = MultichannelWiener(taps, forgetting=0.995)
        known = noise_context(mixture, quiet)
        offline = beamformer(mixture, noise=known)
        recursive, _ = beamformer.recursive(mixture, noise=known)
        at = FREQUENCIES >= 500
        for output in (offline, recursive):
            error = power((output - target[:, 0])[:, at, 150:])
            assert decibels(power(target[:, 0, at, 150:]) / error) > 10


# Offline and recursive


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guided_by", ["spectra", "masks", "noise alone"])
def test_with_forgetting_1_the_last_frame_is_the_offline_one(name, guided_by):
    mixture, target, noise = scene(dtype=torch.complex128)
    if guided_by == "masks":
        target, noise = torch.rand(2, B, F, L, dtype=torch.float64)
    if guided_by == "noise alone":
        target = None
    beamformer = made(name)
    beamformer.forgetting = 1.0
    offline = beamformer(mixture, target, noise)
    recursive, _ = beamformer.recursive(mixture, target, noise)
    assert offline.shape == recursive.shape == (B, F, L)
    torch.testing.assert_close(recursive[..., -1], offline[..., -1])
    if name in ADAPTIVE:
        assert not torch.allclose(recursive[..., 1], offline[..., 1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cuts", [(1, 2, 3), (0, 17, 39)])
def test_blocks_of_any_length_are_the_whole(name, cuts):
    mixture, target, noise = scene()
    beamformer = made(name)
    whole, _ = beamformer.recursive(mixture, target, noise)
    state, outputs = None, []
    for start, end in zip((0, *cuts), (*cuts, L)):
        at = (..., slice(start, end))
        output, state = beamformer.recursive(mixture[at], target[at], noise[at], state)
        outputs.append(output)
    assert power(torch.cat(outputs, -1) - whole) < 1e-20 * power(whole)


def test_a_long_item_is_the_same_in_its_inner_blocks(monkeypatch):
    mixture, target, noise = scene()
    beamformer = made("multichannel_wiener")
    whole, _ = beamformer.recursive(mixture, target, noise)
    monkeypatch.setattr("unified_se_ss.spatial.beamformers._FRAMES_AT_ONCE", 7)
    blocks, _ = beamformer.recursive(mixture, target, noise)
    assert power(blocks - whole) < 1e-6 * power(whole)


@pytest.mark.parametrize("name", NAMES)
def test_padding_at_the_end_changes_no_offline_output(name):
    mixture, target, noise = scene(dtype=torch.complex128)
    padded = [torch.nn.functional.pad(part, (0, 13)) for part in (mixture, target, noise)]
    beamformer = made(name, **({"taps": 1} if name == "multichannel_wiener" else {}))
    torch.testing.assert_close(
        beamformer(*padded)[..., :L], beamformer(mixture, target, noise)
    )


# What may go wrong


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("silent", ["all", "target", "noise", "one microphone"])
def test_silence_is_finite_and_so_are_its_gradients(name, silent):
    mixture, target, noise = scene()
    if silent in ("all", "target"):
        target = torch.zeros_like(target)
    if silent in ("all", "noise"):
        noise = torch.zeros_like(noise)
    if silent == "one microphone":
        target[:, 2], noise[:, 2] = 0, 0
    mixture = (target + noise).requires_grad_()
    target.requires_grad_()
    noise.requires_grad_()
    beamformer = made(name)
    for guide in (target, None):
        for output in (
            beamformer(mixture, guide, noise),
            beamformer.recursive(mixture, guide, noise)[0],
        ):
            assert output.isfinite().all()
            if silent == "all":
                assert (output == 0).all()
            output.abs().square().sum().backward()
    for part in (mixture, target, noise):
        assert part.grad is None or part.grad.isfinite().all()


def test_what_silence_makes_of_each():
    mixture, target, noise = scene()
    nothing = torch.zeros_like(mixture)
    # No noise so far: delay-and-sum.
    torch.testing.assert_close(
        MVDR(LOOK)(mixture, None, nothing), DelayAndSum(LOOK)(mixture)
    )
    # No target: the reference microphone passes, or nothing.
    for beamformer in (SoudenMVDR(reference=1), RTFMVDR(reference=1)):
        torch.testing.assert_close(beamformer(mixture, nothing, noise), mixture[:, 1])
    assert (MultichannelWiener()(mixture, nothing, noise) == 0).all()
    # No noise: the target alone, as the reference records it.
    passed = MultichannelWiener(taps=1)(target, target, nothing)
    assert power(passed - target[:, 0]) < 1e-6 * power(target[:, 0])


def test_a_singular_covariance_needs_the_loading():
    noise = torch.ones(1, F, C, C, dtype=torch.complex64)
    assert MVDR(LOOK).weights(None, noise).isfinite().all()
    with pytest.raises(RuntimeError, match="singular"):
        MVDR(torch.ones(2), loading=0.0).weights(None, torch.ones(2, 2) + 0j)


def test_scale_does_not_matter():
    mixture, target, noise = scene()
    for name in NAMES:
        beamformer = made(name)
        expected = beamformer(mixture, target, noise)
        for scale in (1e-10, 1e10):
            output = beamformer(scale * mixture, scale * target, scale * noise) / scale
            assert power(output - expected) < 1e-6 * power(expected)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_gradients_reach_masks_and_mixture(name):
    mixture = scene(dtype=torch.complex128)[0][:1, :, 8:10, :5].requires_grad_()
    target, noise = torch.rand(2, 1, 2, 5, dtype=torch.float64).requires_grad_()
    if name == "mvdr":
        beamformer = MVDR(LOOK[8:10].to(torch.complex128), loading=1e-2)
    else:
        beamformer = made(name, loading=1e-2)
    for guide in (target, None):
        given = mixture, guide, noise
        for way in (beamformer, lambda *given: beamformer.recursive(*given)[0]):
            assert torch.autograd.gradcheck(way, given, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_complex64(name):
    """Masks in bfloat16, as a network under autocast gives them; spectra in complex32."""
    mixture = scene(dtype=torch.complex64)[0]
    target, noise = torch.rand(2, B, F, L).bfloat16()
    beamformer = made(name)
    expected = beamformer(mixture, target.float(), noise.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(beamformer(mixture, target, noise), expected)
        recursive, _ = beamformer.recursive(mixture, target, noise)
    assert recursive.dtype == expected.dtype == torch.complex64
    half = mixture.to(torch.complex32)
    output = beamformer(half, target, noise)
    assert output.dtype == torch.complex64
    assert power(output - expected) < 1e-4 * power(expected)


def test_one_direction_for_each_item():
    mixture, _, noise = scene()
    for make in (MVDR, DelayAndSum, lambda d: Superdirective(d, MICROPHONES, FREQUENCIES)):
        together = make(torch.stack([LOOK, COHERENT]))
        for item, d in enumerate((LOOK, COHERENT)):
            at = slice(item, item + 1)
            for way in (
                lambda b, *given: b(*given),
                lambda b, *given: b.recursive(*given)[0],
            ):
                alone = way(make(d), mixture[at], None, noise[at])
                torch.testing.assert_close(way(together, mixture, None, noise)[at], alone)


def test_what_is_wrong_is_said():
    mixture, beamformer = scene()[0], SoudenMVDR()
    for spectra, noise, message in (
        (mixture, None, "needs to know the noise"),
        (mixture.real, mixture, "complex"),
        (mixture, torch.ones(B, F + 1, L), "mask: shape"),
        (mixture, mixture[:, :2], "noise: shape"),
        (mixture[0], mixture[0], r"\[B, C, F, L\]"),
    ):
        with pytest.raises(ValueError, match=message):
            beamformer(spectra, noise=noise)
    with pytest.raises(ValueError, match="forgetting"):
        SoudenMVDR(forgetting=1.5)
    with pytest.raises(ValueError, match="taps"):
        MultichannelWiener(taps=0)
