"""RATS, channel A, English: what a radio link makes of telephone calls, with their source.

Expected is the corpus as the LDC distributes it (LDC2015S02, RATS Speech Activity
Detection; its English part is Fisher English, sent over eight radio links)

    docs/source_file_info.tab      SRC_ID CORPUS LNG SRC_FILE MINUTES PART
    data/train/audio/eng/A/00001_00002_eng_A.flac      source and session, channel A
    data/train/audio/eng/src/00001_eng_src.flac        its source: the clean reference
    data/train/sad/eng/{A,src}/*.tab                   speech segments, 12 columns
    data/{dev-1,dev-2}/{audio,sad}/{A,src}/            the same, of all languages

and the transcripts of Fisher English (LDC2004T19, LDC2005T19): fe_03_00001.txt anywhere
below one folder, with lines such as ``7.38 8.78 A: so the topic is``.

What is known: tree, names and tables from the README of LDC2015S02; that utterances are
Fisher's segments from the names of the published samples (YUCHEN005/RATS-Channel-A-
Speech-Data: fe_03_49740-04165-B-006411-007486-A). What is not: how the published split
of training, validation and test was drawn (here: train, dev-1 and dev-2), which segments
were left out, and how SRC_FILE spells a side of a call. Where the corpus differs, a
table says what is cut out instead: see :func:`read_table`.
"""

from __future__ import annotations

import csv
import itertools
import logging
import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.data import audio
from unified_se_ss.data.cache import process_map
from unified_se_ss.data.corpora.transcribed import (
    Utterance,
    find_files,
    read_text,
    write_subsets,
)
from unified_se_ss.errors import UserError

FISHER = "expected transcripts of Fisher English (LDC2004T19, LDC2005T19)"
EXPECTED = "LDC2015S02 as it is distributed"
PARTS = {"train": "train", "dev": "dev-1", "test": "dev-2"}
TEXTS = ("subset", "ID", "speaker", "transcript", "noisy", "clean")
TIMES = ("noisy_start", "clean_start", "duration")
COLUMNS = (*TEXTS, *TIMES)
# One side of a call, however it is spelt: fe_03_04165_B.sph, fe_03_04165.sph:2 ...
SIDE = re.compile(r"fe_03_(\d{5})(?:\.sph)?[-_.:](?:ch)?([ABab12])(?![A-Za-z0-9])")
TRANSCRIBED = re.compile(r"([0-9.]+)\s+([0-9.]+)\s+([AB]):\s*(.*)")
SENT, UNSENT = {"S", "NS"}, {"NT", "RX"}
# Seconds by which the lag of a channel may differ between beginning and end of a call.
LAG_TOLERANCE = 0.1
# Seconds by which an utterance may end behind its recording.
END_TOLERANCE = 0.1

logger = logging.getLogger(__name__)


class Segment(NamedTuple):
    """One utterance within two long recordings, as in a line of a table; times in seconds."""

    subset: str
    id: str
    speaker: str
    transcript: str
    noisy: str
    clean: str
    noisy_start: float
    clean_start: float
    duration: float


def prepare_rats(
    data_folder,
    manifest_folder,
    sample_rate,
    transcript_folder=None,
    table=None,
    cut_folder="data/rats_chA",
):
    """Manifests of RATS, channel A, whose utterances are cut out once.

    Arguments
    ---------
    data_folder : str or Path
        LDC2015S02, with the folders docs and data; or what a table's paths begin at.
    manifest_folder : str or Path
        Where the manifests go.
    sample_rate : int
        Hz of what is cut out; the corpus has 16 kHz.
    transcript_folder : str or Path, optional
        Where Fisher's transcripts are; needed where there is no table.
    table : str or Path, optional
        A CSV file that says what is cut out instead: see :func:`read_table`.
    cut_folder : str or Path
        Where the utterances go. What is there is kept: delete it to have it cut again.

    Returns
    -------
    dict
        By subset: kind of manifest (speech), its path, and its data root.

    Raises
    ------
    UserError
        Something is missing or cannot be used.

    Example
    -------
    >>> prepare_rats("no/such/folder", "manifests", 8000)
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: transcript_folder: is not given; expected transcripts of Fisher English \
(LDC2004T19, LDC2005T19), or else a table
    """
    data_folder, manifest_folder = Path(data_folder), Path(manifest_folder)
    if table is not None:
        segments = read_table(table)
    elif transcript_folder is not None:
        segments = find_segments(data_folder, Path(transcript_folder))
    else:
        raise UserError(f"transcript_folder: is not given; {FISHER}, or else a table")
    folder = Path(cut_folder) / f"wav{sample_rate // 1000}k"
    cut = partial(cut_out, data_folder=data_folder, folder=folder, sample_rate=sample_rate)
    spoken = process_map(cut, segments, "cutting", "utterance")
    by_subset = {subset: [] for subset in PARTS}
    for segment, utterance in zip(segments, spoken):
        by_subset[segment.subset].append(utterance)
    return write_subsets(manifest_folder, "rats", folder, by_subset, sample_rate)


