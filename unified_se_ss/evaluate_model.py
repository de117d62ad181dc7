"""The command ``evaluate``: where a trained model, data, metrics and report meet.

What can be wrong is found before any work: options, packages, files, lengths. Then the
items go through `unified_se_ss.evaluation.evaluate`. A class for each evaluation says what
a manifest's items are, what a model makes of one, and how that is scored.

Axes: T samples, J sources, E ears.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from unified_se_ss.data.binaural import BinauralDataset
from unified_se_ss.data.cache import count_cores
from unified_se_ss.data.dataset import MixtureDataset, PairedSpeechDataset
from unified_se_ss.data.guided import RecordingDataset
from unified_se_ss.data.manifest import DATA_ROOT, Manifest, header_faults, read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation import audio_examples, wer
from unified_se_ss.evaluation import rows as row_makers
from unified_se_ss.evaluation.evaluate import Utterance, evaluate
from unified_se_ss.evaluation.metrics import PERCEPTUAL, WHY_EMPTY, check_metrics
from unified_se_ss.evaluation.report import publish
from unified_se_ss.inference import Model, Recognizer, load_model

#: Always computed; may be named all the same.
ALWAYS = ("si_snr", "sdr")
METRICS = (*ALWAYS, *PERCEPTUAL, "wer")
#: Files that say that a folder holds an evaluation.
OUTPUTS = ("results.csv", "summary.json", "summary.md", "report.html", "wavs")
#: Utterances without a value that are named; results.csv names all.
NAMED = 5


def run(options) -> Path:
    """Evaluate a model on the items of a manifest.

    `options` are those of the command ``evaluate``.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    UserError
        Something that was given is wrong.
    """
    for key, least in (("jobs", 1), ("save_waves", 0)):
        value = getattr(options, key)
        if value is not None and value < least:
            raise UserError(f"{key}: is {value}; expected {least} or more")
    model = load_model(options.model, options.device, options.precision)
    evaluation = EVALUATIONS[model.kind]
    metrics = choose_metrics(options.metrics, options.recogniser, evaluation.metrics)
    perceptual = [name for name in metrics if name in PERCEPTUAL]
    check_metrics(perceptual, model.sample_rate)
    items = evaluation(
        model, open_manifest(options.manifest, options.data_folder, evaluation.stems)
    )
    manifest = items.manifest
    folder = options.output or Path("evaluation") / Path(options.manifest).stem
    folder = open_folder(folder, options.force)
    words, notes = {}, []
    if "wer" in metrics:
        texts = wer.find_transcripts(manifest, options.transcripts, options.data_folder)
        asr = wer.load_asr_model(options.recogniser, model.device)
        transcribe = partial(asr.transcribe, sample_rate=model.sample_rate)
        words = {"transcribe": transcribe, "transcripts": texts}
        notes.append(
            f"Words were recognised by {options.recogniser}. Normalisation of texts: "
            f"{wer.NORMALISATION}. The WER is that of all words together; that of the references "
            "is what the recogniser gets wrong without any separation."
        )
    print(f"{model}\n{len(items)} utterances, {', '.join(metrics)}")
    start = time.perf_counter()
    rows = evaluate(
        items,
        items.separate,
        model.sample_rate,
        perceptual,
        options.jobs,
        progress=True,
        score=items.score,
        **words,
    )
    seconds = time.perf_counter() - start
    empty = what_is_empty(rows)
    used = ("model", "manifest", "recogniser", "data_folder")
    published = publish(
        folder,
        # A run's folder is called by its seed: what it belongs to stands before that.
        f"{'/'.join(Path(options.model).resolve().parts[-2:])} on {Path(manifest.path).name}",
        rows,
        items.signals_of_id,
        model.sample_rate,
        configuration={
            **{key: getattr(options, key) for key in used},
            "device": str(model.device),
            "precision": model.precision,
            "metrics": ", ".join(metrics),
            "jobs": options.jobs or count_cores(),
            "seconds": round(seconds, 1),
        },
        notes=empty + notes,
        keep_waves=options.save_waves,
        level=items.level,
    )
    print(f"\n{published.summary.table()}\n")
    for note in empty:
        print(note)
    audio_seconds = sum(item.duration for item in manifest.items)
    print(f"took          {seconds:.1f} s for {audio_seconds:.1f} s of mixtures")
    print(f"results       {published.results}")
    print(f"report        {published.report}")
    return published.report


def choose_metrics(names: str, recogniser, known=METRICS) -> list[str]:
    """The metrics to compute, in the order of METRICS, from names joined by commas.

    Raises
    ------
    UserError
        There is no such metric, or the WER lacks a recogniser.

    Example
    -------
    >>> choose_metrics("stoi, sdr", None)
    ['si_snr', 'sdr', 'stoi']
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    wanted += ["wer"] if recogniser else []
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(f"metrics: {unknown[0]!r}; expected some of: {', '.join(known)}")
    if "wer" in wanted and recogniser is None:
        raise UserError(
            "metrics: wer needs a recogniser; give --recogniser FOLDER (a SpeechBrain "
            "recogniser, or its name on the hub)"
        )
    return [name for name in known if name in {*ALWAYS, *wanted}]


