"""Two-task gradients: what the rules do, and what nothing may ever do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.gradients import (
    RULES,
    TaskLoss,
    TwoTaskGradients,
    TwoTaskLosses,
)
from unified_se_ss.gradients.layout import Layout


class TwoHeads(torch.nn.Module):
    """A shared trunk; the auxiliary loss is taken in the middle, the main at the end."""

    def __init__(self, width=5):
        super().__init__()
        self.trunk = torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, width)
        )
        self.head = torch.nn.Linear(width, 3)

    def losses(self, x, target, aim):
        """Main and auxiliary loss per item."""
        hidden = self.trunk(x)
        main = (self.head(hidden) - target).square().sum(-1)
        return main, (hidden - aim).square().sum(-1)


def problem(seed=0, items=6, dtype=torch.float64):
    torch.manual_seed(seed)
    network = TwoHeads().to(dtype)
    return (
        network,
        torch.randn(items, 4, dtype=dtype),
        torch.randn(items, 3, dtype=dtype),
        torch.randn(items, 5, dtype=dtype),
    )


def combine(network, main, auxiliary, **options):
    gradients = TwoTaskGradients(network.named_parameters(), ["trunk"], **options)
    gradients.accumulate(TwoTaskLosses(TaskLoss.of(main), TaskLoss.of(auxiliary)))
    return gradients.combine()


def separate_gradients(network, *batch):
    """Each task's own gradients by plain autograd: the oracle's input."""
    parameters = dict(network.named_parameters())
    main, auxiliary = network.losses(*batch)
    of_main = torch.autograd.grad(main.mean(), list(parameters.values()), retain_graph=True)
    shared = [n for n in parameters if n.startswith("trunk")]
    of_aux = torch.autograd.grad(auxiliary.mean(), [parameters[n] for n in shared])
    return dict(zip(parameters, of_main)), dict(zip(shared, of_aux))


def published_projection(g_main, g_auxiliary):
    """The loop of the published training script, per tensor, gradients kept apart."""
    updated = {}
    for name, main in g_main.items():
        updated[name] = main.clone()
        if name in g_auxiliary:
            se, ss = g_auxiliary[name].reshape(-1).clone(), main.reshape(-1).clone()
            product = torch.dot(se, ss)
            if product < 0:
                se = se - product * ss / (ss.norm() ** 2)
            updated[name] = main + se.view_as(main)
    return updated


def test_unknown_names_are_answered_with_the_known():
    network, *_ = problem()
    with pytest.raises(
        ValueError, match="rule is 'projekt'; expected one of: .*project, .*sum"
    ):
        TwoTaskGradients(network.named_parameters(), ["trunk"], rule="projekt")
    with pytest.raises(
        ValueError, match="granularity is 'layer'; expected one of: parameter"
    ):
        TwoTaskGradients(network.named_parameters(), ["trunk"], granularity="layer")
    with pytest.raises(
        ValueError, match="'tronk'; did you mean 'trunk'\\? .*head, trunk, "
    ):
        TwoTaskGradients(network.named_parameters(), ["tronk"])


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_published_update_and_is_not_twice_the_main_gradient(seed):
    network, *batch = problem(seed)
    g_main, g_auxiliary = separate_gradients(network, *batch)
    expected = published_projection(g_main, g_auxiliary)
    found = combine(network, *network.losses(*batch))
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-14)
        if name in g_auxiliary:
            assert not torch.allclose(parameter.grad, 2 * g_main[name], rtol=1e-3)
    assert len(found.product) == len(g_auxiliary)


def test_some_of_those_problems_do_conflict():
    rates = []
    for seed in range(5):
        network, *batch = problem(seed)
        found = combine(network, *network.losses(*batch))
        rates.append((found.product < 0).double().mean().item())
    assert 0 < sum(rates) / 5 < 1


@pytest.mark.parametrize(
    "granularity, groups", [("parameter", 4), ("module", 2), ("global", 1)]
)
def test_granularity(granularity, groups):
    network, *batch = problem(3)
    g_main, g_auxiliary = separate_gradients(network, *batch)
    found = combine(network, *network.losses(*batch), granularity=granularity)
    assert len(found.product) == groups
    group_of = {
        "parameter": lambda n: n,
        "module": lambda n: n.rpartition(".")[0],
        "global": lambda n: "all",
    }[granularity]
    for group in {group_of(name) for name in g_auxiliary}:
        names = [n for n in g_auxiliary if group_of(n) == group]
        se = torch.cat([g_auxiliary[n].flatten() for n in names])
        ss = torch.cat([g_main[n].flatten() for n in names])
        product = se @ ss
        expected = ss + se - min(product, 0) / (ss @ ss) * ss
        result = torch.cat([network.get_parameter(n).grad.flatten() for n in names])
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", [n for n, r in RULES.items() if not r.has_memory])
@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [3, 1]])
def test_accumulation_equals_the_whole_batch(rule, counts):
    network, *batch = problem(1, items=sum(counts))
    combine(network, *network.losses(*batch), rule=rule)
    expected = [p.grad.clone() for p in network.parameters()]
    gradients = TwoTaskGradients(network.named_parameters(), ["trunk"], rule=rule)
    for _ in range(2):  # twice: nothing may leak from one step into the next
        for part in zip(*(t.split(counts) for t in batch)):
            main, auxiliary = network.losses(*part)
            gradients.accumulate(TwoTaskLosses(TaskLoss.of(main), TaskLoss.of(auxiliary)))
        gradients.combine()
        for parameter, value in zip(network.parameters(), expected):
            torch.testing.assert_close(parameter.grad, value, rtol=1e-12, atol=1e-14)
        torch.optim.SGD(network.parameters(), 0.0).zero_grad(set_to_none=True)


def test_dropped_items_do_not_count():
    network, *batch = problem(2)
    main, auxiliary = network.losses(*batch)
    keep = torch.tensor([True, False, True, True, False, True])
    gradients = TwoTaskGradients(network.named_parameters(), ["trunk"], rule="sum")
    gradients.accumulate(TwoTaskLosses(TaskLoss.of(main, keep), TaskLoss.of(auxiliary)))
    gradients.combine()
    found = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    main, auxiliary = network.losses(*batch)
    (main[keep].mean() + auxiliary.mean()).backward()
    for parameter, value in zip(network.parameters(), found):
        torch.testing.assert_close(parameter.grad, value, rtol=1e-12, atol=1e-14)


def test_if_every_item_is_dropped_the_auxiliary_gradient_remains():
    network, *batch = problem(2)
    _, g_auxiliary = separate_gradients(network, *batch)
    main, auxiliary = network.losses(*batch)
    none = torch.zeros(6, dtype=torch.bool)
    gradients = TwoTaskGradients(network.named_parameters(), ["trunk"])
    gradients.accumulate(TwoTaskLosses(TaskLoss.of(main, none), TaskLoss.of(auxiliary)))
    assert gradients.combine().main_finite
    for name, parameter in network.named_parameters():
        expected = g_auxiliary.get(name, torch.zeros_like(parameter))
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nonfinite_auxiliary_gradient_leaves_the_main_alone(rule, value):
    network, *batch = problem()
    g_main, _ = separate_gradients(network, *batch)
    main, auxiliary = network.losses(*batch)
    found = combine(network, main, auxiliary * value, rule=rule)
    assert found.main_finite and not found.auxiliary_finite
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, g_main[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nonfinite_main_gradient_is_told(value):
    network, *batch = problem()
    main, auxiliary = network.losses(*batch)
    assert not combine(network, main * value, auxiliary).main_finite
    # Also where only a parameter that is not shared has it.
    main, auxiliary = network.losses(*batch)
    with torch.no_grad():
        network.head.bias.fill_(value)
    network.trunk.requires_grad_(True)
    main = network.head(network.trunk(batch[0]).detach()).square().sum(-1)
    assert not combine(network, main, auxiliary).main_finite


def test_without_an_auxiliary_task_it_is_plain_training():
    network, *batch = problem()
    gradients = TwoTaskGradients(network.named_parameters(), ["trunk"])
    main, _ = network.losses(*batch)
    gradients.accumulate(TwoTaskLosses(TaskLoss.of(main)))
    gradients.combine()
    g_main, _ = separate_gradients(network, *batch)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, g_main[name], rtol=1e-12, atol=1e-14)


def test_an_auxiliary_task_that_would_train_nothing_is_refused():
    network, *batch = problem()
    gradients = TwoTaskGradients(network.named_parameters(), [])
    with pytest.raises(ValueError, match="the auxiliary task would train nothing"):
        gradients.accumulate(TwoTaskLosses(*map(TaskLoss.of, network.losses(*batch))))


def test_frozen_parameters_stay_out():
    network, *batch = problem()
    network.trunk[0].requires_grad_(False)
    combine(network, *network.losses(*batch))
    assert network.trunk[0].weight.grad is None
    assert network.trunk[2].weight.grad is not None


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(1e-3, 65536.0), seed=st.integers(0, 99))
def test_a_common_loss_scale_only_scales_the_result(scale, seed):
    network, *batch = problem(seed)
    combine(network, *network.losses(*batch))
    expected = [scale * p.grad.clone() for p in network.parameters()]
    gradients = TwoTaskGradients(network.named_parameters(), ["trunk"])
    losses = TwoTaskLosses(*map(TaskLoss.of, network.losses(*batch)))
    gradients.accumulate(losses, lambda loss: loss * scale)
    gradients.combine()
    for parameter, value in zip(network.parameters(), expected):
        torch.testing.assert_close(parameter.grad, value, rtol=1e-10, atol=1e-10)


def test_norms_and_products_are_exact_in_fp32_on_large_tensors():
    parameter = torch.nn.Parameter(torch.zeros(6_400_000))
    g_a = torch.randn(6_400_000) + 0.5
    g_m = torch.randn(6_400_000) - 0.5
    gradients = TwoTaskGradients([("w", parameter)], ["w"])
    losses = TwoTaskLosses(
        TaskLoss.of((parameter * g_m).sum().view(1)),
        TaskLoss.of((parameter * g_a).sum().view(1)),
    )
    gradients.accumulate(losses)
    found = gradients.combine()
    g_a, g_m = g_a.double(), g_m.double()
    torch.testing.assert_close(found.auxiliary_squared[0], g_a @ g_a, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.main_squared[0], g_m @ g_m, rtol=1e-6, atol=0)
    error = abs(found.product[0] - g_a @ g_m) / (g_a.norm() * g_m.norm())
    assert error < 1e-7


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=6))
def test_the_flat_layout_holds_every_element_once(sizes):
    parameters = {
        f"m{i % 2}.w{i}": torch.nn.Parameter(torch.zeros(n)) for i, n in enumerate(sizes)
    }
    layout = Layout(parameters, "module")
    flat = torch.zeros(layout.size)
    for number, view in enumerate(layout.views(flat), 1):
        assert not view.any()
        view.fill_(number)
    assert (flat > 0).sum() == sum(sizes)
    assert sum(layout.blocks_of_group) * 1024 == layout.size
