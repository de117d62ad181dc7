"""Recordings of a microphone array, a folder each, to manifests.

    {folder}/train|val|test/recording_*.WAV/
        channel_1.wav          the beamformer's output
        channel_2.wav          the reference microphone
        channel_3...n.wav      other microphones
        ground_truth.wav       the clean target

Real sets of this shape hold surprises: stems of different lengths, a beamformed channel
that is late, levels 20 dB apart, leftovers of other systems, stems that are missing.
Each is measured, and listed in a report beside the manifest.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.cache import process_map
from unified_se_ss.data.corpora import make_manifest
from unified_se_ss.data.manifest import DATA_ROOT
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write, csv_text
from unified_se_ss.spatial import BeamformerFrontend
from unified_se_ss.spatial.dsp import gcc_phat

BEAMFORMED, REFERENCE, TARGET = "channel_1", "channel_2", "ground_truth"
STEMS = ("raw", "beamformed", "target")
STEM = re.compile(rf"channel_[1-9][0-9]*|{TARGET}")
COLUMNS = ("duration", "delay", "target_delay", "level", "target_level", "microphones")

SUMMARISED = {
    "delay": "samples that the beamformed signal is late",
    "level": "dB that the beamformed signal is above the microphone",
    "target_delay": "samples that the target is late",
    "target_level": "dB that the target is above the microphone",
}

# What is reported as a surprise: later than sound needs for the size of a small array, and
# so many dB apart.
LATE_SECONDS = 0.0005
APART_DB = 10.0
# A delay of less clearness is none.
CLEAR = 10.0
# Delays are sought so far either way.
MOST_DELAY_SECONDS = 0.1
# Levels are those that 5 percent of all frames of 20 ms exceed: speech, where there is
# some, and not the noise that a beamformer takes away.
LOUD_PERCENT = 95
FRAMES_PER_SECOND = 50

logger = logging.getLogger(__name__)


class _Options(NamedTuple):
    """How recordings are examined."""

    sample_rate: int
    guide: BeamformerFrontend | None
    raw_channels: list | None
    microphones: list | None
    source: list | None
    resample: bool


class _Findings(NamedTuple):
    """Findings on one recording.

    row : its line of the manifest, empty if the recording cannot be used; surprises : kind
    and explanation of each.
    """

    name: str
    row: dict
    surprises: list[tuple[str, str]]


def prepare_recordings(
    folder: str | Path,
    manifest_path: str | Path,
    sample_rate: int = 16000,
    *,
    guide: BeamformerFrontend | None = None,
    raw_channels: list | None = None,
    microphones: list | None = None,
    source: list | None = None,
    resample: bool = False,
    workers: int | None = None,
) -> Path:
    """Examines the recordings of one subset and writes a manifest and a report.

    Beside the manifest NAME.csv lie NAME_report.txt, to be read, and NAME_report.csv,
    with a line for each recording, also for those that cannot be used and are left out:
    where a stem is missing, silent, unreadable or not finite. Stems of different lengths
    are cut to the shortest. Delays and levels are measured, and left as they are:
    `RecordingDataset` makes up for them when asked.

    Arguments
    ---------
    folder : str or Path
        A subset's folder, such as data/train; it is what `{data_root}` in the manifest
        stands for.
    manifest_path : str or Path
        The CSV file to write; if it is there and nothing changed, it is kept.
    sample_rate : int
        Hz that is wanted (default 16000).
    guide : BeamformerFrontend, optional
        Where there are only raw microphones: makes the beamformed signals, once, in
        NAME_beamformed/ beside the manifest. By default they are channel_1.
    raw_channels : list of int, optional
        Numbers of the raw microphones, the reference first. By default all channels
        from 2 on.
    microphones, source : lists of numbers, optional
        Positions in metres, [C, 3] in the order of `raw_channels`, and [3], for guides
        that need them.
    resample : bool
        Whether stems of other rates are resampled when they are read (default False).
    workers : int, optional
        Processes (default: one for each core).

    Returns
    -------
    Path
        The manifest: ID, duration, sample_rate, raw, beamformed, target (paths), delay
        and target_delay (samples that beamformed and target are later than raw), level
        and target_level (dB that they are above raw), microphones.

    Raises
    ------
    UserError
        If the folder is missing, holds no recordings, or none that can be used, or if
        stems have other rates and `resample` does not allow it.
    """
    _check_guide(guide, sample_rate, microphones, source)
    folder, manifest_path = Path(folder), Path(manifest_path)
    recordings, strangers = _list_recordings(folder)
    given = microphones, source
    places = (None if p is None else np.asarray(p, float).tolist() for p in given)
    options = _Options(sample_rate, guide, raw_channels, *places, resample)
    choices = {**options._asdict(), "guide": guide and guide.settings}
    paths = [path for _, stems, _ in recordings for path in stems.values()]
    names = [path.relative_to(folder).as_posix() for path in paths]

    def rows() -> list[dict]:
        made = _beside(manifest_path, "_beamformed")
        examine = functools.partial(_examine, options, made)
        # Forked processes must not use torch, and guides do.
        processes = 1 if guide else workers
        findings = process_map(examine, recordings, folder.name, "recording", processes)
        report = _report(folder, findings, strangers)
        report_path = atomic_write(_beside(manifest_path, "_report.txt"), report)
        atomic_write(_beside(manifest_path, "_report.csv"), _table(findings))
        logger.info("%s", report)
        others = _by_kind(findings)["sample rate"]
        if others and not resample:
            first = f"{folder}: {others[0].removesuffix('; left out')}"
            raise UserError(f"{first}; resample the files, or set resample: True")
        used = [found.row for found in findings if found.row]
        if not used:
            what = f"none of its {len(findings)} recordings can be used"
            raise UserError(f"{folder}: {what}; {report_path} says why")
        return used

    return make_manifest(manifest_path, folder, names, choices, rows)


def _check_guide(guide, sample_rate: int, microphones, source) -> None:
    """Raise a UserError for a guide that recordings cannot serve."""
    if guide is None:
        return
    if guide.knowledge != "context":
        raise UserError(
            "guide: its knowledge is 'oracle', which recordings do not give; take 'context'"
        )
    if guide.sample_rate != sample_rate:
        raise UserError(f"guide: is for {guide.sample_rate} Hz, not {sample_rate} Hz")
    if guide.is_steered and (microphones is None or source is None):
        needs = "needs the positions (microphones, source) in metres"
        raise UserError(f"guide: {guide.name} {needs}; souden_mvdr and rtf_mvdr need none")


def _beside(manifest_path: Path, ending: str) -> Path:
    return manifest_path.with_name(manifest_path.stem + ending)


def _list_recordings(folder: Path) -> tuple[list[tuple], list[str]]:
    """Folders that hold stems, each as `_stems` has it, and names of all else."""
    recordings, strangers = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        stems, others = _stems(path)
        if stems:
            recordings.append((path, stems, others))
        else:
            strangers.append(path.name)
    if not recordings:
        state = "holds no recordings" if folder.is_dir() else "does not exist"
        expected = f"{BEAMFORMED}.wav, {REFERENCE}.wav and {TARGET}.wav"
        raise UserError(f"{folder}: {state}; folders with {expected} were expected")
    return recordings, strangers


def _stems(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """A recording's stems by name, and the names of all other files."""
    stems, others = {}, []
    if not folder.is_dir() or folder.name.startswith("."):
        return stems, others
    for path in sorted(folder.iterdir()):
        name = path.stem.lower()
        is_stem = path.suffix.lower() == ".wav" and STEM.fullmatch(name)
        if is_stem and path.is_file() and name not in stems:
            stems[name] = path
        else:
            others.append(path.name)
    return stems, others


