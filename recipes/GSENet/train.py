#!/usr/bin/env python3
"""Train, evaluate, and report GSENet: enhancement that a beamformer guides.

  one machine       python train.py hparams/gsenet.yaml --data_folder data
  several GPUs      torchrun --nproc_per_node=4 train.py hparams/gsenet.yaml ...
  a first look      python train.py hparams/demo.yaml

Every key of the YAML file can be replaced: --train_on contrast, --loss linear_l1. The
same command goes on where a run was stopped. --describe prints the modules and leaves;
--test_only evaluates the best checkpoint.

A causal U-Net hears a raw reference microphone and the output of a beamformer, any one,
and learns from how they differ (arXiv 2303.07486). README.md says what data it takes.
"""

import unified_se_ss.installation  # noqa: F401  (first: does torchaudio fit torch?)

# isort: split
import sys
from functools import partial
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process

from unified_se_ss import training
from unified_se_ss.data.corpora.array_recordings import prepare_recordings
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.dataset import collate
from unified_se_ss.data.guided import (
    MultiBeamformerTestSet,
    RecordingDataset,
    read_recordings,
)
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.data.paired_rirs import PairedRIRDataset
from unified_se_ss.data.pools import check_speakers_apart
from unified_se_ss.data.rooms import prepare_room_bank
from unified_se_ss.data.scenes import ArrayDataset, RandomChoiceDataset
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.evaluate import Scorers
from unified_se_ss.evaluation.guided_enhancement import (
    guided_markdown,
    level_guided,
    score_guided,
)
from unified_se_ss.evaluation.perceptual import (
    PERCEPTUAL,
    check_metrics,
    installed_metrics,
)
from unified_se_ss.evaluation.report.guided import guided
from unified_se_ss.files import atomic_write
from unified_se_ss.gradients import TaskLoss
from unified_se_ss.losses import si_snr
from unified_se_ss.losses.spectral import STFT_LOSSES, stft_loss
from unified_se_ss.spatial import BEAMFORMERS, BeamformerFrontend
from unified_se_ss.training.upload import check_upload, upload

SUBSETS = ("train", "dev", "test")
RECORDED = "channel_1"  # the guide that was recorded with the microphones
CHOICES = {
    "train_on": ["recordings", "contrast", "arrays", "mixed"],
    "test_on": ["recordings", "arrays"],
    "loss": STFT_LOSSES,
}
LEAST = {
    "number_of_epochs": 1,
    "lr": 0,
    "weight_si_snr": 0,
    "num_workers": 0,
    "log_interval": 1,
    "save_waves": 0,
    "n_train": 1,
    "n_valid": 1,
    "n_test": 1,
}


