#!/usr/bin/env python3
"""Train, evaluate, and report binaural separation that keeps where the talkers are.

  one machine       python train.py hparams/convtasnet-mimo.yaml --data_folder .../2speakers
  several GPUs      torchrun --nproc_per_node=4 train.py hparams/convtasnet-mimo.yaml ...
  a first look      python train.py hparams/demo.yaml

Every key of the YAML file can be replaced: --variant independent, --share_ears True. The
same command goes on where a run was stopped. --describe prints the modules and leaves;
--test_only evaluates the best checkpoint.

Two ears in, two ears of each talker out, by Conv-TasNet with masks estimated from both
ears (arXiv 2002.06637). The loss is the negative SNR, which unlike SI-SNR holds the level
of each ear, under one permutation for both.
"""

import unified_se_ss.installation  # noqa: F401  (first: does torchaudio fit torch?)

# isort: split
import sys
from functools import partial
from pathlib import Path

import torch
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process

from unified_se_ss import training
from unified_se_ss.data.binaural import BinauralDataset, BinauralDynamicMixing
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.corpora.wsj0mix import prepare_binaural_wsj0mix, prepare_wsj0mix
from unified_se_ss.data.dataset import collate
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.data.write import make_binaural_corpus
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.angle_report import write_angles
from unified_se_ss.evaluation.binaural import evaluate_ears, level_ears
from unified_se_ss.evaluation.interaural import PROTOCOLS
from unified_se_ss.evaluation.report.interaural import interaural
from unified_se_ss.gradients import TaskLoss
from unified_se_ss.losses import (
    interaural_cue_losses,
    permutation_invariant_snr,
    reorder_sources,
    snr,
)
from unified_se_ss.networks.binaural import VARIANTS

CHOICES = {"variant": VARIANTS, "protocol": PROTOCOLS}
LEAST = {
    "number_of_epochs": 1,
    "lr": 0,
    "ild_weight": 0,
    "ipd_weight": 0,
    "num_workers": 0,
    "log_interval": 1,
    "save_waves": 0,
    "kernel_size": 1,
    "stride": 1,
}


