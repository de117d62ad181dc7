"""Heads from files: SOFA, CIPIC's wavs, folders of wavs; resampled once and kept.

What a source is, is told by what lies there:

- a file `NAME.sofa`, or a folder of such files: measured heads (`unified_se_ss.data.sofa`);
- CIPIC's `wav_database`, as the generator of Binaural-WSJ0Mix uses it: folders
  `subject*`, in each `{azimuth}azleft.wav` and `{azimuth}azright.wav` with `neg` for the
  minus sign. A file holds 50 elevations (its frames) x 200 taps (its channels) of one
  interaural-polar azimuth, which in CIPIC is + to the *right*;
- a folder of stereo wavs (left, right) with the angle in their names, `az-30.wav` or
  `kemar_az030_el-10.wav`, or a folder of such folders, one per head. Another `pattern`
  reads other names, `positive="right"` those whose azimuth grows clockwise.

All of them become `HRIRSet`s in the one convention of `unified_se_ss.spatial.geometry`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from math import gcd
from pathlib import Path

import numpy as np

from unified_se_ss.data.audio import opened
from unified_se_ss.data.sofa import read_sofa
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path
from unified_se_ss.spatial.geometry import from_interaural_polar
from unified_se_ss.spatial.hrtf import HRIRSet

PATTERN = (
    r"az(?P<azimuth>(neg|[+-])?\d+(\.\d+)?)"
    r"(_el(?P<elevation>(neg|[+-])?\d+(\.\d+)?))?$"
)
"""Where a wav's name (without its ending) holds its angles."""

CIPIC_NAME = re.compile(r"(?P<azimuth>(neg)?\d+)az(?P<ear>left|right)$")
CIPIC_POLAR = -45 + 5.625 * np.arange(50)
RESAMPLER_LEAD = 48  # samples at the lower rate in which the resampler's filter rings up
FORMAT = 1  # of the kept files; counted up when what is kept would come out differently


def load_hrirs(
    source, sample_rate: int, cache=None, pattern: str = PATTERN, positive: str = "left"
) -> list[HRIRSet]:
    """Reads heads at a sampling rate; what was resampled once is kept and read again.

    The kept files are named by a fingerprint of what they were made from (contents and
    choices), so they are never stale; they may be deleted at any time.

    Arguments
    ---------
    source : str or Path
        A SOFA file, or a folder as the module describes.
    sample_rate : int
        In Hz.
    cache : str or Path
        Folder of the kept files; by default `unified_se_ss/heads` in the user's cache.
    pattern : str
        Regular expression with a group `azimuth`, and maybe `elevation`, that is searched
        in the names of wavs; `neg30` and `-30` are the same.
    positive : str
        `left` or `right`: where in the names of wavs positive azimuths lie.

    Returns
    -------
    list of Head
        Sorted by name; names are distinct.

    Raises
    ------
    UserError
        If nothing is found, or a file is bad; the message names it.

    Example
    -------
    >>> load_hrirs("nowhere", 8000)
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: nowhere: does not exist; a SOFA file or a folder of \
heads was expected
    """
    source = Path(source)
    choices = {"pattern": pattern, "positive": positive}
    heads = [
        _kept(reader, path, files, sample_rate, cache, choices)
        for reader, path, files in _found(source, choices)
    ]
    names = [head.name for head in heads]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{source}: two heads are named {name}; rename one of them")
    return sorted(heads, key=lambda head: head.name)


def split_hrirs(heads, shares=(27, 9, 9), seed: int = 0) -> dict[str, list]:
    """Parts heads, so that no listener of training is heard in dev or test.

    Arguments
    ---------
    heads : list of Head
        With distinct names; their order does not matter.
    shares : tuple of int
        How many parts go to train, dev and test (default: those of CIPIC's 45 subjects
        in Binaural-WSJ0Mix).
    seed : int
        Decides, with the names alone, who goes where.

    Returns
    -------
    dict
        `train`, `dev`, `test`: lists of Head, each sorted by name. Every subset whose
        share is not 0 has at least one.

    Raises
    ------
    UserError
        If there are fewer heads than subsets.

    Example
    -------
    >>> from unified_se_ss.spatial import spherical_head_hrirs
    >>> parts = split_hrirs(spherical_head_hrirs(5, 8000), shares=(3, 1, 1))
    >>> [len(parts[name]) for name in ("train", "dev", "test")]
    [3, 1, 1]
    """
    wanted = sum(share > 0 for share in shares)
    if len(heads) < wanted:
        raise UserError(
            f"{len(heads)} head(s) cannot be parted into {wanted} disjoint subsets; give "
            "more heads, or use the spherical heads"
        )
    counts = _apportioned(len(heads), shares)
    by_name = sorted(heads, key=lambda head: head.name)
    order = np.random.default_rng(seed).permutation(len(heads))
    ends = np.cumsum(counts)
    return {
        subset: [by_name[i] for i in sorted(order[end - count : end])]
        for subset, count, end in zip(("train", "dev", "test"), counts, ends)
    }


