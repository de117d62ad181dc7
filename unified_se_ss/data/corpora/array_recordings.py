"""Recordings of a microphone array, a folder each, to manifests.

    {folder}/train|val|test/recording_*.WAV/
        channel_1.wav          the beamformer's output
        channel_2.wav          the reference microphone
        channel_3...n.wav      other microphones
        ground_truth.wav       the clean target

Real sets of this shape hold surprises: stems of different lengths, a beamformed channel
that is late, levels 20 dB apart, leftovers of other systems, stems that are missing.
Each is measured, and told in a report beside the manifest.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.cache import process_pool
from unified_se_ss.data.corpora import make_manifest
from unified_se_ss.data.manifest import DATA_ROOT
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write, csv_text
from unified_se_ss.progress import progress_bar
from unified_se_ss.spatial import BeamformerFrontend
from unified_se_ss.spatial.dsp import Delay, gcc_phat

SUBSETS = ("train", "val", "test")
BEAMFORMED, REFERENCE, TARGET = "channel_1", "channel_2", "ground_truth"
STEMS = ("raw", "beamformed", "target")
CHANNEL = re.compile(r"channel_[1-9][0-9]*")

# What is told as a surprise: later than sound needs for the size of a small array, and
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


@dataclass
class Findings:
    """Findings on one recording.

    Arguments
    ---------
    name : str
        Of its folder.
    row : dict, optional
        Its line of the manifest; None if the recording cannot be used.
    surprises : list of str
        Kind and explanation, "kind: explanation" each.
    """

    name: str
    row: dict | None = None
    surprises: list = field(default_factory=list)

    def add(self, kind: str, explanation: str) -> None:
        """Adds a surprise."""
        self.surprises.append(f"{kind}: {explanation}")


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
    guide : Guide, optional
        Where there are only raw microphones: makes the beamformed signals, once, in
        NAME_beamformed/ beside the manifest. By default they are channel_1.
    raw_channels : list of int, optional
        Numbers of the raw microphones, the reference first. By default all channels
        from 2 on.
    microphones, source : lists of numbers, optional
        Positions in metres, [C, 3] in the order of `raw_channels`, and [3], for guides
        that have to be told.
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
    recordings, strangers = _recordings(folder)
    choices = {
        "sample_rate": sample_rate,
        "guide": guide and guide.settings,
        "raw_channels": raw_channels,
        "microphones": _plain(microphones),
        "source": _plain(source),
        "resample": resample,
    }
    names = [path.relative_to(folder).as_posix() for path in _files(recordings)]
    make_guide = guide and _GuideMaker(
        guide, _beside(manifest_path, "_beamformed"), microphones, source
    )
    examine = functools.partial(_examine, sample_rate, raw_channels, resample, make_guide)

    def rows() -> list[dict]:
        # Forked processes must not use torch, and guides do.
        with process_pool(1 if guide else workers) as run:
            progress = progress_bar(
                run(examine, recordings), folder.name, len(recordings), "recording"
            )
            findings = list(progress)
        report_path = _beside(manifest_path, "_report.txt")
        report = _report(folder, findings, strangers)
        atomic_write(report_path, report)
        atomic_write(_beside(manifest_path, "_report.csv"), _as_table(findings))
        logger.info("%s", report)
        _check_rates(folder, findings, resample)
        found = [finding.row for finding in findings if finding.row]
        if not found:
            raise UserError(
                f"{folder}: none of its {len(recordings)} recordings can be used; "
                f"{report_path} tells why"
            )
        return found

    return make_manifest(manifest_path, folder, names, choices, rows)


def _check_guide(guide, sample_rate: int, microphones, source) -> None:
    """Raise a UserError for a guide that recordings cannot serve."""
    if guide is None:
        return
    if guide.knowledge != "context":
        raise UserError(
            "guide: its knowledge is 'oracle', but of recordings target and noise are not "
            "known apart; take 'context'"
        )
    if guide.sample_rate != sample_rate:
        raise UserError(f"guide: is for {guide.sample_rate} Hz, not {sample_rate} Hz")
    if guide.is_steered and (microphones is None or source is None):
        raise UserError(
            f"guide: {guide.name} has to be told where the microphones and the source are, "
            "in metres (microphones, source); souden_mvdr, rtf_mvdr and "
            "multichannel_wiener find the target by statistics"
        )


# ------------------------------------------------------------------ folders


def _recordings(folder: Path) -> tuple[list[Path], list[str]]:
    """Folders that hold stems, sorted, and names of all that is something else."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: does not exist; a folder of recordings was expected, each a folder "
            f"with {BEAMFORMED}.wav, {REFERENCE}.wav and {TARGET}.wav"
        )
    recordings, strangers = [], []
    for path in sorted(folder.iterdir()):
        is_one = path.is_dir() and not path.name.startswith(".")
        (recordings if is_one and _stems(path)[0] else strangers).append(path)
    if not recordings:
        raise UserError(
            f"{folder}: holds no recordings; folders with {BEAMFORMED}.wav, "
            f"{REFERENCE}.wav and {TARGET}.wav were expected"
        )
    return recordings, [path.name for path in strangers]