class GSENetBrain(training.RecipeBrain):
    """One task: the target's spectrum from those of microphone and beamformer."""

    best = "si_snr_i"
    scorers = None

    def compute_forward(self, batch, stage):
        """Enhance both inputs' common speech."""
        batch = batch.to(self.device)
        return self.modules.network(batch.inputs, batch.lengths)

    def compute_objectives(self, enhanced, batch, stage):
        """Distance of spectra; with weight_si_snr also the negative SI-SNR."""
        hparams = self.hparams
        scores = si_snr(enhanced, batch.target, batch.lengths)
        losses = stft_loss(
            enhanced,
            batch.target,
            batch.lengths,
            hparams.loss,
            hparams.loss_window,
            hparams.loss_hop,
        )
        if hparams.weight_si_snr:
            losses = losses - hparams.weight_si_snr * scores
        if stage == Stage.VALID:
            self.keep_scores(batch, losses, scores)
        elif stage == Stage.TEST:
            self.score(batch, enhanced)
        return TaskLoss.of(losses)

    def keep_scores(self, batch, losses, scores):
        """Note what validation says of each item."""
        raw, beamformed = (
            scores - si_snr(batch.inputs[:, i], batch.target, batch.lengths) for i in (0, 1)
        )
        columns = {"loss": losses, "si_snr": scores, "si_snr_i": raw}
        columns["over_beamformer"] = beamformed
        rows = zip(*(column.tolist() for column in columns.values()))
        self.rows += [dict(zip(columns, row)) for row in rows]

    def epoch_message(self, row):
        """How much better than either input."""
        return (
            f"validation SI-SDR {row['valid_si_snr']:.2f} dB, "
            f"{row['valid_si_snr_i']:+.2f} dB over the microphone, "
            f"{row['valid_over_beamformer']:+.2f} dB over the beamformer"
        )

    # -------------------------------------------------------------- evaluation

    def evaluate(self, *arguments, **options):
        """As any Brain; what takes long, PESQ and STOI, is computed in processes."""
        metrics, rate = tuple(self.hparams.metrics), self.hparams.sample_rate
        jobs = self.hparams.scoring_processes
        with Scorers(metrics, rate, jobs, score=score_guided) as self.scorers:
            return super().evaluate(*arguments, **options)

    def score(self, batch, enhanced):
        """Score the items of a test batch, or have them scored while others are made."""
        hparams = self.hparams
        for item, (name, known) in enumerate(zip(batch.ids, batch.conditions)):
            signals, columns = signals_of(batch, enhanced, item), conditions_of(known)
            if self.scorers is None:  # a look at one item
                row = score_guided(name, signals, hparams.metrics, hparams.sample_rate)
                self.rows.append({**row, **columns})
            else:
                self.scorers.add(name, signals, columns)
        self.rows += self.scorers.done() if self.scorers else []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Wait for the last scores."""
        if stage == Stage.TEST:
            self.rows += self.scorers.rest()
        super().on_stage_end(stage, stage_loss, epoch)


def signals_of(batch, enhanced, item):
    """What went in and came out of one item, as NumPy arrays."""
    found = {"raw": batch.inputs[item, 0], "beamformed": batch.inputs[item, 1]}
    found.update(enhanced=enhanced[item], target=batch.target[item])
    if batch.components is not None:  # of interferer and noise, at the microphone
        found["interference"] = batch.components[item, 1:, 0]
    length = int(batch.lengths[item])
    return {name: x[..., :length].float().cpu().numpy() for name, x in found.items()}


def conditions_of(known):
    """What is known of an item, as columns of results.csv."""
    names = {
        "sir": "input_sir",
        "snr": "input_snr",
        "sir_beamformed": "beamformed_input_sir",
        "snr_beamformed": "beamformed_input_snr",
    }
    row = {names.get(name, name): value for name, value in known.items()}
    return {k: v if isinstance(v, str) or np.isfinite(v) else None for k, v in row.items()}


# ------------------------------------------------------------------ data


def prepare_scenes(hparams):
    """Rooms, speech and noise of each subset; the demo makes its own voices."""
    if "corpus" in hparams:
        sounds = hparams["corpus"]()
    else:
        sounds = {subset: read_sounds(hparams, subset) for subset in SUBSETS}
        check_speakers_apart({subset: sounds[subset][0] for subset in SUBSETS})
    return {s: (prepare_rooms(hparams, s), *sounds[s]) for s in SUBSETS}


def read_sounds(hparams, subset):
    """Manifests of speech and noise, from two folders below data_folder."""
    manifests = []
    for kind in ("speech", "noise"):
        folder = Path(hparams["data_folder"]) / kind / subset
        path = Path(hparams["output_folder"]) / "manifests" / f"{kind}_{subset}.csv"
        channel = 0 if kind == "noise" else None  # such as WHAM's
        prepare_speech_folder(folder, path, hparams["sample_rate"], kind, True, channel)
        manifests.append(read_manifest(path, folder, one_rate=False))
    return manifests


def prepare_rooms(hparams, subset):
    """A bank of rooms; no room is in two subsets."""
    number = SUBSETS.index(subset)
    return prepare_room_bank(
        hparams["rooms_folder"],
        hparams["rooms"],
        hparams["n_rooms"][number],
        seed=len(SUBSETS) * hparams["seed"] + number,
    )


def guide(hparams, name):
    """A beamformer by its name in the YAML."""
    options = hparams["guide_options"].get(name) or {}
    try:
        return BeamformerFrontend(
            name,
            sample_rate=hparams["sample_rate"],
            context_seconds=hparams["quiet_seconds"],
            **options,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"guide_options: {options} of {name}: {error}") from error


def array_data(hparams, sounds, name, n_items, seconds, **options):
    """Simulated arrays through one beamformer."""
    keys = ("sir_db", "snr_db", "quiet_seconds", "interferer_probability", "seed")
    return ArrayDataset(
        *sounds,
        n_items,
        seconds,
        guide=guide(hparams, name),
        resample=True,
        **{key: hparams[key] for key in keys},
        **options,
    )


def training_data(hparams, sounds):
    """Items by contrast, of simulated arrays, or of both."""
    n_items, seconds = hparams["n_train"], hparams["segment_seconds"]
    kind, options = hparams["train_on"], {"seed": hparams["seed"], "resample": True}
    if kind != "contrast":
        arrays = array_data(hparams, sounds, hparams["guides"][0], n_items, seconds)
    if kind == "arrays":
        return arrays
    contrast = PairedRIRDataset(
        *sounds, n_items, seconds, gains=hparams["gains"], **options
    )
    if kind == "contrast":
        return contrast
    return RandomChoiceDataset(contrast, arrays, hparams["array_share"], hparams["seed"])


def recording_data(hparams, subset, seconds=None):
    """Recordings of a subset; a beamformer makes their guide where one is asked for."""
    folder = Path(hparams["data_folder"]) / subset
    name = hparams["guide_of_recordings"]
    path = Path(hparams["output_folder"]) / "manifests" / f"{name}_{subset}.csv"
    keys = ("raw_channels", "microphones", "source")
    prepare_recordings(
        folder,
        path,
        hparams["sample_rate"],
        guide=None if name == RECORDED else guide(hparams, name),
        resample=True,
        **{key: hparams[key] for key in keys},
    )
    options = {key: hparams[key] for key in ("align", "match_levels", "seed")}
    return RecordingDataset(read_recordings(path, folder), seconds, **options)


def make_datasets(hparams):
    """Data sets for training, validation and test, the last with every guide."""
    train_on, test_on = hparams["train_on"], hparams["test_on"]
    datasets = {}
    if train_on != "recordings" or test_on != "recordings":
        scenes = training.on_main(prepare_scenes, hparams)
    if train_on == "recordings":
        arguments = hparams, "train", hparams["segment_seconds"]
        datasets["train"] = training.on_main(recording_data, *arguments)
    else:
        datasets["train"] = training_data(hparams, scenes["train"])
    if test_on == "recordings":
        datasets["dev"] = training.on_main(recording_data, hparams, "val")
        recorded = training.on_main(recording_data, hparams, "test")
        tests = {hparams["guide_of_recordings"]: recorded}
    else:
        seconds, guides = hparams["test_seconds"], hparams["guides"]
        arguments = hparams, scenes["dev"], guides[0], hparams["n_valid"], seconds
        datasets["dev"] = array_data(*arguments)
        arguments = hparams["n_test"], seconds
        tests = {
            name: array_data(hparams, scenes["test"], name, *arguments, components=True)
            for name in guides
        }
    return {**datasets, "test": MultiBeamformerTestSet(tests)}


# ------------------------------------------------------------------ the whole


@torch.no_grad()
def enhance_again(brain, test_data, item_id):
    """Signals of one item of the test set, for wavs and report."""
    batch = collate([test_data.find(item_id)])
    with brain.evaluation_ctx:
        enhanced = brain.compute_forward(batch, Stage.TEST)
    signals = signals_of(batch, enhanced, 0)
    return {
        "mixture": signals["raw"],
        "estimates": signals["beamformed"][None],
        "enhanced": signals["enhanced"],
        "targets": signals["target"][None],
    }


def finish(brain):
    """Say how both inputs and the network did; copy the run to where upload_uri says."""
    if not if_main_process():
        return
    table = guided_markdown(brain.rows)
    path = atomic_write(Path(brain.hparams.output_folder) / "guided.md", table)
    print(f"compared      {path}\n\n{table}")
    best = brain.checkpointer.find_checkpoint(max_key=brain.best)
    folder = brain.hparams.output_folder
    done = upload(folder, best and best.path, brain.hparams.upload_uri)
    if done:
        print(f"uploaded to   {done}")


def facts(hparams):
    """What --describe says beside the modules."""
    network = hparams["modules"]["network"]
    latency = 1000 * network.latency / hparams["sample_rate"]
    return {
        "latency": f"{latency:g} ms, one window; nothing looks ahead of it",
        "state of a stream": f"{network.stream().state_size():,} numbers",
        "guides": ", ".join(hparams["guides"]),
    }


def check_guide_options(options):
    """Stop at a beamformer or an option of one that there is not."""
    for name, of in options.items():
        training.check_choices({"guide_options": name}, {"guide_options": BEAMFORMERS})
        known = list(signature(BEAMFORMERS[name]).parameters)
        if not isinstance(of, dict) or not of.keys() <= set(known):
            raise UserError(
                f"guide_options: {name} is given {of!r}; expected options by name, of: "
                f"{', '.join(known)}"
            )


def check(hparams):
    """Stop at values that cannot be used; fill in the metrics there are."""
    training.check_choices(hparams, CHOICES)
    training.check_ranges(hparams, LEAST)
    if "corpus" in hparams and "recordings" in (hparams["train_on"], hparams["test_on"]):
        raise UserError("train_on, test_on: the demo makes no recordings; take gsenet.yaml")
    known = {
        "guides": BEAMFORMERS,
        "guide_of_recordings": [*BEAMFORMERS, RECORDED],
        "metrics": PERCEPTUAL,
    }
    for key, choices in known.items():
        names = hparams.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            training.check_choices({key: name}, {key: choices})
    check_guide_options(hparams["guide_options"])
    for name in hparams["guides"]:
        guide(hparams, name)  # those that can be made before they are steered, are
    check_upload(hparams["upload_uri"])
    rate = hparams["sample_rate"]
    if hparams["metrics"] is None:
        hparams["metrics"] = installed_metrics(rate)
    check_metrics(hparams["metrics"], rate)


def main():
    """From the command line to the report."""
    options = training.parse_options(sys.argv[1:], __doc__)
    hparams = training.load_hparams(options)
    check(hparams)
    if options.describe:
        print(training.describe(hparams["modules"], facts(hparams)))
        return
    training.begin(options, hparams)
    training.check_testable(options.run_opts, hparams["checkpointer"])
    loaders = training.make_loaders(make_datasets(hparams), collate, hparams)
    brain = GSENetBrain(
        modules=hparams["modules"],
        opt_class=hparams["optimizer"],
        hparams=hparams,
        run_opts=options.run_opts,
        checkpointer=hparams["checkpointer"],
    )
    signals = partial(enhance_again, brain, loaders["test"].dataset)
    training.train_and_test(brain, loaders, signals, level=level_guided, findings=[guided])
    finish(brain)


if __name__ == "__main__":
    training.run(main)
