"""HRIR sets from files: SOFA, CIPIC's wavs, folders of wavs; resampled once and kept.

The kind of a source follows from its files:

- `NAME.sofa`, or a folder of such files: measured heads of the convention
  SimpleFreeFieldHRIR (AES69);
- CIPIC's `wav_database`, as the generator of Binaural-WSJ0Mix uses it: folders
  `subject*`, in each `{azimuth}azleft.wav` and `{azimuth}azright.wav` with `neg` for the
  minus sign. A file holds 50 elevations (its frames) x 200 taps (its channels) of one
  interaural-polar azimuth, which in CIPIC is + to the *right*;
- a folder of stereo wavs (left, right) with the angle in their names, `az-30.wav` or
  `kemar_az030_el-10.wav`, or a folder of such folders, one per head. Another `pattern`
  reads other names, `positive="right"` those whose azimuth grows clockwise.

All of them become `HRIRSet`s in the convention of `unified_se_ss.spatial.geometry`.

Axes: D directions or measurements, E ears (left, right), N taps.
"""

from __future__ import annotations

import itertools
import os
import re
from contextlib import contextmanager
from math import gcd
from pathlib import Path

import numpy as np
import scipy.fft

from unified_se_ss.data import audio
from unified_se_ss.data.cache import cached_arrays, digest_of
from unified_se_ss.errors import UserError
from unified_se_ss.spatial.dsp import windowed_sinc
from unified_se_ss.spatial.geometry import from_interaural_polar, from_vector, to_vector
from unified_se_ss.spatial.hrtf import HRIRSet

PATTERN = (
    r"az(?P<azimuth>(neg|[+-])?\d+(\.\d+)?)"
    r"(_el(?P<elevation>(neg|[+-])?\d+(\.\d+)?))?$"
)
"""Angles in a wav's name without its ending."""

_CIPIC_NAME = re.compile(r"(?P<azimuth>(neg)?\d+)az(?P<ear>left|right)$")
_CIPIC_POLAR = -45 + 5.625 * np.arange(50)
_RESAMPLER_LEAD = 48  # samples at the lower rate in which the resampler's filter rings up
_FORMAT = 2  # of what is kept; counted up when it would come out differently
_SOFA_CONVENTION = "SimpleFreeFieldHRIR"
_HALF_SINC = 32  # half of the windowed sinc that applies a SOFA file's delays
_LONGEST_DELAY = 1 << 16


def load_hrirs(
    source, sample_rate: int, cache=None, pattern: str = PATTERN, positive: str = "left"
) -> list[HRIRSet]:
    """Read HRIR sets at a sampling rate; each is resampled once, kept and read again.

    Kept files are named by contents and choices, so they are never stale; they may be
    deleted at any time.

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
    list of HRIRSet
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
    folder = default_cache() if cache is None else Path(cache)
    found = {}
    for read, path, files in _find_sets(source, **choices):
        hrirs = _load_one(read, path, files, sample_rate, choices, folder)
        if found.setdefault(hrirs.name, hrirs) is not hrirs:
            raise UserError(f"{source}: two heads are named {hrirs.name}; rename one")
    return [found[name] for name in sorted(found)]


def default_cache() -> Path:
    """Folder of HRIR sets and rooms in the user's cache (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "unified_se_ss" / "heads"


