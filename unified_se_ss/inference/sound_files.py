"""Recordings and sound files in blocks: read, resampled, written, never held as a whole.

Axes: C channels, T samples, J signals, E ears.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.audio import BLOCK
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path

SUBTYPES = {"float": "FLOAT", "pcm16": "PCM_16"}
LARGEST_WAV = 4_000_000_000  # bytes; beyond it RF64, the same with larger numbers
FULL_SCALE = 1 - 2**-15  # the largest 16 bit sample
MEAN = "mean"  # of all channels
ALL = slice(None)  # channels


# ------------------------------------------------------------------ reading


class _ForwardFile(soundfile.SoundFile):
    """A sound file that is read from its beginning to its end and never goes elsewhere.

    soundfile asks for its place, and goes there, around each read. Its mp3 decoder then
    begins anew in the midst of a frame and complains on standard error.
    """

    def seekable(self):
        return False


@dataclass
class Recording:
    """A sound file, an array or a tensor, to go through as often as needed.

    `read` gives its samples from the beginning, float32 blocks [T], or [C, T]. `samples` and
    `full_scale_samples` count those of all channels; they are known once all were read.
    """

    read: Callable[[], Iterator[np.ndarray]]
    sample_rate: int
    channels: int = 1
    name: str = "the recording"
    samples: int = 0
    full_scale_samples: int = 0

    @classmethod
    def of_file(cls, path, choose: Callable, name: str | None = None) -> Recording:
        """A sound file that libsndfile reads, opened anew for each time.

        Arguments
        ---------
        choose : callable
            From the number of channels and the name to what is taken: a channel's
            number, MEAN or ALL.
        name : str, optional
            For messages; by default the path.

        Raises
        ------
        UserError
            Here, or while it is read: missing, damaged, or not finite.

        Example
        -------
        >>> path = str(getfixture("tmpdir") / "ears.wav")
        >>> soundfile.write(path, np.array([[0.5, 1], [0, 0], [0.5, 0]]), 8000)
        >>> recording = Recording.of_file(path, lambda channels, name: 1)
        >>> [block.shape for block in recording.blocks()], recording.full_scale_samples
        ([(3,)], 1)
        """
        name = name or str(path)
        with audio.opened(path, name, _ForwardFile) as file:
            rate, channels = file.samplerate, file.channels
            chosen = choose(channels, name)

        def read():
            with audio.opened(path, name, _ForwardFile) as file:
                for start, block in audio.read_blocks(file, name):
                    block = _taken(block.T, chosen)
                    _check_finite(block, start, rate, name)
                    yield np.ascontiguousarray(block)

        return cls(read, rate, channels if chosen is ALL else 1, name)

    @classmethod
    def of_samples(cls, samples, sample_rate, choose: Callable) -> Recording:
        """An array or tensor, [T] or [C, T]; `choose` as for :meth:`of_file`."""
        _check_rate(sample_rate)
        samples = np.atleast_2d(_as_array(samples))
        if samples.shape[0] > max(samples.shape[1], 2) and samples.shape[1]:
            raise UserError(
                f"{cls.name} has the shape {samples.shape}: more channels than samples; "
                "expected [C, T], so transpose it"
            )
        chosen = choose(len(samples), cls.name)
        samples = np.ascontiguousarray(_taken(samples, chosen), dtype=np.float32)
        _check_finite(samples, 0, sample_rate, cls.name)

        def read():
            starts = range(0, samples.shape[-1], BLOCK)
            return (samples[..., start : start + BLOCK] for start in starts)

        return cls(read, sample_rate, 1 if samples.ndim == 1 else len(samples))

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    def blocks(self) -> Iterator[np.ndarray]:
        """Its samples from the beginning, which are counted on the way."""
        samples = full_scale_samples = 0
        for block in self.read():
            samples += block.shape[-1]
            full_scale_samples += int((np.abs(block) >= FULL_SCALE).sum())
            yield block
        if not samples:
            raise UserError(f"{self.name}: is empty (0 samples)")
        self.samples, self.full_scale_samples = samples, full_scale_samples

    def at_rate(self, rate: int) -> Iterator[np.ndarray]:
        """Its blocks at another sampling rate."""
        return resampled(self.blocks(), self.sample_rate, rate, self.channels)


def _taken(samples: np.ndarray, chosen) -> np.ndarray:
    return samples.mean(0) if chosen is MEAN else samples[chosen]


def choose_channel(channels: int, name: str, channel: int | None, downmix: bool):
    """The channel to take, or MEAN; never a guess."""
    if downmix and channel is not None:
        raise UserError("channel and downmix: give one of the two")
    if downmix:
        return MEAN
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


def _check_finite(signal: np.ndarray, start: int, sample_rate: int, name: str) -> None:
    """Stop at the first sample that is no number or infinite, and say where it is."""
    for number, channel in enumerate(np.atleast_2d(signal)):
        is_finite = np.isfinite(channel)
        if not is_finite.all():
            first = int(np.argmin(is_finite))
            where = name if signal.ndim == 1 else f"{name}, channel {number}"
            raise UserError(
                f"{where}: sample {start + first} (at {(start + first) / sample_rate:.3f} "
                f"s) is {channel[first]}; expected finite samples only. Mend the file or "
                "cut it out"
            )


def _check_rate(sample_rate) -> None:
    is_rate = isinstance(sample_rate, (int, np.integer)) and not isinstance(
        sample_rate, bool
    )
    if not is_rate or sample_rate <= 0:
        raise UserError(
            f"sample_rate: is {sample_rate!r}; samples need their sampling rate, a whole "
            "number of Hz"
        )


def _as_array(recording) -> np.ndarray:
    name = Recording.name
    if not isinstance(recording, (np.ndarray, torch.Tensor)):
        raise UserError(
            f"{name} is a {type(recording).__name__}; expected an array, a tensor "
            "or the path of a sound file"
        )
    if isinstance(recording, torch.Tensor) and recording.is_floating_point():
        recording = recording.detach().cpu().float().numpy()
    if isinstance(recording, torch.Tensor) or recording.dtype.kind != "f":
        raise UserError(
            f"{name}'s samples are {recording.dtype}; expected floating-point "
            "samples within ±1 (divide 16 bit samples by 32768)"
        )
    if recording.ndim not in (1, 2):
        raise UserError(
            f"{name} has the shape {recording.shape}; expected [T] or [C, T], one at a time"
        )
    return recording


def as_given(signals: np.ndarray, recording):
    """Signals as the recording was given: array or tensor, of its type, on its device.

    Of a file they stay what they are.
    """
    if isinstance(recording, torch.Tensor):
        return torch.from_numpy(signals).to(recording.device, recording.dtype)
    if isinstance(recording, np.ndarray):
        return signals.astype(recording.dtype, copy=False)
    return signals


# ------------------------------------------------------------------ other rates


def resampled(blocks: Iterable[np.ndarray], from_rate, to_rate, n_signals: int = 1):
    """Change the sampling rate of blocks [T] or [J, T], float32, by soxr (VHQ).

    The same samples as soxr gives for the whole signal, whatever the blocks; the blocks
    themselves if the rates agree.

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
    nothing = np.zeros((0, n_signals)[: block.ndim], "f4")
    yield stream.resample_chunk(nothing, last=True).T


