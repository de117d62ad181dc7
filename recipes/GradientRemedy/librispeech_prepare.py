"""LibriSpeech with any noise: manifests of its folders as OpenSLR distributes them.

    LibriSpeech/{train-clean-100,dev-clean,test-clean,...}/SPEAKER/CHAPTER/
        SPEAKER-CHAPTER-0000.flac ...   SPEAKER-CHAPTER.trans.txt

Source: https://www.openslr.org/12. mini_librispeech (31) has the same shape.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from unified_se_ss.data.manifest import read_manifest, write_manifest
from unified_se_ss.data.speech import prepare_speech_folder
from unified_se_ss.data.transcribed_corpus import Spoken, write_transcribed
from unified_se_ss.errors import UserError

# Shares of the noise recordings, in percent.
NOISE_SHARES = {"dev": 10, "test": 10}


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
        Any tree of wav, flac and ogg files; 80, 10 and 10 % of them, by a checksum of
        their names, are heard in training, validation and test.

    Returns
    -------
    dict
        By subset: kind of manifest (speech, noise), its path, and its data root.

    Raises
    ------
    UserError
        A folder, a transcript or a recording is missing or cannot be used.
    """
    data_folder, manifest_folder = Path(data_folder), Path(manifest_folder)
    noises = split_noise(Path(noise_folder), manifest_folder, sample_rate)
    found = {}
    for subset, names in {"train": train, "dev": dev, "test": test}.items():
        spoken = [s for name in names for s in utterances(data_folder, name)]
        path = manifest_folder / f"librispeech_{subset}.csv"
        write_transcribed(path, data_folder, spoken, sample_rate, resample=True)
        found[subset] = [
            ("speech", path, data_folder),
            ("noise", noises[subset], noise_folder),
        ]
    return found


def utterances(data_folder: Path, name: str) -> list[Spoken]:
    """The utterances of one of LibriSpeech's folders."""
    folder = data_folder / name
    if not folder.is_dir():
        raise UserError(
            f"data_folder: {folder} does not exist; expected LibriSpeech as it is "
            "distributed (openslr.org/12), or other names of its folders"
        )
    found = []
    for path in sorted(folder.glob("*/*/*.trans.txt")):
        relative = path.parent.relative_to(data_folder).as_posix()
        for line in path.read_text(encoding="utf-8").splitlines():
            utterance, _, text = line.partition(" ")
            files = {"clean": f"{relative}/{utterance}.flac"}
            speaker = utterance.split("-")[0]
            found.append(Spoken(utterance, speaker, text.strip(), files))
    if not found:
        raise UserError(f"data_folder: {folder} holds no *.trans.txt with transcripts")
    return found


def split_noise(folder: Path, manifest_folder: Path, sample_rate: int) -> dict:
    """Manifests of noise by subset; no recording is in two."""
    everything = manifest_folder / "noise.csv"
    prepare_speech_folder(folder, everything, sample_rate, "noise", resample=True, channel=0)
    items = read_manifest(everything, "{data_root}", one_rate=False).items
    by_subset = {"train": [], "dev": [], "test": []}
    for item in items:
        by_subset[subset_of(item.id)].append(item)
    paths = {}
    for subset, members in by_subset.items():
        if not members:
            raise UserError(
                f"noise_folder: {folder} holds {len(items)} recordings, of which none "
                f"falls to {subset} (by a checksum of their names); 30 or more are enough"
            )
        paths[subset] = manifest_folder / f"noise_{subset}.csv"
        rows = [
            {
                "ID": item.id,
                "duration": item.duration,
                "sample_rate": item.sample_rate,
                **item.paths,
                **item.attributes,
            }
            for item in members
        ]
        write_manifest(paths[subset], rows, {"choices": {"of": everything.name}})
    return paths


def subset_of(name: str) -> str:
    """The subset that a noise recording is heard in.

    Example
    -------
    >>> [subset_of(f"{number}.wav") for number in range(4)]
    ['train', 'test', 'train', 'train']
    """
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    for subset, share in NOISE_SHARES.items():
        if place < share:
            return subset
        place -= share
    return "train"