def open_folder(folder, force: bool) -> Path:
    """Make the output folder; refuse one that holds something."""
    folder = Path(folder)
    there = [name for name in OUTPUTS if (folder / name).exists()]
    if there and not force:
        raise UserError(
            f"output: {folder} holds {there[0]} already; choose another folder with -o, "
            "or replace it with --force"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_manifest(path, data_folder, stems=None) -> Manifest:
    """Read a manifest; one that needs a data folder says which option gives it."""
    readable = data_folder is None and Path(path).is_file()
    if readable and DATA_ROOT in Path(path).read_text(encoding="utf-8", errors="replace"):
        raise UserError(
            f"{path}: its paths begin with {DATA_ROOT}; give the data folder that it "
            "was made from with --data_folder"
        )
    return read_manifest(path, data_folder, stems)


# ------------------------------------------------------------------ by evaluation


class Separation:
    """Mixtures of one channel, separated or enhanced; what else there is derives from it.

    Every file is looked at when it is made, so that nothing is found missing after an
    hour.

    Arguments
    ---------
    model : Model
        One that only enhances has one source.
    manifest : Manifest
        One rate.
    """

    metrics = METRICS
    stems: tuple | None = None  # of the manifest; mixture, s1, s2 ...
    score = staticmethod(row_makers.score_separation)
    level = staticmethod(audio_examples.level_signals)
    channels = 1

    def __init__(self, model: Model, manifest: Manifest):
        self.model, self.manifest = model, manifest
        self.dataset, stems = self._open()
        if manifest.sample_rate != model.sample_rate:
            raise UserError(
                f"{manifest.path}: is of {manifest.sample_rate} Hz, but the model works at "
                f"{model.sample_rate} Hz; evaluate on data of that rate"
            )
        self._place = {item.id: place for place, item in enumerate(manifest.items)}
        for item in manifest.items:
            self._check(item, stems)

    def _open(self):
        """The data set, and the stems of which it reads whole files."""
        dataset = MixtureDataset(self.manifest, self.model.n_sources or 1)
        return dataset, ("mixture", *dataset.source_stems)

    def __len__(self):
        return len(self.manifest)

    def __iter__(self) -> Iterator[Utterance]:
        return map(self.read, range(len(self)))

    def read(self, place: int) -> Utterance:
        """One item, read from its files."""
        example = self.dataset[place]
        return Utterance(example.id, example.mixture.numpy(), example.sources.numpy())

    def separate(self, mixture) -> dict:
        """The model's estimates [J, T] of a mixture [T], and enhanced [T]."""
        sources, enhanced = _of_one(self.model.both, mixture)
        if sources is None:  # pure enhancement: the one source is what is enhanced
            return {"estimates": enhanced[None]}
        return {"estimates": sources, "enhanced": enhanced}

    def signals_of_id(self, item_id: str) -> dict:
        """The signals of an item once more, as `publish` asks for them."""
        utterance = self.read(self._place[item_id])
        signals = {"mixture": utterance.mixture, "targets": utterance.sources}
        return {**signals, **self.separate(utterance.mixture)}

    def _check(self, item, stems) -> None:
        """Stop at files that are not as the manifest says, or too short."""
        for fault in header_faults(item, stems, self.channels):
            raise UserError(f"{fault} ({self.manifest.path}; make it again)")
        least = getattr(self.model.network, "minimum_samples", self.model.minimum_samples)
        if item.frames < least:
            raise UserError(
                f"{self.manifest.path}: {item.id} has {item.frames} samples; this model "
                f"needs {least} or more; remove it from the manifest"
            )


class BinauralSeparation(Separation):
    """Mixtures of two ears [E, T], separated into what both hear of each talker."""

    metrics = ALWAYS
    score = staticmethod(row_makers.score_binaural)
    level = staticmethod(audio_examples.level_ears)
    channels = 2

    def _open(self):
        dataset = BinauralDataset(self.manifest, self.model.n_sources)
        return dataset, ("mixture", *dataset.source_stems)

    def read(self, place):
        directions = {"directions": self.dataset[place].directions.numpy()}
        return super().read(place)._replace(known=directions)


class GuidedEnhancement(Separation):
    """Recordings of a microphone and a beamformer, [2, T], as `prepare_recordings` lists."""

    metrics = (*ALWAYS, *PERCEPTUAL)
    stems = ("raw", "beamformed", "target")
    score = staticmethod(row_makers.score_guided)
    level = staticmethod(audio_examples.level_guided)

    def _open(self):
        return RecordingDataset(self.manifest), ()  # its files may be of other lengths

    def read(self, place):
        example = self.dataset[place]
        inputs, target = example.inputs.numpy(), example.target.numpy()
        known = {"raw": inputs[0], "beamformed": inputs[1], "target": target}
        return Utterance(example.id, inputs, target[None], known)

    def separate(self, mixture):
        return {"enhanced": _of_one(self.model.both, mixture)[1]}

    def signals_of_id(self, item_id):
        signals = super().signals_of_id(item_id)
        raw, beamformed = signals["mixture"]
        return {**signals, "mixture": raw, "estimates": beamformed[None]}


class Recognition(Separation):
    """Utterances with their words, recognised as in the recipe's test.

    The manifest has the column transcript, too.
    """

    metrics = ALWAYS
    stems = ("noisy", "clean")
    score = staticmethod(row_makers.score_recognition)

    def _open(self):
        self.recognizer = Recognizer(self.model)
        return PairedSpeechDataset(self.manifest), self.stems

    def read(self, place):
        item = self.dataset[place]
        clean = item.clean.numpy()[None] if item.has_clean else None
        return Utterance(
            item.id, item.noisy.numpy(), clean, {"transcript": item.transcript}
        )

    def separate(self, mixture):
        signals = torch.from_numpy(mixture)[None]
        ((text, enhanced),) = self.recognizer.recognise_batch(signals)
        enhanced = None if enhanced is None else enhanced[None].cpu().numpy()
        return {"recognised": {"": text}, "estimates": enhanced}

    def signals_of_id(self, item_id):
        signals = super().signals_of_id(item_id)
        del signals["recognised"]
        noisy = signals["mixture"][None]  # where there is no front, or no clean recording
        return {name: noisy if x is None else x for name, x in signals.items()}


def _of_one(work, mixture) -> list:
    """Arrays of what a function of the model gives for one mixture."""
    found = work(torch.from_numpy(mixture)[None])
    return [None if signal is None else signal[0].cpu().numpy() for signal in found]


#: By the kind of model.
EVALUATIONS = {
    "unified": Separation,
    "binaural": BinauralSeparation,
    "gsenet": GuidedEnhancement,
    "recogniser": Recognition,
}


# ------------------------------------------------------------------ notes


def what_is_empty(rows) -> list[str]:
    """Which utterances lack a value and why, in a few words.

    Example
    -------
    >>> what_is_empty([{"ID": "a"}, {"ID": "b", "why_empty": "pesq of source 1: silent"}])
    ['1 of 2 utterances lack a value: b (pesq of source 1: silent).']
    """
    empty = [row for row in rows if row.get(WHY_EMPTY)]
    named = "; ".join(f"{row['ID']} ({row[WHY_EMPTY]})" for row in empty[:NAMED])
    rest = f"; all are in results.csv, column {WHY_EMPTY}" if len(empty) > NAMED else ""
    text = f"{len(empty)} of {len(rows)} utterances lack a value: {named}{rest}."
    return [text] if empty else []