class BinauralBrain(training.RecipeBrain):
    """Separation of what two ears hear, talker by talker, into what each ear hears of it."""

    best = "snr_i"

    def compute_forward(self, batch, stage):
        """Separate the mixtures."""
        batch = batch.to(self.device)
        return self.modules.network(batch.mixture, batch.lengths)

    def compute_objectives(self, estimates, batch, stage):
        """Negative SNR under the best permutation of both ears, and errors of cues."""
        scores, permutation = permutation_invariant_snr(
            estimates, batch.sources, batch.lengths
        )
        if stage != Stage.TRAIN:
            self.keep_scores(batch, estimates, scores)
            return TaskLoss.of(-scores)
        threshold = self.hparams.loss_threshold
        keep = None if threshold is None else -scores > threshold
        return TaskLoss.of(self.cue_losses(estimates, batch, permutation) - scores, keep)

    def cue_losses(self, estimates, batch, permutation):
        """Weighted errors of interaural level and phase; 0 where neither has a weight."""
        ild_weight, ipd_weight = self.hparams.ild_weight, self.hparams.ipd_weight
        if not (ild_weight or ipd_weight):
            return 0.0
        ordered = reorder_sources(estimates.flatten(2), permutation).view_as(estimates)
        losses = interaural_cue_losses(ordered, batch.sources, batch.lengths)
        return ild_weight * losses.ild + ipd_weight * losses.ipd

    def loss_fields(self, means):
        """The progress bar says in which unit."""
        return {} if means["main"] is None else {"loss": f"{means['main']:.2f} dB"}

    def epoch_message(self, row):
        """How separation goes."""
        return f"validation SNRi {row['valid_snr_i']:.2f} dB"

    # -------------------------------------------------------------- evaluation

    def keep_scores(self, batch, estimates, scores):
        """Note what an evaluation batch says of each of its items."""
        if self.stage == Stage.VALID:
            mixture = batch.mixture.unsqueeze(1)
            before = snr(mixture, batch.sources, batch.lengths).mean((1, 2))
            columns = {"loss": -scores, "snr": scores, "snr_i": scores - before}
            values = zip(*(column.tolist() for column in columns.values()))
            self.rows += [dict(zip(columns, row)) for row in values]
        else:
            for item in range(len(batch)):
                self.rows.append(self.evaluate_signals(batch, estimates, item))

    def evaluate_signals(self, batch, estimates, item):
        """The row of one utterance in results.csv."""
        row = evaluate_ears(
            **signals_of(batch, estimates, item),
            sample_rate=self.hparams.sample_rate,
            directions=batch.directions[item].numpy(),
            protocol=self.hparams.protocol,
        )
        return {"ID": batch.ids[item], **row}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """As every recipe; after the test, also write what depends on the angle."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == Stage.TEST and if_main_process():
            write_angles(self.rows, self.hparams.output_folder)


def signals_of(batch, estimates, item):
    """Mixture, estimates and sources of one item, as NumPy arrays."""
    length = int(batch.lengths[item])
    cut = {
        "mixture": batch.mixture[item],
        "estimates": estimates[item],
        "targets": batch.sources[item],
    }
    return {name: x[..., :length].float().cpu().numpy() for name, x in cut.items()}


# ------------------------------------------------------------------ data


def prepare(hparams):
    """Manifests by subset; makes the binaural corpus first if the YAML says of what."""
    if "corpus" in hparams:
        hparams["data_folder"] = str(hparams["corpus"]())
    elif hparams["mono_folder"] is not None:
        make_binaural_corpus(
            hparams["data_folder"],
            mono_manifests(hparams),
            hparams["listeners"](),
            noise=hparams["mixture"] == "mix_both",
            least_angle=hparams["least_angle"],
        )
    paths = prepare_binaural_wsj0mix(
        hparams["data_folder"], manifest_folder(hparams), **shape_of(hparams)
    )
    return {s: read_manifest(path, hparams["data_folder"]) for s, path in paths.items()}


def mono_manifests(hparams):
    """Manifests of the mono mixtures that binaural ones are to be made of."""
    root = hparams["mono_folder"]
    paths = prepare_wsj0mix(root, manifest_folder(hparams), **shape_of(hparams))
    return {subset: read_manifest(path, root) for subset, path in paths.items()}


def manifest_folder(hparams):
    """Where manifests go."""
    return Path(hparams["output_folder"]) / "manifests"


def shape_of(hparams):
    """Which of the mixtures in a folder are meant."""
    return {key: hparams[key] for key in ("n_speakers", "sample_rate", "mode", "mixture")}


def prepare_dynamic_mixing(hparams):
    """Manifests of single utterances and, for mixtures with noise, of noises."""
    manifests = {"speech": None, "noise": None}
    for kind in ["speech"] + ["noise"] * (hparams["mixture"] == "mix_both"):
        folder = hparams[f"dynamic_{kind}_folder"]
        if folder is None:
            raise UserError(
                f"dynamic_{kind}_folder: must be set where dynamic_mixing is True"
            )
        path = prepare_speech_folder(
            folder,
            manifest_folder(hparams) / f"dynamic_{kind}.csv",
            hparams["sample_rate"],
            kind=kind,
            resample=True,  # WSJ0 is 16 kHz, the mixtures may be 8
            channel=0 if kind == "noise" else None,  # WHAM is stereo; as LibriMix does
        )
        manifests[kind] = read_manifest(path, folder, one_rate=False)
    return manifests["speech"], manifests["noise"]


def training_data(hparams, manifest):
    """Mixtures of the manifest, or mixed on the fly around heads of the training set."""
    if not hparams["dynamic_mixing"]:
        return BinauralDataset(
            manifest,
            hparams["n_speakers"],
            segment_seconds=hparams["segment_seconds"],
            speed_percents=hparams["speed_percents"],
            seed=hparams["seed"],
        )
    speech, noise = training.on_main(prepare_dynamic_mixing, hparams)
    return BinauralDynamicMixing(
        speech,
        noise,
        hparams["listeners"]()["train"],
        hparams["n_speakers"],
        n_items=hparams["dynamic_items"] or len(manifest),
        seed=hparams["seed"],
        segment_seconds=hparams["segment_seconds"],
        sample_rate=hparams["sample_rate"],
        speed_percents=hparams["speed_percents"],
        resample=True,
        least_angle=hparams["least_angle"],
    )


def make_datasets(hparams, manifests):
    """Data sets for training, validation and test."""
    n_speakers = hparams["n_speakers"]
    return {
        "train": training_data(hparams, manifests["train"]),
        **{s: BinauralDataset(manifests[s], n_speakers) for s in ("dev", "test")},
    }


# ------------------------------------------------------------------ the whole


@torch.no_grad()
def separate_again(brain, test_data, item_id):
    """Signals of one utterance of the test set, for wavs and report."""
    ids = [item.id for item in test_data.manifest.items]
    batch = collate([test_data[ids.index(item_id)]])
    with brain.evaluation_ctx:
        estimates = brain.compute_forward(batch, Stage.TEST)
    return signals_of(batch, estimates, 0)


def facts(hparams):
    """What --describe says beside the modules."""
    rate, network = hparams["sample_rate"], hparams["modules"]["network"]
    window, hop = 1000 * hparams["kernel_size"] / rate, 1000 * hparams["stride"] / rate
    frames = network.separator.receptive_field
    latency = "the whole utterance (global norms, convolutions to both sides)"
    if network.causal:
        latency = f"{1000 * network.latency / rate:g} ms (causal; network.stream())"
    return {
        "encoder": f"window {window:g} ms, hop {hop:g} ms",
        "receptive field": f"{frames} frames, {frames * hop / 1000:.2f} s",
        "latency": latency,
        "variant": hparams["variant"]
        + ", one network for both ears" * hparams["share_ears"],
    }


def main():
    """From the command line to the report."""
    options = training.parse_options(sys.argv[1:], __doc__)
    hparams = training.load_hparams(options)
    training.check_choices(hparams, CHOICES)
    training.check_ranges(hparams, LEAST)
    training.check_segment(hparams)
    if options.describe:
        print(training.describe(hparams["modules"], facts(hparams)))
        return
    training.begin(options, hparams)
    training.check_testable(options.run_opts, hparams["checkpointer"])
    datasets = make_datasets(hparams, training.on_main(prepare, hparams))
    brain = BinauralBrain(
        modules=hparams["modules"],
        opt_class=hparams["optimizer"],
        hparams=hparams,
        run_opts=options.run_opts,
        checkpointer=hparams["checkpointer"],
    )
    training.train_and_test(
        brain,
        training.make_loaders(datasets, collate, hparams),
        partial(separate_again, brain, datasets["test"]),
        level=level_ears,
        findings=[partial(interaural, protocol=hparams["protocol"])],
    )


if __name__ == "__main__":
    training.run(main)
