"""Manifests: CSV files that say which recordings belong to which item.

One line per item: ID, duration in seconds (measured from the files), sample_rate in Hz,
then one column per stem with the path of its file, which may begin with `{data_root}`;
any other that is not absolute is relative to the working folder.
All other columns (speaker, loudness, ...) are kept as the item's attributes. Beside a
manifest lies `<manifest>.fingerprint`, which says what it was made from.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from unified_se_ss.data import audio
from unified_se_ss.data.audio import HIGHEST_RATE, LOWEST_RATE
from unified_se_ss.errors import UserError, first_names, shortened
from unified_se_ss.files import atomic_write, csv_text

REQUIRED = ("ID", "duration", "sample_rate")
STEM = re.compile(r"mixture|s[1-9][0-9]*|noise|speech|noisy|clean")
DATA_ROOT = "{data_root}"
LONGEST = 1e7  # seconds, a season: beyond it a duration is not meant
NUMBER = re.compile(r"[0-9.eE+-]+", re.ASCII)  # Python's numbers may hold _ as well


@dataclass(frozen=True)
class Item:
    """One line of a manifest.

    Arguments
    ---------
    id : str
        Unique name.
    duration : float
        Seconds.
    sample_rate : int
        Hz.
    paths : dict
        Path of the file of each stem.
    attributes : dict
        All other columns, as text.
    """

    id: str
    duration: float
    sample_rate: int
    paths: dict
    attributes: dict = field(default_factory=dict)

    @property
    def frames(self):
        """Number of samples."""
        return round(self.duration * self.sample_rate)


@dataclass(frozen=True)
class Manifest:
    """The items of a manifest, sorted by their IDs.

    Arguments
    ---------
    path : str
        The file it was read from, for messages.
    items : tuple of Item
        At least one.
    stems : tuple of str
        Names of the stems, in the order of the columns.
    sample_rate : int or None
        Hz; None if the items differ (which `read_manifest` must be asked to allow).
    """

    path: str
    items: tuple
    stems: tuple
    sample_rate: int | None

    def __len__(self):
        return len(self.items)


def write_manifest(path, rows, fingerprint):
    """Writes a manifest and the fingerprint of what it was made from.

    Arguments
    ---------
    path : str or Path
        The CSV file. One that was not written by this function, or was edited since,
        is never overwritten.
    rows : list of dict
        One per item, all with the same keys: ID, duration, sample_rate, stems, others.
    fingerprint : dict
        As `cache.fingerprint_of` gives it.

    Raises
    ------
    UserError
        If the file is a person's own work, or cannot be written.

    Example
    -------
    >>> path = Path(getfixture("tmpdir")) / "train.csv"
    >>> row = {"ID": "a", "duration": 1.5, "sample_rate": 8000, "mixture": "a.wav"}
    >>> write_manifest(path, [row], {"choices": {}})
    >>> print(path.read_text().strip())
    ID,duration,sample_rate,mixture
    a,1.5,8000,a.wav
    """
    if not rows:
        raise ValueError(f"a manifest without items was to be written: {path}")
    _check_replaceable(path)
    content = csv_text(sorted(rows, key=lambda row: row["ID"])).encode()
    # The CSV comes first: a manifest with an old fingerprint is made again, whereas an
    # old manifest with a new fingerprint would pass for current.
    atomic_write(path, content)
    record = {"manifest": _digest(content), "made_from": fingerprint}
    atomic_write(_fingerprint_path(path), json.dumps(record, indent=2) + "\n")


def read_manifest(path, data_root=None, stems=None, one_rate=True):
    """Reads and checks a manifest.

    Arguments
    ---------
    path : str or Path
        The CSV file.
    data_root : str or Path, optional
        What `{data_root}` at the beginning of a path stands for.
    stems : sequence of str, optional
        The columns that hold paths. By default those named mixture, s1, s2, ...,
        noise and speech.
    one_rate : bool
        Whether all items must have the same sampling rate (default True).

    Returns
    -------
    Manifest

    Raises
    ------
    UserError
        Naming file and line, if the manifest is missing, empty, lacks a column or a
        value, or holds an ID twice or a number that is none.

    Example
    -------
    >>> path = Path(getfixture("tmpdir")) / "train.csv"
    >>> _ = path.write_text(
    ...     "ID,duration,sample_rate,mixture,speaker\\n"
    ...     "a,1.5,8000,{data_root}/a.wav,Ann\\n"
    ... )
    >>> read_manifest(path, "/data").items[0]  # doctest: +NORMALIZE_WHITESPACE
    Item(id='a', duration=1.5, sample_rate=8000,
         paths={'mixture': '/data/a.wav'}, attributes={'speaker': 'Ann'})
    """
    header, lines = _read_csv(path)
    stems = _stem_columns(path, header, stems)
    items, line_of = [], {}
    for number, line in lines:
        item = _item(f"{path}, line {number}", line, header, stems, data_root)
        if item.id in line_of:
            what = f"the ID {shortened(item.id)} is already on line {line_of[item.id]}"
            raise UserError(f"{path}, line {number}: {what}; remove one of the two")
        line_of[item.id] = number
        items.append(item)
    if not items:
        raise UserError(f"{path}: holds a header but no item; delete it to make it again")
    rates = sorted({item.sample_rate for item in items})
    if one_rate and len(rates) > 1:
        what = f"the items have different sampling rates ({rates} Hz)"
        raise UserError(f"{path}: {what}; resample the recordings and make it again")
    items = tuple(sorted(items, key=lambda item: item.id))
    return Manifest(str(path), items, stems, rates[0] if len(rates) == 1 else None)


def header_faults(item, stems=None, channels=None):
    """Compares the headers of an item's files with what its manifest says.

    Arguments
    ---------
    item : Item
        As a manifest holds it.
    stems : sequence of str, optional
        By default all.
    channels : int, optional
        That every file must have.

    Returns
    -------
    list of str
        What is wrong, naming the file; empty if nothing is.

    Example
    -------
    >>> path = getfixture("tmpdir") / "a.wav"
    >>> audio.write(path, [0.1] * 8000, 8000)
    >>> header_faults(Item("a", 1.0, 8000, {"mixture": path}), channels=1)
    []
    >>> header_faults(Item("a", 2.0, 8000, {"mixture": "a.wav"}))
    ['a.wav: does not exist; a sound file was expected']
    """
    faults = []
    for stem in item.paths if stems is None else stems:
        path = item.paths[stem]
        try:
            found = audio.info(path)
        except (UserError, OSError) as error:
            faults.append(str(error))
            continue
        if (found.frames, found.sample_rate) != (item.frames, item.sample_rate):
            faults.append(
                f"{path}: has {found.frames} samples at {found.sample_rate} Hz, but its "
                f"manifest says {item.frames} at {item.sample_rate} Hz"
            )
        elif channels is not None and found.channels != channels:
            faults.append(f"{path}: {audio.channel_fault(found.channels, channels)}")
    return faults


def is_current(path, fingerprint):
    """Tells if a manifest exists and was made from just this.

    Arguments
    ---------
    path : str or Path
        The manifest.
    fingerprint : dict
        As `cache.fingerprint_of` gives it now.

    Returns
    -------
    bool

    Raises
    ------
    UserError
        If it is out of date, but must not be overwritten: someone made or edited it.
    """
    if Path(path).is_file() and _record(path).get("made_from") == fingerprint:
        return True
    _check_replaceable(path)
    return False


def _check_replaceable(path):
    """Refuses to overwrite a manifest that is not as this program wrote it."""
    path = Path(path)
    if path.is_file() and _record(path).get("manifest") != _digest(path.read_bytes()):
        raise UserError(
            f"{path}: is out of date, but was made or edited by hand (or its writing was "
            "cut off), so it is not overwritten; move it away to have it made again"
        )


def _fingerprint_path(path):
    return Path(f"{os.fspath(path)}.fingerprint")


def _record(path):
    try:
        record = json.loads(_fingerprint_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _digest(content):
    return hashlib.sha256(content).hexdigest()


def _read_csv(path):
    """Header and numbered lines of a CSV file, which may begin with a BOM."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, line) for line in reader if line]
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {what}; a manifest (CSV) was expected") from error
    except (UnicodeDecodeError, csv.Error) as error:
        what = f"is not a CSV file in UTF-8 ({error})"
        raise UserError(f"{path}: {what}; delete it to make it again") from error
    if not lines:
        raise UserError(f"{path}: is empty; delete it to make it again")
    return lines[0][1], lines[1:]


