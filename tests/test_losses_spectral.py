"""STFT losses: equal to their formulas, blind to padding, and to nothing else."""

import numpy as np
import pytest
import torch
from drawn import randn
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.losses import STFT_LOSSES, stft_loss

KINDS = [*STFT_LOSSES]


# ------------------------------------------------------------------ the formulas


def numpy_spectra(signal, window, hop):
    """Frames one by one, with numpy alone; silence around, so that all is covered."""
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.concatenate((np.zeros(window - hop), signal, np.zeros(window)))
    first = range(0, len(signal) + window - hop, hop)
    return np.array([np.fft.rfft(shape * padded[n : n + window]) for n in first])


def by_numpy(kind, estimate, target, window, hop):
    """The formulas of the docstring, for one item."""
    e, t = (numpy_spectra(signal, window, hop) for signal in (estimate, target))
    if kind == "compressed":
        c_e, c_t = np.abs(e) ** 0.3, np.abs(t) ** 0.3
        phases = c_e * np.exp(1j * np.angle(e)) - c_t * np.exp(1j * np.angle(t))
        return 0.7 * np.mean((c_e - c_t) ** 2) + 0.3 * np.mean(np.abs(phases) ** 2)
    if kind == "linear_l1":
        parts = np.abs((e - t).real) + np.abs((e - t).imag)
        return np.mean(parts + np.abs(np.abs(e) - np.abs(t)))
    normalised = np.abs(e) / np.linalg.norm(e) - np.abs(t) / np.linalg.norm(t)
    return np.mean(np.abs(normalised)) + np.linalg.norm(e - t) / np.linalg.norm(t)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window, hop, samples", [(1024, 256, 5000), (256, 100, 700)])
def test_equals_its_formula(kind, window, hop, samples):
    target = randn(3, samples)
    estimate = 0.7 * target.roll(5, -1) + 0.5 * randn(3, samples, seed=1)
    losses = stft_loss(estimate, target, kind=kind, window=window, hop=hop)
    for item, loss in enumerate(losses):
        expected = by_numpy(
            kind, *(x[item].numpy() for x in (estimate, target)), window, hop
        )
        assert float(loss) == pytest.approx(expected, rel=1e-3)


def test_published_terms_of_the_community_where_both_are_in_phase():
    """Of g·x for x: nothing of the first term, |g − 1| of the second, as there."""
    target = randn(2, 4000)
    for gain in (0.2, 1.0, 3.0):
        loss = stft_loss(gain * target, target, kind="l1_spectral_convergence")
        torch.testing.assert_close(loss, abs(gain - 1) + 0 * loss, rtol=1e-3, atol=1e-6)


def test_every_sample_weighs_the_same():
    """A click costs the same wherever it stands, at the very ends too."""
    silence, losses = torch.zeros(1, 3000, dtype=torch.float64), []
    for place in (0, 256, 512, 1280, 2816):
        click = silence.clone()
        click[0, place] = 1.0
        losses.append(stft_loss(click, silence, kind="linear_l1"))
    losses.append(stft_loss(click.flip(-1), silence, kind="linear_l1"))
    torch.testing.assert_close(
        torch.cat(losses[:-1]), losses[0].expand(5), rtol=1e-9, atol=0
    )
    assert 0.8 < losses[-1] / losses[0] < 1.2  # between two frames' places