# ------------------------------------------------------------------ which utterances


def read_table(path) -> list[Segment]:
    """Utterances as a table gives them, for corpora that are laid out in another way.

    Arguments
    ---------
    path : str or Path
        CSV with the columns subset (train, dev or test), ID, speaker, transcript, noisy
        and clean (paths, absolute or below `data_folder`), noisy_start, clean_start and
        duration (seconds). Transcripts are taken as they are.
    """
    lines = csv.DictReader(read_text(path, "a table").splitlines())
    missing = [name for name in COLUMNS if name not in (lines.fieldnames or ())]
    if missing:
        expected = ", ".join(COLUMNS)
        raise UserError(f"table: {path} has no column {missing[0]}; expected {expected}")
    places = (f"table: {path}, line {number}" for number in itertools.count(2))
    return list(map(table_segment, places, lines))


def table_segment(place: str, line: dict) -> Segment:
    """The utterance in a line of a table."""
    texts = [line[name] or "" for name in TEXTS]
    if texts[0] not in PARTS:
        raise UserError(f"{place}: subset is '{texts[0]}'; expected {', '.join(PARTS)}")
    if not re.fullmatch(r"[\w.\- ]*\w", texts[1]):
        raise UserError(f"{place}: ID is '{texts[1]}'; expected what a file can be named")
    try:
        times = [float(line[name] or "") for name in TIMES]
    except ValueError:
        times = [math.nan]
    if not (np.isfinite(times).all() and min(times) >= 0 and times[-1] > 0):
        raise UserError(f"{place}: {', '.join(TIMES)}: expected numbers of seconds")
    return Segment(*texts, *times)


def find_segments(data_folder: Path, transcript_folder: Path) -> list[Segment]:
    """Utterances of the English calls, by Fisher's transcripts."""
    transcripts = {p.stem: p for p in sorted(transcript_folder.rglob("fe_03_*.txt"))}
    if not transcripts:
        what = f"{transcript_folder} holds no fe_03_*.txt"
        raise UserError(f"transcript_folder: {what}; {FISHER}")
    sides = read_sources(data_folder)
    segments, left_out = [], Counter()
    for subset, part in PARTS.items():
        folder = data_folder / "data" / part / "audio"
        for noisy in find_files(folder, "**/A/*_eng_A.flac", EXPECTED):
            side = sides.get(noisy.stem[:5])
            if side is None:  # a call that is not Fisher's has no transcript
                left_out["of calls that are not in Fisher English"] += 1
                continue
            call, channel = side
            if call not in transcripts:
                missing = f"{transcript_folder} holds no {call}.txt"
                raise UserError(f"transcript_folder: {missing}, what {noisy} says")
            spoken = read_calls(transcripts[call], channel)
            segments += segments_of(data_folder, subset, noisy, side, spoken, left_out)
    for reason, count in left_out.items():
        logger.warning("%s: %d left out %s", data_folder, count, reason)
    return segments


