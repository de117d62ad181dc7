"""What the second gradient costs: a two-gradient step against one backward pass.

    python benchmarks/two_gradients.py [HPARAMS.yaml ...] [--seconds 4] [--repeats 5]

Baseline: the same network, losses and optimizer, with `(main + auxiliary).backward()`,
which is what `rule: sum` would be without a gradient of its own for each task. Both
kinds of step are taken in turn in one process, after a warm-up; medians are compared.
The operation count of the published sizes says 1.169 (DPRNN) and 1.077 (SepFormer).
For other fronts, memory, and other ways to take two gradients: two_gradient_fronts.py.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hyperpyyaml import load_hyperpyyaml  # noqa: E402

from unified_se_ss.gradients import TaskLoss, TwoTaskGradients, TwoTaskLosses  # noqa: E402
from unified_se_ss.objectives import (  # noqa: E402
    permutation_invariant_si_snr,
    representation_loss,
    si_snr,
)
from unified_se_ss.recipe import commit, keep_freed_memory  # noqa: E402

DEFAULT = ["hparams/libri2mix_noisy_dprnn.yaml", "hparams/libri2mix_noisy.yaml"]


class Step:
    """One training step of a recipe's network, in two ways."""

    def __init__(self, hparams, seconds, device):
        self.network = hparams["network"].to(device)
        self.optimizer = hparams["optimizer"](self.network.parameters())
        self.weight, self.kind = hparams["weight_se"], hparams["se_loss"]
        self.gradients = TwoTaskGradients(
            self.network.named_parameters(), ["encoder", "enhancer"], "project"
        )
        samples = int(seconds * hparams["sample_rate"])
        self.sources = 0.1 * torch.randn(1, hparams["n_speakers"], samples, device=device)
        self.mixture = self.sources.sum(1) + 0.05 * torch.randn(1, samples, device=device)

    def losses(self):
        """Main and auxiliary loss, as the recipe has them."""
        output = self.network(self.mixture)
        score, _ = permutation_invariant_si_snr(output.sources, self.sources)
        se_loss = self.weight * self.se_losses(output)
        return TwoTaskLosses(TaskLoss.of(-score), TaskLoss.of(se_loss))

    def se_losses(self, output):
        """The SE task's loss: on representations, or on what is heard."""
        clean = self.sources.sum(1)
        if self.kind == "si_snr":
            return -si_snr(output.enhanced, clean)
        clean_representation = self.network.encoder(clean)
        enhanced = output.enhanced_representation
        return representation_loss(enhanced, clean_representation, kind=self.kind)

    def finish(self):
        """Clip and step, the same for both."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def two_gradients(self):
        """Each task's gradient apart, then `project`."""
        self.gradients.accumulate(self.losses())
        self.gradients.combine()
        self.finish()

    def one_backward(self):
        """The baseline: the gradient of the sum."""
        losses = self.losses()
        (losses.main.total + losses.auxiliary.total).backward()
        self.finish()


def measure(step, repeats, device):
    """Median seconds of both kinds of step, taken in turn."""
    taken = {step.one_backward: [], step.two_gradients: []}
    for number in range(repeats + 1):
        for kind, seconds in taken.items():
            _wait(device)
            began = time.perf_counter()
            kind()
            _wait(device)
            if number:  # the first of each is warm-up
                seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in taken.values()]


def _wait(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main(arguments=None):
    """Measure every YAML that was named, print a table, write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("hparams", nargs="*", default=DEFAULT)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the item")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    rows = []
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {options.device}, {threads} threads, ", end="")
    print(f"one item of {options.seconds:g} s, median of {options.repeats}\n")
    print(f"{'recipe':<40} {'one backward':>13} {'two gradients':>14} {'ratio':>7}")
    for name in options.hparams:
        with open(ROOT / name, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(
                file, {"data_folder": "unused", "output_folder": tempfile.mkdtemp()}
            )
        step = Step(hparams, options.seconds, options.device)
        one, two = measure(step, options.repeats, options.device)
        rows.append({"recipe": name, "one_backward_s": one, "two_gradients_s": two})
        print(f"{name:<40} {one:>11.3f} s {two:>12.3f} s {two / one:>7.3f}", flush=True)
    if options.json:
        machine = {
            "commit": commit(),
            "torch": torch.__version__,
            "cpu": platform.processor(),
        }
        options.json.write_text(json.dumps({**machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