def _stems(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Stems of a recording by name, and the names of all other files."""
    stems, others = {}, []
    for path in sorted(folder.iterdir()):
        name = path.stem.lower()
        is_stem = path.suffix.lower() == ".wav" and (
            CHANNEL.fullmatch(name) or name == TARGET
        )
        if is_stem and path.is_file() and name not in stems:
            stems[name] = path
        else:
            others.append(path.name)
    return stems, others


def _files(recordings: list[Path]) -> list[Path]:
    return [path for folder in recordings for path in _stems(folder)[0].values()]


# ------------------------------------------------------------------ one recording


def _examine(sample_rate, raw_channels, resample, make_guide, folder: Path) -> Findings:
    """Measure one recording; what is wrong with it becomes a surprise."""
    found = Findings(folder.name)
    stems, others = _stems(folder)
    _add_others(found, others)
    raw = _raw_names(stems, raw_channels)
    needed = [*raw, TARGET] if make_guide else [BEAMFORMED, *raw[:1], TARGET]
    missing = [f"{name}.wav" for name in needed if name not in stems]
    if not raw:
        missing.insert(0, f"{REFERENCE}.wav")
    if make_guide and make_guide.lacks(len(raw)):
        missing.append(f"{len(make_guide.microphones)} raw microphones, but {len(raw)}")
    if missing:
        found.add("missing stem", f"has no {', '.join(missing)}; left out")
        return found
    try:
        signals = {
            name: _read(found, stems[name], sample_rate, resample) for name in needed
        }
    except UserError as error:
        found.add("unusable", f"{error}; left out")
        return found
    if any(signal is None for signal in signals.values()):
        return found
    length = min(map(len, signals.values()))
    _add_lengths(found, signals, sample_rate)
    signals = {name: signal[:length] for name, signal in signals.items()}
    beamformed = stems[BEAMFORMED] if not make_guide else None
    if make_guide:
        microphones = np.stack([signals[name] for name in raw])
        beamformed, signals[BEAMFORMED] = make_guide(folder.name, microphones)
    root = folder.parent
    found.row = {
        "ID": folder.name,
        "duration": length / sample_rate,
        "sample_rate": sample_rate,
        "raw": _rooted(stems[raw[0]], root),
        "beamformed": _rooted(beamformed, root),
        "target": _rooted(stems[TARGET], root),
        **_compared(found, signals, raw[0], sample_rate),
        "microphones": len(raw),
    }
    return found


def _raw_names(stems: dict, raw_channels: list | None) -> list[str]:
    if raw_channels:
        return [f"channel_{number}" for number in raw_channels]
    numbers = sorted(int(name.split("_")[1]) for name in stems if name != TARGET)
    return [f"channel_{number}" for number in numbers if number > 1]


def _add_others(found: Findings, others: list[str]) -> None:
    """Leftovers (of macOS, ._*) and files that are no stems."""
    leftovers = [name for name in others if name.startswith(".")]
    extra = [name for name in others if not name.startswith(".")]
    if leftovers:
        found.add("leftover", f"{', '.join(leftovers)}; ignored")
    if extra:
        found.add("extra file", f"{', '.join(extra)}; ignored")


def _read(found: Findings, path: Path, sample_rate: int, resample: bool):
    """A stem [T] at the wanted rate; None, and a surprise, if it cannot be used."""
    signal, rate = audio.read(path)
    if rate != sample_rate:
        found.add(
            "sample rate",
            f"{path.name} is at {rate} Hz; {'resampled' if resample else 'left out'}",
        )
        if not resample:
            return None
        signal = audio.resample(signal, rate, sample_rate)
    if not np.isfinite(signal).all():
        found.add("unusable", f"{path.name} holds values that are not finite; left out")
        return None
    if audio.is_silent(signal):
        found.add("silent", f"{path.name}; left out")
        return None
    return signal


def _add_lengths(found: Findings, signals: dict, sample_rate: int) -> None:
    """Stems that are longer than the shortest one."""
    shortest = min(signals, key=lambda name: len(signals[name]))
    longest = max(signals, key=lambda name: len(signals[name]))
    over = (len(signals[longest]) - len(signals[shortest])) / sample_rate
    if over > 0:
        found.add(
            "length",
            f"{longest}.wav is {over:.3f} s longer than {shortest}.wav; cut to it",
        )


def _compared(found: Findings, signals: dict, reference: str, sample_rate: int) -> dict:
    """Delays and levels of beamformed and target against the reference microphone."""
    raw = signals[reference]
    row = {}
    for prefix, stem, name in (
        ("", BEAMFORMED, "the beamformed signal"),
        ("target_", TARGET, "the target"),
    ):
        signal = signals[stem]
        delay = gcc_phat(signal, raw, round(MOST_DELAY_SECONDS * sample_rate))
        level = loud_level(signal, sample_rate) - loud_level(raw, sample_rate)
        _add_difference(found, name, delay, level, sample_rate)
        row[f"{prefix}delay"] = delay.samples if delay.clear >= CLEAR else 0
        row[f"{prefix}level"] = round(level, 2)
    return row


def _add_difference(found, name: str, delay: Delay, level: float, rate: int) -> None:
    """A delay, or levels that are apart, or that no delay could be found."""
    if delay.clear < CLEAR:
        found.add("delay unclear", f"{name} has too little in common with {REFERENCE}")
    elif abs(delay.samples) > LATE_SECONDS * rate:
        late = "late" if delay.samples > 0 else "early"
        size = abs(delay.samples)
        found.add("delay", f"{name} is {size} samples ({1000 * size / rate:.2f} ms) {late}")
    if abs(level) >= APART_DB:
        higher = "louder" if level > 0 else "quieter"
        found.add("level", f"{name} is {abs(level):.1f} dB {higher} than the microphone")


def loud_level(signal: np.ndarray, sample_rate: int) -> float:
    """Level that 5 percent of the frames of 20 ms exceed.

    Arguments
    ---------
    signal : np.ndarray
        [T].
    sample_rate : int
        Hz.

    Returns
    -------
    float
        dB of full scale; -inf for silence.

    Example
    -------
    >>> round(loud_level(np.full(16000, 0.1), 16000), 6)
    -20.0
    """
    frame = max(1, min(sample_rate // FRAMES_PER_SECOND, len(signal)))
    frames = signal[: len(signal) // frame * frame].reshape(-1, frame)
    powers = np.square(frames, dtype=np.float64).mean(axis=1)
    power = float(np.percentile(powers, LOUD_PERCENT))
    return 10 * math.log10(power) if power > 0 else -math.inf


class _GuideMaker(NamedTuple):
    """Beamforms recordings, into one folder."""

    guide: BeamformerFrontend
    folder: Path
    microphones: list | None
    source: list | None

    def lacks(self, channels: int) -> bool:
        return self.microphones is not None and len(self.microphones) != channels

    def __call__(self, name: str, signals: np.ndarray) -> tuple[Path, np.ndarray]:
        """Beamform a recording [C, T] and write it; the file and the signal [T]."""
        beamformed = self.guide(
            torch.from_numpy(signals),
            microphones=_positions(self.microphones),
            source=_positions(self.source),
        ).numpy()
        path = (self.folder / f"{Path(name).stem}.wav").resolve()
        # As floats, since a beamformer may exceed full scale.
        audio.write_float(path, beamformed, self.guide.sample_rate)
        return path, beamformed


def _positions(places: list | None) -> torch.Tensor | None:
    return None if places is None else torch.tensor(places, dtype=torch.float64)


def _rooted(path: Path, root: Path) -> str:
    if path.is_relative_to(root):
        return f"{DATA_ROOT}/{path.relative_to(root).as_posix()}"
    return str(path)


# ------------------------------------------------------------------ report


def _check_rates(folder: Path, findings: list[Findings], resample: bool) -> None:
    """Raise a UserError if all that is wrong is another sample rate."""
    others = _of_kind(findings, "sample rate")
    if others and not resample:
        raise UserError(
            f"{folder}: {len(others)} stem(s) have another sampling rate, such as "
            f"{others[0].removesuffix('; left out')}; resample the files, or allow it to "
            "be done while reading (resample: True)"
        )


def _of_kind(findings: list[Findings], kind: str) -> list[str]:
    """Surprises of one kind, with the names of their recordings."""
    return [
        f"{found.name}: {surprise.partition(': ')[2]}"
        for found in findings
        for surprise in found.surprises
        if surprise.startswith(f"{kind}:")
    ]


def _report(folder: Path, findings: list[Findings], strangers: list[str]) -> str:
    """A subset in numbers and surprises, for a person to read."""
    used = sum(found.row is not None for found in findings)
    lines = [f"{folder}: {used} of {len(findings)} recordings can be used"]
    seconds = sum(found.row["duration"] for found in findings if found.row)
    lines.append(f"{seconds / 3600:.2f} hours")
    for name, unit in (
        ("delay", "samples that the beamformed signal is late"),
        ("level", "dB that the beamformed signal is above the microphone"),
        ("target_delay", "samples that the target is late"),
        ("target_level", "dB that the target is above the microphone"),
    ):
        values = [found.row[name] for found in findings if found.row]
        if values:
            low, middle, high = np.percentile(values, [0, 50, 100])
            lines.append(f"{name}: median {middle:g}, {low:g} to {high:g} ({unit})")
    if strangers:
        lines.append(f"not recordings, ignored: {', '.join(strangers)}")
    kinds = [s.partition(":")[0] for found in findings for s in found.surprises]
    for kind in sorted(set(kinds)):
        lines += ["", f"{kind} ({kinds.count(kind)})"]
        lines += [f"  {line}" for line in _of_kind(findings, kind)]
    return "\n".join(lines) + "\n"


def _as_table(findings: list[Findings]) -> str:
    """CSV with a line for each recording, used or not."""
    columns = ("duration", "delay", "target_delay", "level", "target_level", "microphones")
    rows = [
        {
            "ID": found.name,
            "used": bool(found.row),
            **{name: (found.row or {}).get(name) for name in columns},
            "surprises": "; ".join(found.surprises),
        }
        for found in findings
    ]
    return csv_text(rows)


def _beside(manifest_path: Path, ending: str) -> Path:
    return manifest_path.with_name(manifest_path.stem + ending)


def _plain(positions):
    return None if positions is None else np.asarray(positions, dtype=float).tolist()
