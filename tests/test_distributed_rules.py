"""One process and two ranks take the same steps, whatever the rule."""

import pytest
import torch
from distributed_rules import (
    RUNS,
    cases,
    joined,
    largest_difference,
    launch,
    make,
    share,
    train,
    train_all,
)

from unified_se_ss.gradients import TaskLoss, TwoTaskLosses

# What rounding may do: fp32 after one step, float64 after one and after four.
ALLOWED = [1e-5, 1e-12, 1e-12]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks ended with; one launch for all cases."""
    return launch(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone():
    """The same by this process, with the joined batches."""
    return train_all(joined)


@pytest.mark.parametrize("case", cases())
def test_two_ranks_are_one_process_with_the_joined_batch(case, alone, ranks):
    found = [largest_difference(*pair) for pair in zip(alone[case], ranks[0][case])]
    assert len(found) == len(RUNS)
    assert all(error <= allowed for error, allowed in zip(found, ALLOWED)), found


@pytest.mark.parametrize("case", cases())
def test_ranks_stay_equal_to_the_last_bit(case, ranks):
    for one, other in zip(ranks[0][case], ranks[1][case], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def start():
    """The parameters before the first step."""
    return [p.detach() for p in make({}, torch.float64)[0].parameters()]


def test_every_parameter_moves(alone):
    """Else that nothing differs would say nothing."""
    for name, runs in alone.items():
        moved = [float((x - y).norm()) for x, y in zip(runs[-1], start(), strict=True)]
        assert min(moved) > 1e-3, name


def test_the_batches_tell_rules_apart(alone):
    """Conflicts occur in each of the runs: these do not end where `sum` ends."""
    for name in ("project", "remedy", "pcgrad"):
        for of_sum, of_rule in zip(alone["sum"], alone[name]):
            assert largest_difference(of_sum, of_rule) > 1e-3


def rule_on_each_rank(rule):
    """One step of another algorithm: the rule on each rank alone, averaged afterwards."""
    batch, keep = joined(0, torch.float64)
    of_main, of_auxiliary = keep.sum() / 2, torch.tensor(len(keep) / 2)
    network, gradients, optimizer = make({"rule": rule}, torch.float64)
    sums = [torch.zeros_like(p) for p in network.parameters()]
    for rank in range(2):
        batch, keep = share(0, rank, torch.float64)
        main, auxiliary = network.losses(*batch)
        gradients.accumulate(
            TwoTaskLosses(
                TaskLoss(main[keep].sum(), of_main), TaskLoss(auxiliary.sum(), of_auxiliary)
            )
        )
        gradients.combine()
        for total, parameter in zip(sums, network.parameters(), strict=True):
            total += parameter.grad
    for total, parameter in zip(sums, network.parameters(), strict=True):
        parameter.grad = total / 2
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    return [p.detach() for p in network.parameters()]


def test_the_rule_on_each_rank_alone_would_be_seen(alone):
    """For `sum` that is the same, for `project` it is not."""
    assert largest_difference(alone["sum"][1], rule_on_each_rank("sum")) < 1e-12
    assert largest_difference(alone["project"][1], rule_on_each_rank("project")) > 1e-4


def test_a_run_is_a_function_of_its_options():
    """What is compared is not noise: the same case twice gives the same bits."""
    once, again = (train({}, torch.float64, 2, joined) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))