# ------------------------------------------------------------------ blind to nothing


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    noise=st.floats(0, 0.9),
    level=st.floats(0.01, 10),
    seed=st.integers(0, 9999),
)
def test_the_wrong_sign_is_worse(kind, noise, level, seed):
    target = level * randn(2, 3000, seed=seed)
    estimate = target + noise * level * randn(2, 3000, seed=seed + 1)
    right, wrong = (stft_loss(x, target, kind=kind) for x in (estimate, -estimate))
    assert (wrong > 1.05 * right).all() and (wrong > 0.01).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_costs(kind):
    """The target is best; level, silence, a delay and a part that is missing cost."""
    target = randn(1, 6000)
    half = target.clone()
    half[:, 3000:] = 0
    assert stft_loss(target, target, kind=kind) == 0
    for worse in (0.9 * target, 1.1 * target, 0 * target, target.roll(1, -1), half):
        assert stft_loss(worse, target, kind=kind) > 0.001


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    lengths=st.lists(st.integers(1, 2500), min_size=1, max_size=3),
    more=st.integers(0, 1500),
    rubbish=st.sampled_from([0.0, 7.0, float("nan"), float("inf")]),
    seed=st.integers(0, 9999),
)
def test_padding_never_counts(kind, lengths, more, rubbish, seed):
    longest = max(lengths) + more
    target = randn(len(lengths), longest, seed=seed)
    estimate = randn(len(lengths), longest, seed=seed + 1)
    for item, length in enumerate(lengths):
        target[item, length:] = estimate[item, length:] = rubbish
    estimate.requires_grad_()
    together = stft_loss(estimate, target, torch.tensor(lengths), kind)
    (gradient,) = torch.autograd.grad(together.sum(), estimate)
    for item, length in enumerate(lengths):
        alone = estimate[item : item + 1, :length]
        loss = stft_loss(alone, target[item : item + 1, :length], kind=kind)
        torch.testing.assert_close(together[item], loss[0], rtol=1e-9, atol=1e-12)
        (of_alone,) = torch.autograd.grad(loss.sum(), alone)
        torch.testing.assert_close(gradient[item, :length], of_alone[0])
        assert (gradient[item, length:] == 0).all()


# ------------------------------------------------------------------ silence, precision


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-6, 1.0])
@pytest.mark.parametrize("true_level", [0.0, 1e-6, 1.0])
def test_losses_and_gradients_are_finite_at_silence(kind, level, true_level):
    estimate = (level * randn(2, 4000, dtype=torch.float32)).requires_grad_()
    target = true_level * randn(2, 4000, seed=1, dtype=torch.float32)
    loss = stft_loss(estimate, target, kind=kind)
    (gradient,) = torch.autograd.grad(loss.sum(), estimate)
    assert loss.isfinite().all() and gradient.isfinite().all()
    if level == true_level == 0:
        assert (loss == 0).all() and (gradient == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_right(kind):
    estimate, target = randn(2, 60).requires_grad_(), randn(2, 60, seed=1)
    lengths = torch.tensor([60, 33])

    def loss(x):
        return stft_loss(x, target, lengths, kind, window=32, hop=8)

    assert torch.autograd.gradcheck(loss, estimate)


@pytest.mark.parametrize("kind", KINDS)
def test_descent_finds_the_target(kind):
    target = randn(1, 400, dtype=torch.float32)
    estimate = (0.1 * randn(1, 400, seed=1, dtype=torch.float32)).requires_grad_()
    optimizer = torch.optim.Adam([estimate], lr=0.03)
    before = stft_loss(estimate, target, kind=kind, window=64, hop=16).item()
    for _ in range(250):
        optimizer.zero_grad()
        loss = stft_loss(estimate, target, kind=kind, window=64, hop=16)
        loss.sum().backward()
        optimizer.step()
    assert loss.item() < 0.15 * before
    assert torch.corrcoef(torch.cat((estimate, target)))[0, 1] > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_single(kind):
    estimate, target = randn(2, 3000).bfloat16(), randn(2, 3000, seed=1).bfloat16()
    loss = stft_loss(estimate, target, kind=kind)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, stft_loss(estimate.float(), target.float(), kind=kind))


# ------------------------------------------------------------------ what is refused


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="stft_loss is 'l2'; expected one of: compressed"):
        stft_loss(torch.zeros(1, 9), torch.zeros(1, 9), kind="l2")


@pytest.mark.parametrize("shape", [(1, 1, 9), (9,), (2, 9), (1, 8)])
def test_shapes_that_differ_are_refused(shape):
    with pytest.raises(ValueError, match="the same .batch, samples. of both"):
        stft_loss(torch.zeros(1, 9), torch.zeros(shape))
