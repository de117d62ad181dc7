"""Sound files in pieces: read, resampled and written without ever being held whole.

Axes: C channels, T samples, J signals.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import soundfile

from unified_se_ss.data import audio
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path

BLOCK = 1 << 16  # samples
SUBTYPES = {"float": "FLOAT", "pcm16": "PCM_16"}
LARGEST_WAV = 4_000_000_000  # bytes; beyond it RF64, the same with larger numbers
FULL_SCALE = 1 - 2**-15  # the largest 16 bit sample

# What a folder is searched for. A file that is named is tried whatever it is called.
SUFFIXES = set(
    ".aif .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .w64 .wav .wave".split()
)


# ------------------------------------------------------------------ reading


class SoundFile:
    """A sound file to read once from front to end, in one channel.

    Arguments
    ---------
    file : soundfile.SoundFile
        Opened for reading; see :func:`opened`.
    name : str
        For messages.
    channel : int, optional
        The channel to take, from 0.
    downmix : bool
        Take the mean of all channels.

    Raises
    ------
    UserError
        The file has several channels and neither was asked for, or not that many.
    """

    def __init__(self, file, name: str, channel: int | None = None, downmix: bool = False):
        self.file, self.name = file, name
        self.channel = choose_channel(file.channels, channel, downmix, name)
        self.sample_rate = file.samplerate

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples, float32, [T] each; stops at what is damaged or not a number."""
        for place, block in read_blocks(self.file, self.name):
            block = block.mean(1) if self.channel is None else block[:, self.channel]
            check_finite(block, place, self.sample_rate, self.name)
            yield np.ascontiguousarray(block)


