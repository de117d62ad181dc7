#!/usr/bin/env python3
"""Train, evaluate, and report enhancement and recognition that share a front.

  one machine       python train.py hparams/voicebank.yaml --data_folder .../VoiceBank
  several GPUs      torchrun --nproc_per_node=2 train.py hparams/rats_chA.yaml ...
  a first look      python train.py hparams/demo.yaml

Every key of the YAML file can be replaced: --rule sum, --weight_se 0, --system noisy.
The same command goes on where a run was stopped. --check tries everything once and
leaves (docs/checks.md), --describe prints the modules and leaves; --test_only evaluates
the best checkpoints.

A front that masks the noisy spectrum feeds a recogniser. Both tasks train the front; the
gradient of enhancement (SE) is remedied against that of recognition (ASR) where they
conflict or where it would dominate (arXiv 2302.11362); see docs/gradients.md.
"""

import unified_se_ss.installation  # noqa: F401  (first: does torchaudio fit torch?)

# isort: split
import copy
import io
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from speechbrain import Stage
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.metric_stats import ErrorRateStats

from unified_se_ss import recognition, training
from unified_se_ss.data.corpora.transcribed import USES, UtteranceLimits, filter_utterances
from unified_se_ss.data.dataset import (
    NoisySpeechDataset,
    PairedSpeechDataset,
    collate_transcribed,
)
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.plots import markdown_table
from unified_se_ss.evaluation.rows import evaluate_item
from unified_se_ss.evaluation.wer import normalise_text, text_scores, transcripts_section
from unified_se_ss.files import atomic_write
from unified_se_ss.gradients import AUX_SCALES, GRANULARITIES, TaskLoss, TwoTaskLosses
from unified_se_ss.losses import magnitude_loss
from unified_se_ss.networks import Enhanced

# joint: both train the front. cascade: SE alone does, and ASR gets its output.
# noisy: ASR alone, without a front.
SYSTEMS = ["joint", "cascade", "noisy"]
# Columns that are counted of each set, and their names.
ERROR_RATES = {
    "word_errors": "WER",
    "word_errors_noisy": "WER without the front",
    "word_errors_untrained": "WER before training",
}
CHOICES = {
    "granularity": GRANULARITIES,
    "aux_scale": AUX_SCALES,
    "system": SYSTEMS,
    "unusable": USES,
    "token_type": recognition.TOKEN_TYPES,
}


class Predictions(NamedTuple):
    """Outputs of front and recogniser."""

    enhanced: Enhanced | None
    recognised: recognition.Recognised


