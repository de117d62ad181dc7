#!/usr/bin/env python3
"""Train, evaluate, and report unified speech enhancement and separation.

  one machine       python train.py hparams/libri2mix_noisy.yaml --data_folder .../Libri2Mix
  several GPUs      torchrun --nproc_per_node=4 train.py hparams/libri2mix_noisy.yaml ...
  a first look      python train.py hparams/demo.yaml

Every key of the YAML file can be replaced: --rule sum, --weight_se 0, --use_se False.
The same command goes on where a run was stopped. --check tries everything once
and leaves (docs/checks.md), --describe prints the modules and leaves; --test_only
evaluates the best checkpoint.

A network of encoder, SE module, SS module and decoder is trained for both tasks at
once. Where the SE gradient of the shared parameters conflicts with that of SS, it is
projected on the normal plane of SS's (arXiv 2302.11131); see docs/gradients.md.
"""

import unified_se_ss.installation  # noqa: F401  (first: does torchaudio fit torch?)

# isort: split
from typing import NamedTuple

import torch
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process

from unified_se_ss import losses, training
from unified_se_ss.data.corpora.mixtures import prepare_librimix
from unified_se_ss.data.dataset import DynamicMixingDataset, MixtureDataset, collate
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.rows import evaluate_item
from unified_se_ss.gradients import AUX_SCALES, GRANULARITIES, TaskLoss, TwoTaskLosses
from unified_se_ss.networks import UnifiedOutput
from unified_se_ss.training.pretrained import load_pretrained_ss

CHOICES = {
    "granularity": GRANULARITIES,
    "aux_scale": AUX_SCALES,
    "se_loss": [*losses.REPRESENTATION_LOSSES, "si_snr"],
}


class Predictions(NamedTuple):
    """Output of the network, and the target of the SE task."""

    output: UnifiedOutput
    clean_representation: torch.Tensor


class UnifiedBrain(training.RecipeBrain):
    """Main task: separation. Auxiliary task: enhancement, on what both share."""

    def before_training(self):
        """Give the SS module a trained one's weights, unless the run goes on from its own."""
        source = self.hparams.pretrained_ss
        if source is not None and not self.checkpointer.list_checkpoints():
            loaded = training.on_main(load_pretrained_ss, self.modules.network, source)
            if if_main_process():
                print(loaded)

    def compute_forward(self, batch, stage):
        """Separate and enhance the mixtures; represent their clean counterparts."""
        batch = batch.to(self.device)
        output = self.modules.network(batch.mixture, batch.lengths)
        clean = self.modules.network.encoder(batch.clean_mixture)
        return Predictions(output, clean)

    def compute_objectives(self, predictions, batch, stage):
        """Negative SI-SNR under the best permutation; weighted distance from clean."""
        output, clean = predictions
        scores, _ = losses.permutation_invariant_si_snr(
            output.sources, batch.sources, batch.lengths
        )
        if stage != Stage.TRAIN:
            self.add_scores(batch, predictions, scores)
            return TwoTaskLosses(TaskLoss.of(-scores))
        threshold = self.hparams.loss_threshold
        keep = None if threshold is None else -scores > threshold
        main = TaskLoss.of(-scores, keep)
        if not (self.hparams.use_se and self.hparams.weight_se):
            return TwoTaskLosses(main)
        se_loss = self.se_losses(output, clean, batch)
        return TwoTaskLosses(main, TaskLoss.of(self.hparams.weight_se * se_loss))

    def se_losses(self, output, clean, batch):
        """The SE task's loss of each item: on representations, or on signals."""
        if self.hparams.se_loss == "si_snr":
            return -losses.si_snr(output.enhanced, batch.clean_mixture, batch.lengths)
        return losses.representation_loss(
            output.enhanced_representation, clean, output.frames, self.hparams.se_loss
        )

    def loss_fields(self, means):
        """The progress bar shows dB: higher is better."""
        return {} if means["main"] is None else {"si_snr": f"{-means['main']:.2f} dB"}

    def training_fields(self, means):
        """The log shows dB, too."""
        main = means["main"]
        return {
            "train_si_snr": None if main is None else -main,
            "train_se_loss": means["auxiliary"],
        }

    def epoch_message(self, row):
        """Separation in validation, and how often the two tasks conflict."""
        return (
            f"validation SI-SNRi {row['valid_si_snr_i']:.2f} dB, "
            f"conflicts {training.percent(row.get('conflict_rate'))}"
        )

    # -------------------------------------------------------------- evaluation

    def add_scores(self, batch, predictions, scores):
        """Add the rows of an evaluation batch."""
        if self.stage == Stage.TEST:
            rate = self.hparams.sample_rate
            for item, item_id in enumerate(batch.ids):
                signals = self.signals_of(batch, predictions, item)
                self.rows.append(
                    {"ID": item_id, **evaluate_item(**signals, sample_rate=rate)}
                )
            return
        mixture, enhanced = batch.mixture, predictions.output.enhanced
        before = losses.si_snr(mixture.unsqueeze(1), batch.sources, batch.lengths).mean(-1)
        columns = {"loss": -scores, "si_snr": scores, "si_snr_i": scores - before}
        if enhanced is not None:
            clean = batch.clean_mixture, batch.lengths
            gain = losses.si_snr(enhanced, *clean) - losses.si_snr(mixture, *clean)
            columns["se_si_snr_i"] = gain
        self.add_rows(columns)

    def signals_of(self, batch, predictions, item):
        """Mixture, estimates, sources, and enhanced mixture of one item, as NumPy arrays."""
        output = predictions.output
        signals = {
            "mixture": batch.mixture,
            "estimates": output.sources,
            "targets": batch.sources,
            "clean_mixture": batch.clean_mixture,
        }
        if output.enhanced is not None:
            signals["enhanced"] = output.enhanced
        return training.item_arrays(signals, item, batch.lengths)


