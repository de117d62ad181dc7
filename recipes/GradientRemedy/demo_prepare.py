"""The demo's speech, noise and transcripts, from the corpus of synthetic voices."""

from __future__ import annotations

from pathlib import Path

from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.corpora.transcribed import Utterance, write_subsets
from unified_se_ss.data.demo.corpus import read_transcripts

FOLDERS = {"train": "train-360", "dev": "dev", "test": "test"}


def prepare_demo(data_folder, manifest_folder, sample_rate):
    """Manifests of the demo corpus with one speaker, its speech apart from its noise.

    Arguments
    ---------
    data_folder : str or Path
        As ``prepare_demo_corpus`` returns it for ``n_speakers: 1``.
    manifest_folder : str or Path
        Where the manifests go.
    sample_rate : int
        Hz.

    Returns
    -------
    dict
        By subset: kind of manifest (speech, noise), its path, and its data root.
    """
    data_folder, manifest_folder = Path(data_folder), Path(manifest_folder)
    place = data_folder / f"wav{sample_rate // 1000}k" / "min"
    rows = read_transcripts(data_folder.parent)
    spoken = {subset: [] for subset in FOLDERS}
    for row in rows:
        subset = row["subset"].split("-")[0]
        files = {"clean": f"{row['subset']}/s1/{row['ID']}.wav"}
        said = Utterance(row["ID"], row["speaker_1"], row["transcript_1"], files)
        spoken[subset].append(said)
    found = write_subsets(manifest_folder, "speech", place, spoken, sample_rate)
    for subset, name in FOLDERS.items():
        noise_folder = place / name / "noise"
        path = manifest_folder / f"noise_{subset}.csv"
        prepare_speech_folder(noise_folder, path, sample_rate, "noise")
        found[subset].append(("noise", path, noise_folder))
    return found
