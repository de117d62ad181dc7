"""Sound files: the one way to open, read, write and resample them.

Whatever libsndfile reads. What is wrong with a file is said before a sample of it is read:
beyond what libsndfile refuses, a file that is cut off, that has no header (any text of a
name ending in .au passes for sound), or whose header names a rate that nobody records at.
Rate and level of a signal change only where that is asked for.

Axes: C channels, T samples.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import soundfile

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path

LOWEST_RATE, HIGHEST_RATE = 1000, 1_000_000  # Hz
BLOCK = 1 << 16  # samples
STEP_16_BIT = np.float32(2**-15)
SILENCE_PEAK = 1e-4  #: A signal whose peak is below this (-80 dB of full scale) is silent.

# libsndfile's account of a header: bytes of sound that it promises, and that there are.
CUT_OFF = re.compile(
    r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)
CUT_OFF_RF64 = "does not match value from 'ds64' chunk"
# Who writes into a pipe cannot know the length: ffmpeg and SoX write these or more.
UNKNOWN_LENGTH = 0x7FFF_0000
EXPECTED = "wav, flac, ogg or mp3 was expected"

# ------------------------------------------------------------------ opening


@contextmanager
def opened(path, name=None, kind=soundfile.SoundFile):
    """Opens a sound file for reading; whatever is wrong with it becomes a UserError.

    Arguments
    ---------
    path : str or Path
        The file.
    name : str, optional
        For messages; the path by default.
    kind : type
        soundfile.SoundFile (default), or a class derived from it.

    Returns
    -------
    contextmanager of soundfile.SoundFile

    Raises
    ------
    UserError
        Names the file: missing, a folder, no permission, not a sound file, empty, cut off,
        or found corrupt while it is read within the block.

    Example
    -------
    >>> with opened("no/such.wav"):
    ...     pass
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: no/such.wav: does not exist; a sound file was expected
    """
    path = os.fspath(path)
    name = path if name is None else name
    _check_file(path, name)
    try:
        file = kind(path)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise UserError(_no_sound(name, error)) from error
    with file:
        _check_header(file, name)
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise UserError(_no_sound(name, error)) from error


def _check_file(path, name):
    """Stops at a path that is no file, or no file that can be read, or one of 0 bytes."""
    if not os.path.isfile(path):
        what = "does not exist"
        if os.path.isdir(path):
            what = "is a folder, not a file"
        elif os.path.islink(path):
            what = f"is a link to {os.readlink(path)}, which does not exist"
        elif os.path.exists(path):
            what = "is not a regular file"
        raise UserError(f"{name}: {what}; a sound file was expected")
    if not os.access(path, os.R_OK):
        raise UserError(f"{name}: cannot be read; give yourself read permission")
    if os.path.getsize(path) == 0:
        raise UserError(f"{name}: is empty (0 bytes); remove it or get it again")


def _check_header(file, name):
    """Stops at a header that cannot be true."""
    if file.format == "RAW":
        raise UserError(f"{name}: is corrupt or not a sound file (no header); {EXPECTED}")
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        rates = f"{file.samplerate} Hz, not {LOWEST_RATE} to {HIGHEST_RATE} Hz"
        raise UserError(f"{name}: is corrupt; its header says {rates}; get the file again")
    account = file.extra_info
    cut_off = CUT_OFF.search(account)
    if cut_off and int(cut_off[1]) < UNKNOWN_LENGTH or CUT_OFF_RF64 in account:
        promised = f" of the {int(cut_off[1]):,} bytes" if cut_off else ""
        raise UserError(
            f"{name}: is cut off; there are {file.frames:,} samples{promised} that its "
            "header promises; get the file again"
        )
    if file.frames <= 0:
        raise UserError(f"{name}: is empty (0 samples); remove it or get it again")


def _no_sound(name, error):
    reason = getattr(error, "error_string", None) or str(error)
    return (
        f"{name}: is corrupt or not a sound file ({reason.strip().rstrip('.')}); "
        f"{EXPECTED}; get the file again"
    )


class AudioInfo(NamedTuple):
    """Samples per channel, sampling rate in Hz and number of channels of a sound file."""

    frames: int
    sample_rate: int
    channels: int


def info(path):
    """Reads the header of a sound file.

    Returns
    -------
    AudioInfo

    Raises
    ------
    UserError
        As :func:`opened`.
    """
    with opened(path) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels)


def channel_fault(found, expected=1):
    """Says what is wrong with a number of channels; None if nothing is."""
    if found == expected:
        return None
    if expected == 1:
        return (
            f"has {found} channels, one was expected; write it with one channel, "
            "or name the channel to take where a key offers it"
        )
    ears = " (the left ear, then the right one); is it a mono corpus?" * (expected == 2)
    return f"has {found} channel(s), {expected} were expected{ears}"


# ------------------------------------------------------------------ reading


def read(path, start=0, stop=None, channel=None, channels=1):
    """Reads the samples [start, stop) of a sound file, and no others.

    Arguments
    ---------
    path : str or Path
        The file.
    start, stop : int
        By default the whole file.
    channel : int, optional
        The channel to take, from 0; the file may have several then.
    channels : int
        Channels that the file must have otherwise (default 1).

    Returns
    -------
    signal : np.ndarray
        float32, [T]; [C, T] where several channels were asked for.
    sample_rate : int
        Hz.

    Raises
    ------
    UserError
        If the file is missing, empty, corrupt, too short, or has other channels.

    Example
    -------
    >>> path = getfixture("tmpdir") / "ramp.wav"
    >>> write(path, np.arange(8) / 8, 8000)
    >>> read(path, 2, 5)
    (array([0.25 , 0.375, 0.5  ], dtype=float32), 8000)
    """
    with opened(path) as file:
        if channel is not None and not 0 <= channel < file.channels:
            there = f"has {file.channels} channel(s), no channel {channel}"
            raise UserError(f"{path}: {there} (they are counted from 0)")
        if channel is None and (fault := channel_fault(file.channels, channels)):
            raise UserError(f"{path}: {fault}")
        signal = _read_region(file, path, start, stop)
        signal = signal.T if channel is None and channels > 1 else signal[:, channel or 0]
        return _as_float(signal), file.samplerate


def _read_region(file, path, start, stop):
    """Samples [start, stop) of all channels: int16 codes of PCM_16, else float32; [T, C]."""
    stop = file.frames if stop is None else stop
    if not 0 <= start <= stop:
        raise ValueError(f"cannot read the samples [{start}, {stop}) of {path}")
    if stop > file.frames:
        what = f"has {file.frames} samples, but samples up to {stop} are asked for"
        raise UserError(f"{path}: {what}; if it changed, delete the manifest")
    file.seek(start)
    dtype = "int16" if file.subtype == "PCM_16" else "float32"
    try:
        signal = file.read(stop - start, dtype=dtype, always_2d=True)
    except MemoryError as error:
        raise UserError(
            f"{path}: is corrupt or too long; its header promises {file.frames} samples "
            "in each channel, more than the memory holds; cut it up or get it again"
        ) from error
    if len(signal) != stop - start:
        there = f"only {start + len(signal)} of {file.frames} samples could be read"
        raise UserError(f"{path}: is corrupt; {there}; get the file again")
    return signal


def _as_float(signal):
    if signal.dtype == np.int16:  # libsndfile's very values, but faster
        signal = np.multiply(signal, STEP_16_BIT, dtype=np.float32)
    return np.ascontiguousarray(signal)


def read_all(path, dtype="float32"):
    """Reads all samples of all channels of a sound file.

    Arguments
    ---------
    path : str or Path
        The file, of any number of channels.
    dtype : str
        "float32" (default) or "float64".

    Returns
    -------
    signal : np.ndarray
        [T, C]
    sample_rate : int
        Hz.

    Raises
    ------
    UserError
        As :func:`opened`, or if the file is cut off or holds values that are not finite.
    """
    with opened(path) as file:
        signal = file.read(dtype=dtype, always_2d=True)
        if len(signal) != file.frames:
            there = f"{len(signal)} of {file.frames} samples are there"
            raise UserError(f"{path}: is cut off: {there}; get the file again")
        if not np.isfinite(signal).all():
            raise UserError(f"{path}: holds values that are not finite (NaN, infinity)")
        return signal, file.samplerate


def read_blocks(file, name, samples=BLOCK) -> Iterator[tuple[int, np.ndarray]]:
    """Samples of an open sound file, block by block.

    Arguments
    ---------
    file : soundfile.SoundFile
        As :func:`opened` gives it.
    name : str
        For messages.
    samples : int
        In a block.

    Returns
    -------
    iterator of (int, np.ndarray)
        Where a block begins, and float32 [T, C].

    Raises
    ------
    UserError
        The file breaks off.
    """
    place = 0
    while True:
        try:
            block = file.read(samples, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise UserError(_breaks_off(name, place / file.samplerate)) from error
        if not len(block):
            break
        yield place, block
        place += len(block)
    # The header of an mp3 may only estimate the length.
    if place < file.frames and file.format not in ("MP3", "MPEG"):
        raise UserError(_breaks_off(name, place / file.samplerate))


def _breaks_off(name, seconds):
    return f"{name}: is damaged, it breaks off at {seconds:.2f} s; get the file again"


# ------------------------------------------------------------------ writing


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
    signal = _checked(signal, (1,))
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


def write_float(path, signal, sample_rate):
    """Writes a signal as a wav of 32-bit floats, which holds what exceeds full scale.

    The same signal gives the same bytes.

    Arguments
    ---------
    path : str or Path
        The file to write; one of the same name is replaced.
    signal : np.ndarray
        [T] or [C, T]
    sample_rate : int
        Hz.

    Raises
    ------
    ValueError
        If the signal is of another shape, or is not finite.

    Example
    -------
    >>> path = getfixture("tmpdir") / "ears.wav"
    >>> write_float(path, np.full((2, 3), -1.5), 8000)
    >>> float(read(path, channels=2)[0].min())
    -1.5
    """
    from scipy.io import wavfile

    samples = _checked(signal, (1, 2)).T.astype(np.float32)
    with atomic_path(path) as temporary:
        wavfile.write(temporary, int(sample_rate), samples)


def _checked(signal, dimensions):
    signal = np.asarray(signal)
    if signal.ndim not in dimensions:
        raise ValueError(f"a signal of shape [T] was expected, not {signal.shape}")
    if not np.isfinite(signal).all():
        raise ValueError("the signal holds values that are not finite")
    return signal


# ------------------------------------------------------------------ signals


def resample(signal, from_rate, to_rate):
    """Changes the sampling rate of a signal, by soxr at its highest quality.

    Arguments
    ---------
    signal : np.ndarray
        [T] at `from_rate`.
    from_rate, to_rate : int
        Hz.

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
    """Cuts a signal [T], or appends zeros to it, so that it has `length` samples."""
    if len(signal) >= length:
        return signal[:length]
    return np.pad(signal, (0, length - len(signal)))


def is_silent(signal):
    """Tells if no sample reaches -80 dB of full scale."""
    return bool(np.abs(signal).max(initial=0.0) < SILENCE_PEAK)
