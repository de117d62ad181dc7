"""A recipe in small: a network of a few numbers, items without files, no YAML."""

from types import SimpleNamespace

import torch
from speechbrain import Stage
from speechbrain.nnet.schedulers import LinearScheduler
from speechbrain.utils.epoch_loop import EpochCounter

from unified_se_ss import training
from unified_se_ss.data.dataset import Example, ItemKey, collate
from unified_se_ss.errors import UserError
from unified_se_ss.gradients import TaskLoss
from unified_se_ss.training.checkpoints import AtomicCheckpointer


class Square(torch.nn.Module):
    """Overflows for numbers above 2e19."""

    def forward(self, x):
        return x.square()


class ToyBrain(training.RecipeBrain):
    """One task: the source from the mixture, sample by sample."""

    best = "score"

    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        return self.modules.network(batch.mixture.unsqueeze(-1)).squeeze(-1)

    def compute_objectives(self, output, batch, stage):
        losses = (output - batch.sources[:, 0]).square().mean(-1)
        if stage == Stage.VALID:
            self.rows += [{"loss": x, "score": -x} for x in losses.tolist()]
        elif stage == Stage.TEST:
            pairs = zip(batch.ids, losses.tolist())
            self.rows += [{"ID": name, "score": -x} for name, x in pairs]
        return TaskLoss.of(losses)

    def signals_of_id(self, item_id):
        return {"mixture": torch.zeros(3)}


class ToyData(torch.utils.data.Dataset):
    """Eight items of noise; `wild` ones are loud enough to overflow, `gone` cannot be read."""

    def __init__(self, subset, wild=(), gone=()):
        self.subset, self.wild, self.gone = subset, wild, gone
        self.durations = [1.0 + 0.1 * index for index in range(8)]

    def __len__(self):
        return 8

    def __getitem__(self, key):
        epoch, index = ItemKey.of(key)
        if index in self.gone:
            raise UserError(f"{self.subset}-{index}.wav: does not exist")
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        mixture = torch.randn(80 + 8 * index, generator=generator)
        if index in self.wild:
            mixture[3] = 1e25
        return Example(f"{self.subset}-{index}", mixture, mixture[None] / 2)


def toy(folder, brain_class=ToyBrain, modules=(), wild=(), gone=(), **hparams):
    """A Brain and its loaders, as a recipe's main function makes them."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Linear(1, 4), Square(), torch.nn.Dropout(0.1), torch.nn.Linear(4, 1)
    )
    modules = {"network": network, **dict(modules)}
    counter = EpochCounter(limit=2)
    checkpointer = AtomicCheckpointer(
        folder / "save", recoverables={"network": network, "counter": counter}
    )
    options = SimpleNamespace(
        check=True, describe=False, overrides={}, hparams_file=folder / "toy.yaml"
    )
    (folder / "toy.yaml").write_text(f"output_folder: {folder / 'own'}\n")
    keys = {
        "output_folder": str(folder),
        "options": options,
        "epoch_counter": counter,
        "lr_scheduler": LinearScheduler(0.01, 0.001, 2),
        "number_of_epochs": 2,
        "rule": "project",
        "seed": 7,
        "max_skipped_share": 0.5,
        **hparams,
    }
    brain = brain_class(
        modules=modules,
        opt_class=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        hparams=keys,
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=checkpointer,
    )
    datasets = {s: ToyData(s) for s in ("dev", "test")}
    datasets = {"train": ToyData("train", wild, gone), **datasets}
    plan = {"batch_size": 2, "batch_seconds": None, "valid_batch_size": 2, "seed": 7}
    loaders = training.make_loaders(datasets, collate, {**plan, "num_workers": 0})
    brain.loaders = loaders
    brain.train_sampler = loaders["train"].batch_sampler
    return brain, loaders


def fit(brain):
    """Train and validate for all epochs; the weights at the end."""
    brain.fit(brain.hparams.epoch_counter, brain.loaders["train"], brain.loaders["dev"])
    return [tensor.clone() for tensor in brain.modules.state_dict().values()]
