"""The command ``evaluate``: where a trained model, data, metrics and report meet.

What can be wrong is found before any work: options, packages, files, lengths. Then the
utterances go through `unified_se_ss.evaluation.evaluate`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.cache import count_cores
from unified_se_ss.data.dataset import MixtureDataset
from unified_se_ss.data.manifest import DATA_ROOT, Manifest, read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.evaluate import Utterance, evaluate
from unified_se_ss.evaluation.perceptual import PERCEPTUAL, WHY_EMPTY, check_metrics
from unified_se_ss.evaluation.report import publish
from unified_se_ss.evaluation.wer import (
    NORMALISATION,
    read_transcripts,
    transcript_columns,
    transcripts_in,
)
from unified_se_ss.inference.models import Model, load_model

#: Always computed; may be named all the same.
ALWAYS = ("si_snr", "sdr")
METRICS = (*ALWAYS, *PERCEPTUAL, "wer")
#: Files that say that a folder holds an evaluation.
OUTPUTS = ("results.csv", "summary.json", "summary.md", "report.html", "wavs")
#: Utterances without a value that are named; results.csv names all.
NAMED = 5


def run(
    model,
    manifest,
    output=None,
    data_folder=None,
    metrics=ALWAYS,
    jobs=None,
    recogniser=None,
    transcripts=None,
    device=None,
    precision=None,
    save_waves=0,
    force=False,
) -> Path:
    """Evaluate a model on the mixtures of a manifest.

    Arguments
    ---------
    model : str or Path
        A run's folder, or an exported one.
    manifest : str or Path
        CSV as ``train.py`` writes into a run's ``manifests/``.
    output : str or Path, optional
        Folder for results.csv, summary.json, summary.md and report.html; default
        ``evaluation/<name of the manifest>``.
    data_folder : str or Path, optional
        What ``{data_root}`` in the manifest stands for.
    metrics : sequence of str
        Of `METRICS`; SI-SNR(i) and SDR(i) are always among them.
    jobs : int, optional
        Processes that score; default one per core.
    recogniser : str, optional
        A SpeechBrain recogniser, folder or name on the hub, for the WER.
    transcripts : str or Path, optional
        CSV with ID and transcript_1, ...; default the manifest's own columns of these
        names, or transcripts.csv in the data folder or beside it.
    device, precision : str, optional
        As for ``load_model``.
    save_waves : int
        The first so many utterances are kept as wavs.
    force : bool
        Whether to replace an earlier evaluation in the folder.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    UserError
        Something that was given is wrong.
    """
    metrics = choose_metrics(metrics, recogniser)
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs: is {jobs}; expected 1 or more")
    if save_waves < 0:
        raise UserError(f"save_waves: is {save_waves}; expected 0 or more")
    loaded = load_model(model, device, precision)
    check_metrics([name for name in metrics if name in PERCEPTUAL], loaded.sample_rate)
    mixtures = Mixtures(loaded, open_manifest(manifest, data_folder))
    folder = open_folder(output or Path("evaluation") / Path(manifest).stem, force)
    recognition = {}
    if "wer" in metrics:
        texts = find_transcripts(mixtures.manifest, transcripts, data_folder)
        recognition = _recognition(recogniser, texts, loaded)
    print(f"{loaded}\n{len(mixtures)} utterances, {', '.join(metrics)}")
    start = time.perf_counter()
    rows = evaluate(
        mixtures,
        mixtures.separate,
        loaded.sample_rate,
        [name for name in metrics if name in PERCEPTUAL],
        jobs,
        progress=True,
        **recognition,
    )
    seconds = time.perf_counter() - start
    published = publish(
        folder,
        # A run's folder is called by its seed: what it belongs to stands before that.
        f"{'/'.join(Path(model).resolve().parts[-2:])} on {Path(manifest).name}",
        rows,
        mixtures.signals_of_id,
        loaded.sample_rate,
        configuration={
            "model": str(model),
            "manifest": str(manifest),
            "device": str(loaded.device),
            "precision": loaded.precision,
            "metrics": ", ".join(metrics),
            "jobs": jobs or count_cores(),
            "recogniser": recogniser,
            "data_folder": None if data_folder is None else str(data_folder),
            "seconds": round(seconds, 1),
        },
        notes=_notes(rows, recogniser),
        keep_waves=save_waves,
    )
    print(f"\n{published.summary.table()}\n")
    for note in what_is_empty(rows):
        print(note)
    audio_seconds = sum(item.duration for item in mixtures.manifest.items)
    print(f"took          {seconds:.1f} s for {audio_seconds:.1f} s of mixtures")
    print(f"results       {published.results}")
    print(f"report        {published.report}")
    return published.report


def choose_metrics(names, recogniser) -> list[str]:
    """The metrics to compute, SI-SNR and SDR first.

    Raises
    ------
    UserError
        There is no such metric, or the WER lacks a recogniser.

    Example
    -------
    >>> choose_metrics(["stoi", "sdr"], None)
    ['si_snr', 'sdr', 'stoi']
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"metrics: {unknown[0]!r}; expected some of: {', '.join(METRICS)}")
    if "wer" in names and recogniser is None:
        raise UserError(
            "metrics: wer needs a recogniser; give --recogniser FOLDER (a SpeechBrain "
            "recogniser, or its name on the hub)"
        )
    wanted = {*ALWAYS, *names, *(["wer"] if recogniser else [])}
    return [name for name in METRICS if name in wanted]