def read_sources(data_folder: Path) -> dict[str, tuple[str, str]]:
    """Fisher's call and side by the number of a source, of the English ones."""
    path = data_folder / "docs" / "source_file_info.tab"
    sides = {}
    for number, line in enumerate(read_text(path, "a table of sources").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 4 or not fields[0].isdigit() or fields[1:3] != ["fisher", "eng"]:
            continue  # the header, other corpora and languages
        side = SIDE.search(fields[3])
        if not side:
            expected = "a side of a call, such as fe_03_04165_B.sph, or a table"
            what = f"SRC_FILE is {fields[3]}"
            raise UserError(f"{path}, line {number}: {what}; expected {expected}")
        letter = {"1": "A", "2": "B"}.get(side[2], side[2].upper())
        sides[fields[0].zfill(5)] = (f"fe_03_{side[1]}", letter)
    if not sides:
        raise UserError(f"{path}: names no English source from Fisher")
    return sides


def read_calls(path: Path, side: str) -> list[tuple[float, float, str]]:
    """Beginning, end and words of each segment of one side."""
    lines = map(TRANSCRIBED.match, read_text(path, "a transcript").splitlines())
    return [(float(m[1]), float(m[2]), m[4]) for m in lines if m and m[3] == side]


def segments_of(data_folder, subset, noisy, side, spoken, left_out) -> list[Segment]:
    """Those utterances of a call that were sent, and understood by who transcribed them."""
    clean = noisy.parent.parent / "src" / f"{noisy.stem[:5]}_eng_src.flac"
    sent, source = (read_labels(annotation(path)) for path in (noisy, clean))
    lag = lag_of(noisy, sent, source)
    call, letter = side
    found = []
    for start, end, text in spoken:
        words = normalise(text)
        if not words:
            left_out["that were not understood, or have no words"] += 1
        elif start + lag < 0 or not was_sent(start + lag, end + lag, sent):
            left_out["of which not all was sent"] += 1
        elif end > start:
            name = f"{call}-{letter}-{round(100 * start):06d}-{round(100 * end):06d}"
            paths = (p.relative_to(data_folder).as_posix() for p in (noisy, clean))
            times = (start + lag, start, end - start)
            texts = subset, f"{name}-A", f"{call}-{letter}", words
            found.append(Segment(*texts, *paths, *times))
    return found


def annotation(recording: Path) -> Path:
    """The table of speech segments beside a recording: audio/.../x.flac, sad/.../x.tab."""
    parts = recording.with_suffix(".tab").parts
    place = len(parts) - 1 - parts[::-1].index("audio")
    return Path(*parts[:place], "sad", *parts[place + 1 :])


def read_labels(path: Path) -> list[tuple[float, float, str]]:
    """Beginning, end and label of each segment of a recording."""
    found = []
    for number, line in enumerate(read_text(path, "speech segments").splitlines(), 1):
        place = f"{path}, line {number}"
        try:
            start, end, label = line.split("\t")[2:5]
            found.append((float(start), float(end), label))
        except ValueError as error:
            expected = "12 columns, the third to the fifth beginning, end and label"
            raise UserError(f"{place}: expected {expected}") from error
        if label not in SENT | UNSENT:
            raise UserError(f"{place}: label {label}; expected S, NS, NT or RX")
    return sorted(found)


def lag_of(noisy: Path, sent, source) -> float:
    """Seconds by which a channel lags behind its source.

    Speech of the source (S) is S, NT or RX in the channel, at times that were measured by
    correlation: its first beginning and its last end tell the lag.
    """
    spoken = [(start, end) for start, end, label in sent if label != "NS"]
    at_source = [(start, end) for start, end, label in source if label == "S"]
    if not spoken or not at_source:
        what = "names no speech, or its source's table does not"
        raise UserError(f"{annotation(noisy)}: {what}")
    begins = spoken[0][0] - at_source[0][0]
    ends = max(end for _, end in spoken) - max(end for _, end in at_source)
    if abs(begins - ends) > LAG_TOLERANCE:
        lags = f"by {begins:.3f} s at first and by {ends:.3f} s at last"
        what = f"lags behind its source {lags}; expected one lag, or a table"
        raise UserError(f"{annotation(noisy)}: {what}")
    return begins


def was_sent(start: float, end: float, labels) -> bool:
    """True if the link was open all the time."""
    return not any(
        label in UNSENT and begins < end and ends > start for begins, ends, label in labels
    )


def normalise(text: str) -> str:
    """The words of a segment; none where something was not understood.

    Source: Kaldi, egs/fisher_english/s5/local/fisher_data_prep.sh: segments with (( are
    left out, and what is in brackets is noise, which scoring does not count.

    Example
    -------
    >>> normalise("[laughter] an- so the topic is"), normalise("i ((think so))")
    ('an- so the topic is', '')
    """
    if "((" in text:
        return ""
    return " ".join(re.sub(r"\[[^\]]*\]", " ", text).lower().split())


# ------------------------------------------------------------------ cutting


def cut_out(segment: Segment, data_folder, folder, sample_rate) -> Utterance:
    """Write one utterance, of the same length noisy and clean, where it is not there yet."""
    files = {s: f"{segment.subset}/{s}/{segment.id}.wav" for s in ("noisy", "clean")}
    for stem, name in files.items():
        if not (folder / name).is_file():
            recording = data_folder / getattr(segment, stem)
            start = getattr(segment, f"{stem}_start")
            signal = read_part(recording, start, segment, sample_rate)
            # Resampling overshoots.
            audio.write(folder / name, np.clip(signal, -1, 1), sample_rate)
    return Utterance(segment.id, segment.speaker, segment.transcript, files)


def read_part(recording: Path, start: float, segment: Segment, sample_rate) -> np.ndarray:
    """The samples of an utterance; silence for what is missing at a recording's end."""
    frames, rate, _ = audio.info(recording)
    first = round(start * rate)
    last = first + round(segment.duration * rate)
    if last - frames > END_TOLERANCE * rate:
        lasts = f"lasts {frames / rate:.2f} s, but {segment.id} {last / rate:.2f} s"
        raise UserError(f"{recording}: {lasts}; get it again, or leave it out by a table")
    signal, _ = audio.read(recording, min(first, frames), min(last, frames))
    signal = audio.resample(signal, rate, sample_rate)
    return audio.fitted(signal, round(segment.duration * sample_rate))