# ------------------------------------------------------------------ data


def prepare(hparams):
    """Manifests by subset; makes the corpus first if the YAML says how."""
    if "corpus" in hparams:
        hparams["data_folder"] = str(hparams["corpus"]())
    root, folder = hparams["data_folder"], training.manifest_folder(hparams)
    keys = ("n_speakers", "sample_rate", "mode", "train_subset", "mixture")
    paths = prepare_librimix(root, folder, **training.pick(hparams, *keys))
    manifests = {subset: read_manifest(path, root) for subset, path in paths.items()}
    for manifest in manifests.values():
        check_long_enough(manifest, hparams["kernel_size"])
    return manifests


def check_long_enough(manifest, kernel_size):
    """Stop at an item that is shorter than the encoder's window."""
    shortest = min(manifest.items, key=lambda item: item.frames)
    if shortest.frames < kernel_size:
        raise UserError(
            f"{manifest.path}: {shortest.id} has {shortest.frames} samples, less than the "
            f"encoder's window (kernel_size is {kernel_size}); remove it from the data"
        )


def training_data(hparams, manifest):
    """Mixtures of the manifest, or mixed on the fly."""
    keys = ("n_speakers", "seed", "segment_seconds", "speed_percents")
    options = training.pick(hparams, *keys)
    if not hparams["dynamic_mixing"]:
        return MixtureDataset(manifest, **options)
    return DynamicMixingDataset(
        *training.prepare_dynamic_mixing(hparams),
        n_items=hparams["dynamic_items"] or len(manifest),
        sample_rate=hparams["sample_rate"],
        resample=True,
        **options,
    )


def make_loaders(hparams):
    """Loaders for training, validation and test."""
    manifests = training.on_main(prepare, hparams)
    datasets = {
        "train": training_data(hparams, manifests["train"]),
        **{s: MixtureDataset(manifests[s], hparams["n_speakers"]) for s in ("dev", "test")},
    }
    return training.make_loaders(datasets, collate, hparams)


# ------------------------------------------------------------------ configuration


def check(hparams):
    """Stop at values that cannot be used; name the modules that both tasks train."""
    training.check_choices(hparams, CHOICES)
    training.check_segment(hparams)
    training.check_rule(hparams)
    enhancer = ["network.enhancer"] if hparams["use_se"] else []
    hparams["shared_modules"] = ["network.encoder", *enhancer]


def facts(hparams):
    """Properties that --describe prints beside the modules."""
    rate = hparams["sample_rate"]
    window, hop = 1000 * hparams["kernel_size"] / rate, 1000 * hparams["stride"] / rate
    chunk = hparams["chunk_length"] * hop
    return {
        "encoder": f"window {window:g} ms, hop {hop:g} ms",
        "chunks": f"{chunk:g} ms, hop {chunk / 2:g} ms",
        "receptive field": "the whole utterance (global norms, both directions)",
        "latency": "the whole utterance (not a causal network)",
        "shared by both tasks": ", ".join(hparams["shared_modules"]),
    }


def main(options):
    """Train, test and report, as the command line asks."""
    training.train_recipe(options, UnifiedBrain, check, make_loaders, facts)


if __name__ == "__main__":
    training.run(main, __doc__)
