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
from functools import partial
from inspect import signature
from pathlib import Path

import numpy as np
from speechbrain import Stage

from unified_se_ss import training
from unified_se_ss.data.corpora.array_recordings import STEMS, prepare_recordings
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.dataset import collate
from unified_se_ss.data.guided import MultiBeamformerTestSet, RecordingDataset
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.data.pools import check_speakers_apart
from unified_se_ss.data.rooms import prepare_room_bank
from unified_se_ss.data.scenes import ArrayDataset, PairedRIRDataset, RandomChoiceDataset
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.audio_examples import level_guided
from unified_se_ss.evaluation.breakdown import guided_markdown, guided_section
from unified_se_ss.evaluation.evaluate import Scorers
from unified_se_ss.evaluation.metrics import PERCEPTUAL, check_metrics, installed_metrics
from unified_se_ss.evaluation.rows import score_guided
from unified_se_ss.files import atomic_write
from unified_se_ss.gradients import TaskLoss
from unified_se_ss.losses import STFT_LOSSES, si_snr, stft_loss
from unified_se_ss.spatial import BEAMFORMERS, BeamformerFrontend
from unified_se_ss.training.log import check_upload, upload

SUBSETS = ("train", "dev", "test")
RECORDED = "channel_1"  # the guide that was recorded with the microphones
CHOICES = {
    "train_on": ["recordings", "contrast", "arrays", "mixed"],
    "test_on": ["recordings", "arrays"],
    "loss": STFT_LOSSES,
    "guides": BEAMFORMERS,
    "metrics": [*PERCEPTUAL, None],  # null: all that are installed
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
        hparams, pair = self.hparams, (enhanced, batch.target, batch.lengths)
        scores = si_snr(*pair)
        losses = stft_loss(*pair, hparams.loss, hparams.loss_window, hparams.loss_hop)
        if hparams.weight_si_snr:
            losses = losses - hparams.weight_si_snr * scores
        if stage == Stage.VALID:
            self.add_scores(batch, losses, scores)
        elif stage == Stage.TEST:
            self.score(batch, enhanced)
        return TaskLoss.of(losses)

    def add_scores(self, batch, losses, scores):
        """Add the rows of a validation batch."""
        raw, beamformed = (
            scores - si_snr(batch.inputs[:, i], batch.target, batch.lengths) for i in (0, 1)
        )
        columns = {"loss": losses, "si_snr": scores, "si_snr_i": raw}
        self.add_rows({**columns, "over_beamformer": beamformed})

    def epoch_message(self, row):
        """Gain over either input in validation."""
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
            signals = inputs_and_output(batch, enhanced, item)
            columns = conditions_of(known)
            if self.scorers is None:  # in a sanity check
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

    def signals_of(self, batch, enhanced, item):
        """Microphone, beamformer, enhanced and target of one item, by the report's names."""
        signals = inputs_and_output(batch, enhanced, item)
        return {
            "mixture": signals["raw"],
            "estimates": signals["beamformed"][None],
            "enhanced": signals["enhanced"],
            "targets": signals["target"][None],
        }

    def report_options(self):
        """Levels of both inputs, and a section that compares them."""
        return {"level": level_guided, "findings": [guided_section]}

    def after_report(self):
        """Compare both inputs and the output; copy the run to where upload_uri says."""
        folder = self.hparams.output_folder
        table = guided_markdown(self.rows)
        path = atomic_write(Path(folder) / "guided.md", table)
        print(f"compared      {path}\n\n{table}")
        best = self.checkpointer.find_checkpoint(max_key=self.best)
        if upload(folder, best and best.path, self.hparams.upload_uri):
            print(f"uploaded to   {self.hparams.upload_uri}")


def inputs_and_output(batch, enhanced, item):
    """Signals of one item as NumPy arrays, as `score_guided` takes them."""
    raw, beamformed = batch.inputs.unbind(1)
    signals = {"raw": raw, "beamformed": beamformed}
    signals |= {"enhanced": enhanced, "target": batch.target}
    if batch.components is not None:  # of interferer and noise, at the microphone
        signals["interference"] = batch.components[:, 1:, 0]
    return training.item_arrays(signals, item, batch.lengths)


def conditions_of(known):
    """Known levels and names of an item, as columns of results.csv."""
    names = {"sir": "input_sir", "snr": "input_snr"}
    names |= {
        f"{name}_beamformed": f"beamformed_{column}" for name, column in names.items()
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
        path = training.manifest_folder(hparams) / f"{kind}_{subset}.csv"
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


def frontend(hparams, name):
    """A beamformer by its name in the YAML."""
    options = hparams["guide_options"].get(name) or {}
    try:
        rate, context = hparams["sample_rate"], hparams["quiet_seconds"]
        return BeamformerFrontend(
            name, sample_rate=rate, context_seconds=context, **options
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
        guide=frontend(hparams, name),
        resample=True,
        **training.pick(hparams, *keys),
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
    path = training.manifest_folder(hparams) / f"{name}_{subset}.csv"
    prepare_recordings(
        folder,
        path,
        hparams["sample_rate"],
        guide=None if name == RECORDED else frontend(hparams, name),
        resample=True,
        **training.pick(hparams, "raw_channels", "microphones", "source"),
    )
    options = training.pick(hparams, "align", "match_levels", "seed")
    return RecordingDataset(read_manifest(path, folder, STEMS), seconds, **options)


def make_loaders(hparams):
    """Loaders for training, validation and test, the last with every guide."""
    train_on, test_on = hparams["train_on"], hparams["test_on"]
    recordings = partial(training.on_main, recording_data, hparams)
    if train_on != "recordings" or test_on != "recordings":
        scenes = training.on_main(prepare_scenes, hparams)
    if train_on == "recordings":
        train = recordings("train", hparams["segment_seconds"])
    else:
        train = training_data(hparams, scenes["train"])
    if test_on == "recordings":
        dev, tests = recordings("val"), {hparams["guide_of_recordings"]: recordings("test")}
    else:
        seconds, guides, n_test = (hparams[k] for k in ("test_seconds", "guides", "n_test"))
        dev = array_data(hparams, scenes["dev"], guides[0], hparams["n_valid"], seconds)
        make = partial(array_data, hparams, scenes["test"], components=True)
        tests = {name: make(name, n_test, seconds) for name in guides}
    datasets = {"train": train, "dev": dev, "test": MultiBeamformerTestSet(tests)}
    return training.make_loaders(datasets, collate, hparams)


# ------------------------------------------------------------------ configuration


def facts(hparams):
    """Properties that --describe prints beside the modules."""
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
    if "corpus" in hparams and "recordings" in (hparams["train_on"], hparams["test_on"]):
        raise UserError("train_on, test_on: the demo makes no recordings; take gsenet.yaml")
    if "guide_of_recordings" in hparams:
        guides = [*BEAMFORMERS, RECORDED]
        training.check_choices(hparams, {"guide_of_recordings": guides})
    check_guide_options(hparams["guide_options"])
    for name in hparams["guides"]:
        frontend(hparams, name)  # those that can be made before they are steered, are
    check_upload(hparams["upload_uri"])
    rate = hparams["sample_rate"]
    if hparams["metrics"] is None:
        hparams["metrics"] = installed_metrics(rate)
    check_metrics(hparams["metrics"], rate)


def main(options):
    """Train, test and report, as the command line asks."""
    training.train_recipe(options, GSENetBrain, check, make_loaders, facts)


if __name__ == "__main__":
    training.run(main, __doc__)
