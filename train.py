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
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process

from unified_se_ss import training
from unified_se_ss.data.corpora.librimix import prepare_librimix
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.dataset import MixtureDataset, collate
from unified_se_ss.data.dynamic_mixing import DynamicMixingDataset
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.metrics import evaluate_item
from unified_se_ss.gradients import AUX_SCALES, GRANULARITIES, TaskLoss, TwoTaskLosses
from unified_se_ss.inference.speechbrain_format import load_pretrained_ss
from unified_se_ss.losses import (
    REPRESENTATION_LOSSES,
    permutation_invariant_si_snr,
    representation_loss,
    si_snr,
)
from unified_se_ss.networks import UnifiedOutput
from unified_se_ss.training.brain import percent

CHOICES = {
    "granularity": GRANULARITIES,
    "aux_scale": AUX_SCALES,
    "se_loss": [*REPRESENTATION_LOSSES, "si_snr"],
}
LEAST = {
    "number_of_epochs": 1,
    "lr": 0,
    "weight_se": 0,
    "num_workers": 0,
    "log_interval": 1,
    "save_waves": 0,
    "kernel_size": 1,
    "stride": 1,
}


class Predictions(NamedTuple):
    """What the network says of a batch, and what the SE task compares it with."""

    output: UnifiedOutput
    clean_representation: torch.Tensor


class UnifiedBrain(training.RecipeBrain):
    """Main task: separation. Auxiliary task: enhancement, on what both share."""

    def compute_forward(self, batch, stage):
        """Separate and enhance the mixtures; represent their clean counterparts."""
        batch = batch.to(self.device)
        output = self.modules.network(batch.mixture, batch.lengths)
        clean = self.modules.network.encoder(batch.clean_mixture)
        return Predictions(output, clean)

    def compute_objectives(self, predictions, batch, stage):
        """Negative SI-SNR under the best permutation; weighted distance from clean."""
        output, clean = predictions
        scores, permutation = permutation_invariant_si_snr(
            output.sources, batch.sources, batch.lengths
        )
        if stage != Stage.TRAIN:
            self.keep_scores(batch, output, scores, permutation)
            return TwoTaskLosses(TaskLoss.of(-scores))
        threshold = self.hparams.loss_threshold
        keep = None if threshold is None else -scores > threshold
        main = TaskLoss.of(-scores, keep)
        if not (self.hparams.use_se and self.hparams.weight_se):
            return TwoTaskLosses(main)
        se_loss = self.se_losses(output, clean, batch)
        return TwoTaskLosses(main, TaskLoss.of(self.hparams.weight_se * se_loss))

    def se_losses(self, output, clean, batch):
        """The SE task's loss of each item: on representations, or on what is heard."""
        if self.hparams.se_loss == "si_snr":
            return -si_snr(output.enhanced, batch.clean_mixture, batch.lengths)
        return representation_loss(
            output.enhanced_representation, clean, output.frames, self.hparams.se_loss
        )

    def loss_fields(self, means):
        """The progress bar speaks of dB: higher is better."""
        return {} if means["main"] is None else {"si_snr": f"{-means['main']:.2f} dB"}

    def training_fields(self, means):
        """The log speaks of dB, too."""
        main = means["main"]
        return {
            "train_si_snr": None if main is None else -main,
            "train_se_loss": means["auxiliary"],
        }

    def epoch_message(self, row):
        """How separation goes, and how often the two tasks conflict."""
        return (
            f"validation SI-SNRi {row['valid_si_snr_i']:.2f} dB, "
            f"conflicts {percent(row.get('conflict_rate'))}"
        )

    # -------------------------------------------------------------- evaluation

    def keep_scores(self, batch, output, scores, permutation):
        """Note what an evaluation batch says of each of its items."""
        if self.stage == Stage.VALID:
            mixture = batch.mixture.unsqueeze(1)
            before = si_snr(mixture, batch.sources, batch.lengths).mean(-1)
            columns = {"loss": -scores, "si_snr": scores, "si_snr_i": scores - before}
            if output.enhanced is not None:
                heard, noisy = (
                    si_snr(signal, batch.clean_mixture, batch.lengths)
                    for signal in (output.enhanced, batch.mixture)
                )
                columns["se_si_snr_i"] = heard - noisy
            values = zip(*(column.tolist() for column in columns.values()))
            self.rows += [dict(zip(columns, row)) for row in values]
        else:
            for item in range(len(batch)):
                self.rows.append(self.evaluate_signals(batch, output, item))

    def evaluate_signals(self, batch, output, item):
        """The row of one utterance in results.csv."""
        signals = signals_of(batch, output, item)
        rate = self.hparams.sample_rate
        return {"ID": batch.ids[item], **evaluate_item(**signals, sample_rate=rate)}


def signals_of(batch, output, item):
    """Mixture, estimates, sources, and enhanced mixture of one item, as NumPy arrays."""
    length = int(batch.lengths[item])
    cut = {
        "mixture": batch.mixture[item],
        "estimates": output.sources[item],
        "targets": batch.sources[item],
        "clean_mixture": batch.clean_mixture[item],
    }
    if output.enhanced is not None:
        cut["enhanced"] = output.enhanced[item]
    return {name: x[..., :length].float().cpu().numpy() for name, x in cut.items()}


