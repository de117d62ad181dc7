"""What all that takes recordings has in common: how it is loaded, called and cut to size.

Axes: J signals, T samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from unified_se_ss.errors import UserError
from unified_se_ss.inference.models import load_model
from unified_se_ss.inference.recordings import Recording

CHUNK_SECONDS = 20.0
OVERLAP_SECONDS = 4.0
TASKS = ("separate", "enhance", "recognise")

Loaded = TypeVar("Loaded", bound="Interface")


class Interface(ABC):
    """A trained model that takes recordings as people have them.

    A class for a kind of models says what it does by default (`task`), how many signals
    that gives (`n_signals`), and how a recording becomes files (`_into_files`); one that
    needs all channels says how a file is read, too (`_sound`).

    Arguments
    ---------
    model : Model
        From :func:`~unified_se_ss.inference.models.load_model`.
    """

    task: str

    def __init__(self, model):
        self.model = model
        self.sample_rate: int = model.sample_rate

    @classmethod
    def from_folder(
        cls: type[Loaded], path, device=None, precision=None, **options
    ) -> Loaded:
        """Load one from an exported folder or a run's folder.

        Of a recogniser's run the weights are the means over its best checkpoints, as
        many as its test took.

        Arguments
        ---------
        path : str or Path
            The folder.
        device : str or torch.device, optional
            By default a GPU if there is one.
        precision : str, optional
            ``"fp32"`` (default), ``"bf16"`` or ``"fp16"``; a search for words is fp32.
        **options
            Those of the class.
        """
        return cls(load_model(path, device, precision), **options)

    def __str__(self):
        return str(self.model)

    def separate_file(
        self,
        path,
        outputs: list,
        task: str | None = None,
        channel: int | None = None,
        downmix: bool = False,
        subtype: str = "float",
        progress: Callable[[float], None] | None = None,
        name: str | None = None,
    ) -> FileResult:
        """Separate, enhance or recognise a sound file into files.

        Memory does not grow with the length, unless the class says so.

        Arguments
        ---------
        path : str or Path
            Anything that libsndfile reads: in one channel or one to choose, for a
            binaural model in two, for a guided one in two or all microphones.
        outputs : list of str or Path
            A wav file for each signal, of a binaural model a stereo file. For
            ``"recognise"`` the text file, and a wav file for the enhanced signal where
            one is wanted. Those that exist are replaced.
        task : str
            ``"separate"``, ``"enhance"`` or ``"recognise"``; by default what the class is
            for.
        channel : int, optional
            The channel to take, from 0, where there are several. Refused by binaural and
            guided models, which need all.
        downmix : bool
            Take the mean of the channels instead.
        subtype : str
            ``"float"`` or ``"pcm16"``; see
            :class:`~unified_se_ss.inference.sound_files.Writer`.
        progress : callable, optional
            Is told the seconds of sound that were worked on since it was told last.
        name : str, optional
            The file's name for messages.

        Returns
        -------
        FileResult
            Of a recogniser a RecognitionResult.

        Raises
        ------
        UserError
            The model was not made for the task, the file is empty, damaged, not finite or
            has several channels and none was chosen, or an output cannot be written; then
            none is there.
        """
        task = self.task if task is None else task
        if task not in TASKS:
            raise UserError(f"task: is {task!r}; expected one of {', '.join(TASKS)}")
        self.n_signals(task)
        outputs = [Path(output) for output in outputs]
        sound = self._sound(path, channel, downmix, name or str(path))
        return self._into_files(sound, outputs, task, subtype, progress)

    @abstractmethod
    def n_signals(self, task: str) -> int:
        """How many signals a task gives; a UserError where the model cannot do it."""

    def _sound(self, path, channel, downmix: bool, name: str) -> Recording:
        """The recording that a sound file holds."""
        return Recording.of_file(path, channel, downmix, name)

    @abstractmethod
    def _into_files(self, sound: Recording, outputs, task, subtype, progress):
        """Do the task, write the outputs, and say what was done."""


@dataclass
class FileResult:
    """What was done to a file.

    Arguments
    ---------
    seconds : float
        Its length.
    sample_rate : int
        Hz.
    chunks : int
        Pieces that the network heard.
    gains : list of float
        What each output of the network was multiplied by.
    full_scale_samples : int
        Samples of the input at full scale or beyond: clipped, most likely.
    turned_down_db : float
        By how much all outputs were turned down to fit into 16 bit; 0 if they did.
    """

    seconds: float
    sample_rate: int
    chunks: int
    gains: list
    full_scale_samples: int
    turned_down_db: float

    @classmethod
    def of(cls, sound: Recording, writer, **others):
        """What the recording and the writer of its outputs tell, and what else there is."""
        return cls(
            seconds=sound.seconds,
            sample_rate=sound.sample_rate,
            full_scale_samples=sound.full_scale_samples,
            turned_down_db=writer.turned_down_db,
            **others,
        )


# ------------------------------------------------------------------ pieces of a recording


def chunk_and_overlap(model, chunk_seconds: float, overlap_seconds: float):
    """Samples of a chunk, and of the least overlap of two; a clear word where none can be.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(sample_rate=8000, minimum_samples=16)
    >>> chunk_and_overlap(model, 20.0, 4.0)
    (160000, 32000)
    >>> chunk_and_overlap(model, 5.0, 4.0)
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: overlap_seconds: is 4; expected at most half of \
chunk_seconds, 5
    """
    chunk = _samples("chunk_seconds", chunk_seconds, model.sample_rate)
    overlap = _samples("overlap_seconds", overlap_seconds, model.sample_rate)
    if overlap > chunk // 2:
        raise UserError(
            f"overlap_seconds: is {overlap_seconds:g}; expected at most half of "
            f"chunk_seconds, {chunk_seconds:g}"
        )
    if chunk < model.minimum_samples:
        raise UserError(
            f"chunk_seconds: is {chunk_seconds:g}; the model needs at least "
            f"{model.minimum_samples / model.sample_rate:g}"
        )
    return chunk, overlap


def _samples(key: str, seconds: float, sample_rate: int) -> int:
    """Seconds in samples, at least two."""
    samples = int(seconds * sample_rate) if np.isfinite(seconds) else 0
    if samples < 2:
        raise UserError(f"{key}: is {seconds:g}; expected seconds, more than 0")
    return samples


@contextmanager
def enough_memory(piece: str, remedy: str):
    """Say what to do where a piece of a recording does not fit into memory.

    Example
    -------
    >>> with enough_memory("a.wav: a chunk", "take shorter ones (chunk_seconds)"):
    ...     raise MemoryError
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: a.wav: a chunk needs more memory than there is; take \
shorter ones (chunk_seconds)
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(f"{piece} needs more memory than there is; {remedy}") from error


def check_output(signals: np.ndarray, name: str) -> None:
    """Stop at what no network gives that has learnt anything."""
    if not np.isfinite(signals).all():
        raise UserError(
            f"{name}: the model's output is not finite; its training has diverged"
        )
