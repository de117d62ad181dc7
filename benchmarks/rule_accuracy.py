"""How exact the gradient rules are: each against its oracles, over random pairs.

The oracles are the formulas of the papers, torchjd's aggregators, and solutions of the
original problems in 50 digits (tests/rule_oracles.py). A difference is the length of the
difference of both shared gradients relative to that of the oracle's. The lengths of the
gradients are apart by up to 100 either way, their angles are of all kinds. Pairs for
which an oracle's own solver gives up are not counted. Needs the `test` extra.
"""

from __future__ import annotations

import statistics

import torch

from benchmarks.frame import Options, Table, from_tests, needs
from unified_se_ss.gradients import RULES, find_rule

SIZE = 7  # length of a gradient
SLOW = 200  # pairs for an oracle that solves in many digits


def run(options: Options) -> list[Table]:
    """One row for each rule and oracle."""
    needs("torchjd", "test")
    number = 5 if options.quick else 1000
    rows = [
        {
            "rule": rule,
            "oracle": words,
            "pairs": len(found),
            "largest relative difference": max(found),
            "median": statistics.median(found),
        }
        for rule, words, found in differences(number)
    ]
    return [Table("shared gradients, in float64", list(rows[0]), rows)]


def differences(number: int):
    """Rule with its options, oracle, relative differences over so many pairs."""
    oracles = from_tests("rule_oracles")
    pairs = _pairs(oracles, number)
    for name in sorted(RULES):
        for oracle in oracles.ORACLES.get(name, []):
            options = ", ".join(f"{k}: {v}" for k, v in oracle.options.items())
            shown = f"{name} ({options})" if options else name
            some = pairs[:SLOW] if oracle.slow else pairs
            yield shown, oracle.words, _compare(oracles, name, oracle, some)
    for beta, eps in [(0.01, 0.0), (0.5, 0.0), (0.5, 1e-8)]:
        words = f"torchjd GradVac (eps {eps:g}), step after step"
        found = oracles.gradvac_differences(pairs, beta, eps)
        yield f"gradvac (beta: {beta})", words, found


def _pairs(oracles, number):
    """The same pairs of gradients for every rule."""
    generator = torch.Generator().manual_seed(0)
    return [oracles.random_pair(generator, SIZE) for _ in range(number)]


def _compare(oracles, name, oracle, pairs):
    """Differences of a rule to one oracle."""
    rule = find_rule(name, oracle.options)
    solved = [(pair, oracle.gradient(*pair)) for pair in pairs]
    return [
        oracles.difference(oracles.shared_gradient(rule, *pair), expected)
        for pair, expected in solved
        if expected is not None
    ]
