"""Reading and writing audio files: only the samples that are needed.

One channel at a time, float32, by soundfile. Nothing here changes the sampling rate
or the level of a signal unless it is asked to.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import soundfile

from unified_se_ss.data import sound_headers
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path

FULL_SCALE = np.float32(2**-15)  # what one step of 16 bits is worth

SILENCE_PEAK = 1e-4
"""A signal whose peak is below this (-80 dB of full scale) counts as silent."""


class AudioInfo(NamedTuple):
    """What the header of an audio file says."""

    frames: int
    sample_rate: int
    channels: int


def info(path):
    """Reads the header of an audio file.

    Arguments
    ---------
    path : str or Path
        The audio file, of any number of channels.

    Returns
    -------
    AudioInfo
        Number of frames (samples per channel), sampling rate in Hz, channels.

    Raises
    ------
    UserError
        If the file is missing, empty or not audio.

    Example
    -------
    >>> path = getfixture("tmpdir") / "tone.wav"
    >>> write(path, np.full(800, 0.5, dtype=np.float32), 8000)
    >>> info(path)
    AudioInfo(frames=800, sample_rate=8000, channels=1)
    """
    with opened(path) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels)


def read(path, start=0, stop=None, channel=None):
    """Reads the samples [start, stop) of an audio file, and no others.

    Arguments
    ---------
    path : str or Path
        The audio file.
    start : int
        First sample (default 0).
    stop : int, optional
        One past the last sample (default: the end of the file).
    channel : int, optional
        The channel to take from a file of several. By default a file must have one.

    Returns
    -------
    signal : np.ndarray
        float32, [T] with T = stop - start.
    sample_rate : int
        Sampling rate in Hz.

    Raises
    ------
    UserError
        If the file is missing, empty, corrupt, of several channels, or too short.

    Example
    -------
    >>> path = getfixture("tmpdir") / "ramp.wav"
    >>> write(path, np.arange(8) / 8, 8000)
    >>> read(path, 2, 5)
    (array([0.25 , 0.375, 0.5  ], dtype=float32), 8000)
    """
    with opened(path) as file:
        stop = file.frames if stop is None else stop
        if not 0 <= start <= stop:
            raise ValueError(f"cannot read the samples [{start}, {stop}) of {path}")
        if stop > file.frames:
            raise UserError(
                f"{path}: has {file.frames} samples, but samples up to {stop} are asked"
                " for; if it changed after its manifest was made, delete the manifest"
            )
        if channel is None and file.channels != 1:
            raise UserError(f"{path}: {several_channels(file.channels)}")
        if channel is not None and not 0 <= channel < file.channels:
            raise UserError(
                f"{path}: has {file.channels} channel(s), no channel {channel} "
                "(they are counted from 0)"
            )
        file.seek(start)
        try:
            signal = _next(file, stop - start)
        except MemoryError as error:
            raise UserError(
                f"{path}: is corrupt or too long; its header promises {file.frames} samples "
                "in each channel, more than the memory holds; cut it up or get it again"
            ) from error
        if len(signal) != stop - start:
            raise UserError(
                f"{path}: is corrupt; its header promises {file.frames} samples, but "
                f"only {start + len(signal)} could be read; get the file again"
            )
        return _as_float(signal[:, channel or 0]), file.samplerate


def _next(file, frames):
    """The next frames of a file: codes of 16 bits, of others float32; [T, C]."""
    dtype = "int16" if file.subtype == "PCM_16" else "float32"
    return file.read(frames, dtype=dtype, always_2d=True)


def _as_float(signal):
    """One channel as contiguous float32; of codes libsndfile's very values, but faster."""
    if signal.dtype == np.int16:
        return np.multiply(signal, FULL_SCALE, dtype=np.float32)
    return np.ascontiguousarray(signal)


def write(path, signal, sample_rate):
    """Writes a one-channel signal as a 16-bit PCM wav, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file to write; one of the same name is replaced.
    signal : np.ndarray
        [T], full scale is 1.
    sample_rate : int
        Sampling rate in Hz.

    Raises
    ------
    ValueError
        If the signal is not of shape [T], is not finite, or exceeds full scale
        (it is never clipped silently).

    Example
    -------
    >>> write(getfixture("tmpdir") / "loud.wav", np.array([0.0, 1.5]), 8000)
    Traceback (most recent call last):
    ValueError: the signal would clip: its peak is 1.5, full scale is 1
    """
    signal = np.asarray(signal)
    if signal.ndim != 1:
        raise ValueError(f"a signal of shape [T] was expected, not {signal.shape}")
    if not np.isfinite(signal).all():
        raise ValueError("the signal holds values that are not finite")
    peak = float(np.abs(signal).max(initial=0.0))
    if peak > 1.0:
        raise ValueError(f"the signal would clip: its peak is {peak:.4g}, full scale is 1")
    # soundfile writes x * 32767 and reads n / 32768; rounding here keeps the level.
    codes = np.rint(signal.astype(np.float64) * 32768).clip(-32768, 32767)
    with atomic_path(path) as temporary:
        soundfile.write(
            str(temporary),
            codes.astype(np.int16),
            int(sample_rate),
            "PCM_16",
            format="WAV",
        )


def resample(signal, from_rate, to_rate):
    """Changes the sampling rate of a signal, by soxr at its highest quality.

    Arguments
    ---------
    signal : np.ndarray
        [T] at `from_rate`.
    from_rate, to_rate : int
        Sampling rates in Hz.

    Returns
    -------
    np.ndarray
        float32, [round(T * to_rate / from_rate)]; the input itself if the rates agree.

    Example
    -------
    >>> resample(np.zeros(160, dtype=np.float32), 16000, 8000).shape
    (80,)
    """
    if from_rate == to_rate:
        return signal
    import soxr

    length = round(len(signal) * to_rate / from_rate)
    resampled = soxr.resample(
        np.asarray(signal, dtype=np.float32), from_rate, to_rate, quality="VHQ"
    )
    return fitted(resampled, length)


def fitted(signal, length):
    """Cuts a signal, or appends zeros to it, so that it has `length` samples."""
    if len(signal) >= length:
        return signal[:length]
    return np.pad(signal, (0, length - len(signal)))


def is_silent(signal):
    """Tells whether no sample reaches -80 dB of full scale.

    Arguments
    ---------
    signal : np.ndarray
        [T]

    Returns
    -------
    bool

    Example
    -------
    >>> is_silent(np.zeros(10)), is_silent(np.array([0.0, 0.1]))
    (True, False)
    """
    return bool(np.abs(signal).max(initial=0.0) < SILENCE_PEAK)


def several_channels(channels):
    """Says in words what is wrong with a file of several channels."""
    return (
        f"has {channels} channels, one was expected; write it with one channel, "
        "or name the channel to take where a key offers it"
    )


@contextmanager
def opened(path):
    """Opens an audio file that has samples; what is wrong with it becomes a UserError."""
    with sound_headers.opened(path) as file:
        if file.frames <= 0:
            raise UserError(f"{path}: is empty (0 samples); remove it or get it again")
        yield file