def resample_hrirs(head: HRIRSet, sample_rate: int) -> HRIRSet:
    """A head at another sampling rate, by soxr at its highest quality.

    Gains stay what they are (a filter's samples scale with the ratio of the rates), and
    so do differences between the ears: all filters get the same lead, in which the
    resampler's linear-phase filter rings up; it is added to the latency.

    Arguments
    ---------
    head : Head
        At any rate.
    sample_rate : int
        In Hz.

    Returns
    -------
    Head
        The same one if the rates agree.

    Example
    -------
    >>> from unified_se_ss.spatial import spherical_head
    >>> resample_hrirs(spherical_head(16000), 8000).sample_rate
    8000
    """
    if head.sample_rate == sample_rate:
        return head
    import soxr

    ratio = gcd(head.sample_rate, sample_rate)
    step_in, step_out = head.sample_rate // ratio, sample_rate // ratio
    # Time zero is put where both rates have a sample, behind room for lead and latency.
    lead = -(-RESAMPLER_LEAD * step_in // min(step_in, step_out)) + 1
    steps = -(-(lead + head.latency) // step_in)
    front = steps * step_in - head.latency
    directions, ears, taps = head.filters.shape
    padded = np.pad(head.filters, ((0, 0), (0, 0), (front, front)))
    columns = padded.reshape(directions * ears, -1).T.astype(np.float64)
    blocks = [
        soxr.resample(block, head.sample_rate, sample_rate, quality="VHQ")
        for block in np.array_split(columns, -(-columns.shape[1] // 64), axis=1)
    ]
    filters = np.concatenate(blocks, axis=1).T * (head.sample_rate / sample_rate)
    return _trimmed(head, sample_rate, filters.reshape(directions, ears, -1), steps, taps)


def read_cipic(folder) -> HRIRSet:
    """Reads one subject of CIPIC's `wav_database`, at the rate of its wavs.

    Arguments
    ---------
    folder : str or Path
        A folder `subject*` of `{azimuth}azleft.wav` and `{azimuth}azright.wav`.

    Returns
    -------
    Head
        Named like the folder; 50 directions per azimuth.

    Raises
    ------
    UserError
        If a file is missing, bad or of another shape.

    Example
    -------
    >>> read_cipic("subject_003")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: subject_003: holds no {azimuth}azleft.wav of CIPIC's \
wav_database
    """
    folder = Path(folder)
    files = {_cipic_angle(path): path for path in _wavs(folder, CIPIC_NAME)}
    angles = sorted({azimuth for azimuth, _ in files})
    if not angles:
        raise UserError(f"{folder}: holds no {{azimuth}}azleft.wav of CIPIC's wav_database")
    pairs, rates = [], {}
    for angle in angles:
        ears = []
        for ear in ("left", "right"):
            path = files.get((angle, ear))
            if path is None:
                raise UserError(
                    f"{folder}: the azimuth {angle} has no file of the {ear} ear"
                )
            samples, rates[path] = _read_wav(path)
            if len(samples) != len(CIPIC_POLAR):
                raise UserError(
                    f"{path}: has {samples.shape[0]} frames of {samples.shape[1]} "
                    f"channels; {len(CIPIC_POLAR)} frames (the elevations), each with its "
                    "taps as channels, were expected"
                )
            ears.append(samples)
        pairs.append(_stacked(ears, folder, axis=1))
    filters = _stacked(pairs, folder, axis=0).astype(np.float32)
    # CIPIC's azimuth is + to the right.
    lateral = np.repeat(-np.array(angles, dtype=np.float64), len(CIPIC_POLAR))
    polar = np.tile(CIPIC_POLAR, len(angles))
    azimuth, elevation = from_interaural_polar(lateral, polar)
    return HRIRSet(folder.name, _one_rate(rates, folder), azimuth, elevation, filters)


def read_azimuth_wavs(folder, pattern: str = PATTERN, positive: str = "left") -> HRIRSet:
    """Reads a head from stereo wavs with their angles in their names.

    Arguments
    ---------
    folder : str or Path
        Its wavs that match the pattern are taken; others are left alone.
    pattern, positive : str
        As for `load_hrirs`.

    Returns
    -------
    Head
        Named like the folder, directions sorted by azimuth and elevation. Shorter
        filters are filled up with zeros.

    Raises
    ------
    UserError
        If no wav matches, or one is bad, not stereo, of another rate, or a second one of
        its direction.

    Example
    -------
    >>> read_azimuth_wavs("empty")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: empty: holds no wav with an azimuth in its name, such \
as az-30.wav or az030_el-10.wav
    """
    folder = Path(folder)
    if positive not in ("left", "right"):
        raise UserError(f"positive: 'left' or 'right' was expected, not {positive!r}")
    expression = _expression(pattern)
    files = {}
    for path in _wavs(folder, expression):
        angles = _angles(expression.search(path.stem), positive)
        if angles in files:
            raise UserError(
                f"{path}: has the direction of {files[angles].name}; remove one of them"
            )
        files[angles] = path
    if not files:
        raise UserError(
            f"{folder}: holds no wav with an azimuth in its name, such as az-30.wav or "
            "az030_el-10.wav"
        )
    pairs, rates = [], {}
    for angles in sorted(files):
        path = files[angles]
        samples, rates[path] = _read_wav(path)
        if samples.shape[1] != 2:
            raise UserError(
                f"{path}: has {samples.shape[1]} channel(s); two, left and right, "
                "were expected"
            )
        pairs.append(samples.T)
    taps = max(pair.shape[1] for pair in pairs)
    filters = np.stack([np.pad(p, ((0, 0), (0, taps - p.shape[1]))) for p in pairs])
    azimuth, elevation = np.array(sorted(files), dtype=np.float64).T
    rate = _one_rate(rates, folder)
    filters = filters.astype(np.float32)
    return HRIRSet(folder.name, rate, azimuth.copy(), elevation.copy(), filters)


def _found(source, choices):
    """The heads of a source: (reader, path, files that they are made of)."""
    if source.is_file():
        if source.suffix.lower() != ".sofa":
            raise UserError(f"{source}: is not a SOFA file; NAME.sofa was expected")
        return [(read_sofa, source, [source])]
    if not source.is_dir():
        raise UserError(
            f"{source}: does not exist; a SOFA file or a folder of heads was expected"
        )
    sofa = sorted(p for p in source.iterdir() if p.suffix.lower() == ".sofa")
    if sofa:
        return [(read_sofa, path, [path]) for path in sofa]

    def read_wavs(folder):
        return read_azimuth_wavs(folder, **choices)

    expression = _expression(choices["pattern"])
    found = []
    for folder in [source, *sorted(p for p in source.iterdir() if p.is_dir())]:
        # CIPIC's names fit no `az30`, but a pattern of one's own may fit CIPIC's.
        if choices["pattern"] == PATTERN and _wavs(folder, CIPIC_NAME):
            found.append((read_cipic, folder, _wavs(folder, CIPIC_NAME)))
        elif _wavs(folder, expression):
            found.append((read_wavs, folder, _wavs(folder, expression)))
    if not found:
        raise UserError(
            f"{source}: holds no heads; expected were files NAME.sofa, CIPIC's subject*/"
            "{azimuth}azleft.wav, or stereo wavs such as az-30.wav"
        )
    return found


def _kept(reader, path, files, sample_rate, cache, choices):
    """A head from the cache, or read, resampled and kept there."""
    folder = default_cache() if cache is None else Path(cache)
    digest = _fingerprint(reader.__name__, files, sample_rate, choices)
    name = path.stem if path.is_file() else path.name
    kept = folder / f"{name}-{sample_rate}-{digest[:20]}.npz"
    head = _read_kept(kept, name, sample_rate)
    if head is None:
        head = resample_hrirs(reader(path), sample_rate)
        with atomic_path(kept) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                azimuth=head.azimuth,
                elevation=head.elevation,
                filters=head.filters,
                latency=head.latency,
            )
    return head


def _read_kept(path, name, sample_rate):
    """The head that a kept file holds; None if it is missing or spoilt."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return HRIRSet(
                name,
                sample_rate,
                arrays["azimuth"],
                arrays["elevation"],
                arrays["filters"],
                int(arrays["latency"]),
            )
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def default_cache():
    """Where heads and rooms are kept: the user's cache, as the XDG base directories say.

    Returns
    -------
    Path
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "unified_se_ss" / "heads"


def _fingerprint(kind, files, sample_rate, choices):
    """What a kept head follows from: names and contents of its files, and choices."""
    digest = hashlib.sha256(
        json.dumps([FORMAT, kind, sample_rate, choices, len(files)]).encode()
    )
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _trimmed(head, sample_rate, filters, steps, taps):
    """The head of resampled filters, without the silence before and after."""
    ratio = gcd(head.sample_rate, sample_rate)
    zero = steps * (sample_rate // ratio)
    ring = -(-RESAMPLER_LEAD * sample_rate // min(head.sample_rate, sample_rate))
    latency = -(-head.latency * sample_rate // head.sample_rate) + ring
    after = -(-(taps - head.latency) * sample_rate // head.sample_rate) + ring
    filters = np.ascontiguousarray(
        filters[..., zero - latency : zero + after], dtype=np.float32
    )
    return HRIRSet(head.name, sample_rate, head.azimuth, head.elevation, filters, latency)


def _apportioned(total, shares):
    """Whole numbers in the proportion of the shares, at least 1 where a share is not 0."""
    exact = np.array(shares, dtype=np.float64) * total / sum(shares)
    counts = np.where(exact > 0, np.maximum(1, np.floor(exact)), 0).astype(int)
    while counts.sum() < total:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts.tolist()


def _wavs(folder, expression):
    """The wavs of a folder whose names match, sorted."""
    if not folder.is_dir():
        return []
    wavs = (p for p in folder.iterdir() if p.suffix.lower() == ".wav")
    return sorted(p for p in wavs if expression.search(p.stem))


def _expression(pattern):
    """The compiled pattern, which must have a group `azimuth`."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"pattern: {pattern!r} is no regular expression: {error}"
        ) from error
    if "azimuth" not in expression.groupindex:
        raise UserError(f"pattern: {pattern!r} has no group (?P<azimuth>...)")
    return expression


def _angles(match, positive):
    """Azimuth in (-180, 180], + = left, and elevation that a name states, in degrees."""
    groups = match.groupdict()
    azimuth = _signed(groups["azimuth"]) * (1 if positive == "left" else -1)
    azimuth = 180.0 - (180.0 - azimuth) % 360.0
    return azimuth, _signed(groups.get("elevation") or "0")


def _signed(text):
    """A number, whose minus sign may be written `neg`."""
    try:
        return float(text.replace("neg", "-"))
    except ValueError as error:
        raise UserError(f"pattern: found {text!r} where an angle was expected") from error


def _cipic_angle(path):
    """CIPIC's azimuth (+ to the right) and ear of a file."""
    match = CIPIC_NAME.search(path.stem)
    return int(match["azimuth"].replace("neg", "-")), match["ear"]


def _read_wav(path):
    """All frames and channels of a wav, float64 [T, C], and its rate."""
    with opened(path) as file:
        samples = file.read(dtype="float64", always_2d=True)
        if len(samples) != file.frames:
            raise UserError(f"{path}: is cut off; get the file again")
        if not np.isfinite(samples).all():
            raise UserError(f"{path}: holds samples that are nan or infinite")
        return samples, file.samplerate


def _stacked(arrays, folder, axis):
    """Arrays of equal shapes, stacked (axis 1) or in a row (axis 0)."""
    if len({array.shape for array in arrays}) > 1:
        raise UserError(f"{folder}: its files differ in their number of taps")
    return np.stack(arrays, axis) if axis else np.concatenate(arrays)


def _one_rate(rates, folder):
    """The sampling rate of all files of a head."""
    if len(set(rates.values())) > 1:
        first = next(iter(rates))
        other = next(path for path in rates if rates[path] != rates[first])
        raise UserError(
            f"{folder}: {first.name} has {rates[first]} Hz, {other.name} has "
            f"{rates[other]} Hz; one rate was expected"
        )
    return next(iter(rates.values()))