class RemedyBrain(training.RecipeBrain):
    """Main task: recognition. Auxiliary task: enhancement, on the front."""

    best = "accuracy"
    untrained = None  # modules before training, for their WER beside the others

    def before_training(self):
        """Fit the front to the noisy training set, or give it a trained one's weights."""
        pretrained = self.hparams.pretrained_front
        if "front" in self.modules and not self.checkpointer.list_checkpoints():
            if pretrained:
                training.on_main(load_front, self.modules.front, pretrained)
            else:
                self.fit_front(self.loaders["train"].dataset.dataset)
        if self.hparams.score_untrained:
            self.untrained = copy.deepcopy(self.modules).eval()
        items = self.loaders["test"].dataset.manifest.items
        # Where the corpus tells sets of its test apart.
        self.sets = {i.id: i.attributes["set"] for i in items if "set" in i.attributes}

    def fit_front(self, dataset):
        """Fit the normalisation of the front to items evenly over a data set."""
        indices = range(0, len(dataset), max(1, len(dataset) // self.hparams.normalise_by))
        self.modules.front.fit_normalisation(
            dataset[index].noisy.to(self.device) for index in indices
        )

    def compute_forward(self, batch, stage):
        """Enhance the noisy signals and recognise what comes out."""
        batch = batch.to(self.device)
        enhanced, signals = self.enhance(batch.noisy, batch.lengths)
        tokens = None if stage == Stage.TEST else with_begin(batch.tokens)
        recognised = self.modules.recogniser(signals, batch.lengths, tokens)
        return Predictions(enhanced, recognised)

    def enhance(self, noisy, lengths):
        """Output of the front, and the signals that the recogniser gets."""
        if self.hparams.system == "noisy":
            return None, noisy
        enhanced = self.modules.front(noisy, lengths)
        return enhanced, enhanced.signal

    def compute_objectives(self, predictions, batch, stage):
        """Weighted losses of CTC and attention; squared error of the magnitude."""
        if stage == Stage.TEST:
            self.recognise(predictions, batch)
            return TwoTaskLosses(TaskLoss.of(torch.zeros(len(batch))))
        hparams, recognised = self.hparams, predictions.recognised
        ended = with_end(batch.tokens, batch.n_tokens)
        ctc = recognition.ctc_losses(
            recognised.ctc, batch.tokens, recognised.frames, batch.n_tokens
        )
        attention = recognition.attention_losses(
            recognised.attention, ended, hparams.label_smoothing
        )
        weight = hparams.weight_se if predictions.enhanced else 0.0
        asr = hparams.weight_ctc * ctc + (1 - hparams.weight_ctc) * attention
        asr = (1 - weight) * asr
        if stage == Stage.VALID:
            self.add_scores(predictions, batch, asr, ended)
        main = TaskLoss.of(asr)
        if not weight:
            return TwoTaskLosses(main)
        has_clean = batch.has_clean.to(self.device, non_blocking=True)
        se_losses = weight * self.se_losses(predictions, batch)
        return TwoTaskLosses(main, TaskLoss.of(se_losses, has_clean))

    def se_losses(self, predictions, batch):
        """The SE task's loss of each item."""
        clean, _ = self.modules.front.analyse(batch.clean, batch.lengths)
        enhanced = predictions.enhanced
        return magnitude_loss(enhanced.magnitude, clean.abs(), enhanced.frames)

    def training_fields(self, means):
        """The log names the SE loss."""
        return {"train_se_loss": means["auxiliary"]}

    def epoch_message(self, row):
        """Recognition in validation, and how often the two tasks conflict."""
        return (
            f"validation WER {row['valid_wer']:.1f} % (CTC alone), "
            f"next token {row['valid_accuracy']:.1f} %, "
            f"conflicts {training.percent(row.get('conflict_rate'))}"
        )

    # -------------------------------------------------------------- schedule

    def on_fit_batch_start(self, batch, should_step):
        """The learning rate follows the steps; the scheduler sets that of the next one."""
        super().on_fit_batch_start(batch, should_step)
        if should_step:
            self.hparams.lr_scheduler(self.optimizer)

    def change_learning_rate(self, epoch, valid_loss):
        """It follows the steps, not the epochs."""

    # -------------------------------------------------------------- evaluation

    def add_scores(self, predictions, batch, losses, ended):
        """Add the rows of a validation batch."""
        right = predictions.recognised.attention.argmax(-1) == ended
        counted = ended != 0
        recognised = recognition.greedy_words(predictions.recognised, self.hparams.tokens)
        scored = [text_scores(t, {"": r}) for t, r in zip(batch.transcripts, recognised)]
        self.add_rows(
            {
                "loss": losses,
                "accuracy": 100 * (right & counted).sum(-1) / counted.sum(-1),
                "wer": [100 * s["word_errors"] / max(1, s["words"]) for s in scored],
            }
        )

    def recognise(self, predictions, batch):
        """Search for the words of a test batch: enhanced, as it is, and before training."""
        search = self.hparams.search
        texts = {"": search(predictions.recognised)}
        if predictions.enhanced is not None:
            recognised = self.modules.recogniser(batch.noisy, batch.lengths)
            texts["_noisy"] = search(recognised)
        if self.untrained is not None:
            texts["_untrained"] = self.untrained_texts(batch)
        for item, (item_id, transcript) in enumerate(zip(batch.ids, batch.transcripts)):
            of_item = {name: recognised[item] for name, recognised in texts.items()}
            row = {"ID": item_id, **text_scores(transcript, of_item)}
            if item_id in self.sets:
                row["set"] = self.sets[item_id]
            if predictions.enhanced is not None and batch.has_clean[item]:
                signals = self.signals_of(batch, predictions, item)
                row |= evaluate_item(**signals, sample_rate=self.hparams.sample_rate)
            self.rows.append(row)

    def untrained_texts(self, batch):
        """Texts by the weights that training began with."""
        signals = batch.noisy
        if "front" in self.untrained:
            signals = self.untrained["front"](signals, batch.lengths).signal
        recogniser = self.untrained["recogniser"]
        search = self.hparams.make_search(recogniser, self.hparams.tokens)
        return search(recogniser(signals, batch.lengths))

    def signals_of(self, batch, predictions, item):
        """Noisy, enhanced and clean signal of one item, as NumPy arrays."""
        enhanced = predictions.enhanced
        estimate = batch.noisy if enhanced is None else enhanced.signal
        signals = {"mixture": batch.noisy, "estimates": estimate.unsqueeze(1)}
        signals["targets"] = batch.clean.unsqueeze(1)
        return training.item_arrays(signals, item, batch.lengths)

    def report_options(self):
        """A section on transcripts."""
        return {"findings": [transcripts_section]}

    def after_report(self):
        """Write the alignments and, where the corpus has sets, the rates of each."""
        write_alignments(self.rows, self.hparams.output_folder)
        if self.sets:
            write_sets(self.rows, self.hparams.output_folder)


def with_begin(tokens):
    """Sentences with the token that begins them: input of the decoder."""
    return torch.nn.functional.pad(tokens, (1, 0), value=recognition.BEGIN)


def with_end(tokens, n_tokens):
    """Sentences with the token that ends them: target of the decoder."""
    ended = torch.nn.functional.pad(tokens, (0, 1))
    last = n_tokens.to(tokens.device, non_blocking=True).unsqueeze(-1)
    return ended.scatter(1, last, recognition.END)


# ------------------------------------------------------------------ data


def prepare(hparams):
    """Manifests of each subset: of speech and, if it is to be mixed, of noise."""
    if "corpus" in hparams:
        hparams["data_folder"] = str(hparams["corpus"]())
    folder = training.manifest_folder(hparams)
    found = hparams["prepare"](hparams["data_folder"], folder, hparams["sample_rate"])
    return {
        subset: {kind: read_manifest(path, root, one_rate=False) for kind, path, root in of}
        for subset, of in found.items()
    }


def learn_tokens(hparams, manifest):
    """The tokenizer, trained on the training transcripts once."""
    path = Path(hparams["output_folder"]) / "tokens.model"
    if not path.is_file():
        transcripts = [item.attributes["transcript"] for item in manifest.items]
        recognition.Tokens.train(
            transcripts, path, hparams["n_tokens"], hparams["token_type"]
        )
    tokens = recognition.Tokens(path)
    if len(tokens) > hparams["n_tokens"]:
        raise UserError(f"n_tokens: is {hparams['n_tokens']}; {path} has {len(tokens)}")
    return tokens


def make_dataset(hparams, subset, manifests):
    """Utterances of a subset, in pairs or mixed on the fly."""
    speech, folder = manifests["speech"], Path(hparams["output_folder"])
    if subset != "test":  # the test has long and odd utterances, too
        tokens, recogniser = hparams["tokens"], hparams["modules"]["recogniser"]
        limits = UtteranceLimits(
            hparams["max_duration"],
            tokens.encode,
            tokens.unknown,
            recogniser.count_frames,
            hparams["sample_rate"],
        )
        path = folder / f"left_out_{subset}.csv"
        speech = filter_utterances(speech, limits, hparams["unusable"], path)
    if "noise" not in manifests:
        return PairedSpeechDataset(speech, hparams["sample_rate"])
    return NoisySpeechDataset(
        speech,
        manifests["noise"],
        hparams["snr_range"],
        hparams["sample_rate"],
        seed=hparams["seed"],
        epoch=None if subset == "train" else 0,
    )


def make_loaders(hparams):
    """Loaders of all subsets; makes tokenizer and search of the recogniser first."""
    manifests = training.on_main(prepare, hparams)
    speech = manifests["train"]["speech"]
    hparams["tokens"] = training.on_main(learn_tokens, hparams, speech)
    recogniser = hparams["modules"]["recogniser"]
    hparams["search"] = hparams["make_search"](recogniser, hparams["tokens"])
    datasets = {
        subset: training.on_main(make_dataset, hparams, subset, manifests[subset])
        for subset in ("train", "dev", "test")
    }
    collate = partial(collate_transcribed, encode=hparams["tokens"].encode)
    return training.make_loaders(datasets, collate, hparams)


def load_front(front, run_folder):
    """Give a front the weights of the best checkpoint of another run."""
    path = Path(run_folder) / "save"
    best = path.is_dir() and Checkpointer(path).find_checkpoint(max_key=RemedyBrain.best)
    if not best:
        raise UserError(
            f"pretrained_front: {run_folder} holds no checkpoint in save/; expected the "
            "folder of a run of this recipe, such as results/asr_demo/1234"
        )
    try:
        weights = torch.load(best.paramfiles["front"], "cpu", weights_only=True)
        front.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"pretrained_front: the front of {best.path} does not fit this one: {error}"
        ) from error


# ------------------------------------------------------------------ results


def write_alignments(rows, folder):
    """Write every test utterance word by word above its recognised text, as SpeechBrain."""
    rows, stats = [row for row in rows if row["words"]], ErrorRateStats()
    words, recognised = (
        [normalise_text(row[key]) for row in rows] for key in ("transcript", "recognised")
    )
    stats.append([row["ID"] for row in rows], recognised, words)
    text = io.StringIO()
    stats.write_stats(text)
    print(f"alignments    {atomic_write(Path(folder) / 'wer.txt', text.getvalue())}")


def write_sets(rows, folder):
    """Write word error rates of each set, such as real and simulated recordings."""
    columns = [key for key in rows[0] if key.startswith("word_errors")]
    head, lines = ["set", "words", *(ERROR_RATES[key] for key in columns)], []
    for name in sorted({row["set"] for row in rows}):
        of_set = [row for row in rows if row["set"] == name]
        words = sum(row["words"] for row in of_set)
        rates = [100 * sum(row[key] for row in of_set) / max(1, words) for key in columns]
        lines.append([name, str(words), *(f"{rate:.2f} %" for rate in rates)])
    table = markdown_table(head, lines)
    path = atomic_write(Path(folder) / "sets.md", table + "\n")
    print(f"{table}\nsets          {path}")


# ------------------------------------------------------------------ configuration


def use_system(hparams):
    """Make modules and gradients those of the system that was chosen."""
    if hparams["system"] == "noisy":
        del hparams["modules"]["front"]
        hparams["checkpointer"].recoverables.pop("front")
    if hparams["system"] == "cascade":
        hparams["rule"] = "auxiliary_only"
    if hparams["freeze_se"]:
        hparams["modules"]["front"].requires_grad_(False)
    if hparams["system"] == "noisy" or hparams["freeze_se"]:
        hparams["weight_se"] = 0.0
    hparams["shared_modules"] = ["front"] if hparams["weight_se"] else []


def check(hparams):
    """Stop at values that cannot be used; make the system that was chosen."""
    training.check_choices(hparams, CHOICES)
    training.check_rule(hparams)
    trained = hparams["system"] == "joint" and hparams["pretrained_front"]
    if hparams["freeze_se"] and not trained:
        raise UserError(
            "freeze_se: a front that stays as it is must have been trained: give the "
            "folder of a run as pretrained_front, with system joint"
        )
    if hparams["system"] == "cascade" and not hparams["weight_se"]:
        raise UserError("weight_se: is 0; a cascade's front learns from SE alone")
    if hparams["weight_se"] >= 1:
        raise UserError(f"weight_se: is {hparams['weight_se']}; expected less than 1")
    use_system(hparams)


def facts(hparams):
    """Properties that --describe prints beside the modules."""
    return {
        "system": hparams["system"],
        "shared by both tasks": ", ".join(hparams["shared_modules"]) or "nothing",
        "rule": training.describe_rule(hparams),
        "latency": "the whole utterance (both directions, attention)",
    }


def main(options):
    """Train, test and report, as the command line asks."""
    training.train_recipe(options, RemedyBrain, check, make_loaders, facts)


if __name__ == "__main__":
    training.run(main, __doc__)
