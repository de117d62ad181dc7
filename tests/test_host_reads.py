"""No number is fetched from the device within a step, whatever the rule.

But for ``torchjd.*``, whose solvers run on the host.
"""

import pytest
import torch
from host_reads import HostReads
from test_gradients import problem

from unified_se_ss.gradients import RULES, TaskLoss, TwoTaskGradients, TwoTaskLosses

READING = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "select": lambda x: x.masked_select(x > 0),
    "equal": lambda x: torch.equal(x, x + 1),
    "unique": lambda x: x.unique(),
    "within another operation": lambda x: torch.segment_reduce(
        x, "sum", lengths=torch.tensor([1, 2])
    ),
    "solver": lambda x: torch.linalg.eigh(torch.eye(2)),
}


@pytest.mark.parametrize("way", READING)
def test_every_way_to_the_host_is_counted(way):
    with HostReads() as reads:
        READING[way](torch.ones(3))
    assert reads.count > 0


def test_what_stays_on_the_device_is_not_counted():
    x = torch.randn(100)
    with HostReads() as reads:
        y = torch.where(x > 0, x, 0.0).sum() / x.isfinite().all()
        torch._foreach_mul_([x, x], y)
        torch.nn.utils.clip_grad_norm_([torch.nn.Parameter(x)], 1.0)
        x.masked_fill_(~x.isfinite(), 0.0)
    assert reads.places == []


def whole_step(network, batch, gradients, optimizer):
    """What TwoTaskBrain does within a step."""
    main, auxiliary = network.losses(*batch)
    gradients.accumulate(TwoTaskLosses(TaskLoss.of(main), TaskLoss.of(auxiliary)))
    combined = gradients.combine()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.found_inf = (~combined.main_finite).to(torch.float32)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def reads_of_a_step(fused=torch.optim.SGD, **options):
    """Where a step after the first reads; at the first there is more to set up."""
    network, *batch = problem()
    gradients = TwoTaskGradients(network.named_parameters(), ["trunk"], **options)
    optimizer = fused(network.parameters(), lr=0.01, fused=True)
    whole_step(network, batch, gradients, optimizer)
    with HostReads() as reads:
        whole_step(network, batch, gradients, optimizer)
    return reads.places


@pytest.mark.parametrize("rule", RULES)
def test_a_step_reads_nothing(rule):
    assert reads_of_a_step(rule=rule) == []


@pytest.mark.parametrize("fused", [torch.optim.Adam, torch.optim.AdamW])
def test_nor_does_it_with_other_fused_optimizers_and_moving_scales(fused):
    assert reads_of_a_step(fused, aux_scale="ema") == []


def test_nor_do_options_of_rules_and_groups():
    options = {"rule_options": {"strict": True}, "granularity": "global"}
    assert reads_of_a_step(rule="remedy", **options) == []
