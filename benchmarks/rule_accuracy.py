"""How exact the rules are: each against its oracles, over random pairs of gradients.

    python benchmarks/rule_accuracy.py [--pairs 1000] [--size 7]

The oracles are the formulas of the papers, torchjd's aggregators, and solutions of the
original problems in 50 digits (tests/rule_oracles.py). A difference is the length of the
difference of both shared gradients relative to that of the oracle's. The lengths of the
gradients are apart by up to 100 either way, their angles are of all kinds. Pairs for
which an oracle's own solver gives up are not counted. Needs the `test` extra.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rule_oracles import (  # noqa: E402
    ORACLES,
    difference,
    gradvac_differences,
    random_pair,
    shared_gradient,
)

from unified_se_ss.gradients import RULES, find_rule  # noqa: E402


def pairs_of_gradients(number, size):
    """The same pairs for every rule."""
    generator = torch.Generator().manual_seed(0)
    return [random_pair(generator, size) for _ in range(number)]


def compare(name, oracle, number, size):
    """Differences of a rule to one oracle."""
    rule = find_rule(name, oracle.options)
    solved = [(pair, oracle.gradient(*pair)) for pair in pairs_of_gradients(number, size)]
    return [
        difference(shared_gradient(rule, *pair), expected)
        for pair, expected in solved
        if expected is not None
    ]


def rows(number, size):
    """Rule with its options, oracle, differences."""
    for name in sorted(RULES):
        for oracle in ORACLES.get(name, []):
            options = ", ".join(f"{k}: {v}" for k, v in oracle.options.items())
            pairs = min(number, 200) if oracle.slow else number
            shown = f"{name} ({options})" if options else name
            yield shown, oracle.words, compare(name, oracle, pairs, size)
    steps = pairs_of_gradients(number, size)
    for beta, eps in [(0.01, 0.0), (0.5, 0.0), (0.5, 1e-8)]:
        words = f"torchjd GradVac (eps {eps:g}), step after step"
        yield f"gradvac (beta: {beta})", words, gradvac_differences(steps, beta, eps)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--size", type=int, default=7, help="length of a gradient")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| rule | oracle | pairs | largest relative difference | median |")
    print("|---|---|---:|---:|---:|")
    for name, words, found in rows(arguments.pairs, arguments.size):
        median = statistics.median(found)
        print(
            f"| {name} | {words} | {len(found)} | {max(found):.1e} | {median:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
