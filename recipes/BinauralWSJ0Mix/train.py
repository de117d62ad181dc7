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
from functools import partial

from speechbrain import Stage

from unified_se_ss import training
from unified_se_ss.data.binaural import BinauralDataset, BinauralDynamicMixing
from unified_se_ss.data.corpora.mixtures import prepare_binaural_wsj0mix, prepare_wsj0mix
from unified_se_ss.data.dataset import collate
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.data.write import make_binaural_corpus
from unified_se_ss.evaluation.audio_examples import level_ears
from unified_se_ss.evaluation.breakdown import interaural_section, write_angles
from unified_se_ss.evaluation.interaural import PROTOCOLS
from unified_se_ss.evaluation.rows import score_binaural
from unified_se_ss.gradients import TaskLoss
from unified_se_ss.losses import (
    interaural_cue_losses,
    permutation_invariant_snr,
    reorder_sources,
    snr,
)
from unified_se_ss.networks.binaural import VARIANTS

CHOICES = {"variant": VARIANTS, "protocol": PROTOCOLS}


class BinauralBrain(training.RecipeBrain):
    """Separation of two ears' signals into both ears' signals of each talker."""

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
            self.add_scores(batch, estimates, scores)
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
        """Separation in validation."""
        return f"validation SNRi {row['valid_snr_i']:.2f} dB"

    # -------------------------------------------------------------- evaluation

    def add_scores(self, batch, estimates, scores):
        """Add the rows of an evaluation batch."""
        if self.stage == Stage.TEST:
            for item, item_id in enumerate(batch.ids):
                signals = self.signals_of(batch, estimates, item)
                signals["directions"] = batch.directions[item].numpy()
                rate, protocol = self.hparams.sample_rate, self.hparams.protocol
                self.rows.append(score_binaural(item_id, signals, (), rate, protocol))
            return
        mixture = batch.mixture.unsqueeze(1)
        before = snr(mixture, batch.sources, batch.lengths).mean((1, 2))
        self.add_rows({"loss": -scores, "snr": scores, "snr_i": scores - before})

    def signals_of(self, batch, estimates, item):
        """Mixture, estimates and sources of one item, as NumPy arrays."""
        signals = {
            "mixture": batch.mixture,
            "estimates": estimates,
            "targets": batch.sources,
        }
        return training.item_arrays(signals, item, batch.lengths)

    def report_options(self):
        """Levels of two ears, and a section on their cues."""
        findings = [partial(interaural_section, protocol=self.hparams.protocol)]
        return {"level": level_ears, "findings": findings}

    def after_report(self):
        """Write how the results depend on the angle between the talkers."""
        write_angles(self.rows, self.hparams.output_folder)


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
        hparams["data_folder"], training.manifest_folder(hparams), **mixtures_of(hparams)
    )
    return {s: read_manifest(path, hparams["data_folder"]) for s, path in paths.items()}


def mono_manifests(hparams):
    """Manifests of the mono mixtures that binaural ones are to be made of."""
    root = hparams["mono_folder"]
    paths = prepare_wsj0mix(root, training.manifest_folder(hparams), **mixtures_of(hparams))
    return {subset: read_manifest(path, root) for subset, path in paths.items()}


def mixtures_of(hparams):
    """Keys that choose mixtures from a folder."""
    return training.pick(hparams, "n_speakers", "sample_rate", "mode", "mixture")


def training_data(hparams, manifest):
    """Mixtures of the manifest, or mixed on the fly around heads of the training set."""
    keys = ("n_speakers", "seed", "segment_seconds", "speed_percents")
    options = training.pick(hparams, *keys)
    if not hparams["dynamic_mixing"]:
        return BinauralDataset(manifest, **options)
    return BinauralDynamicMixing(
        *training.prepare_dynamic_mixing(hparams, noise=hparams["mixture"] == "mix_both"),
        hparams["listeners"]()["train"],
        n_items=hparams["dynamic_items"] or len(manifest),
        sample_rate=hparams["sample_rate"],
        resample=True,
        least_angle=hparams["least_angle"],
        **options,
    )


def make_loaders(hparams):
    """Loaders for training, validation and test."""
    manifests, n_speakers = training.on_main(prepare, hparams), hparams["n_speakers"]
    datasets = {
        "train": training_data(hparams, manifests["train"]),
        **{s: BinauralDataset(manifests[s], n_speakers) for s in ("dev", "test")},
    }
    return training.make_loaders(datasets, collate, hparams)


# ------------------------------------------------------------------ configuration


def check(hparams):
    """Stop at values that cannot be used."""
    training.check_choices(hparams, CHOICES)
    training.check_segment(hparams)


def facts(hparams):
    """Properties that --describe prints beside the modules."""
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


def main(options):
    """Train, test and report, as the command line asks."""
    training.train_recipe(options, BinauralBrain, check, make_loaders, facts)


if __name__ == "__main__":
    training.run(main, __doc__)
