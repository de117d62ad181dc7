"""VoiceBank-DEMAND: manifests of its folders as its authors distribute them.

    VoiceBank/  noisy_trainset_28spk_wav[_16k]/p226_001.wav ...
                clean_trainset_28spk_wav[_16k]/
                trainset_28spk_txt/p226_001.txt ...
                noisy_testset_wav[_16k]/  clean_testset_wav[_16k]/  testset_txt/

Source: https://datashare.ed.ac.uk/handle/10283/2791 (doi 10.7488/ds/2117).
"""

from __future__ import annotations

import re
from pathlib import Path

from unified_se_ss.data.transcribed_corpus import Spoken, write_transcribed
from unified_se_ss.errors import UserError

# Two of the 28 speakers of the training set, for validation.
# source: SpeechBrain, recipes/Voicebank
DEV_SPEAKERS = ("p226", "p287")
SETS = {"train": "trainset_28spk", "test": "testset"}


def prepare_voicebank(data_folder, manifest_folder, sample_rate):
    """Manifests of VoiceBank-DEMAND, noisy and clean in pairs.

    Arguments
    ---------
    data_folder : str or Path
        With the six folders above; recordings of 48 kHz are resampled when read.
    manifest_folder : str or Path
        Where the manifests go.
    sample_rate : int
        Hz of what is read.

    Returns
    -------
    dict
        By subset: kind of manifest (speech), its path, and its data root.

    Raises
    ------
    UserError
        A folder, a transcript or a recording is missing or cannot be used.

    Example
    -------
    >>> prepare_voicebank("no/such/folder", "manifests", 16000)
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: no/such/folder has no folder \
noisy_trainset_28spk_wav_16k or noisy_trainset_28spk_wav; expected VoiceBank-DEMAND as \
it is distributed (doi 10.7488/ds/2117)
    """
    data_folder, manifest_folder = Path(data_folder), Path(manifest_folder)
    spoken = {name: utterances(data_folder, stem) for name, stem in SETS.items()}
    everyone = spoken["train"]
    spoken["dev"] = [s for s in everyone if s.speaker in DEV_SPEAKERS]
    spoken["train"] = [s for s in everyone if s.speaker not in DEV_SPEAKERS]
    found = {}
    for subset, of in spoken.items():
        path = manifest_folder / f"voicebank_{subset}.csv"
        write_transcribed(path, data_folder, of, sample_rate, resample=True)
        found[subset] = [("speech", path, data_folder)]
    return found


def utterances(data_folder: Path, stem: str) -> list[Spoken]:
    """The utterances of the training or the test set."""
    noisy, clean = (wav_folder(data_folder, f"{kind}_{stem}_wav") for kind in ("noisy", "clean"))
    texts = data_folder / f"{stem}_txt"
    found = []
    for path in sorted((data_folder / noisy).glob("p*.wav")):
        transcript = texts / f"{path.stem}.txt"
        try:
            text = transcript.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"data_folder: {transcript} cannot be read ({error}); it should hold what "
                f"{path} says"
            ) from error
        files = {"noisy": f"{noisy}/{path.name}", "clean": f"{clean}/{path.name}"}
        speaker = path.stem.split("_")[0]
        found.append(Spoken(path.stem, speaker, normalise(text), files))
    return found


def wav_folder(data_folder: Path, name: str) -> str:
    """The folder of recordings: at 16 kHz where there is one, else as distributed."""
    for candidate in (f"{name}_16k", name):
        if (data_folder / candidate).is_dir():
            return candidate
    raise UserError(
        f"data_folder: {data_folder} has no folder {name}_16k or {name}; expected "
        "VoiceBank-DEMAND as it is distributed (doi 10.7488/ds/2117)"
    )


def normalise(text: str) -> str:
    """A transcript in capitals, without punctuation but apostrophes within words.

    Source: SpeechBrain, recipes/Voicebank, whose WER of 3.46 and 3.77 % is compared with.

    Example
    -------
    >>> normalise("Ask her to bring these things with her from the store, won't you?")
    "ASK HER TO BRING THESE THINGS WITH HER FROM THE STORE WON'T YOU"
    """
    text = re.sub(r"[^\w' ]", " ", text.replace("’", "'")).upper()
    return " ".join(word.strip("'") for word in text.split() if word.strip("'"))
