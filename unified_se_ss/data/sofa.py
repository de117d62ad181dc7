"""Heads from SOFA files (AES69), by h5py: the convention SimpleFreeFieldHRIR.

A SOFA file says where its sources, its listener and its ears are, in one system of
coordinates; the listener need not stand at its origin nor look along its x axis. Here
directions are those that the listener sees, in the convention of
`unified_se_ss.spatial.geometry`.

Axes: M measurements, R receivers (the ears), N taps.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.spatial.dsp import windowed_sinc
from unified_se_ss.spatial.geometry import from_vector, to_vector
from unified_se_ss.spatial.hrtf import HRIRSet

CONVENTION = "SimpleFreeFieldHRIR"
HALF_SINC = 32  # half of the windowed sinc that delays by fractions of a sample


def read_sofa(path) -> HRIRSet:
    """Reads a measured head from a SOFA file, at the rate it was measured at.

    Understood are positions in degrees (azimuth counter-clockwise, so + is left) or
    metres, a listener that is turned or displaced, ears in either order, and delays
    common to all measurements or of each, whole samples or fractions.

    Arguments
    ---------
    path : str or Path
        A file of the convention SimpleFreeFieldHRIR.

    Returns
    -------
    Head
        Named like the file, without its ending.

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
    with _opened(path) as file:
        _check_convention(file, path)
        filters = _numbers(file, "Data.IR", path)
        if filters.ndim != 3 or filters.shape[1] != 2 or not filters.size:
            raise UserError(
                f"{path}: Data.IR has the shape {filters.shape}; measurements x 2 ears x "
                "taps were expected. Take a file of one listener's two ears."
            )
        filters, latency = _delayed(filters, _delays(file, filters.shape, path))
        vectors = _seen_by_listener(file, len(filters), path)
        if _ears_are_swapped(file, path):
            filters = filters[:, ::-1]
        azimuth, elevation = from_vector(vectors)
        filters = np.ascontiguousarray(filters, dtype=np.float32)
        return HRIRSet(path.stem, _rate(file, path), azimuth, elevation, filters, latency)


@contextmanager
def _opened(path):
    """The HDF5 file; whatever keeps it from being opened becomes a UserError."""
    if not path.is_file():
        raise UserError(f"{path}: does not exist; a SOFA file was expected")
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path}: to read SOFA files h5py is needed, which is not installed; "
            "pip install 'unified_se_ss[sofa]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{path}: is corrupt or not a SOFA file ({error}); get the file again"
        ) from error


def _check_convention(file, path):
    """Refuses all conventions but the one of heads in the free field."""
    found = _text(file, "SOFAConventions")
    if found != CONVENTION:
        raise UserError(
            f"{path}: holds the SOFA convention {found or '(none)'}; {CONVENTION} "
            "was expected. Take the file of head-related impulse responses."
        )
    kind = _text(file, "DataType")
    if kind not in ("", "FIR"):
        raise UserError(f"{path}: holds data of type {kind}; FIR was expected")


def _rate(file, path):
    """The sampling rate in Hz: one whole number for all measurements."""
    rates = np.unique(_numbers(file, "Data.SamplingRate", path))
    units = _text(file["Data.SamplingRate"], "Units").lower() or "hertz"
    if len(rates) != 1 or rates[0] < 1 or rates[0] != round(rates[0]) or units != "hertz":
        raise UserError(
            f"{path}: Data.SamplingRate is {rates.tolist()[:3]} {units}; one whole number "
            "of hertz was expected"
        )
    return int(rates[0])


def _delays(file, shape, path):
    """Delay of each filter in samples, [M, R]; 0 if the file states none."""
    measurements, ears, _ = shape
    if "Data.Delay" not in file:
        return np.zeros((measurements, ears))
    delays = _numbers(file, "Data.Delay", path)
    if delays.shape not in ((1, ears), (measurements, ears)) or delays.min() < 0:
        raise UserError(
            f"{path}: Data.Delay has the shape {delays.shape} and the minimum "
            f"{delays.min(initial=np.inf):g}; numbers >= 0 of the shape (1, {ears}) or "
            f"({measurements}, {ears}) were expected"
        )
    longest = 1 << 16
    if delays.max() > longest:
        raise UserError(
            f"{path}: Data.Delay holds {delays.max():g}; samples, at most {longest}, "
            "were expected"
        )
    return np.broadcast_to(delays, (measurements, ears))


def _delayed(filters, delays):
    """Filters with their delays applied, and the latency that fractions cost."""
    whole = np.floor(delays).astype(int)
    latency = 0
    if np.any(delays != whole):
        filters, latency = _delayed_by_fractions(filters, delays - whole), HALF_SINC
    measurements, ears, taps = filters.shape
    later = np.zeros((measurements, ears, taps + whole.max()))
    places = whole[..., None] + np.arange(taps)
    np.put_along_axis(later, places, filters, axis=-1)
    return later, latency


