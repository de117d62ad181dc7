"""Word error rates: of any recognizer that is a function, and of SpeechBrain's.

Axes: B batch, T samples, J sources.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError, first_line
from unified_se_ss.evaluation.metrics import Column
from unified_se_ss.evaluation.plots import Section, Table, read_csv

#: What `normalise_text` does, for reports.
NORMALISATION = (
    "Unicode NFKC, lower case, typographic apostrophes as ', everything but letters, "
    "digits and apostrophes within words as a space; numbers are not spelt out"
)
#: WER of the estimates, and by suffix of the column of what else was recognised.
WER_COLUMNS = (
    Column("wer", "WER", "%", True, "word_errors"),
    Column("wer_reference", "WER of the references", "%", True, "word_errors_reference"),
    Column("wer_noisy", "WER without the front", "%", True, "word_errors_noisy"),
    Column("wer_untrained", "WER before training", "%", True, "word_errors_untrained"),
)
_COUNTS = ("words", "word_errors", "word_errors_reference")
#: What is shown of an utterance: column of results.csv and its heading.
_TEXTS = {
    "transcript": "said",
    "recognised": "recognised",
    "recognised_noisy": "without the front",
    "recognised_untrained": "before training",
}
#: SpeechBrain's classes that can transcribe, by what their YAML must hold.
ASR_CLASSES = ("EncoderASR", "EncoderDecoderASR", "WhisperASR")


def normalise_text(text) -> list[str]:
    """Words in one spelling: lower case, NFKC, letters, digits and inner apostrophes.

    Numbers are not spelt out: transcripts and recognizer must agree.

    Example
    -------
    >>> normalise_text("“DON’T stop,” he said -- twice!")
    ["don't", 'stop', 'he', 'said', 'twice']
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    # Letters, their combining marks, and numbers.
    kept = (c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    words = (word.strip("'") for word in "".join(kept).split())
    return [word for word in words if word]


def _word_errors(words, recognised) -> int:
    """Least number of words to substitute, insert and delete (Levenshtein)."""
    previous = np.arange(len(recognised) + 1)
    steps = np.arange(len(recognised) + 1)
    for number, word in enumerate(words, start=1):
        differs = np.array([word != other for other in recognised], dtype=int)
        current = np.concatenate([[number], previous[:-1] + differs])
        current = np.minimum(current, np.concatenate([[number], previous[1:] + 1]))
        # Insertions: the least of all to the left plus one for every step from there.
        previous = np.minimum.accumulate(current - steps) + steps
    return int(previous[-1])


def text_scores(transcript, texts) -> dict:
    """Words recognised in one utterance, in several ways, and their errors.

    Arguments
    ---------
    transcript : str
        What was said; without a word there is no WER.
    texts : dict
        What was recognised, by the suffix of its columns.

    Returns
    -------
    dict
        `transcript`, `words`, and for each suffix `recognised`, `word_errors` and `wer` in %.
    """
    words = normalise_text(transcript)
    row = {"transcript": transcript, "words": len(words)}
    for end, text in texts.items():
        errors = _word_errors(words, normalise_text(text))
        row[f"recognised{end}"] = text
        row[f"word_errors{end}"] = errors
        row[f"wer{end}"] = 100 * errors / len(words) if words else None
    return row


def recognition_scores(recognised, recognised_references, transcripts) -> dict:
    """Word errors of separated sources, and of their references.

    Arguments
    ---------
    recognised : list of str
        Of each of the J estimates, in the order of the sources.
    recognised_references : list of str
        Of each of the J references: what the recognizer gets wrong without separation.
    transcripts : list of str
        What each source says; one without a word counts nothing.

    Returns
    -------
    dict
        `wer` and `wer_reference` in percent, `word_errors`, `word_errors_reference` and
        `words`, of all sources together and of each with its number at the end.

    Example
    -------
    >>> row = recognition_scores(["a cat", "no"], ["the cat", "no"], ["the cat", "No!"])
    >>> round(row["wer"], 1), row["word_errors_1"], row["words"], row["wer_reference"]
    (33.3, 1, 3, 0.0)
    """
    sources = []
    for said, estimate, reference in zip(transcripts, recognised, recognised_references):
        scores = text_scores(said, {"": estimate, "_reference": reference})
        sources.append([scores[key] if scores["words"] else 0 for key in _COUNTS])
    row = {}
    for j, counts in enumerate([[sum(c) for c in zip(*sources)], *sources]):
        end, words = f"_{j}" * (j > 0), counts[0]
        row.update({f"{key}{end}": count for key, count in zip(_COUNTS, counts)})
        for key, errors in zip(("wer", "wer_reference"), counts[1:]):
            row[f"{key}{end}"] = 100 * errors / words if words else None
    return row


def transcripts_section(rows) -> Section:
    """The report's section of the ten utterances with the most word errors."""
    worst = sorted(rows, key=lambda row: -row["word_errors"])[:10]
    lines = []
    for row in worst:
        there = [(key, heading) for key, heading in _TEXTS.items() if key in row]
        for number, (key, heading) in enumerate(there):
            lines.append(["" if number else row["ID"], heading, row[key] or "(nothing)"])
    note = (
        f"The {len(worst)} utterances with the most word errors; all are in results.csv. "
        f"Words are compared after: {NORMALISATION}."
    )
    parts = [note, Table([], lines, kind="texts")]
    return Section("transcripts", "Said and recognised", parts)


def find_transcripts(manifest, path=None, data_folder=None) -> dict:
    """The words of a manifest's items: from its own columns, or from a CSV file.

    Columns are `transcript_1`, `transcript_2` ..., for one source also `transcript`; a file
    has `ID`, too, as the demo corpus writes it.

    Arguments
    ---------
    manifest : Manifest
        Of J sources.
    path : str or Path, optional
        The file, for items without words; by default transcripts.csv in the data folder or
        beside it.

    Returns
    -------
    dict
        A list of J texts by ID.

    Raises
    ------
    UserError
        An item has no words, or the file cannot be read.
    """
    n_sources = max(1, sum(stem[1:].isdigit() for stem in manifest.stems))
    columns = [f"transcript_{j + 1}" for j in range(n_sources)]
    if path is None and data_folder is not None:
        folders = (Path(data_folder), Path(data_folder).resolve().parent)
        files = [folder / "transcripts.csv" for folder in folders]
        path = next(filter(Path.is_file, files), None)
    texts = {item.id: _texts_of(item.attributes, columns) for item in manifest.items}
    if path is not None and None in texts.values():
        rows = read_csv(path, "transcripts")
        texts |= {row.get("ID"): _texts_of(row, columns) for row in rows}
    missing = [item.id for item in manifest.items if texts[item.id] is None]
    if missing:
        raise UserError(
            f"transcripts: {path or manifest.path} has none of {missing[0]} ({len(missing)} "
            f"of {len(texts)} items); wer needs {', '.join(columns)} in the manifest, or a "
            "CSV file with these and ID, given with --transcripts"
        )
    return texts


def _texts_of(row, columns) -> list[str] | None:
    if len(columns) == 1 and "transcript" in row:
        return [row["transcript"]]
    texts = [row.get(column) for column in columns]
    return None if None in texts else texts


class _ASRModel:
    """A recognizer of SpeechBrain; its `name` stands in reports."""

    def __init__(self, model, name: str):
        self.model, self.name = model, name
        self.sample_rate = int(getattr(model.hparams, "sample_rate", 16000))

    def transcribe(self, signals, sample_rate: int) -> list[str]:
        import torch

        from unified_se_ss.data.audio import resample

        texts = []
        for signal in signals:
            signal = np.asarray(signal, dtype=np.float32)
            signal = torch.from_numpy(resample(signal, sample_rate, self.sample_rate))
            with torch.no_grad():
                words, _ = self.model.transcribe_batch(signal[None], torch.ones(1))
            texts.append(words[0] if isinstance(words[0], str) else " ".join(words[0]))
        return texts


def load_asr_model(source: str, device: str = "cpu") -> _ASRModel:
    """Load a recognizer of SpeechBrain; raises UserError if it is none.

    SpeechBrain makes what its ``hyperparams.yaml`` names, which runs code: load only from
    whom you trust.

    Arguments
    ---------
    source : str
        A folder with ``hyperparams.yaml``, or a name on the hub.
    device : str
        Such as ``"cuda"``.
    """
    from speechbrain.inference import ASR
    from speechbrain.utils.fetching import LocalStrategy

    if Path(source).is_dir() and not (Path(source) / "hyperparams.yaml").is_file():
        raise UserError(
            f"recogniser: {source} holds no hyperparams.yaml; expected a folder of a "
            "SpeechBrain recogniser, or its name on the hub"
        )
    reasons = []
    for name in ASR_CLASSES:
        try:
            model = getattr(ASR, name).from_hparams(
                source=str(source),
                local_strategy=LocalStrategy.NO_LINK,  # files are read where they are
                run_opts={"device": str(device)},
            )
            return _ASRModel(model, str(source))
        except Exception as error:  # whatever the YAML's own code raises
            reasons.append(f"as {name}: {first_line(error)}")
    raise UserError(
        f"recogniser: {source} cannot be loaded; expected a folder of a SpeechBrain "
        f"recogniser, or its name on the hub ({'; '.join(reasons)})"
    )
