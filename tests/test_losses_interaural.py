"""The loss on interaural cues: known errors, invariants, and gradients that are finite."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.losses import interaural_cue_losses
from unified_se_ss.spatial import spherical_head


def voices(seed=0, batch=2, sources=2, samples=4000, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, sources, 2, samples, generator=generator, dtype=dtype)


@settings(deadline=None, max_examples=10)
@given(st.floats(-12, 12), st.floats(0.5, 2))
def test_a_gain_of_one_ear_is_that_level_error_and_a_common_gain_is_none(db, common):
    target = voices()
    gain = torch.tensor([common * 10 ** (db / 20), common]).view(2, 1)
    losses = interaural_cue_losses(gain * target, target)
    expected = torch.full((2,), abs(db), dtype=torch.float64)
    # Not exact: quiet ears meet the floor.
    torch.testing.assert_close(losses.ild, expected, atol=0.05, rtol=0)
    assert losses.ipd.max() < 1e-3


@pytest.mark.parametrize("delay", [0, 1, 2, 3])
def test_a_delay_of_one_ear_is_the_phase_error_of_its_band(delay):
    """White noise at 8 kHz: the mean of 1 - cos(2 pi f d) over all bins."""
    target = voices(1, samples=32000)
    estimate = target.clone()
    estimate[:, :, 1] = target[:, :, 1].roll(delay, -1)
    losses = interaural_cue_losses(estimate, target)
    frequency = torch.arange(129) / 256
    expected = (1 - torch.cos(2 * np.pi * frequency * delay)).mean().double()
    torch.testing.assert_close(losses.ipd, expected.expand(2), atol=0.05, rtol=0)


def test_the_wrong_direction_costs_more_the_farther_it_is():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal(8000)
    head = spherical_head(8000, np.array([0.0, 10, 30, 60]))
    ears = [torch.from_numpy(head.render(signal, i)) for i in range(len(head))]
    target = ears[0][None, None]
    found = [interaural_cue_losses(x[None, None], target) for x in ears]
    ilds, ipds = ([loss[i].item() for loss in found] for i in (0, 1))
    assert ilds == sorted(ilds) and ipds == sorted(ipds)
    assert ilds[0] == 0 and ipds[0] < 1e-3 and ilds[1] > 0.1 and ipds[1] > 0.01


def test_padding_swapped_ears_and_permuted_sources_change_nothing():
    target, estimate = voices(2), voices(3)
    whole = interaural_cue_losses(estimate[:1, ..., :3000], target[:1, ..., :3000])
    estimate[..., 3000:] = torch.nan
    padded = interaural_cue_losses(estimate, target, torch.tensor([3000, 3000]))
    for a, b in zip(whole, padded):
        torch.testing.assert_close(a, b[:1])
    estimate = voices(3)
    plain = interaural_cue_losses(estimate, target)
    for axis in (1, 2):
        other = interaural_cue_losses(estimate.flip(axis), target.flip(axis))
        for a, b in zip(plain, other):
            torch.testing.assert_close(a, b)


def test_gradients_are_right_and_finite_at_silence():
    estimate, target = voices(4, 1, 1, 96), voices(5, 1, 1, 96)
    estimate.requires_grad_()
    for part in (0, 1):
        assert torch.autograd.gradcheck(
            lambda x, part=part: interaural_cue_losses(x, target, window=32, hop=16)[part],
            estimate,
            eps=1e-7,
            atol=1e-4,
        )
    for silent_target in (True, False):
        for level in (0.0, 1e-5):
            estimate = (level * voices(6, dtype=torch.float32)).requires_grad_()
            target = voices(7, dtype=torch.float32) * (not silent_target)
            losses = interaural_cue_losses(estimate, target)
            (losses.ild + losses.ipd).sum().backward()
            assert torch.isfinite(losses.ild).all() and estimate.grad.isfinite().all()
            if silent_target:
                assert not losses.ild.any() and not losses.ipd.any()


def test_it_can_be_followed_downhill_from_a_wrong_side():
    """Gradient steps on the estimate bring the cues to the target's."""
    target = voices(8, 1, 1, 1000, torch.float32) * torch.tensor([1.0, 0.3]).view(2, 1)
    estimate = (
        target.flip(2) + 0.1 * voices(9, 1, 1, 1000, torch.float32)
    ).requires_grad_()
    optimizer = torch.optim.Adam([estimate], lr=0.02)
    before = interaural_cue_losses(estimate, target)
    for _ in range(100):
        losses = interaural_cue_losses(estimate, target)
        optimizer.zero_grad()
        (losses.ild + 10 * losses.ipd).sum().backward()
        optimizer.step()
    assert losses.ild < 0.25 * before.ild and losses.ipd < 0.25 * before.ipd


def test_what_is_not_binaural_is_refused():
    with pytest.raises(ValueError, match="sources, 2, samples"):
        interaural_cue_losses(torch.zeros(2, 2, 100), torch.zeros(2, 2, 100))