# ------------------------------------------------------------------ one recording


def _examine(options: _Options, beamformed_folder: Path, recording: tuple) -> _Findings:
    """Measure one recording; what is wrong with it becomes a surprise."""
    folder, stems, others = recording
    found = _Findings(folder.name, {}, [])
    for kind, hidden in (("leftover", True), ("extra file", False)):
        if names := [name for name in others if name.startswith(".") == hidden]:
            found.surprises.append((kind, f"{', '.join(names)}; ignored"))
    channels = [name for name in stems if name not in (BEAMFORMED, TARGET)]
    raw = sorted(channels, key=lambda name: int(name.removeprefix("channel_")))
    if options.raw_channels:
        raw = [f"channel_{number}" for number in options.raw_channels]
    needed = [*raw, TARGET] if options.guide else [BEAMFORMED, *raw[:1], TARGET]
    missing = [f"{REFERENCE}.wav"] * (not raw)
    missing += [f"{name}.wav" for name in needed if name not in stems]
    wanted = len(options.microphones or raw)
    if options.guide and len(raw) != wanted:
        missing.append(f"{wanted} raw microphones, but {len(raw)}")
    if missing:
        found.surprises.append(("missing stem", f"has no {', '.join(missing)}; left out"))
        return found
    signals = {name: _read(found, stems[name], options) for name in needed}
    if any(signal is None for signal in signals.values()):
        return found
    signals = _cut_to_shortest(found, signals, options.sample_rate)
    files = {name: f"{DATA_ROOT}/{folder.name}/{path.name}" for name, path in stems.items()}
    beamformed, file = signals.get(BEAMFORMED), files.get(BEAMFORMED)
    if options.guide:
        beamformed = _beamform(options, np.stack([signals[name] for name in raw]))
        file = str((beamformed_folder / f"{folder.stem}.wav").resolve())
        # As floats, since a beamformer may exceed full scale.
        audio.write_float(file, beamformed, options.sample_rate)
    compared = signals[raw[0]], beamformed, signals[TARGET]
    found.row.update(
        ID=folder.name,
        duration=len(beamformed) / options.sample_rate,
        sample_rate=options.sample_rate,
        **dict(zip(STEMS, (files[raw[0]], file, files[TARGET]))),
        **_compare(found, *compared, options.sample_rate),
        microphones=len(raw),
    )
    return found


