"""Losses: equal to SpeechBrain's, blind to padding, defined for silence."""

import pytest
import torch
from drawn import randn
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.nnet.losses import cal_si_snr, get_si_snr_with_pitwrapper

from unified_se_ss.losses import (
    permutation_invariant_si_snr,
    reorder_sources,
    representation_loss,
    si_snr,
)


@pytest.mark.parametrize("sources", [2, 3])
def test_equals_speechbrain_pit(sources):
    target = randn(4, sources, 900)
    estimate = target.flip(1) + 0.3 * randn(4, sources, 900, seed=1)
    score, permutation = permutation_invariant_si_snr(estimate, target)
    theirs = get_si_snr_with_pitwrapper(target.transpose(1, 2), estimate.transpose(1, 2))
    torch.testing.assert_close(-score, theirs, rtol=1e-12, atol=1e-12)
    ordered = reorder_sources(estimate, permutation)
    again = si_snr(ordered, target).mean(-1)
    torch.testing.assert_close(again, score, rtol=1e-12, atol=1e-12)


def test_equals_speechbrain_with_lengths():
    target, estimate = randn(900, 3, 1), randn(900, 3, 1, seed=1)
    lengths = torch.tensor([900, 450, 90])
    theirs = -cal_si_snr(target, estimate)  # wants time first
    ours = si_snr(estimate[..., 0].T, target[..., 0].T)
    torch.testing.assert_close(ours, theirs.squeeze(), rtol=1e-12, atol=1e-12)
    for item, length in enumerate(lengths.tolist()):
        alone = si_snr(estimate[:length, item].T, target[:length, item].T)
        padded = si_snr(estimate[..., 0].T, target[..., 0].T, lengths)[item]
        torch.testing.assert_close(padded, alone.squeeze(), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 300), min_size=1, max_size=4),
    sources=st.integers(2, 3),
    rubbish=st.sampled_from([0.0, 7.0, float("nan"), float("inf")]),
    seed=st.integers(0, 9999),
)
def test_padding_never_counts(lengths, sources, rubbish, seed):
    longest = max(lengths)
    target = randn(len(lengths), sources, longest, seed=seed)
    estimate = randn(len(lengths), sources, longest, seed=seed + 1)
    for item, length in enumerate(lengths):
        target[item, :, length:] = rubbish
        estimate[item, :, length:] = rubbish
    before = estimate.clone()
    score, _ = permutation_invariant_si_snr(estimate, target, torch.tensor(lengths))
    assert torch.equal(torch.nan_to_num(before), torch.nan_to_num(estimate))
    for item, length in enumerate(lengths):
        alone, _ = permutation_invariant_si_snr(
            estimate[item : item + 1, :, :length], target[item : item + 1, :, :length]
        )
        torch.testing.assert_close(score[item], alone[0], rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.1, 10), offset=st.floats(-1, 1), seed=st.integers(0, 9999))
def test_scale_and_offset_do_not_matter(scale, offset, seed):
    target, estimate = randn(1, 400, seed=seed), randn(1, 400, seed=seed + 1)
    torch.testing.assert_close(
        si_snr(scale * estimate + offset, target),
        si_snr(estimate, target),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("silent", ["estimate", "target", "both"])
def test_silence_has_a_value_and_a_finite_gradient(silent):
    target, estimate = randn(1, 2, 200), randn(1, 2, 200, seed=1)
    if silent in ("estimate", "both"):
        estimate = torch.zeros_like(estimate)
    if silent in ("target", "both"):
        target = torch.zeros_like(target)
    estimate.requires_grad_()
    score, _ = permutation_invariant_si_snr(estimate, target)
    score.sum().backward()
    assert score.item() == pytest.approx(-80.0)
    assert torch.isfinite(estimate.grad).all()


def test_exact_in_fp32_at_70_db():
    target, noise = randn(1, 32000), randn(1, 32000, seed=1)
    estimate = target + 10 ** (-70 / 20) * noise
    reference = si_snr(estimate, target)
    single = si_snr(estimate.float(), target.float())
    torch.testing.assert_close(single.double(), reference, atol=0.01, rtol=0)


def test_gradient_is_the_numerical_one():
    target = randn(2, 2, 30)
    estimate = (target + 0.5 * randn(2, 2, 30, seed=3)).requires_grad_()
    lengths = torch.tensor([30, 21])
    torch.autograd.gradcheck(
        lambda x: permutation_invariant_si_snr(x, target, lengths)[0], estimate
    )


@pytest.mark.parametrize("kind", ["sum", "relative"])
def test_representation_loss_of_padded_batch_is_that_of_the_items(kind):
    enhanced, clean = randn(3, 4, 20), randn(3, 4, 20, seed=1)
    frames = torch.tensor([20, 11, 1])
    enhanced[1, :, 11:] = float("nan")
    padded = representation_loss(enhanced, clean, frames, kind)
    for item, count in enumerate(frames.tolist()):
        alone = representation_loss(
            enhanced[item : item + 1, :, :count],
            clean[item : item + 1, :, :count],
            None,
            kind,
        )
        torch.testing.assert_close(padded[item], alone[0], rtol=1e-12, atol=0)


def test_representation_losses_are_what_they_are_called():
    enhanced, clean = randn(2, 4, 20), randn(2, 4, 20, seed=1)
    theirs = torch.nn.functional.mse_loss(enhanced, clean, reduction="sum")
    torch.testing.assert_close(representation_loss(enhanced, clean).sum(), theirs)
    relative = representation_loss(enhanced, clean, kind="relative")
    louder = representation_loss(7 * enhanced, 7 * clean, kind="relative")
    torch.testing.assert_close(relative, louder)
    half = representation_loss(enhanced.bfloat16(), clean.bfloat16())
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match="se_loss is 'l1'; expected one of: sum, relative"):
        representation_loss(enhanced, clean, kind="l1")


def test_a_silent_clean_mixture_stays_finite():
    enhanced = randn(1, 4, 20).requires_grad_()
    loss = representation_loss(enhanced, torch.zeros(1, 4, 20).double(), kind="relative")
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(enhanced.grad).all()
