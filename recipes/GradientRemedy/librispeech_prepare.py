"""LibriSpeech with any noise: manifests of its folders as OpenSLR distributes them.

    LibriSpeech/{train-clean-100,dev-clean,test-clean,...}/SPEAKER/CHAPTER/
        SPEAKER-CHAPTER-0000.flac ...   SPEAKER-CHAPTER.trans.txt

Source: https://www.openslr.org/12. mini_librispeech (31) has the same shape. Transcripts
stay as they are distributed, which is how they are scored: capitals, apostrophes, no
other punctuation, numbers spelt out.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from unified_se_ss.data.corpora import make_manifest
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.corpora.transcribed import (
    Utterance,
    find_files,
    read_text,
    write_subsets,
)
from unified_se_ss.errors import UserError

# Of the noise recordings: one in so many is used in validation, another one in the test.
NOISE_SHARE = 10


def prepare_librispeech(
    data_folder, manifest_folder, sample_rate, train, dev, test, noise_folder
):
    """Manifests of LibriSpeech's subsets, and of noise that is in one subset each.

    Arguments
    ---------
    data_folder : str or Path
        The folder LibriSpeech.
    manifest_folder : str or Path
        Where the manifests go.
    sample_rate : int
        Hz of what is read; recordings of other rates are resampled.
    train, dev, test : list of str
        Names of the folders, such as train-clean-100.
    noise_folder : str or Path
        Any tree of at least three wav, flac or ogg files; of several channels, the first
        is taken. By a checksum of their names, a tenth of them (at least one) is used in
        validation, a tenth in the test, and the others in training.

    Returns
    -------
    dict
        By subset: kind of manifest (speech, noise), its path, and its data root.

    Raises
    ------
    UserError
        A folder, a transcript or a recording is missing or cannot be used.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir"))
    >>> utterances(folder, "train-clean-100")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: ...train-clean-100 does not exist; \
expected LibriSpeech as it is distributed (openslr.org/12), or other names
    """
    data_folder, manifest_folder = Path(data_folder), Path(manifest_folder)
    noise_folder = Path(noise_folder)
    names = {"train": train, "dev": dev, "test": test}
    spoken = {
        s: [u for n in of for u in utterances(data_folder, n)] for s, of in names.items()
    }
    noises = split_noise(noise_folder, manifest_folder, sample_rate)
    found = write_subsets(
        manifest_folder, "librispeech", data_folder, spoken, sample_rate, resample=True
    )
    for subset, path in noises.items():
        found[subset].append(("noise", path, noise_folder))
    return found


def utterances(data_folder: Path, name: str) -> list[Utterance]:
    """The utterances of one of LibriSpeech's folders."""
    folder = data_folder / name
    if not folder.is_dir():
        expected = "LibriSpeech as it is distributed (openslr.org/12), or other names"
        raise UserError(f"data_folder: {folder} does not exist; expected {expected}")
    found = []
    for path in find_files(folder, "*/*/*.trans.txt", "transcripts"):
        relative = path.parent.relative_to(data_folder).as_posix()
        for line in read_text(path, "transcripts, one in a line").splitlines():
            utterance, _, text = line.strip().partition(" ")
            if utterance:
                files = {"clean": f"{relative}/{utterance}.flac"}
                speaker = utterance.split("-")[0]
                found.append(Utterance(utterance, speaker, text.strip(), files))
    return found


def split_noise(folder: Path, manifest_folder: Path, sample_rate: int) -> dict:
    """Manifests of noise by subset; no recording is in two."""
    everything = manifest_folder / "noise.csv"
    prepare_speech_folder(
        folder, everything, sample_rate, "noise", resample=True, channel=0
    )
    with open(everything, encoding="utf-8", newline="") as file:
        rows = {row["ID"]: row for row in csv.DictReader(file)}
    found = {}
    for subset, names in subsets_of(list(rows), folder).items():
        path = manifest_folder / f"noise_{subset}.csv"
        chosen = [rows[name] for name in names]
        choices = {"of": everything.name}
        found[subset] = make_manifest(path, folder, names, choices, lambda c=chosen: c)
    return found


def subsets_of(names: list[str], folder: Path) -> dict[str, set[str]]:
    """Names of noise recordings by the subset that they are used in.

    Example
    -------
    >>> shares = subsets_of([f"{number}.wav" for number in range(30)], Path("noise"))
    >>> {subset: len(names) for subset, names in shares.items()}
    {'train': 24, 'dev': 3, 'test': 3}
    """
    if len(names) < 3:
        what = f"{folder} holds {len(names)} recordings that are not silent"
        raise UserError(f"noise_folder: {what}; expected three or more, for each subset")
    drawn = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    share = max(1, len(names) // NOISE_SHARE)
    return {
        "train": set(drawn[2 * share :]),
        "dev": set(drawn[:share]),
        "test": set(drawn[share : 2 * share]),
    }