def exactly(blocks: Iterable[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """Cut the end of signals [J, T] that come in blocks, or add zeros to it."""
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
        """Write all blocks, [J, T] each, or [J, E, T] for files of E channels.

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
            floats = [stack.enter_context(_temporary(path)) for path in self.paths]
            peak = self._write(floats, blocks, "float")
            gain = min(1.0, FULL_SCALE / peak) if peak > 0 else 1.0
            self.turned_down_db = float(-20 * np.log10(gain))
            self._write(finals, _read_again(floats, gain), "pcm16")

    def _write(self, names, blocks, subtype: str) -> float:
        """Write the blocks under these names; the largest magnitude in them."""
        blocks = iter(blocks)
        first = next(blocks)
        channels = first.shape[1] if first.ndim == 3 else 1
        peak, width = 0.0, channels * (4 if subtype == "float" else 2)
        kind = "WAV" if self.samples * width < LARGEST_WAV else "RF64"
        how = {"samplerate": self.sample_rate, "channels": channels, "format": kind}
        how["subtype"] = SUBTYPES[subtype]
        with ExitStack() as stack:
            files = [
                stack.enter_context(soundfile.SoundFile(os.fspath(name), "w", **how))
                for name in names
            ]
            for block in itertools.chain([first], blocks):
                peak = max(peak, float(np.abs(block).max(initial=0.0)))
                for file, signal in zip(files, block, strict=True):
                    _write_block(file, signal, subtype)
        return peak


def _read_again(names, gain: float) -> Iterator[np.ndarray]:
    """The blocks of several files, with a gain."""
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
def _temporary(path: Path):
    """A name beside a file, of one that is gone after the block."""
    import uuid

    temporary = path.with_name(f".{uuid.uuid4().hex}.float")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
