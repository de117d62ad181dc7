"""CHiME-4, one microphone: manifests of its folders as its organisers distribute them.

    data/audio/16kHz/isolated/tr05_{bus,caf,ped,str}_{real,simu}/F01_22GC010A_BUS.CH5.wav
    data/audio/16kHz/isolated/tr05_org/011_011C0201_ORG.wav          of tr05 simu
    data/audio/16kHz/isolated/{dt05,et05}_bth/F01_050C0101_BTH.CH0.wav   of dt05, et05 simu
    data/audio/16kHz/isolated_1ch_track/{dt05,et05}_..._{real,simu}/F01_050C0101_BUS.wav
    data/transcriptions/{tr05_real,dt05_real,dt05_simu,et05_real,et05_simu}.dot_all
    data/WSJ0/.../*.dot                                              what tr05 simu says

Source of names, channel and normalisation: Kaldi, egs/chime4/s5_1ch; of what the
simulation does: the challenge's CHiME3_simulate_data.m. The column ``set`` tells real from
simulated recordings, which are reported apart, the column ``environment`` where they are.

Clean references. *Simulated* recordings are an original that was equalised, delayed by
less than a millisecond, brought to another level and added to noise, of the same number of
samples: the reference is the original, in time and at the level that fits the noisy
recording best in the sense of least squares. *Real* recordings have none: the microphone at
the mouth (CH0) is at another place, on another recorder that is not synchronous to the
sample, and hears the noise too. They train recognition, and the SE loss is without them.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

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

SUBSETS = {"train": "tr05", "dev": "dt05", "test": "et05"}
SETS = ("real", "simu")
ENVIRONMENTS = ("bus", "caf", "ped", "str")
AUDIO, ISOLATED = "data/audio/16kHz", "data/audio/16kHz/isolated"
LINE = re.compile(r"(.*)\((\w+)\)\s*")
# Samples by which the simulation may delay: 2 ms, more than sound takes along the tablet.
LARGEST_LAG = 32


def prepare_chime4(
    data_folder,
    manifest_folder,
    sample_rate,
    channel=5,
    reference_folder="data/chime4_references",
):
    """Manifests of CHiME-4's 1-channel track.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds data/audio and data/transcriptions.
    manifest_folder : str or Path
        Where the manifests go.
    sample_rate : int
        Hz of what is read; recordings of other rates are resampled.
    channel : int
        The microphone of the training set (default 5, source: Kaldi); of the others the
        track has one each.
    reference_folder : str or Path
        Where the references of simulated recordings go. What is there is kept: delete it
        to have it made again.

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
    >>> prepare_chime4("no/such/folder", "manifests", 16000)
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: \
no/such/folder/data/audio/16kHz/isolated/tr05_bus_real holds no *.CH5.wav; expected CHiME-4 \
as it is distributed
    """
    data_folder, manifest_folder = Path(data_folder), Path(manifest_folder)
    reference_folder = Path(reference_folder)
    spoken = {}
    for subset, name in SUBSETS.items():
        sets = (utterances(data_folder, name, s, channel, reference_folder) for s in SETS)
        spoken[subset] = sum(sets, [])
    make_references(data_folder, sum(spoken.values(), []))
    return write_subsets(
        manifest_folder, "chime4", data_folder, spoken, sample_rate, resample=True
    )


def utterances(data_folder, name, kind, channel, reference_folder) -> list[Utterance]:
    """The real or the simulated utterances of a subset, in all environments."""
    found, said = [], None
    for environment in ENVIRONMENTS:
        folder = f"{name}_{environment}_{kind}"
        for path in recordings(data_folder, folder, channel):
            said = said or transcripts(data_folder, name, kind)
            stem = path.name.split(".")[0]
            files = {"noisy": path.relative_to(data_folder).as_posix()}
            if kind == "simu":
                reference = reference_folder / folder / f"{stem}.wav"
                files["clean"] = Path(os.path.relpath(reference, data_folder)).as_posix()
            text = normalise(transcript_of(said, stem, path))
            more = {"set": kind, "environment": environment}
            speaker = stem.split("_")[0]
            found.append(Utterance(f"{stem}_{kind.upper()}", speaker, text, files, more))
    return found


def recordings(data_folder: Path, folder: str, channel: int) -> list[Path]:
    """Recordings of one microphone."""
    trained = folder.startswith("tr05")
    place = data_folder / (ISOLATED if trained else f"{AUDIO}/isolated_1ch_track") / folder
    pattern = f"*.CH{channel}.wav" if trained else "*.wav"
    return find_files(place, pattern, "CHiME-4 as it is distributed")


# ------------------------------------------------------------------ transcripts


def transcripts(data_folder: Path, name: str, kind: str) -> dict[str, str]:
    """Transcripts, ``the sale (011c0201)`` a line, by recording or, of WSJ0, by prompt."""
    paths = [data_folder / "data" / "transcriptions" / f"{name}_{kind}.dot_all"]
    if (name, kind) == ("tr05", "simu") and not paths[0].is_file():
        folder = data_folder / "data" / "WSJ0"
        paths = [path for path in folder.rglob("*") if path.suffix.lower() == ".dot"]
        if not paths:
            expected = "expected the transcripts of WSJ0 for tr05_*_simu"
            raise UserError(f"data_folder: {folder} holds no *.dot; {expected}")
    found = {}
    for path in paths:
        for number, line in enumerate(read_text(path, "transcripts").splitlines(), 1):
            match = LINE.fullmatch(line)
            if match:
                found[match[2].lower()] = match[1]
            elif line.strip():
                expected = "a transcript and a name, such as the sale (F01_050C0101_BUS)"
                raise UserError(f"{path}, line {number}: expected {expected}")
    return found


def transcript_of(said: dict[str, str], stem: str, path: Path) -> str:
    """Transcript of a recording, by its own name or by its prompt's."""
    for name in (stem.lower(), "".join(stem.lower().split("_")[1:2])):
        if name in said:
            return said[name]
    raise UserError(f"data_folder: no transcript says what {path} says ({stem})")