def _stem_columns(path, header, stems):
    """Checks the header and gives the columns that hold paths."""
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise UserError(f"{path}, line 1: the column {repeated[0]!r} stands there twice")
    missing = [name for name in (*REQUIRED, *(stems or ())) if name not in header]
    if missing:
        raise UserError(
            f"{path}, line 1: the column(s) {', '.join(missing)} are missing; "
            f"there are {_shortened(header)}{_why_missing(header, missing)}"
        )
    stems = stems or [name for name in header if STEM.fullmatch(name)]
    if not stems:
        expected = "mixture, s1, s2, ..., noise or speech was expected"
        raise UserError(f"{path}, line 1: no column holds paths; {expected}")
    return tuple(stems)


def _why_missing(header, missing):
    """A guess at the reason for which a header lacks columns."""
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and mark in header[0]:
            return f"; its values are separated by {name}, commas were expected"
    stripped = [name.strip() for name in header]
    if any(name in stripped for name in missing):
        return "; no spaces were expected around the names and values"
    lower = [name.lower() for name in header]
    if any(name.lower() in lower for name in missing):
        return "; small and capital letters matter"
    return "" if set(header) & set(REQUIRED) else "; is its first line a header?"


def _shortened(names):
    return first_names([shortened(name) for name in names])


