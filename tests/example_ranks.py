"""The examples of docs/examples on two ranks; started by test_examples.

torchrun --nproc_per_node=2 tests/example_ranks.py FOLDER
"""

import importlib.util
import os
import sys
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.batch import PaddedBatch
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
sys.path.insert(0, str(ROOT))

# Frames of each item, by step and rank. Two plain means are the mean of the joined batch
# where batches and lengths are equal; sums with their numbers of items always are.
EQUAL = [[[30, 30], [30, 30]], [[25, 25, 25], [25, 25, 25]]]
UNEVEN = [[[30, 21, 26], [40]], [[22], [35, 20]]]
LENGTHS = {"after": EQUAL, "by_items": UNEVEN}


def load(name):
    """A file of docs/examples as a module, without its name among the modules."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(name, folder, precision=torch.float64, **options):
    """The Brain of an example, without its epochs' ends."""
    hparams_of = "before" if name == "before" else "after"
    with open(EXAMPLES / hparams_of / "hparams.yaml", encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, {"output_folder": str(folder)})
    example = load(f"{name}/train.py")
    run_opts = {"device": "cpu", "noprogressbar": True, "distributed_backend": "gloo"}
    for key in ("max_grad_norm", "grad_accumulation_factor"):
        if key in options:
            run_opts[key] = options.pop(key)
    brain = example.Recipe(
        modules={n: module.to(precision) for n, module in hparams["modules"].items()},
        opt_class=hparams["opt_class"],
        hparams={**hparams, **options},
        run_opts=run_opts,
    )
    brain.on_stage_end = lambda *_: None
    return brain


def batches(lengths, ranks=(0, 1), dtype=torch.float64):
    """The items of some ranks, one batch for each step."""
    for step, of_rank in enumerate(lengths):
        items = []
        for rank in ranks:
            generator = torch.Generator().manual_seed(100 * step + rank)
            for frames in of_rank[rank]:
                items.append(
                    {
                        "noisy": torch.randn(frames, 20, generator=generator).to(dtype),
                        "clean": torch.randn(frames, 20, generator=generator).to(dtype),
                        "phones": torch.randint(10, (frames,), generator=generator),
                    }
                )
        yield PaddedBatch(items)


def fit(brain, data):
    """Train for an epoch; the weights at its end."""
    brain.fit([1], DataLoader(list(data), batch_size=None))
    return {
        name: value.detach().clone() for name, value in brain.raw_modules.named_parameters()
    }


def main(folder):
    """Train each example with this rank's items, in float64."""
    rank = int(os.environ["RANK"])
    sb.utils.distributed.ddp_init_group({"distributed_backend": "gloo"})
    for name, lengths in LENGTHS.items():
        weights = fit(make(name, folder), batches(lengths, [rank]))
        torch.save(weights, folder / f"{name}.{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
