"""SNR of two ears: equal to SpeechBrain's, holds levels, blind to padding."""

import itertools

import pytest
import torch
from drawn import randn
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.nnet.losses import get_snr_with_pitwrapper

from unified_se_ss.losses import permutation_invariant_snr, snr


@pytest.mark.parametrize("sources", [2, 3])
def test_equals_speechbrain_pit(sources):
    target = randn(4, sources, 2, 900)
    shuffled = target.roll(1, 1) + 0.3 * randn(4, sources, 2, 900, seed=1)
    shuffled[1] = target[1] + 0.2
    score, permutation = permutation_invariant_snr(shuffled, target)
    # It takes items one by one, [T, E, B, C] within; its own batches are not served.
    for item in range(4):
        theirs = get_snr_with_pitwrapper(
            target[item : item + 1].permute(0, 3, 2, 1).clone(),
            shuffled[item : item + 1].permute(0, 3, 2, 1).clone(),
        )
        torch.testing.assert_close(-score[item], theirs.mean(), rtol=1e-12, atol=1e-12)
    expected = [(number + 1) % sources for number in range(sources)]
    assert permutation[0].tolist() == expected
    assert permutation[1].tolist() == list(range(sources))


@pytest.mark.parametrize("sources", [2, 3])
def test_finds_every_permutation(sources):
    target = randn(1, sources, 2, 200)
    for order in itertools.permutations(range(sources)):
        estimates = torch.empty_like(target)
        estimates[:, list(order)] = 0.9 * target
        score, permutation = permutation_invariant_snr(estimates, target)
        assert permutation[0].tolist() == list(order)
        assert score.item() == pytest.approx(20.0, abs=1e-6)


def test_both_ears_have_one_permutation():
    """The left ear would be assigned one way, the right ear, more clearly, the other."""
    target = randn(1, 2, 2, 400)
    estimates = torch.empty_like(target)
    estimates[:, :, 0] = target[:, :, 0] + 0.5 * randn(1, 2, 400, seed=1)
    estimates[:, :, 1] = target[:, :, 1].flip(1) + 0.01 * randn(1, 2, 400, seed=2)
    score, permutation = permutation_invariant_snr(estimates, target)
    assert permutation[0].tolist() == [1, 0]
    mean = snr(estimates.flip(1), target).mean()
    torch.testing.assert_close(score[0], mean, rtol=1e-12, atol=0)


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(0.05, 0.95), scale=st.floats(0.1, 10), seed=st.integers(0, 9999))
def test_a_wrong_level_counts_and_a_common_one_does_not(gain, scale, seed):
    target = randn(1, 400, seed=seed)
    closed = -20 * torch.log10(torch.tensor(1 - gain, dtype=torch.float64))
    for louder in (1.0, scale):
        value = snr(gain * louder * target, louder * target)
        assert value.item() == pytest.approx(closed.item(), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 300), min_size=1, max_size=4),
    sources=st.integers(2, 3),
    rubbish=st.sampled_from([0.0, 7.0, float("nan"), float("inf")]),
    seed=st.integers(0, 9999),
)
def test_padding_never_counts(lengths, sources, rubbish, seed):
    longest = max(lengths)
    target = randn(len(lengths), sources, 2, longest, seed=seed)
    estimate = randn(len(lengths), sources, 2, longest, seed=seed + 1)
    for item, length in enumerate(lengths):
        target[item, ..., length:] = rubbish
        estimate[item, ..., length:] = rubbish
    estimate.requires_grad_()
    score, _ = permutation_invariant_snr(estimate, target, torch.tensor(lengths))
    (gradient,) = torch.autograd.grad(score.sum(), estimate)
    for item, length in enumerate(lengths):
        alone, _ = permutation_invariant_snr(
            estimate[item : item + 1, ..., :length], target[item : item + 1, ..., :length]
        )
        torch.testing.assert_close(score[item], alone[0], rtol=1e-9, atol=1e-9)
        assert (gradient[item, ..., length:] == 0).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("silent", ["estimate", "target", "both"])
def test_silence_has_a_value_and_a_finite_gradient(silent):
    target, estimate = randn(1, 2, 2, 200), randn(1, 2, 2, 200, seed=1)
    if silent in ("estimate", "both"):
        estimate = torch.zeros_like(estimate)
    if silent in ("target", "both"):
        target = torch.zeros_like(target)
    estimate.requires_grad_()
    score, _ = permutation_invariant_snr(estimate, target)
    score.sum().backward()
    assert score.item() == pytest.approx(0.0 if silent == "estimate" else -80.0, abs=1e-6)
    assert torch.isfinite(estimate.grad).all()


def test_exact_in_fp32_at_70_db():
    target, noise = randn(1, 2, 2, 32000), randn(1, 2, 2, 32000, seed=1)
    estimate = target + 10 ** (-70 / 20) * noise
    reference, _ = permutation_invariant_snr(estimate, target)
    single, _ = permutation_invariant_snr(estimate.float(), target.float())
    torch.testing.assert_close(single.double(), reference, atol=0.01, rtol=0)


def test_half_precision_is_computed_in_fp32():
    target, estimate = randn(1, 2, 2, 400).bfloat16(), randn(1, 2, 2, 400).bfloat16()
    assert permutation_invariant_snr(estimate, target)[0].dtype == torch.float32


def test_gradient_is_the_numerical_one():
    target = randn(2, 2, 2, 30)
    estimate = (target + 0.5 * randn(2, 2, 2, 30, seed=3)).requires_grad_()
    lengths = torch.tensor([30, 21])
    torch.autograd.gradcheck(
        lambda x: permutation_invariant_snr(x, target, lengths)[0], estimate
    )


def test_one_ear_is_a_mono_mixture():
    target, estimate = randn(3, 2, 100), randn(3, 2, 100, seed=1)
    score, permutation = permutation_invariant_snr(estimate, target)
    with_ear, same = permutation_invariant_snr(estimate.unsqueeze(2), target.unsqueeze(2))
    assert torch.equal(score, with_ear) and torch.equal(permutation, same)