def read_blocks(file, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """All channels of an open sound file, float32 [T, C] each, and where in it they begin.

    Raises
    ------
    UserError
        The file breaks off.
    """
    place = 0
    while True:
        try:
            block = file.read(BLOCK, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise UserError(_damaged(name, place / file.samplerate)) from error
        if not len(block):
            break
        yield place, block
        place += len(block)
    # The header of an mp3 may only estimate the length.
    if place < file.frames and file.format not in ("MP3", "MPEG"):
        raise UserError(_damaged(name, place / file.samplerate))


class ForwardFile(soundfile.SoundFile):
    """A sound file that is read from its beginning to its end and never goes elsewhere.

    soundfile asks for its place, and goes there, around each read. Its mp3 decoder then
    begins anew in the midst of a frame and complains on standard error.
    """

    def seekable(self):
        """Nobody here goes back."""
        return False


def opened(path, name=None):
    """Open a sound file to read it once from front to end.

    Arguments
    ---------
    path : str or Path
        Anything that libsndfile reads: wav, flac, ogg, mp3 …
    name : str, optional
        For messages; the path by default.

    Returns
    -------
    contextmanager of ForwardFile
        Whatever is wrong with the file becomes a UserError.

    Example
    -------
    >>> with opened("no/such.wav"):
    ...     pass
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: no/such.wav: does not exist; a sound file was expected
    """
    return audio.opened(path, name, ForwardFile)


def choose_channel(channels: int, channel: int | None, downmix: bool, name: str):
    """The channel to take, or None for the mean of all; never a guess.

    Example
    -------
    >>> choose_channel(1, None, False, "a.wav")
    0
    >>> choose_channel(2, None, False, "a.wav")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: a.wav: has 2 channels, the model takes one; choose ...
    """
    if downmix and channel is not None:
        raise UserError("channel and downmix: give one of the two")
    if downmix:
        return None
    if channel is None and channels > 1:
        raise UserError(
            f"{name}: has {channels} channels, the model takes one; "
            f"choose one (channel, from 0 to {channels - 1}) or their mean (downmix)"
        )
    if channel is not None and not 0 <= channel < channels:
        raise UserError(
            f"{name}: has {channels} channel{'s' * (channels > 1)}, counted from 0; "
            f"there is no channel {channel}"
        )
    return channel or 0


def check_finite(signal: np.ndarray, place: int, sample_rate: int, name: str) -> None:
    """Stop at the first sample that is no number or infinite, and say where it is."""
    is_finite = np.isfinite(signal)
    if not is_finite.all():
        first = int(np.argmin(is_finite))
        raise UserError(
            f"{name}: sample {place + first} (at {(place + first) / sample_rate:.3f} s) is "
            f"{signal[first]}; a sound has finite samples only. Mend the file or cut it out"
        )


def _damaged(name: str, seconds: float) -> str:
    return f"{name}: is damaged, it breaks off at {seconds:.2f} s; get the file again"


# ------------------------------------------------------------------ other rates


def resampled(blocks: Iterable[np.ndarray], from_rate, to_rate, n_signals: int = 1):
    """Change the sampling rate of a signal that comes in blocks, by soxr (VHQ).

    The same samples as soxr gives for the whole signal, whatever the blocks.

    Arguments
    ---------
    blocks : iterable of np.ndarray
        float32, [T] each, or [J, T] where `n_signals` is given.
    from_rate, to_rate : int
        Hz.
    n_signals : int
        Signals J.

    Returns
    -------
    iterator of np.ndarray
        The blocks themselves if the rates agree.

    Example
    -------
    >>> blocks = [np.zeros(100, dtype=np.float32)] * 4
    >>> sum(len(block) for block in resampled(blocks, 16000, 8000))
    200
    """
    if from_rate == to_rate:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(from_rate, to_rate, n_signals, "float32", quality="VHQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block.T)).T
    nothing = np.zeros((0,) if n_signals == 1 and block.ndim == 1 else (0, n_signals), "f4")
    yield stream.resample_chunk(nothing, last=True).T


def exactly(blocks: Iterable[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """Cut the end of signals [J, T] that come in blocks, or add zeros to it.

    Example
    -------
    >>> [block.shape for block in exactly([np.ones((2, 3)), np.ones((2, 3))], 4)]
    [(2, 3), (2, 1)]
    >>> [block.shape for block in exactly([np.ones((2, 3))], 4)]
    [(2, 3), (2, 1)]
    """
    missing = samples
    for block in blocks:
        if missing:
            yield block[:, :missing]
        missing = max(missing - block.shape[1], 0)
    if missing:
        yield np.zeros((len(block), missing), block.dtype)


# ------------------------------------------------------------------ writing


class Writer:
    """Writes signals that come in blocks, a wav file each, all whole or none.

    Signals of several channels, [E, T] each, become files of as many.

    Arguments
    ---------
    paths : list of Path
        One per signal.
    sample_rate : int
        Hz.
    samples : int
        How long they will be.
    subtype : str
        ``"float"`` (32 bit: no level is ever changed) or ``"pcm16"`` (16 bit: if a peak
        lies beyond full scale, all signals are turned down by the same factor).

    Example
    -------
    >>> path = Path(getfixture("tmpdir")) / "loud.wav"
    >>> writer = Writer([path], 8000, 2, "pcm16")
    >>> writer.write([np.array([[0.5, -2.0]], dtype=np.float32)])
    >>> soundfile.read(path)[0].round(3).tolist(), round(writer.turned_down_db, 1)
    ([0.25, -1.0], 6.0)
    """

    def __init__(self, paths, sample_rate: int, samples: int, subtype: str = "float"):
        self.paths = [Path(path) for path in paths]
        self.sample_rate, self.samples, self.subtype = sample_rate, samples, subtype
        self.turned_down_db = 0.0

    def write(self, blocks: Iterable[np.ndarray]) -> None:
        """Write all blocks, [J, T] or [J, E, T] each.

        Raises
        ------
        UserError
            A file cannot be written; then none is there.
        """
        with ExitStack() as stack:
            finals = [stack.enter_context(atomic_path(path)) for path in self.paths]
            if self.subtype == "float":
                self._write(finals, blocks, "float")
                return
            # A peak is known at the end only: first as floats, under other names.
            folder = self.paths[0].parent
            floats = [stack.enter_context(_temporary(folder)) for _ in finals]
            peak = self._write(floats, blocks, "float")
            gain = min(1.0, FULL_SCALE / peak) if peak > 0 else 1.0
            self.turned_down_db = float(-20 * np.log10(gain))
            self._write(finals, self._read(floats, gain), "pcm16")

    def _write(self, names, blocks, subtype: str) -> float:
        """Write the blocks under these names; the largest magnitude in them."""
        blocks = iter(blocks)
        first = next(blocks)
        channels = first.shape[1] if first.ndim == 3 else 1
        peak, width = 0.0, channels * (4 if subtype == "float" else 2)
        kind = "WAV" if self.samples * width < LARGEST_WAV else "RF64"
        with ExitStack() as stack:
            files = [
                stack.enter_context(
                    soundfile.SoundFile(
                        os.fspath(name),
                        "w",
                        self.sample_rate,
                        channels,
                        SUBTYPES[subtype],
                        format=kind,
                    )
                )
                for name in names
            ]
            for block in itertools.chain([first], blocks):
                peak = max(peak, float(np.abs(block).max(initial=0.0)))
                for file, signal in zip(files, block, strict=True):
                    _write_block(file, signal, subtype)
        return peak

    def _read(self, names, gain: float) -> Iterator[np.ndarray]:
        """The blocks again, with a gain."""
        with ExitStack() as stack:
            files = [stack.enter_context(soundfile.SoundFile(os.fspath(n))) for n in names]
            while len((block := [f.read(BLOCK, dtype="float32") for f in files])[0]):
                # soundfile has the channels last; one is none.
                yield gain * np.stack([signal.T for signal in block])


def _write_block(file, signal, subtype: str) -> None:
    """Write a block; a full disk is an OSError."""
    if subtype == "pcm16":
        # soundfile writes x * 32767 and reads n / 32768; rounding here keeps the level.
        signal = np.rint(signal.astype(np.float64) * 32768).clip(-32768, 32767)
        signal = signal.astype(np.int16)
    try:
        file.write(np.ascontiguousarray(signal.T))
    except (RuntimeError, AssertionError) as error:
        raise OSError("the disk is full, or the file cannot grow") from error


@contextmanager
def _temporary(folder: Path):
    """A name for a file that is gone after the block."""
    import uuid

    path = folder / f".{uuid.uuid4().hex}.float"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
