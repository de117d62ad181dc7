"""Losses: equal to SpeechBrain's and to formulas, blind to padding, defined for silence."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from drawn import randn
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.nnet.losses import (
    cal_si_snr,
    get_si_snr_with_pitwrapper,
    get_snr_with_pitwrapper,
)

from unified_se_ss.losses import (
    REPRESENTATION_LOSSES,
    STFT_LOSSES,
    interaural_cue_losses,
    permutation_invariant_si_snr,
    permutation_invariant_snr,
    reorder_sources,
    representation_loss,
    si_snr,
    snr,
    stft_loss,
)
from unified_se_ss.spatial import spherical_head


def first_of(loss, *arguments):
    return loss(*arguments)[0]


def cue(number, *arguments):
    return interaural_cue_losses(*arguments, window=32, hop=16)[number]


# Of (estimate, target, lengths) to [B], and the axes between batch and time.
LOSSES = {
    "si_snr": (partial(first_of, permutation_invariant_si_snr), (2,)),
    "snr": (partial(first_of, permutation_invariant_snr), (2, 2)),
    "ild": (partial(cue, 0), (2, 2)),
    "ipd": (partial(cue, 1), (2, 2)),
}
for _kind in STFT_LOSSES:
    LOSSES[_kind] = partial(stft_loss, kind=_kind, window=32, hop=8), ()
for _kind in REPRESENTATION_LOSSES:
    LOSSES[_kind] = partial(representation_loss, kind=_kind), (4,)


# ------------------------------------------------------------------ what all promise


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(LOSSES)),
    lengths=st.lists(st.integers(2, 200), min_size=1, max_size=3),
    more=st.integers(0, 50),
    rubbish=st.sampled_from([0.0, 7.0, float("nan"), float("inf")]),
    seed=st.integers(0, 9999),
)
def test_padding_never_counts(name, lengths, more, rubbish, seed):
    loss, axes = LOSSES[name]
    shape = (len(lengths), *axes, max(lengths) + more)
    target, estimate = randn(*shape, seed=seed), randn(*shape, seed=seed + 1)
    for item, length in enumerate(lengths):
        target[item, ..., length:] = estimate[item, ..., length:] = rubbish
    estimate.requires_grad_()
    together = loss(estimate, target, torch.tensor(lengths))
    (gradient,) = torch.autograd.grad(together.sum(), estimate)
    for item, length in enumerate(lengths):
        alone = estimate[item : item + 1, ..., :length]
        expected = loss(alone, target[item : item + 1, ..., :length], None)
        torch.testing.assert_close(together[item], expected[0], rtol=1e-9, atol=1e-9)
        (of_alone,) = torch.autograd.grad(expected.sum(), alone)
        torch.testing.assert_close(gradient[item, ..., :length], of_alone[0])
        assert (gradient[item, ..., length:] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_numerical_ones(name):
    loss, axes = LOSSES[name]
    target = randn(2, *axes, 48)
    estimate = (target + 0.5 * randn(2, *axes, 48, seed=3)).requires_grad_()
    lengths = torch.tensor([48, 33])
    assert torch.autograd.gradcheck(
        lambda x: loss(x, target, lengths), estimate, eps=1e-7, atol=1e-4
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-6, 1.0])
@pytest.mark.parametrize("true_level", [0.0, 1e-6, 1.0])
def test_losses_and_gradients_are_finite_at_silence(name, level, true_level):
    loss, axes = LOSSES[name]
    shape = (1, *axes, 400)
    estimate = (level * randn(*shape, dtype=torch.float32)).requires_grad_()
    target = true_level * randn(*shape, seed=1, dtype=torch.float32)
    found = loss(estimate, target, None)
    (gradient,) = torch.autograd.grad(found.sum(), estimate)
    assert found.isfinite().all() and gradient.isfinite().all()
    if name in ("si_snr", "snr"):
        if 0 in (level, true_level) and true_level != 1e-6:
            one_sided = name == "snr" and true_level == 1
            assert found.item() == pytest.approx(0.0 if one_sided else -80, abs=1e-5)
    elif level == true_level == 0:
        assert (found == 0).all() and (gradient == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_single(name):
    loss, axes = LOSSES[name]
    estimate, target = (randn(2, *axes, 300, seed=seed).bfloat16() for seed in (0, 1))
    found = loss(estimate, target, None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(estimate.float(), target.float(), None))


# ------------------------------------------------------------------ SNR and SI-SNR


@pytest.mark.parametrize("sources", [2, 3])
def test_si_snr_equals_speechbrains(sources):
    target = randn(4, sources, 900)
    estimate = target.flip(1) + 0.3 * randn(4, sources, 900, seed=1)
    score, permutation = permutation_invariant_si_snr(estimate, target)
    theirs = get_si_snr_with_pitwrapper(target.transpose(1, 2), estimate.transpose(1, 2))
    torch.testing.assert_close(-score, theirs, rtol=1e-12, atol=1e-12)
    again = si_snr(reorder_sources(estimate, permutation), target).mean(-1)
    torch.testing.assert_close(again, score, rtol=1e-12, atol=1e-12)
    one, other = target[:, 0], estimate[:, 0]
    theirs = -cal_si_snr(one.T[..., None], other.T[..., None])  # wants time first
    torch.testing.assert_close(si_snr(other, one), theirs.squeeze(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sources", [2, 3])
def test_snr_of_two_ears_equals_speechbrains(sources):
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
    assert permutation[1].tolist() == list(range(sources))


@pytest.mark.parametrize("sources", [2, 3])
def test_every_permutation_is_found(sources):
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


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(0.05, 0.95), scale=st.floats(0.1, 10), offset=st.floats(-1, 1))
def test_a_level_counts_for_snr_alone_and_an_offset_for_none(gain, scale, offset):
    target, estimate = randn(1, 400), randn(1, 400, seed=1)
    torch.testing.assert_close(
        si_snr(scale * estimate + offset, target),
        si_snr(estimate, target),
        atol=1e-6,
        rtol=0,
    )
    closed = -20 * np.log10(1 - gain)
    found = snr(gain * scale * target + offset, scale * target)
    assert found.item() == pytest.approx(closed, abs=1e-5)


@pytest.mark.parametrize("loss", [si_snr, snr])
def test_exact_in_fp32_at_70_db(loss):
    target, noise = randn(1, 32000), randn(1, 32000, seed=1)
    estimate = target + 10 ** (-70 / 20) * noise
    single = loss(estimate.float(), target.float()).double()
    torch.testing.assert_close(single, loss(estimate, target), atol=0.01, rtol=0)


# ------------------------------------------------------------------ representations


def test_representation_losses_are_what_they_are_called():
    enhanced, clean = randn(2, 4, 20), randn(2, 4, 20, seed=1)
    theirs = torch.nn.functional.mse_loss(enhanced, clean, reduction="sum")
    torch.testing.assert_close(representation_loss(enhanced, clean).sum(), theirs)
    relative = representation_loss(enhanced, clean, kind="relative")
    louder = representation_loss(7 * enhanced, 7 * clean, kind="relative")
    torch.testing.assert_close(relative, louder)


# ------------------------------------------------------------------ spectra


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


@pytest.mark.parametrize("kind", STFT_LOSSES)
@pytest.mark.parametrize("window, hop, samples", [(1024, 256, 5000), (256, 100, 700)])
def test_stft_loss_is_its_formula(kind, window, hop, samples):
    target = randn(3, samples)
    estimate = 0.7 * target.roll(5, -1) + 0.5 * randn(3, samples, seed=1)
    losses = stft_loss(estimate, target, kind=kind, window=window, hop=hop)
    for loss, *pair in zip(losses, estimate.numpy(), target.numpy()):
        assert float(loss) == pytest.approx(by_numpy(kind, *pair, window, hop), rel=1e-3)


def test_every_sample_weighs_the_same():
    """A click costs the same wherever it stands, at the very ends too."""
    clicks = torch.eye(3000, dtype=torch.float64)[[0, 256, 512, 1280, 2816, 183]]
    losses = stft_loss(clicks, torch.zeros_like(clicks), kind="linear_l1")
    torch.testing.assert_close(losses[:5], losses[0].expand(5), rtol=1e-9, atol=0)
    assert 0.8 < losses[5] / losses[0] < 1.2  # between two frames' places


@pytest.mark.parametrize("kind", STFT_LOSSES)
def test_what_differs_from_the_target_costs(kind):
    """Level, silence, a delay, a part that is missing; and the wrong sign with any noise."""
    target = randn(1, 6000)
    half = target.clone()
    half[:, 3000:] = 0
    assert stft_loss(target, target, kind=kind) == 0
    for worse in (0.9 * target, 1.1 * target, 0 * target, target.roll(1, -1), half):
        assert stft_loss(worse, target, kind=kind) > 0.001
    for noise in (0.0, 0.4, 0.9):
        estimate = target + noise * randn(1, 6000, seed=1)
        right, wrong = (stft_loss(x, target, kind=kind) for x in (estimate, -estimate))
        assert wrong > 1.05 * right and wrong > 0.01


# ------------------------------------------------------------------ interaural cues


@settings(deadline=None, max_examples=10)
@given(st.floats(-12, 12), st.floats(0.5, 2))
def test_a_gain_of_one_ear_is_that_level_error_and_a_common_gain_is_none(db, common):
    target = randn(2, 2, 2, 4000)
    gain = torch.tensor([common * 10 ** (db / 20), common]).view(2, 1)
    losses = interaural_cue_losses(gain * target, target)
    expected = torch.full((2,), abs(db), dtype=torch.float64)
    # Not exact: quiet ears meet the floor.
    torch.testing.assert_close(losses.ild, expected, atol=0.05, rtol=0)
    assert losses.ipd.max() < 1e-3


@pytest.mark.parametrize("delay", [0, 1, 2, 3])
def test_a_delay_of_one_ear_is_the_phase_error_of_its_band(delay):
    """White noise at 8 kHz: the mean of 1 - cos(2 pi f d) over all bins."""
    target = randn(2, 2, 2, 32000, seed=1)
    estimate = target.clone()
    estimate[:, :, 1] = target[:, :, 1].roll(delay, -1)
    losses = interaural_cue_losses(estimate, target)
    frequency = torch.arange(129) / 256
    expected = (1 - torch.cos(2 * np.pi * frequency * delay)).mean().double()
    torch.testing.assert_close(losses.ipd, expected.expand(2), atol=0.05, rtol=0)


def test_the_wrong_direction_costs_more_the_farther_it_is():
    signal = np.random.default_rng(0).standard_normal(8000)
    head = spherical_head(8000, np.array([0.0, 10, 30, 60]))
    ears = [torch.from_numpy(head.render(signal, i)) for i in range(len(head))]
    found = [interaural_cue_losses(x[None, None], ears[0][None, None]) for x in ears]
    ilds, ipds = ([loss[i].item() for loss in found] for i in (0, 1))
    assert ilds == sorted(ilds) and ipds == sorted(ipds)
    assert ilds[0] == 0 and ipds[0] < 1e-3 and ilds[1] > 0.1 and ipds[1] > 0.01


def test_swapped_ears_and_permuted_sources_change_nothing():
    target, estimate = randn(2, 2, 2, 4000, seed=2), randn(2, 2, 2, 4000, seed=3)
    plain = interaural_cue_losses(estimate, target)
    for axis in (1, 2):
        other = interaural_cue_losses(estimate.flip(axis), target.flip(axis))
        torch.testing.assert_close(other, plain)


# ------------------------------------------------------------------ downhill, refused


def cues_and_level(estimate, target):
    ild, ipd = interaural_cue_losses(estimate, target, window=64, hop=32)
    return ild + 10 * ipd


@pytest.mark.parametrize("kind", [*STFT_LOSSES, "cues"])
def test_descent_finds_the_target(kind):
    target = randn(1, 400, dtype=torch.float32)
    estimate = 0.1 * randn(1, 400, seed=1, dtype=torch.float32)
    loss = partial(stft_loss, kind=kind, window=64, hop=16)
    if kind == "cues":  # on the wrong side
        target = randn(1, 1, 2, 400, dtype=torch.float32) * torch.tensor([[1.0], [0.3]])
        estimate = target.flip(2) + 0.1 * randn(1, 1, 2, 400, seed=1, dtype=torch.float32)
        loss = cues_and_level
    estimate.requires_grad_()
    optimizer = torch.optim.Adam([estimate], lr=0.03)
    before = loss(estimate, target).item()
    for _ in range(200):
        optimizer.zero_grad()
        now = loss(estimate, target)
        now.sum().backward()
        optimizer.step()
    assert now.item() < 0.25 * before
    if kind != "cues":
        assert torch.corrcoef(torch.cat((estimate, target)))[0, 1] > 0.95


@pytest.mark.parametrize(
    "loss, shapes, message",
    [
        (stft_loss, [(1, 9), (1, 1, 9)], "the same .batch, samples. of both"),
        (stft_loss, [(1, 9), (2, 9)], "the same .batch, samples. of both"),
        (interaural_cue_losses, [(2, 2, 100), (2, 2, 100)], "sources, 2, samples"),
        (partial(stft_loss, kind="l2"), [(1, 9), (1, 9)], "'l2'; expected one of: compr"),
        (
            partial(representation_loss, kind="l1"),
            [(1, 4, 9), (1, 4, 9)],
            "se_loss is 'l1'; expected one of: sum, relative",
        ),
    ],
)
def test_what_cannot_be_is_refused(loss, shapes, message):
    with pytest.raises(ValueError, match=message):
        loss(*map(torch.zeros, shapes))
