"""Scaling: formulas against closed forms, and the page against the formulas."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scaling
from benchmarks.networks import recipe
from unified_se_ss.gradients.layout import BLOCK

PAGE = (Path(__file__).parent.parent / "docs/scaling.md").read_text(encoding="utf-8")
FAST = scaling.Link("fast", 1e9, 0.0)


@given(n_bytes=st.floats(1, 1e12), ranks=st.integers(1, 4096))
def test_a_ring_sends_nearly_twice_the_bytes_and_never_more(n_bytes, ranks):
    seconds = scaling.ring_seconds(n_bytes, ranks, FAST)
    assert seconds == pytest.approx(2 * n_bytes * (1 - 1 / ranks) / 1e9)
    assert seconds < 2 * n_bytes / 1e9


def test_a_ring_step_by_step():
    """Every rank sends a part at each turn; counted by doing it."""
    ranks, size = 4, 8
    values = torch.arange(ranks * size, dtype=torch.float64).view(ranks, ranks, -1)
    parts, sent = values.clone(), 0
    for phase in range(2):
        for turn in range(ranks - 1):
            before = parts.clone()
            for rank in range(ranks):
                part = (rank - turn + phase) % ranks
                following = (rank + 1) % ranks
                if phase == 0:
                    parts[following, part] += before[rank, part]
                else:
                    parts[following, part] = before[rank, part]
                sent += before[rank, part].numel()
    assert torch.equal(parts, values.sum(0).expand_as(parts))
    of_each = sent / ranks
    assert scaling.ring_seconds(size, ranks, FAST) * 1e9 == pytest.approx(of_each)


def test_nodes_are_joined_by_the_slower_link():
    of = scaling.exchange_seconds
    within = scaling.ring_seconds(1e8, 8, scaling.NVLINK)
    assert of(1e8, 8, scaling.ETHERNET) == of(1e8, 8, scaling.NDR) == within
    wide = scaling.Link("wider than NVLink", 1e15, 0.0)
    assert of(1e8, 16, wide) == scaling.ring_seconds(1e8, 16, scaling.NVLINK)
    assert of(1e8, 16, scaling.ETHERNET) > of(1e8, 16, scaling.NDR) > within


@pytest.mark.parametrize("kind", scaling.RECIPES)
def test_bytes_are_both_gradients_and_some_padding(kind):
    network = recipe(kind)["network"]
    parameters = dict(network.named_parameters())
    shared = [p for n, p in parameters.items() if n.startswith(("encoder.", "enhancer."))]
    numbers = sum(p.numel() for p in [*parameters.values(), *shared])
    padding = BLOCK * (len(parameters) + len(shared))
    n_bytes = scaling.bytes_per_step(network)
    assert n_bytes == scaling.published_bytes()[kind]
    assert 4 * numbers < n_bytes <= 4 * (numbers + padding + 3)
    counts = [sum(p.numel() for p in which) for which in (parameters.values(), shared)]
    row = "| {} | {:,} | {:,} | {:,} |".format(kind, *counts, n_bytes)
    assert row in PAGE


def test_the_page_has_what_is_computed_and_what_follows_from_its_own_steps():
    found = re.findall(r"^\| (\w+) \| cpu \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    steps = {kind: float(step) for kind, step in found}
    assert list(steps) == list(scaling.RECIPES)
    for table in (scaling.computed(), scaling.predicted(steps, "cpu")):
        lines = [x for x in table.as_markdown().splitlines() if x.startswith("|")]
        assert lines and all(line in PAGE for line in lines)
    n_bytes = scaling.published_bytes()["SepFormer"]
    ndr, ethernet = (
        100 * scaling.efficiency(0.1, n_bytes, 64, link) for link in scaling.BETWEEN
    )
    said = f"{ndr:.0f} % efficiency at 64 GPUs with NDR and {ethernet:.0f} % with 100 GbE"
    assert said in PAGE
