"""VoiceBank-DEMAND: manifests of its folders as its authors distribute them.

    VoiceBank/  noisy_trainset_28spk_wav[_16k]/p226_001.wav ...
                clean_trainset_28spk_wav[_16k]/
                trainset_28spk_txt/p226_001.txt ...
                noisy_testset_wav[_16k]/  clean_testset_wav[_16k]/  testset_txt/

Source: https://datashare.ed.ac.uk/handle/10283/2791 (doi 10.7488/ds/2117). The endings
_16k are those of SpeechBrain's preparation, which resamples the 48 kHz of the authors.
"""

from __future__ import annotations

from pathlib import Path

from unified_se_ss.data.corpora.transcribed import Utterance, read_text, write_subsets
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
        With the six folders above; recordings of other rates are resampled when read.
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
    return write_subsets(
        manifest_folder, "voicebank", data_folder, spoken, sample_rate, resample=True
    )


def utterances(data_folder: Path, stem: str) -> list[Utterance]:
    """Utterances of the training or the test set."""
    noisy = wav_folder(data_folder, f"noisy_{stem}_wav")
    clean = wav_folder(data_folder, f"clean_{stem}_wav")
    found = []
    for path in sorted((data_folder / noisy).glob("p*.wav")):
        transcript = data_folder / f"{stem}_txt" / f"{path.stem}.txt"
        text = normalise(read_text(transcript, f"what {path} says"))
        files = {"noisy": f"{noisy}/{path.name}", "clean": f"{clean}/{path.name}"}
        found.append(Utterance(path.stem, path.stem.split("_")[0], text, files))
    return found


def wav_folder(data_folder: Path, name: str) -> str:
    """The folder of recordings: at 16 kHz where there is one, else as distributed."""
    for candidate in (f"{name}_16k", name):
        if (data_folder / candidate).is_dir():
            return candidate
    what = f"{data_folder} has no folder {name}_16k or {name}"
    expected = "VoiceBank-DEMAND as it is distributed (doi 10.7488/ds/2117)"
    raise UserError(f"data_folder: {what}; expected {expected}")


def normalise(text: str) -> str:
    """A transcript in capitals, all punctuation deleted.

    Source: SpeechBrain, recipes/Voicebank/voicebank_prepare.py, with whose WER of 3.46
    and 3.77 % results are compared: apostrophes and hyphens go without leaving a space.

    Example
    -------
    >>> normalise("Ask her, won't you, for the day-to-day things.\\n")
    'ASK HER WONT YOU FOR THE DAYTODAY THINGS'
    """
    kept = "".join(c for c in text.upper() if c.isalnum() or c.isspace())
    return " ".join(kept.split())