def open_folder(folder, force: bool) -> Path:
    """Make the output folder; refuse one that holds something."""
    folder = Path(folder)
    there = [name for name in OUTPUTS if (folder / name).exists()]
    if there and not force:
        raise UserError(
            f"output: {folder} holds {there[0]} already; choose another folder with -o, "
            "or replace it with --force"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: {folder} cannot be made ({error.strerror})") from error
    return folder


def open_manifest(path, data_folder) -> Manifest:
    """Read a manifest; one that needs a data folder says which option gives it."""
    readable = data_folder is None and Path(path).is_file()
    if readable and DATA_ROOT in Path(path).read_text(encoding="utf-8", errors="replace"):
        raise UserError(
            f"{path}: its paths begin with {DATA_ROOT}; give the data folder that it "
            "was made from with --data_folder"
        )
    return read_manifest(path, data_folder)


class Mixtures:
    """The mixtures of a manifest, what a model makes of them, and both by ID.

    Every file is looked at when it is made, so that nothing is found missing after an
    hour.

    Arguments
    ---------
    model : Model
        What separates. One that only enhances has one source.
    manifest : Manifest
        With mixture, s1, s2 ...; one rate.
    """

    def __init__(self, model: Model, manifest: Manifest):
        if model.channels != 1:
            raise UserError(
                f"model: takes {model.channels} channels; evaluate reads mono mixtures"
            )
        if not model.n_sources and not model.can_enhance:
            raise UserError("model: recognises only; evaluate scores signals")
        self.model, self.manifest = model, manifest
        self.dataset = MixtureDataset(manifest, model.n_sources or 1)
        if manifest.sample_rate != model.sample_rate:
            raise UserError(
                f"{manifest.path}: is of {manifest.sample_rate} Hz, but the model works at "
                f"{model.sample_rate} Hz; evaluate on data of that rate"
            )
        self._place = {item.id: place for place, item in enumerate(manifest.items)}
        for item in manifest.items:
            self._check(item)

    def __len__(self):
        return len(self.dataset)

    def __iter__(self) -> Iterator[Utterance]:
        for place in range(len(self)):
            yield self.read(place)

    def read(self, place: int) -> Utterance:
        """One item, read from its files."""
        example = self.dataset[place]
        return Utterance(example.id, example.mixture.numpy(), example.sources.numpy())

    def separate(self, mixture: np.ndarray) -> dict:
        """What the model makes of a mixture [T]: estimates [J, T], enhanced [T]."""
        sources, enhanced = self.model.both(torch.from_numpy(mixture)[None])
        enhanced = None if enhanced is None else enhanced[0].cpu().numpy()
        if sources is None:  # pure enhancement: the one source is what is enhanced
            return {"estimates": enhanced[None]}
        return {"estimates": sources[0].cpu().numpy(), "enhanced": enhanced}

    def signals_of_id(self, item_id: str) -> dict:
        """The signals of an item once more, as `publish` asks for them."""
        utterance = self.read(self._place[item_id])
        signals = {"mixture": utterance.mixture, "targets": utterance.sources}
        return {**signals, **self.separate(utterance.mixture)}

    def _check(self, item) -> None:
        """Stop at files that are not as the manifest says, or too short."""
        for stem in ("mixture", *self.dataset.source_stems):
            found = audio.info(item.paths[stem])
            if found != (item.frames, item.sample_rate, 1):
                raise UserError(
                    f"{item.paths[stem]}: has {found.frames} samples at "
                    f"{found.sample_rate} Hz in {found.channels} channel(s), but "
                    f"{self.manifest.path} says {item.frames} at {item.sample_rate} Hz "
                    "in 1; make the manifest again"
                )
        if item.frames < self.model.minimum_samples:
            raise UserError(
                f"{self.manifest.path}: {item.id} has {item.frames} samples; this model "
                f"needs {self.model.minimum_samples} or more; remove it from the manifest"
            )


# ------------------------------------------------------------------ words


def find_transcripts(manifest: Manifest, path, data_folder) -> dict:
    """What is said in each item: from a file, the manifest, or the data folder."""
    n_sources = max(1, sum(stem[1:].isdigit() for stem in manifest.stems))
    if path is None and data_folder is not None:
        places = (Path(data_folder), Path(data_folder).resolve().parent)
        there = [p / "transcripts.csv" for p in places if (p / "transcripts.csv").is_file()]
        path = there[0] if there else None
    texts = {item.id: transcripts_in(item.attributes, n_sources) for item in manifest.items}
    if path is not None and None in texts.values():
        texts = {**texts, **read_transcripts(path, n_sources)}
    silent = [item.id for item in manifest.items if texts[item.id] is None]
    if silent:
        where = f"{path} has" if path else f"{manifest.path} has"
        raise UserError(
            f"transcripts: {where} none of {silent[0]} ({len(silent)} of {len(manifest)} "
            f"items); wer needs {', '.join(transcript_columns(n_sources))} in the "
            "manifest, or a CSV file with these and ID, given with --transcripts"
        )
    return texts


def _recognition(recogniser, texts, model) -> dict:
    """What `evaluate` needs for word errors."""
    from unified_se_ss.evaluation.wer import load_asr_model

    loaded = load_asr_model(recogniser, model.device)

    def transcribe(signals):
        return loaded.transcribe(signals, model.sample_rate)

    return {"transcribe": transcribe, "transcripts": texts}


# ------------------------------------------------------------------ what is said of it


def what_is_empty(rows) -> list[str]:
    """Which utterances lack a value and why, in a few words.

    Example
    -------
    >>> what_is_empty([{"ID": "a"}, {"ID": "b", "why_empty": "pesq of source 1: silent"}])
    ['1 of 2 utterances lack a value: b (pesq of source 1: silent).']
    """
    empty = [row for row in rows if row.get(WHY_EMPTY)]
    if not empty:
        return []
    named = "; ".join(f"{row['ID']} ({row[WHY_EMPTY]})" for row in empty[:NAMED])
    rest = f"; all are in results.csv, column {WHY_EMPTY}" if len(empty) > NAMED else ""
    return [f"{len(empty)} of {len(rows)} utterances lack a value: {named}{rest}."]


def _notes(rows, recogniser) -> list[str]:
    """Paragraphs for the report."""
    notes = what_is_empty(rows)
    if recogniser is not None:
        notes.append(
            f"Words were recognised by {recogniser}. Normalisation of texts: "
            f"{NORMALISATION}. The WER is that of all words together; that of the "
            "references is what the recogniser gets wrong without any separation."
        )
    return notes
