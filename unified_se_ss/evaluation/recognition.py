"""Word errors of separated speech, by a recogniser that is given as a function.

Axes: J sources.
"""

from __future__ import annotations

import csv
import unicodedata

import numpy as np

from unified_se_ss.errors import UserError

#: What `normalise_text` does, for reports.
NORMALISATION = (
    "Unicode NFKC, lower case, typographic apostrophes as ', everything but letters, "
    "digits and apostrophes within words as a space; numbers are not spelt out"
)
#: Suffixes of the columns: what was recognised in the estimates, and in the references.
SIGNALS = ("", "_reference")


def normalise_text(text):
    """Words that differ only in how they are written become the same.

    Unicode NFKC, lower case; all but letters, digits and apostrophes within words
    becomes a space. Numbers are not spelt out: transcripts and recogniser must agree.

    Arguments
    ---------
    text : str
        A transcript.

    Returns
    -------
    list of str
        Its words.

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


def word_errors(words, recognised):
    """Least number of words to substitute, insert and delete (Levenshtein).

    Arguments
    ---------
    words : list of str
        What was said.
    recognised : list of str
        What was recognised.

    Returns
    -------
    int

    Example
    -------
    >>> word_errors("the cat sat".split(), "a cat sat down".split())
    2
    """
    previous = np.arange(len(recognised) + 1)
    steps = np.arange(len(recognised) + 1)
    for number, word in enumerate(words, start=1):
        differs = np.array([word != other for other in recognised], dtype=int)
        current = np.concatenate([[number], previous[:-1] + differs])
        current = np.minimum(current, np.concatenate([[number], previous[1:] + 1]))
        # Insertions: the least of all to the left plus one for every step from there.
        previous = np.minimum.accumulate(current - steps) + steps
    return int(previous[-1])


def recognition_scores(recognised, recognised_references, transcripts):
    """Word errors of one utterance.

    Arguments
    ---------
    recognised : list of str
        Of each of the J estimates, in the order of the sources.
    recognised_references : list of str
        Of each of the J references: what the recogniser gets wrong without separation.
    transcripts : list of str
        What each source says; without a word there is no WER of that source.

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
    counts = []
    for said, *heard in zip(transcripts, recognised, recognised_references):
        words = normalise_text(said)
        counts.append([len(words), *(word_errors(words, normalise_text(h)) for h in heard)])
    counts = [count if count[0] else [0, 0, 0] for count in counts]
    row = _rates([sum(column) for column in zip(*counts)], "")
    for j, count in enumerate(counts, start=1):
        row.update(_rates(count, f"_{j}"))
    return row


def read_transcripts(path, n_sources):
    """What is said in which item, from a CSV file.

    Arguments
    ---------
    path : str or Path
        CSV with a column `ID` and `transcript_1`, `transcript_2` ... (for one source
        also `transcript`); other columns do not matter. The demo corpus writes such a
        file.
    n_sources : int
        J.

    Returns
    -------
    dict
        A list of J texts by ID.

    Raises
    ------
    UserError
        If it cannot be read as such a file.

    Example
    -------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "transcripts.csv"
    >>> _ = path.write_text("ID,transcript_1,transcript_2\\na,the cat,no\\n")
    >>> read_transcripts(path, 2)
    {'a': ['the cat', 'no']}
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"transcripts: {path} cannot be read ({error})") from None
    texts = {row.get("ID"): transcripts_in(row, n_sources) for row in rows}
    if not rows or None in texts or None in texts.values():
        raise UserError(
            f"transcripts: {path} needs rows with the columns ID and "
            f"{', '.join(transcript_columns(n_sources))}, as the demo corpus writes them"
        )
    return texts


def transcript_columns(n_sources):
    """Names of the columns that hold the words of each source."""
    return [f"transcript_{j}" for j in range(1, n_sources + 1)]


def transcripts_in(row, n_sources):
    """The texts of one row; None if it lacks one."""
    if n_sources == 1 and "transcript" in row:
        return [row["transcript"]]
    texts = [row.get(column) for column in transcript_columns(n_sources)]
    return None if None in texts else texts


def _rates(counts, end):
    """Columns of words, word errors and rates in percent."""
    words, *errors = counts
    row = {f"words{end}": words}
    for signal, wrong in zip(SIGNALS, errors):
        row[f"word_errors{signal}{end}"] = wrong
        row[f"wer{signal}{end}"] = 100 * wrong / words if words else None
    return row
