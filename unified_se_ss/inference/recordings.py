"""Recordings as people give them: a sound file, an array or a tensor, gone through in blocks.

Axes: C channels, T samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from unified_se_ss.errors import UserError
from unified_se_ss.inference.sound_files import (
    BLOCK,
    FULL_SCALE,
    SoundFile,
    check_finite,
    choose_channel,
    opened,
    resampled,
)

# ------------------------------------------------------------------ one recording


@dataclass
class Recording:
    """A sound to go through as often as one likes.

    Arguments
    ---------
    read : callable
        Gives its samples from the beginning, float32 blocks [T], or [C, T].
    sample_rate : int
        Hz.
    name : str
        For messages.
    channels : int
        Channels C of its blocks.

    Attributes
    ----------
    samples, full_scale_samples : int
        How many there are, and how many at full scale; known once all were given.

    Example
    -------
    >>> sound = Recording.of_samples(np.array([0.5, 1.0, 0.0]), 8000).looked_at()
    >>> sound.samples, sound.full_scale_samples
    (3, 1)
    """

    read: Callable[[], Iterator[np.ndarray]]
    sample_rate: int
    name: str = "the recording"
    channels: int = 1
    samples: int = 0
    full_scale_samples: int = 0

    @classmethod
    def of(cls, recording, sample_rate, channel, downmix: bool) -> Recording:
        """One channel of an array, a tensor or the sound file of a path."""
        if isinstance(recording, (str, os.PathLike)):
            sound = cls.of_file(recording, channel, downmix)
            check_rate_of_file(recording, sound.sample_rate, sample_rate)
            return sound
        samples = as_samples(recording, sample_rate, channel, downmix)
        return cls.of_samples(samples, sample_rate)

    @classmethod
    def of_samples(cls, samples: np.ndarray, sample_rate: int) -> Recording:
        """Samples [T] or [C, T] in memory."""

        def read():
            starts = range(0, samples.shape[-1], BLOCK)
            return (samples[..., at : at + BLOCK] for at in starts)

        channels = 1 if samples.ndim == 1 else len(samples)
        return cls(read, sample_rate, channels=channels)

    @classmethod
    def of_file(cls, path, channel, downmix: bool, name: str | None = None) -> Recording:
        """One channel of a sound file, which is opened anew for each time."""
        name = name or str(path)

        def read():
            with opened(path, name) as file:
                yield from SoundFile(file, name, channel, downmix).blocks()

        with opened(path, name) as file:
            rate = SoundFile(file, name, channel, downmix).sample_rate
        return cls(read, rate, name)

    @property
    def seconds(self) -> float:
        """Its length."""
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

    def looked_at(self) -> Recording:
        """Itself, counted, which finds what cannot be read."""
        for _ in self.blocks():
            pass
        return self


# ------------------------------------------------------------------ what was given


def as_samples(recording, sample_rate, channel, downmix: bool) -> np.ndarray:
    """One channel of an array or tensor as float32, [T]; a clear word where it is none.

    Example
    -------
    >>> as_samples(np.zeros((2, 3)), 8000, None, True)
    array([0., 0., 0.], dtype=float32)
    >>> as_samples([0, 1], 8000, None, False)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: the recording is a list; expected an array, ...
    """
    name = "the recording"
    _check_rate(sample_rate)
    samples = _as_array(recording)
    if samples.ndim not in (1, 2):
        raise UserError(
            f"{name} has the shape {samples.shape}; expected [T] or [C, T], one at a time"
        )
    samples = np.atleast_2d(samples)
    if samples.shape[0] > samples.shape[1] > 0:
        raise UserError(
            f"{name} has the shape {samples.shape}: more channels than samples; "
            "expected [C, T], so transpose it"
        )
    chosen = choose_channel(len(samples), channel, downmix, name)
    samples = samples.mean(0) if chosen is None else samples[chosen]
    if not len(samples):
        raise UserError(f"{name}: is empty (0 samples)")
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    check_finite(samples, 0, sample_rate, name)
    return samples


def as_given(signals: np.ndarray, recording):
    """Signals as the recording was given: array or tensor, of its type, on its device.

    Of a file they stay what they are.
    """
    if isinstance(recording, torch.Tensor):
        return torch.from_numpy(signals).to(recording.device, recording.dtype)
    if isinstance(recording, np.ndarray):
        return signals.astype(recording.dtype, copy=False)
    return signals


def check_rate_of_file(path, own: int, given: int | None) -> None:
    """Stop at a sampling rate that is not the file's own."""
    if given not in (None, own):
        raise UserError(
            f"{path}: has {own} Hz, not {given} Hz; leave the sampling rate out"
        )


def _check_rate(sample_rate) -> None:
    """Samples are worth nothing without their sampling rate."""
    is_rate = isinstance(sample_rate, (int, np.integer)) and not isinstance(
        sample_rate, bool
    )
    if not is_rate or sample_rate <= 0:
        raise UserError(
            f"sample_rate: is {sample_rate!r}; samples need their sampling rate, a whole "
            "number of Hz"
        )


def _as_array(recording) -> np.ndarray:
    """The floating-point samples of an array or tensor."""
    if isinstance(recording, torch.Tensor) and recording.is_floating_point():
        return recording.detach().cpu().float().numpy()
    if not isinstance(recording, (np.ndarray, torch.Tensor)):
        raise UserError(
            f"the recording is a {type(recording).__name__}; expected an array, a tensor "
            "or the path of a sound file"
        )
    if isinstance(recording, torch.Tensor) or recording.dtype.kind != "f":
        raise UserError(
            f"the recording's samples are {recording.dtype}; expected floating-point "
            "samples within ±1 (divide 16 bit samples by 32768)"
        )
    return recording