def _beamform(options: _Options, signals: np.ndarray) -> np.ndarray:
    places = {"microphones": options.microphones, "source": options.source}
    places = {
        k: torch.tensor(v, dtype=torch.float64) for k, v in places.items() if v is not None
    }
    return options.guide(torch.from_numpy(signals), **places).numpy()


def _read(found: _Findings, path: Path, options: _Options):
    """A stem [T] at the wanted rate; None, and a surprise, if it cannot be used."""
    try:
        signal, rate = audio.read(path)
    except UserError as error:
        found.surprises.append(("unusable", f"{error}; left out"))
        return None
    if rate != options.sample_rate:
        result = "resampled" if options.resample else "left out"
        found.surprises.append(("sample rate", f"{path.name} is at {rate} Hz; {result}"))
        if not options.resample:
            return None
        signal = audio.resample(signal, rate, options.sample_rate)
    if not np.isfinite(signal).all():
        what = "holds values that are not finite"
        found.surprises.append(("unusable", f"{path.name} {what}; left out"))
    elif audio.is_silent(signal):
        found.surprises.append(("silent", f"{path.name}; left out"))
    else:
        return signal
    return None


def _cut_to_shortest(found: _Findings, signals: dict, sample_rate: int) -> dict:
    lengths = {name: len(signal) for name, signal in signals.items()}
    shortest, longest = min(lengths, key=lengths.get), max(lengths, key=lengths.get)
    if over := lengths[longest] - lengths[shortest]:
        explanation = f"{longest}.wav is {over / sample_rate:.3f} s longer than"
        found.surprises.append(("length", f"{explanation} {shortest}.wav; cut to it"))
    return {name: signal[: lengths[shortest]] for name, signal in signals.items()}


def _compare(found: _Findings, raw, beamformed, target, sample_rate: int) -> dict:
    """Delays and levels of beamformed and target against the reference microphone."""
    row = {}
    for prefix, signal, name in (
        ("", beamformed, "the beamformed signal"),
        ("target_", target, "the target"),
    ):
        delay = gcc_phat(signal, raw, round(MOST_DELAY_SECONDS * sample_rate))
        level = _loud_level(signal, sample_rate) - _loud_level(raw, sample_rate)
        samples, size = delay.samples, abs(delay.samples)
        if delay.clear < CLEAR:
            explanation = f"{name} has too little in common with {REFERENCE}"
            found.surprises.append(("delay unclear", explanation))
            samples = 0
        elif size > LATE_SECONDS * sample_rate:
            late = "late" if samples > 0 else "early"
            explanation = f"{size} samples ({1000 * size / sample_rate:.2f} ms) {late}"
            found.surprises.append(("delay", f"{name} is {explanation}"))
        if abs(level) >= APART_DB:
            louder = "louder" if level > 0 else "quieter"
            explanation = f"{name} is {abs(level):.1f} dB {louder} than the microphone"
            found.surprises.append(("level", explanation))
        row |= {f"{prefix}delay": samples, f"{prefix}level": round(level, 2)}
    return row


def _loud_level(signal: np.ndarray, sample_rate: int) -> float:
    """Level of [T] that 5 percent of the frames of 20 ms exceed, in dB of full scale."""
    frame = max(1, min(sample_rate // FRAMES_PER_SECOND, len(signal)))
    frames = signal[: len(signal) // frame * frame].reshape(-1, frame)
    powers = np.square(frames, dtype=np.float64).mean(axis=1)
    power = float(np.percentile(powers, LOUD_PERCENT))
    return 10 * math.log10(power) if power > 0 else -math.inf


# ------------------------------------------------------------------ report


def _by_kind(findings: list[_Findings]) -> dict[str, list[str]]:
    """Surprises of each kind, with the names of their recordings."""
    kinds = defaultdict(list)
    for found in findings:
        for kind, explanation in found.surprises:
            kinds[kind].append(f"{found.name}: {explanation}")
    return kinds


def _report(folder: Path, findings: list[_Findings], strangers: list[str]) -> str:
    """A subset in numbers and surprises, for a person to read."""
    rows = [found.row for found in findings if found.row]
    seconds = sum(row["duration"] for row in rows)
    lines = [
        f"{folder}: {len(rows)} of {len(findings)} recordings can be used",
        f"{seconds / 3600:.2f} hours",
    ]
    for name, unit in SUMMARISED.items() if rows else ():
        low, middle, high = np.percentile([row[name] for row in rows], [0, 50, 100])
        lines.append(f"{name}: median {middle:g}, {low:g} to {high:g} ({unit})")
    if strangers:
        lines.append(f"not recordings, ignored: {', '.join(strangers)}")
    for kind, surprises in sorted(_by_kind(findings).items()):
        lines += ["", f"{kind} ({len(surprises)})", *(f"  {line}" for line in surprises)]
    return "\n".join(lines) + "\n"


def _table(findings: list[_Findings]) -> str:
    """CSV with a line for each recording, used or not."""
    rows = []
    for found in findings:
        row = {"ID": found.name, "used": bool(found.row)}
        row |= {name: found.row.get(name) for name in COLUMNS}
        row["surprises"] = "; ".join(f"{kind}: {text}" for kind, text in found.surprises)
        rows.append(row)
    return csv_text(rows)