# ------------------------------------------------------------------ data


def prepare(hparams):
    """Manifests by subset; makes the corpus first if the YAML says how."""
    if "corpus" in hparams:
        hparams["data_folder"] = str(hparams["corpus"]())
    folder = Path(hparams["output_folder"]) / "manifests"
    paths = prepare_librimix(
        hparams["data_folder"],
        folder,
        n_speakers=hparams["n_speakers"],
        sample_rate=hparams["sample_rate"],
        mode=hparams["mode"],
        train_subset=hparams["train_subset"],
        mixture=hparams["mixture"],
    )
    manifests = {
        subset: read_manifest(path, hparams["data_folder"])
        for subset, path in paths.items()
    }
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


def prepare_dynamic_mixing(hparams):
    """Manifests of single utterances and of noises, with their loudness."""
    manifests = []
    for kind in ("speech", "noise"):
        folder = hparams[f"dynamic_{kind}_folder"]
        if folder is None:
            raise UserError(
                f"dynamic_{kind}_folder: must be set where dynamic_mixing is True"
            )
        path = prepare_speech_folder(
            folder,
            Path(hparams["output_folder"]) / "manifests" / f"dynamic_{kind}.csv",
            hparams["sample_rate"],
            kind=kind,
            resample=True,  # LibriSpeech and WHAM are 16 kHz, the mixtures may be 8
            channel=0 if kind == "noise" else None,  # WHAM is stereo; as LibriMix does
        )
        manifests.append(read_manifest(path, folder, one_rate=False))
    return manifests


def training_data(hparams, manifest):
    """Mixtures of the manifest, or mixed on the fly."""
    if not hparams["dynamic_mixing"]:
        return MixtureDataset(
            manifest,
            hparams["n_speakers"],
            segment_seconds=hparams["segment_seconds"],
            speed_percents=hparams["speed_percents"],
            seed=hparams["seed"],
        )
    speech, noise = training.on_main(prepare_dynamic_mixing, hparams)
    return DynamicMixingDataset(
        speech,
        noise,
        hparams["n_speakers"],
        n_items=hparams["dynamic_items"] or len(manifest),
        seed=hparams["seed"],
        segment_seconds=hparams["segment_seconds"],
        sample_rate=hparams["sample_rate"],
        speed_percents=hparams["speed_percents"],
        resample=True,
    )


def make_loaders(hparams, manifests):
    """Loaders for training, validation and test."""
    datasets = {
        "train": training_data(hparams, manifests["train"]),
        **{s: MixtureDataset(manifests[s], hparams["n_speakers"]) for s in ("dev", "test")},
    }
    return training.make_loaders(datasets, collate, hparams)


# ------------------------------------------------------------------ the whole


@torch.no_grad()
def separate_again(brain, test_data, item_id):
    """Signals of one utterance of the test set, for wavs and report."""
    ids = [item.id for item in test_data.manifest.items]
    batch = collate([test_data[ids.index(item_id)]])
    with brain.evaluation_ctx:
        output = brain.compute_forward(batch, Stage.TEST).output
    return signals_of(batch, output, 0)


def facts(hparams):
    """What --describe says beside the modules."""
    rate = hparams["sample_rate"]
    window, hop = 1000 * hparams["kernel_size"] / rate, 1000 * hparams["stride"] / rate
    chunk = hparams["chunk_length"] * hop
    return {
        "encoder": f"window {window:g} ms, hop {hop:g} ms",
        "chunks": f"{chunk:g} ms, hop {chunk / 2:g} ms",
        "receptive field": "the whole utterance (global norms, both directions)",
        "latency": "the whole utterance (not a causal network)",
        "shared by both tasks": ", ".join(shared_modules(hparams)),
    }


def shared_modules(hparams):
    """Names of the modules that both tasks train."""
    return ["network.encoder"] + ["network.enhancer"] * bool(hparams["use_se"])


def start_from_pretrained(hparams):
    """Give the SS module a trained one's weights, unless the run goes on from its own."""
    source = hparams["pretrained_ss"]
    if source is None or hparams["checkpointer"].list_checkpoints():
        return
    network = hparams["modules"]["network"]
    loaded = training.on_main(load_pretrained_ss, network, source)
    if if_main_process():
        print(loaded)


def main():
    """From the command line to the report."""
    options = training.parse_options(sys.argv[1:], __doc__)
    hparams = training.load_hparams(options)
    training.check_choices(hparams, CHOICES)
    training.check_ranges(hparams, LEAST)
    training.check_segment(hparams)
    training.check_rule(hparams)
    hparams["shared_modules"] = shared_modules(hparams)
    if options.describe:
        print(training.describe(hparams["modules"], facts(hparams)))
        return
    training.begin(options, hparams)
    training.check_testable(options.run_opts, hparams["checkpointer"])
    start_from_pretrained(hparams)
    loaders = make_loaders(hparams, training.on_main(prepare, hparams))
    brain = UnifiedBrain(
        modules=hparams["modules"],
        opt_class=hparams["optimizer"],
        hparams=hparams,
        run_opts=options.run_opts,
        checkpointer=hparams["checkpointer"],
    )
    signals = partial(separate_again, brain, loaders["test"].dataset)
    training.train_and_test(brain, loaders, signals)


if __name__ == "__main__":
    training.run(main)