def _delayed_by_fractions(filters, fractions):
    """Filters [M, R, N] delayed by HALF_SINC plus a part of a sample, [M, R]."""
    time = np.arange(2 * HALF_SINC + 1) - HALF_SINC - fractions[..., None]
    sinc = windowed_sinc(time, HALF_SINC + 1, 8.0)
    length = filters.shape[-1] + sinc.shape[-1] - 1
    spectra = np.fft.rfft(filters, length) * np.fft.rfft(sinc, length)
    return np.fft.irfft(spectra, length)


def _seen_by_listener(file, measurements, path):
    """Vectors to the sources: ahead, left and up of the listener, [M, 3]."""
    source = _vectors(file, "SourcePosition", path)
    listener = _vectors(file, "ListenerPosition", path, default=[0.0, 0.0, 0.0])
    view = _vectors(file, "ListenerView", path, default=[1.0, 0.0, 0.0])
    up = _vectors(file, "ListenerUp", path, default=[0.0, 0.0, 1.0], units="ListenerView")
    for name, values in [("Source", source), ("Listener", listener), ("View", view)]:
        if len(values) not in (1, measurements):
            raise UserError(
                f"{path}: the {len(values)} positions of '{name}' do not fit the "
                f"{measurements} measurements; one, or one each, was expected"
            )
    towards = np.broadcast_to(source - listener, (measurements, 3))
    left = np.cross(up, view)
    if np.any(_norms(towards) < 1e-9) or np.any(_norms(left) < 1e-9):
        raise UserError(
            f"{path}: a source lies in the middle of the head, or ListenerView and "
            "ListenerUp point the same way; the file's positions are wrong"
        )
    left = left / _norms(left)
    ahead = view / _norms(view)
    axes = np.broadcast_arrays(ahead, left, np.cross(ahead, left))
    return np.stack([(towards * axis).sum(-1) for axis in axes], axis=-1)


def _norms(vectors):
    """Lengths of vectors [..., 3], [..., 1]."""
    return np.linalg.norm(vectors, axis=-1, keepdims=True)


def _ears_are_swapped(file, path):
    """Whether receiver 0 is the right ear; a file that does not say begins with the left."""
    if "ReceiverPosition" not in file:
        return False
    ears = _numbers(file, "ReceiverPosition", path)
    if ears.shape[:2] != (2, 3) or ears.ndim > 3:
        raise UserError(
            f"{path}: ReceiverPosition has the shape {ears.shape}; (2, 3, 1), the places "
            "of two ears, was expected"
        )
    ears = ears.reshape(2, 3, -1)[..., 0]
    ears = _cartesian(ears, file["ReceiverPosition"], "ReceiverPosition", path)
    return bool(ears[0, 1] < ears[1, 1])


def _vectors(file, name, path, default=None, units=None):
    """Positions or directions as vectors in metres, [1 or M, 3]."""
    if name not in file and default is not None:
        return np.array([default])
    values = _numbers(file, name, path)
    if values.ndim != 2 or values.shape[1] != 3:
        raise UserError(
            f"{path}: {name} has the shape {values.shape}; (measurements, 3) was expected"
        )
    described = file[units] if units and units in file else file[name]
    return _cartesian(values, described, name, path)


def _cartesian(values, described, name, path):
    """Coordinates [..., 3] as metres along x, y, z, by their attributes Type and Units."""
    kind = _text(described, "Type").lower() or "cartesian"
    units = _text(described, "Units").lower().replace(" ", "")
    if kind == "cartesian":
        return values
    if kind != "spherical" or not units.startswith(("degree,degree", "degrees,degrees")):
        raise UserError(
            f"{path}: {name} is of type '{kind}' in '{units}'; 'spherical' in 'degree, "
            "degree, metre' or 'cartesian' in 'metre' was expected"
        )
    return to_vector(values[..., 0], values[..., 1]) * values[..., 2:]


def _numbers(file, name, path):
    """A variable of the file as finite float64."""
    if name not in file:
        raise UserError(f"{path}: has no {name}, which {CONVENTION} demands")
    try:
        values = np.asarray(file[name][...], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {name} does not hold numbers ({error})") from error
    if not np.isfinite(values).all():
        raise UserError(f"{path}: {name} holds values that are nan or infinite")
    return values


def _text(described, name):
    """A text attribute; '' where there is none."""
    value = described.attrs.get(name, "")
    if getattr(value, "shape", ()) is None:  # what netCDF makes of an empty text
        return ""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
