"""One process and two ranks take the same steps, whatever the rule."""

import pytest
import torch
from forked_ranks import of_ranks

from unified_se_ss.gradients import (
    GRANULARITIES,
    RULES,
    TaskLoss,
    TwoTaskGradients,
    TwoTaskLosses,
)

# Items of each rank at each step: uneven, and at the third, rank 0 drops all of its own.
ITEMS = [(5, 2), (1, 4), (3, 3), (2, 6)]
DROPPED = [({1}, {0}), (set(), {1, 2}), ({0, 1, 2}, {0}), ({0}, {2, 4})]

# What was trained: dtype and number of steps.
RUNS = [(torch.float32, 1), (torch.float64, 1), (torch.float64, 4)]


def cases() -> dict[str, dict]:
    """Options of TwoTaskGradients by name: every rule, and what else changes a step."""
    return {
        **{rule: {"rule": rule} for rule in RULES},
        "project, aux_scale ema": {"aux_scale": "ema", "aux_ratio": 0.7, "aux_decay": 0.5},
        **{f"project, {g}": {"granularity": g} for g in GRANULARITIES if g != "parameter"},
    }


class Network(torch.nn.Module):
    """A shared trunk, a head for the main task and one for the auxiliary."""

    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Tanh()
        )
        self.head = torch.nn.Linear(8, 3)
        self.enhancer = torch.nn.Linear(8, 6)

    def losses(self, clean, noise, target):
        """Main and auxiliary loss of each item, [B]."""
        hidden = self.trunk(clean + noise)
        main = (self.head(hidden) - target).square().sum(1)
        return main, (self.enhancer(hidden) - clean).square().sum(1)


def share(step: int, rank: int, dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """One rank's items at a step, and which of them count for the main task."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    items = ITEMS[step][rank]
    tensors = [
        torch.randn(items, size, generator=generator, dtype=torch.float64).to(dtype)
        for size in (6, 6, 3)
    ]
    keep = torch.tensor([item not in DROPPED[step][rank] for item in range(items)])
    return tensors, keep


def joined(step: int, dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The items of both ranks as one batch."""
    (mine, keep), (theirs, keep_theirs) = (share(step, rank, dtype) for rank in range(2))
    batch = [torch.cat(pair) for pair in zip(mine, theirs)]
    return batch, torch.cat([keep, keep_theirs])


def accumulate(gradients, network, batch, keep) -> None:
    """Add the gradients of one batch."""
    main, auxiliary = network.losses(*batch)
    gradients.accumulate(TwoTaskLosses(TaskLoss.of(main, keep), TaskLoss.of(auxiliary)))


def make(options: dict, dtype):
    """The network, its two gradients and an optimizer."""
    torch.manual_seed(5)  # at the first step, some tensors conflict and some do not
    network = Network().to(dtype)
    gradients = TwoTaskGradients(
        network.named_parameters(), ["trunk"], auxiliary=["enhancer"], **options
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return network, gradients, optimizer


def train(options: dict, dtype, steps: int, batches) -> list[torch.Tensor]:
    """Parameters after a few steps; ``batches(step, dtype)`` gives this process' items."""
    network, gradients, optimizer = make(options, dtype)
    for step in range(steps):
        accumulate(gradients, network, *batches(step, dtype))
        gradients.combine()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [parameter.detach() for parameter in network.parameters()]


def train_all(batches) -> dict[str, list[list[torch.Tensor]]]:
    """Parameters of every case, run by run."""
    return {
        name: [train(options, dtype, steps, batches) for dtype, steps in RUNS]
        for name, options in cases().items()
    }


def largest_difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Largest ||x - y|| / ||x|| over the parameter tensors."""
    return max(float((x - y).norm() / x.norm()) for x, y in zip(one, other, strict=True))


# What rounding may do: fp32 after one step, float64 after one and after four.
ALLOWED = [1e-5, 1e-12, 1e-12]


@pytest.fixture(scope="module")
def ranks():
    """What each of two ranks ended with; one start for all cases."""
    return of_ranks(lambda rank: train_all(lambda step, dtype: share(step, rank, dtype)))


@pytest.fixture(scope="module")
def alone():
    """The same by this process, with the joined batches."""
    return train_all(joined)


@pytest.mark.parametrize("case", cases())
def test_two_ranks_are_one_process_with_the_joined_batch(case, alone, ranks):
    """And stay equal to each other, to the last bit."""
    found = [largest_difference(*pair) for pair in zip(alone[case], ranks[0][case])]
    assert len(found) == len(RUNS)
    assert all(error <= allowed for error, allowed in zip(found, ALLOWED)), found
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
