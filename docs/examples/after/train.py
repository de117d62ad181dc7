"""Recognise the phones of noisy speech, and enhance it on the way.

python train.py hparams.yaml                                one process
torchrun --nproc_per_node=2 train.py hparams.yaml           two
"""

import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.nnet.losses import mse_loss, nll_loss

from unified_se_ss.training.brain import TwoTaskBrain


class Recipe(TwoTaskBrain):
    """Two heads on one encoder."""

    def compute_forward(self, batch, stage):
        """Log-probabilities of phones, and enhanced features."""
        batch = batch.to(self.device)
        noisy, _ = batch.noisy
        hidden, _ = self.modules.encoder(noisy)
        phones = self.modules.recognizer(hidden).log_softmax(-1)
        return phones, self.modules.enhancer(hidden)

    def compute_objectives(self, predictions, batch, stage):
        """What is minimised."""
        phones, enhanced = predictions
        clean, lengths = batch.clean
        main_loss = nll_loss(phones, batch.phones.data, lengths)
        auxiliary_loss = mse_loss(enhanced, clean, lengths)
        return main_loss, self.hparams.auxiliary_weight * auxiliary_loss

    def on_stage_end(self, stage, stage_loss, epoch):
        """Say how it goes, and save."""
        if sb.utils.distributed.if_main_process():
            print(f"Epoch {epoch}, {stage.name}: {stage_loss:.4f}")
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only({"loss": stage_loss}, min_keys=["loss"])


def made_up_data(hparams, n_items, seed):
    """Items of 20 to 40 frames: phones, clean features that follow from them, and noise."""
    generator = torch.Generator().manual_seed(0)
    spectra = torch.randn(hparams["n_phones"], hparams["n_features"], generator=generator)
    generator.manual_seed(seed)
    data = {}
    for item in range(n_items):
        frames = int(torch.randint(20, 41, (), generator=generator))
        phones = torch.randint(hparams["n_phones"], (frames,), generator=generator)
        clean = spectra[phones]
        noise = torch.randn(clean.shape, generator=generator)
        data[f"{item:03}"] = {"noisy": clean + noise, "clean": clean, "phones": phones}
    return DynamicItemDataset(data, output_keys=["id", "noisy", "clean", "phones"])


def main():
    """Train and validate."""
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    brain = Recipe(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    loader = {"batch_size": hparams["batch_size"]}
    brain.fit(
        hparams["epoch_counter"],
        made_up_data(hparams, n_items=64, seed=1),
        made_up_data(hparams, n_items=16, seed=2),
        train_loader_kwargs=loader,
        valid_loader_kwargs=loader,
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