def normalise(text: str) -> str:
    """A transcript in capitals, without marks of noise.

    Source: Kaldi, egs/wsj/s5/local/normalize_transcript.pl, which writes noise as a word
    of its own that the scoring then leaves out. Punctuation that was read aloud stays.

    Example
    -------
    >>> normalise("The [<door_slam] sale [loud_breath] of <a> Hotel\\\\'s . --DASH ~")
    "THE SALE OF A HOTEL'S -DASH"
    """
    words = map(normalise_word, text.upper().replace("\\", "").split())
    return " ".join(filter(None, words))


def normalise_word(word: str) -> str:
    """A word as it is scored; nothing for what is no word."""
    known = {"%PERCENT": "PERCENT", ".POINT": "POINT", "--DASH": "-DASH", "~": "", ".": ""}
    if word in known:
        return known[word]
    if re.search(r"\[[</]?\w+[>/]?\]", word):
        return ""
    deleted = re.fullmatch(r"<([\w']+)>", word)  # as the reader was told, but was heard
    return deleted[1] if deleted else word


# ------------------------------------------------------------------ references


def make_references(data_folder: Path, spoken: list[Utterance]) -> None:
    """Write the references that are not there yet."""
    needed = [s for s in spoken if s.attributes["set"] == "simu"]
    needed = [s for s in needed if not (data_folder / s.files["clean"]).is_file()]
    make = partial(make_reference, data_folder)
    process_map(make, needed, "references", "recording")


def make_reference(data_folder: Path, spoken: Utterance) -> None:
    """Write the reference of one simulated recording."""
    noisy_path = data_folder / spoken.files["noisy"]
    original_path = data_folder / ISOLATED / original_of(spoken)
    noisy, rate = audio.read(noisy_path)
    original, other_rate = audio.read(original_path)
    if rate != other_rate:
        rates = f"has {other_rate} Hz, but {noisy_path} {rate} Hz"
        raise UserError(f"{original_path}: {rates}; expected one")
    fitted = fit(original, noisy)
    if fitted is None:
        raise UserError(f"{original_path}: is not what is heard in {noisy_path}")
    path = (data_folder / spoken.files["clean"]).resolve()
    audio.write(path, np.clip(fitted, -1, 1), rate)


def original_of(spoken: Utterance) -> str:
    """The recording that a simulated one was made of, in the folder `isolated`."""
    folder, name = spoken.files["noisy"].split("/")[-2:]
    subset, stem = folder.split("_")[0], "_".join(name.split(".")[0].split("_")[:2])
    if subset == "tr05":
        return f"tr05_org/{stem}_ORG.wav"
    return f"{subset}_bth/{stem}_BTH.CH0.wav"


def fit(original: np.ndarray, noisy: np.ndarray) -> np.ndarray | None:
    """An original, [T], in time and at the level that explains most of a noisy one, [T].

    Example
    -------
    >>> speech, noise = np.random.default_rng(0).standard_normal((2, 8000))
    >>> noisy = 0.25 * np.pad(speech, (5, 0))[:8000] + 0.1 * noise
    >>> float(np.abs(fit(speech, noisy) - (noisy - 0.1 * noise)).max()) < 0.01
    True
    """
    samples, best, explained = len(noisy), None, 0.0
    for lag in range(-LARGEST_LAG, LARGEST_LAG + 1):
        shifted = np.pad(original.astype(np.float64), (max(lag, 0), 0))[max(-lag, 0) :]
        shifted = audio.fitted(shifted, samples)
        energy, shared = float(shifted @ shifted), float(shifted @ noisy)
        if shared > 0 and shared**2 / energy > explained:
            best, explained = shared / energy * shifted, shared**2 / energy
    return best
