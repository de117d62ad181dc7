"""Modules of the auxiliary task alone, the moving ratio of norms, and memory."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.gradients import RULES, TaskLoss, TwoTaskGradients, TwoTaskLosses
from unified_se_ss.gradients.rules import rule
from unified_se_ss.gradients.two_task import GradNormEMA


class ThreeParts(torch.nn.Module):
    """A shared trunk, and a head for each task."""

    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Linear(4, 5)
        self.main_head = torch.nn.Linear(5, 3)
        self.auxiliary_head = torch.nn.Linear(5, 2)

    def losses(self, x):
        """Main and auxiliary loss of each item."""
        hidden = self.trunk(x).tanh()
        main = (self.main_head(hidden) - 1).square().sum(-1)
        return main, (self.auxiliary_head(hidden) + 1).square().sum(-1)


def problem(seed=0):
    torch.manual_seed(seed)
    return ThreeParts().double(), torch.randn(6, 4, dtype=torch.float64)


def combine(network, losses, gradients=None, scale=lambda loss: loss, **options):
    options = {"auxiliary": ["auxiliary_head"], **options}
    if gradients is None:
        gradients = TwoTaskGradients(network.named_parameters(), ["trunk"], **options)
    gradients.accumulate(TwoTaskLosses(*map(TaskLoss.of, losses)), scale)
    return gradients.combine()


def test_each_head_gets_its_own_task_and_the_trunk_both():
    network, x = problem()
    main, auxiliary = network.losses(x)
    (main.mean() + auxiliary.mean()).backward()
    expected = {n: p.grad.clone() for n, p in network.named_parameters()}
    network.zero_grad()
    combine(network, network.losses(x), rule="sum")
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chosen", RULES)
def test_a_rule_touches_the_shared_part_alone(chosen):
    network, x = problem()
    combine(network, network.losses(x), rule="sum")
    expected = {n: p.grad.clone() for n, p in network.named_parameters()}
    combine(network, network.losses(x), rule=chosen)
    for name, parameter in network.named_parameters():
        if not name.startswith("trunk"):
            assert torch.equal(parameter.grad, expected[name])


def test_a_nonfinite_auxiliary_gradient_leaves_its_head_alone():
    network, x = problem()
    main, auxiliary = network.losses(x)
    found = combine(network, (main, auxiliary * float("nan")))
    assert found.main_finite and not found.auxiliary_finite
    assert not network.auxiliary_head.weight.grad.any()
    assert network.main_head.weight.grad.isfinite().all()


def test_a_nonfinite_gradient_of_the_auxiliary_head_alone_is_noticed():
    network, x = problem()
    main, auxiliary = network.losses(x)
    with torch.no_grad():
        network.auxiliary_head.bias.fill_(float("inf"))
    _, of_head = network.losses(x)
    found = combine(network, (main, of_head - of_head.detach() + auxiliary.detach()))
    assert found.main_finite and not found.auxiliary_finite


def test_a_module_of_the_auxiliary_task_that_was_not_named_is_told(caplog):
    network, x = problem()
    with caplog.at_level(logging.WARNING):
        combine(network, network.losses(x), auxiliary=[])
    assert "auxiliary_head.weight, auxiliary_head.bias" in caplog.text
    assert "name their modules in auxiliary_modules" in caplog.text


def test_a_module_of_both_tasks_cannot_be_the_auxiliary_tasks_alone():
    network, x = problem()
    with pytest.raises(ValueError, match="the main task uses main_head.weight too"):
        combine(network, network.losses(x), auxiliary=["main_head"])
    with pytest.raises(ValueError, match="trunk.bias is both shared and auxiliary"):
        combine(network, network.losses(x), auxiliary=["trunk"])
    with pytest.raises(ValueError, match="auxiliary: no trainable parameter .* 'tail'"):
        combine(network, network.losses(x), auxiliary=["tail"])


def test_a_frozen_shared_part_breaks_nothing():
    network, x = problem()
    network.trunk.requires_grad_(False)
    gradients = TwoTaskGradients(
        network.named_parameters(), [], auxiliary=["auxiliary_head"]
    )
    combine(network, network.losses(x), gradients)
    assert network.main_head.weight.grad.any() and network.auxiliary_head.weight.grad.any()


# ------------------------------------------------------------------ aux_scale


def norms(found):
    return [x.sum().sqrt().item() for x in (found.auxiliary_squared, found.main_squared)]


@settings(max_examples=30, deadline=None)
@given(weight=st.floats(1e-6, 1e6), ratio=st.floats(0.01, 100.0), seed=st.integers(0, 1000))
def test_with_no_decay_the_norms_stand_in_the_ratio_at_every_step(weight, ratio, seed):
    network, x = problem(seed)
    main, auxiliary = network.losses(x)
    found = combine(
        network, (main, weight * auxiliary), aux_scale="ema", aux_ratio=ratio, aux_decay=0.0
    )
    of_auxiliary, of_main = norms(found)
    assert of_auxiliary / of_main == pytest.approx(ratio, rel=1e-9)


def test_the_weight_of_the_auxiliary_loss_then_means_nothing():
    updates = []
    for weight in (1.0, 1e4):
        network, x = problem()
        gradients = TwoTaskGradients(
            network.named_parameters(),
            ["trunk"],
            auxiliary=["auxiliary_head"],
            aux_scale="ema",
            aux_ratio=0.3,
        )
        for step in range(3):
            main, auxiliary = network.losses(x + step)
            combine(network, (main, weight * auxiliary), gradients)
        updates.append([p.grad.clone() for p in network.parameters()])
    for one, other in zip(*updates):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_the_moving_ratio_follows_its_definition():
    factor, decay = GradNormEMA(ratio=2.0, decay=0.9), 0.9
    average_a = average_b = 0.0
    for step in range(5):
        a, b = torch.tensor([1.0, step], dtype=torch.float64), torch.tensor([9.0, 2.0])
        found = factor.update(a, b.double(), torch.tensor(True))
        average_a = decay * average_a + (1 - decay) * a.sum().item()
        average_b = decay * average_b + (1 - decay) * b.sum().item()
        assert found.item() == pytest.approx(2 * (average_b / average_a) ** 0.5)


def test_steps_that_do_not_count_change_no_average():
    factor = GradNormEMA()
    one, nan = torch.ones(1).double(), torch.full((1,), float("nan")).double()
    true, false = torch.tensor(True), torch.tensor(False)
    assert factor.update(nan, one, false) == 1  # nothing known yet
    factor.update(4 * one, one, true)
    before = factor.averages.clone()
    assert factor.update(nan, one, false) == 0.5
    assert factor.update(0 * one, one, true) == 0.5  # a batch without auxiliary items
    assert torch.equal(factor.averages, before)


def test_the_scale_of_fp16_enters_neither_the_averages_nor_what_is_watched():
    network, x = problem()
    options = {"aux_scale": "ema", "auxiliary": ["auxiliary_head"]}
    plain = TwoTaskGradients(network.named_parameters(), ["trunk"], **options)
    scaled = TwoTaskGradients(network.named_parameters(), ["trunk"], **options)
    for step, scale in enumerate([65536.0, 32768.0, 1.0]):
        one = combine(network, network.losses(x + step), plain)
        kept = [p.grad.clone() for p in network.parameters()]
        other = combine(
            network, network.losses(x + step), scaled, lambda loss, s=scale: loss * s
        )
        for field, value in one._asdict().items():
            torch.testing.assert_close(getattr(other, field), value, rtol=1e-10, atol=0)
        for parameter, value in zip(network.parameters(), kept):
            torch.testing.assert_close(parameter.grad, scale * value, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"aux_scale": "mean"}, "aux_scale is 'mean'; expected null or ema"),
        ({"aux_scale": "ema", "aux_ratio": 0.0}, "aux_ratio is 0.0; expected more than 0"),
        (
            {"aux_scale": "ema", "aux_decay": 1.0},
            "aux_decay is 1.0; expected 0 or more and",
        ),
    ],
)
def test_wrong_options_of_the_scale(options, message):
    network, _ = problem()
    with pytest.raises(ValueError, match=message):
        TwoTaskGradients(network.named_parameters(), ["trunk"], **options)


# ------------------------------------------------------------------ memory of rules


@pytest.fixture
def counting():
    """A rule that remembers how often a group was asked."""

    @rule(has_memory=True)
    def counting(a, b, c, memory):
        return torch.ones_like(a), memory + 1, memory + 1

    yield "counting"
    del RULES["counting"]


def test_what_a_rule_remembers_is_carried_on_and_saved(counting):
    network, x = problem()
    gradients = TwoTaskGradients(network.named_parameters(), ["trunk"], counting)
    for step in range(3):
        found = combine(network, network.losses(x), gradients)
        assert (found.main_weight == step + 1).all()
    other = TwoTaskGradients(network.named_parameters(), ["trunk"], counting)
    other.load_state_dict(gradients.state_dict())
    assert (combine(network, network.losses(x), other).main_weight == 4).all()


def test_a_step_that_is_not_finite_is_not_remembered(counting):
    network, x = problem()
    gradients = TwoTaskGradients(network.named_parameters(), ["trunk"], counting)
    main, auxiliary = network.losses(x)
    combine(network, (main, auxiliary * float("inf")), gradients)
    main, auxiliary = network.losses(x)
    combine(network, (main * float("nan"), auxiliary), gradients)
    assert (combine(network, network.losses(x), gradients).main_weight == 1).all()


def test_a_name_of_a_built_in_rule_is_taken():
    with pytest.raises(ValueError, match="there is a rule 'project' already"):

        @rule
        def project(a, b, c):
            return a, b


def test_a_detached_auxiliary_loss_is_told(caplog):
    network, x = problem()
    main, auxiliary = network.losses(x)
    with caplog.at_level(logging.WARNING):
        combine(network, (main, auxiliary.detach()))
    assert "it changes nothing. Was it detached?" in caplog.text


def test_what_both_tasks_reach_without_being_shared_is_told(caplog):
    network, x = problem()
    with caplog.at_level(logging.INFO):
        gradients = TwoTaskGradients(
            network.named_parameters(), ["trunk.weight"], auxiliary="auxiliary_head"
        )
        combine(network, network.losses(x), gradients)
    assert "Both tasks reach trunk, not named as shared" in caplog.text