def resample_hrirs(hrirs: HRIRSet, sample_rate: int) -> HRIRSet:
    """An HRIR set at another sampling rate in Hz, by soxr at its highest quality.

    Gains stay what they are (a filter's samples scale with the ratio of the rates), and
    so do differences between the ears: all filters get the same lead, in which the
    resampler's linear-phase filter rings up; it is added to the latency.

    Example
    -------
    >>> from unified_se_ss.spatial import spherical_head
    >>> resample_hrirs(spherical_head(16000), 8000).sample_rate
    8000
    """
    rate_in, latency_in = hrirs.sample_rate, hrirs.latency
    if rate_in == sample_rate:
        return hrirs
    import soxr

    common = gcd(rate_in, sample_rate)
    step_in, step_out = rate_in // common, sample_rate // common
    # Time zero is put where both rates have a sample, behind room for lead and latency.
    lead = -(-_RESAMPLER_LEAD * step_in // min(step_in, step_out)) + 1
    steps = -(-(lead + latency_in) // step_in)
    front = steps * step_in - latency_in
    directions, ears, taps = hrirs.filters.shape
    padded = np.pad(hrirs.filters, ((0, 0), (0, 0), (front, front)))
    columns = padded.reshape(directions * ears, -1).T.astype(np.float64)
    blocks = [
        soxr.resample(block, rate_in, sample_rate, quality="VHQ")
        for block in np.array_split(columns, -(-columns.shape[1] // 64), axis=1)
    ]
    filters = np.concatenate(blocks, axis=1).T * (rate_in / sample_rate)
    # What is silent before and after is cut.
    ring = -(-_RESAMPLER_LEAD * sample_rate // min(rate_in, sample_rate))
    latency = -(-latency_in * sample_rate // rate_in) + ring
    after = -(-(taps - latency_in) * sample_rate // rate_in) + ring
    zero = steps * step_out
    filters = filters.reshape(directions, ears, -1)[..., zero - latency : zero + after]
    filters = np.ascontiguousarray(filters, dtype=np.float32)
    angles = hrirs.azimuth, hrirs.elevation
    return HRIRSet(hrirs.name, sample_rate, *angles, filters, latency)


def _load_one(read, path, files, sample_rate, choices, folder):
    """One set from the cache, or read, resampled and kept there."""
    name = path.stem if path.is_file() else path.name
    digest = digest_of([_FORMAT, read.__name__, sample_rate, choices], *files)

    def arrays():
        hrirs = resample_hrirs(read(path), sample_rate)
        names = ("azimuth", "elevation", "filters", "latency")
        return {name: np.asarray(getattr(hrirs, name)) for name in names}

    kept = cached_arrays(folder / f"{name}-{sample_rate}-{digest[:20]}.npz", arrays)
    return HRIRSet(name, sample_rate, **{**kept, "latency": int(kept["latency"])})


def _find_sets(source, pattern, positive):
    """The heads of a source: (reader, path, files that they are made of)."""
    if not source.exists():
        expected = "a SOFA file or a folder of heads was expected"
        raise UserError(f"{source}: does not exist; {expected}")
    paths = [source] if source.is_file() else sorted(source.iterdir())
    sofa = [path for path in paths if path.suffix.lower() == ".sofa"]
    if sofa:
        return [(read_sofa, path, [path]) for path in sofa]
    if source.is_file():
        raise UserError(f"{source}: is not a SOFA file; NAME.sofa was expected")
    if positive not in ("left", "right"):
        raise UserError(f"positive: 'left' or 'right' was expected, not {positive!r}")
    expression = _expression(pattern)

    def read_azimuth_wavs(folder):
        return _read_azimuth_wavs(folder, expression, positive)

    found = []
    for folder in [source, *(path for path in paths if path.is_dir())]:
        # CIPIC's names fit no `az30`, but a pattern of one's own may fit CIPIC's.
        if pattern == PATTERN and _wavs(folder, _CIPIC_NAME):
            found.append((_read_cipic, folder, _wavs(folder, _CIPIC_NAME)))
        elif _wavs(folder, expression):
            found.append((read_azimuth_wavs, folder, _wavs(folder, expression)))
    if not found:
        expected = "NAME.sofa, CIPIC's subject*/*azleft.wav, or stereo wavs az-30.wav"
        raise UserError(f"{source}: holds no heads; expected were {expected}")
    return found


# ------------------------------------------------------------------ wavs


def _read_cipic(folder):
    """One subject of CIPIC's `wav_database`: 50 directions per azimuth."""
    files = {}
    for path in _wavs(folder, _CIPIC_NAME):
        match = _CIPIC_NAME.search(path.stem)
        files[int(match["azimuth"].replace("neg", "-")), match["ear"]] = path
    angles = sorted({angle for angle, _ in files})
    wanted = list(itertools.product(angles, ("left", "right")))
    for angle, ear in wanted:
        if (angle, ear) not in files:
            raise UserError(f"{folder}: the azimuth {angle} has no file of the {ear} ear")
    paths = [files[key] for key in wanted]
    arrays, rate = _read_wavs(paths)
    wanted = (len(_CIPIC_POLAR), arrays[0].shape[1])
    for path, samples in zip(paths, arrays):
        if samples.shape != wanted:
            expected = "{} frames (elevations) of {} channels (taps)".format(*wanted)
            raise UserError(f"{path}: has the shape {samples.shape}; expected {expected}")
    # [azimuth, ear, elevation, tap]
    filters = np.stack(arrays).reshape(len(angles), 2, *arrays[0].shape).swapaxes(1, 2)
    filters = filters.reshape(-1, 2, filters.shape[-1]).astype(np.float32)
    # CIPIC's azimuth is + to the right.
    lateral = np.repeat(-np.array(angles, dtype=np.float64), len(_CIPIC_POLAR))
    azimuth, elevation = from_interaural_polar(lateral, np.tile(_CIPIC_POLAR, len(angles)))
    return HRIRSet(folder.name, rate, azimuth, elevation, filters)


def _read_azimuth_wavs(folder, expression, positive):
    """Stereo wavs with their angles in their names; shorter ones are filled with zeros."""
    files = {}
    for path in _wavs(folder, expression):
        angles = _angles(expression.search(path.stem), positive)
        if files.setdefault(angles, path) != path:
            other = files[angles].name
            raise UserError(f"{path}: has the direction of {other}; remove one of them")
    paths = [files[angles] for angles in sorted(files)]
    arrays, rate = _read_wavs(paths)
    for path, samples in zip(paths, arrays):
        if fault := audio.channel_fault(samples.shape[1], 2):
            raise UserError(f"{path}: {fault}")
    filters = np.zeros((len(arrays), 2, max(map(len, arrays))), dtype=np.float32)
    for pair, samples in zip(filters, arrays):
        pair[:, : len(samples)] = samples.T
    azimuth, elevation = np.array(sorted(files), dtype=np.float64).T
    return HRIRSet(folder.name, rate, azimuth.copy(), elevation.copy(), filters)


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
        what = f"is no regular expression: {error}"
        raise UserError(f"pattern: {pattern!r} {what}") from error
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


def _read_wavs(paths):
    """All frames and channels of wavs of one rate, float64 [T, C] each, and the rate."""
    arrays, rates = zip(*(audio.read_all(path, "float64") for path in paths))
    for path, rate in zip(paths, rates):
        if rate != rates[0]:
            other = f"{paths[0].name} has {rates[0]} Hz"
            raise UserError(f"{path}: has {rate} Hz, but {other}; one rate was expected")
    return arrays, rates[0]


# ------------------------------------------------------------------ SOFA


def read_sofa(path) -> HRIRSet:
    """Read a measured head from a SOFA file, at the rate it was measured at.

    Understood are positions in degrees (azimuth counter-clockwise, so + is left) or
    metres, a listener that is turned or displaced (directions are those that the listener
    sees), ears in either order, and delays common to all measurements or of each, whole
    samples or fractions.

    Arguments
    ---------
    path : str or Path
        A file of the convention SimpleFreeFieldHRIR; it names the head.

    Raises
    ------
    UserError
        If h5py is not installed (extra `[sofa]`), or the file is missing, corrupt, of
        another convention, or contradicts itself.

    Example
    -------
    >>> read_sofa("nobody.sofa")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: nobody.sofa: does not exist; a SOFA file was expected
    """
    path = Path(path)
    with _opened_sofa(path) as file:
        sofa = _SofaReader(file, path)
        sofa.check_convention()
        filters = sofa.numbers("Data.IR", (None, 2, None))
        filters, latency = _delayed(filters, sofa.delays(len(filters)))
        azimuth, elevation = from_vector(sofa.directions(len(filters)))
        if sofa.ears_are_swapped():
            filters = filters[:, ::-1]
        filters = np.ascontiguousarray(filters, dtype=np.float32)
        return HRIRSet(path.stem, sofa.rate(), azimuth, elevation, filters, latency)


@contextmanager
def _opened_sofa(path):
    if not path.is_file():
        raise UserError(f"{path}: does not exist; a SOFA file was expected")
    try:
        import h5py
    except ImportError as error:
        remedy = "pip install 'unified_se_ss[sofa]'"
        raise UserError(f"{path}: needs h5py, which is not installed; {remedy}") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        what = f"is corrupt or not a SOFA file ({error})"
        raise UserError(f"{path}: {what}; get the file again") from error


def _delayed(filters, delays):
    """Filters [D, E, N] later by delays [D, E] in samples, and the latency that it costs."""
    if not delays.any():
        return filters, 0
    time = np.arange(2 * _HALF_SINC + 1 + int(np.ceil(delays.max()))) - _HALF_SINC
    impulses = windowed_sinc(time - delays[..., None], _HALF_SINC + 1, 8.0)
    taps = filters.shape[-1] + len(time) - 1
    n_fft = scipy.fft.next_fast_len(taps, real=True)
    spectra = scipy.fft.rfft(filters, n_fft) * scipy.fft.rfft(impulses, n_fft)
    return scipy.fft.irfft(spectra, n_fft)[..., :taps], _HALF_SINC


class _SofaReader:
    """Values of an open SOFA file, checked; errors name the file."""

    def __init__(self, file, path):
        self.file, self.path = file, path

    def numbers(self, name, *shapes):
        """A variable as finite float64, of one of some shapes (None: any length but 0)."""
        if name not in self.file:
            raise self.error(f"has no {name}, which {_SOFA_CONVENTION} demands")
        try:
            values = np.asarray(self.file[name][...], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self.error(f"{name} does not hold numbers ({error})") from error
        if not np.isfinite(values).all():
            raise self.error(f"{name} holds values that are nan or infinite")
        if not values.size or not any(_fits(values.shape, shape) for shape in shapes):
            wanted = " or ".join(str(shape).replace("None", "any") for shape in shapes)
            raise self.error(f"{name} has the shape {values.shape}; {wanted} was expected")
        return values

    def text(self, item, name):
        """A text attribute of the file or a variable; '' where there is none."""
        value = item.attrs.get(name, "")
        if getattr(value, "shape", ()) is None:  # what netCDF makes of an empty text
            return ""
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def error(self, text):
        return UserError(f"{self.path}: {text}")

    def check_convention(self):
        found = self.text(self.file, "SOFAConventions")
        if found != _SOFA_CONVENTION:
            expected = (
                f"{_SOFA_CONVENTION} was expected; take the file of impulse responses"
            )
            raise self.error(f"holds the SOFA convention {found or '(none)'}; {expected}")
        kind = self.text(self.file, "DataType")
        if kind not in ("", "FIR"):
            raise self.error(f"holds data of type {kind}; FIR was expected")

    def rate(self):
        """The sampling rate in Hz: one whole number for all measurements."""
        name = "Data.SamplingRate"
        rates = np.unique(self.numbers(name, (), (None,)))
        units = self.text(self.file[name], "Units").lower() or "hertz"
        if len(rates) != 1 or rates[0] < 1 or rates[0] % 1 or units != "hertz":
            found = f"{name} is {rates.tolist()[:3]} {units}"
            raise self.error(f"{found}; one whole number of hertz was expected")
        return int(rates[0])

    def delays(self, measurements):
        """Delay of each filter in samples, [D, E]; 0 if the file states none."""
        name, shape = "Data.Delay", (measurements, 2)
        if name not in self.file:
            return np.zeros(shape)
        delays = self.numbers(name, (1, 2), shape)
        if delays.min() < 0 or delays.max() > _LONGEST_DELAY:
            found = f"{name} is from {delays.min():g} to {delays.max():g}"
            raise self.error(f"{found}; samples from 0 to {_LONGEST_DELAY} were expected")
        return np.broadcast_to(delays, shape)

    def directions(self, measurements):
        """Vectors to the sources: ahead, left and up of the listener, [D, 3]."""
        shapes = (1, 3), (measurements, 3)
        source = self._metres("SourcePosition", shapes)
        listener = self._metres("ListenerPosition", shapes, [0.0, 0.0, 0.0])
        ahead = self._metres("ListenerView", shapes, [1.0, 0.0, 0.0])
        up = self._metres("ListenerUp", shapes, [0.0, 0.0, 1.0], "ListenerView")
        towards = np.broadcast_to(source - listener, (measurements, 3))
        left = np.cross(up, ahead)
        if np.any(_norms(towards) < 1e-9) or np.any(_norms(left) < 1e-9):
            both = "ListenerView and ListenerUp point the same way"
            raise self.error(f"a source lies in the middle of the head, or {both}")
        left = left / _norms(left)
        ahead = ahead / _norms(ahead)
        axes = np.broadcast_arrays(ahead, left, np.cross(ahead, left))
        return np.stack([(towards * axis).sum(-1) for axis in axes], axis=-1)

    def ears_are_swapped(self):
        """True if receiver 0 is the right ear; a file that does not say begins with the left."""
        name = "ReceiverPosition"
        if name not in self.file:
            return False
        ears = self.numbers(name, (2, 3), (2, 3, None)).reshape(2, 3, -1)[..., 0]
        ears = self._cartesian(ears, name, name)
        return bool(ears[0, 1] < ears[1, 1])

    def _metres(self, name, shapes, default=None, described_by=""):
        """Positions or directions as vectors in metres, [1 or D, 3]."""
        if name not in self.file and default is not None:
            return np.array([default])
        if described_by not in self.file:
            described_by = name
        return self._cartesian(self.numbers(name, *shapes), name, described_by)

    def _cartesian(self, values, name, described_by):
        """Coordinates [..., 3] along x, y, z in metres, by the attributes Type and Units."""
        kind = self.text(self.file[described_by], "Type").lower() or "cartesian"
        units = self.text(self.file[described_by], "Units").lower().replace(" ", "")
        if kind == "cartesian":
            return values
        degrees = units.startswith(("degree,degree", "degrees,degrees"))
        if kind != "spherical" or not degrees:
            expected = "'spherical' in 'degree, degree, metre' or 'cartesian' in 'metre'"
            raise self.error(f"{name} is '{kind}' in '{units}'; expected {expected}")
        return to_vector(values[..., 0], values[..., 1]) * values[..., 2:]


def _fits(shape, wanted):
    return len(shape) == len(wanted) and all(
        length in (None, found) for found, length in zip(shape, wanted)
    )


def _norms(vectors):
    """Lengths of vectors [..., 3], [..., 1]."""
    return np.linalg.norm(vectors, axis=-1, keepdims=True)