def _item(place, line, header, stems, data_root):
    """The item of one line; `place` begins the message if something is wrong."""
    if len(line) != len(header):
        quoted = any("\n" in value for value in line)
        guess = "; is a quotation mark not closed?" * quoted
        counts = f"has {len(line)} value(s), {len(header)} were expected"
        raise UserError(f"{place}: {counts} ({_shortened(header)}){guess}")
    values = dict(zip(header, line))
    for name in ("ID", *stems):
        if not values[name].strip():
            raise UserError(f"{place}: the column {name} is empty")
        if "\0" in values[name]:
            raise UserError(f"{place}: the column {name} holds NUL bytes; no name does")
    duration = _number(place, "duration", values["duration"], float)
    sample_rate = _number(place, "sample_rate", values["sample_rate"], int)
    if round(duration * sample_rate) < 1:
        raise UserError(f"{place}: the duration of {duration} s is less than one sample")
    paths = {name: _resolved(place, values[name], data_root) for name in stems}
    others = {k: v for k, v in values.items() if k not in REQUIRED and k not in stems}
    return Item(values["ID"], duration, sample_rate, paths, others)


def _number(place, name, text, kind):
    """The duration (float) or sampling rate (int) that a cell holds."""
    low, high = (0, LONGEST) if kind is float else (LOWEST_RATE, HIGHEST_RATE)
    try:
        number = kind(text) if NUMBER.fullmatch(text.strip()) else math.nan
    except ValueError:
        number = math.nan
    if number > 0 and low <= number <= high:
        return number
    expected = "seconds above 0" if kind is float else f"Hz from {low} to {high}"
    raise UserError(f"{place}: the {name} is {shortened(text)}; expected {expected}")


def _resolved(place, path, data_root):
    """A path with `{data_root}` replaced."""
    if not path.startswith(DATA_ROOT):
        return path
    if data_root is None:
        raise UserError(f"{place}: begins with {DATA_ROOT}, but no data_root was given")
    return os.fspath(data_root).rstrip("/") + path[len(DATA_ROOT) :]
