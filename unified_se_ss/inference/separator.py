"""Separate and enhance recordings of any length, rate and kind.

Axes: B batch, C channels, T samples, J sources.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unified_se_ss.errors import UserError
from unified_se_ss.inference.chunks import Stitcher, cut
from unified_se_ss.inference.level import LevelFit, consistent
from unified_se_ss.inference.models import load_model
from unified_se_ss.inference.sound_files import (
    BLOCK,
    SoundFile,
    Writer,
    check_finite,
    choose_channel,
    exactly,
    opened,
    resampled,
)

CHUNK_SECONDS = 20.0
OVERLAP_SECONDS = 4.0
HEARD_LEVEL = 0.05  # root mean square; that of LibriMix's mixtures


class Separator:
    """A trained model that takes recordings as people have them.

    What comes out is as long as what went in, to the sample, at its sampling rate and
    at its level (:class:`~unified_se_ss.inference.level.LevelFit`), without an offset.
    The network hears everything at the level of LibriMix's mixtures. Signals longer than
    a chunk are worked on in overlapping chunks
    (:class:`~unified_se_ss.inference.chunks.Stitcher`), so that memory does not grow
    with their length.

    Arguments
    ---------
    model : Model
        From :func:`~unified_se_ss.inference.models.load_model`; of one channel.
    chunk_seconds : float
        Longest piece that the network hears at once.
    overlap_seconds : float
        Least overlap of two pieces, at most half a piece.
    mixture_consistency : bool
        Share out what the sources lack to the mixture, so that they add up to it (below
        half the model's sampling rate). Gives back what the model took for noise.

    Example
    -------
    >>> from functools import partial
    >>> from unified_se_ss.inference import Model
    >>> from unified_se_ss.networks import (
    ...     Decoder, DualPath, Encoder, Recurrent, UnifiedNetwork)
    >>> model = partial(Recurrent, n_features=8, hidden=4)
    >>> masks = partial(DualPath, model, model, n_basis=32, n_features=8,
    ...     blocks=1, chunk_length=10, linear_after=True)
    >>> network = UnifiedNetwork(
    ...     encoder=Encoder(32, 16, 8), enhancer=masks(n_sources=1),
    ...     separator=masks(n_sources=2), decoder=Decoder(32, 16, 8))
    >>> separator = Separator(Model(network, "unified", 8000, "cpu"))
    >>> print(separator)
    unified model, 2 sources, 8000 Hz, 4,826 parameters, on cpu in fp32
    >>> stereo = np.random.default_rng(0).standard_normal((2, 44100)).astype(np.float32)
    >>> separator.separate(stereo, 44100, downmix=True).shape
    (2, 44100)
    """

    def __init__(
        self,
        model,
        chunk_seconds: float = CHUNK_SECONDS,
        overlap_seconds: float = OVERLAP_SECONDS,
        mixture_consistency: bool = False,
    ):
        if model.channels != 1:
            raise UserError(
                f"the model takes {model.channels} channels; expected one (for a binaural "
                "model take BinauralSeparator of unified_se_ss.inference.binaural)"
            )
        self.model = model
        self.sample_rate: int = model.sample_rate
        self.mixture_consistency = mixture_consistency
        self.chunk = _samples("chunk_seconds", chunk_seconds, self.sample_rate)
        self.overlap = _samples("overlap_seconds", overlap_seconds, self.sample_rate)
        if self.overlap > self.chunk // 2:
            raise UserError(
                f"overlap_seconds: is {overlap_seconds:g}; expected at most half of "
                f"chunk_seconds, {chunk_seconds:g}"
            )
        if self.chunk < model.minimum_samples:
            raise UserError(
                f"chunk_seconds: is {chunk_seconds:g}; the model needs at least "
                f"{model.minimum_samples / self.sample_rate:g}"
            )

    @classmethod
    def from_folder(cls, path, device=None, precision=None, **options) -> Separator:
        """Load a separator from an exported folder or a run's folder.

        Arguments
        ---------
        path : str or Path
            The folder.
        device : str or torch.device, optional
            By default a GPU if there is one.
        precision : str, optional
            ``"fp32"`` (default), ``"bf16"`` or ``"fp16"``.
        **options
            Those of the class.
        """
        return cls(load_model(path, device, precision), **options)

    def __str__(self):
        return str(self.model)

    def n_signals(self, task: str) -> int:
        """How many signals a task gives.

        Raises
        ------
        UserError
            The model was not made for the task.
        """
        if task == "enhance":
            if not self.model.can_enhance:
                raise UserError("this model has no SE module; it cannot enhance")
            return 1
        if not self.model.n_sources:
            raise UserError("this model only enhances; it cannot separate")
        return self.model.n_sources

    # -------------------------------------------------------------- in memory

    def forward_wav(self, wav: torch.Tensor) -> torch.Tensor:
        """The network's sources as they come: its rate, its levels, no chunks.

        Arguments
        ---------
        wav : torch.Tensor
            Mixtures at ``sample_rate``, [B, T], or one, [T].

        Returns
        -------
        torch.Tensor
            [B, J, T], or [J, T].
        """
        mixtures = wav if wav.dim() > 1 else wav.unsqueeze(0)
        sources = self.model.separate(mixtures.to(self.model.device))
        return sources if wav.dim() > 1 else sources.squeeze(0)

    def separate(self, recording, sample_rate=None, channel=None, downmix: bool = False):
        """Separate one recording.

        Arguments
        ---------
        recording : np.ndarray, torch.Tensor, str or Path
            Floating-point samples within ±1, [T] or [C, T], or a sound file.
        sample_rate : int
            Of the samples, in Hz; a file has its own.
        channel : int, optional
            The channel to take, from 0, where there are several.
        downmix : bool
            Take the mean of the channels instead.

        Returns
        -------
        np.ndarray or torch.Tensor
            [J, T]: an array for an array (of its type) and for a file (float32), a
            tensor for a tensor (of its type, on its device).

        Raises
        ------
        UserError
            The recording is empty, damaged, not finite, or has several channels and
            none was chosen.
        """
        return self._in_memory("separate", recording, sample_rate, channel, downmix)

    def enhance(self, recording, sample_rate=None, channel=None, downmix: bool = False):
        """Denoise one recording: as :meth:`separate`, but the result is [T]."""
        return self._in_memory("enhance", recording, sample_rate, channel, downmix)[0]

    def stream(self):
        """Separate a signal while it is being made; for causal models alone.

        Raises
        ------
        UserError
            The model needs the whole signal before it can give a first sample.
        """
        if self.model.causal:
            raise UserError("this model is causal, but nothing here can stream it")
        raise UserError(
            "this model is not causal: each sample of its output depends on all of its "
            "input, so it cannot take a stream. Long recordings are worked on in chunks "
            "by separate and enhance"
        )

    def _in_memory(self, task: str, recording, sample_rate, channel, downmix):
        if isinstance(recording, (str, os.PathLike)):
            with opened(recording) as file:
                if sample_rate not in (None, file.samplerate):
                    raise UserError(
                        f"{recording}: has {file.samplerate} Hz, not {sample_rate} Hz; "
                        "leave the sampling rate out"
                    )
                sound = SoundFile(file, str(recording), channel, downmix)
                return self._gathered(task, sound.blocks(), sound.sample_rate)
        samples = as_samples(recording, sample_rate, channel, downmix)
        blocks = (samples[at : at + BLOCK] for at in range(0, len(samples), BLOCK))
        signals = self._gathered(task, blocks, sample_rate)
        if isinstance(recording, torch.Tensor):
            return torch.from_numpy(signals).to(recording.device, recording.dtype)
        return signals.astype(recording.dtype, copy=False)

    def _gathered(self, task: str, blocks, sample_rate: int) -> np.ndarray:
        job = Job(self, task, sample_rate, [])
        job.hear(blocks)
        signals = np.empty((job.n_signals, job.samples), dtype=np.float32)
        at = 0
        for block in job.signals():
            signals[:, at : at + block.shape[1]] = block
            at += block.shape[1]
        return signals

    # -------------------------------------------------------------- files

    def separate_file(
        self,
        path,
        outputs: list,
        task: str = "separate",
        channel: int | None = None,
        downmix: bool = False,
        subtype: str = "float",
        progress: Callable[[float], None] | None = None,
        name: str | None = None,
    ) -> FileResult:
        """Separate or enhance a sound file into sound files, in bounded memory.

        Arguments
        ---------
        path : str or Path
            Anything that libsndfile reads.
        outputs : list of str or Path
            A wav file for each signal; those that exist are replaced.
        task : str
            ``"separate"`` or ``"enhance"``.
        channel, downmix : optional
            As for :meth:`separate`.
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

        Raises
        ------
        UserError
            The file is empty, damaged, not finite or has several channels and none was
            chosen, or an output cannot be written; then no output is there.
        """
        outputs = [Path(output) for output in outputs]
        with opened(path, name) as file, ChunkFile(outputs[0].parent) as store:
            sound = SoundFile(file, name or str(path), channel, downmix)
            job = Job(self, task, sound.sample_rate, store, sound.name)
            job.hear(sound.blocks(), progress)
            writer = Writer(outputs, sound.sample_rate, job.samples, subtype)
            writer.write(job.signals())
        return FileResult(
            seconds=job.samples / sound.sample_rate,
            sample_rate=sound.sample_rate,
            chunks=job.chunks,
            gains=job.fit.gains().tolist(),
            full_scale_samples=job.full_scale_samples,
            turned_down_db=writer.turned_down_db,
        )


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


# ------------------------------------------------------------------ one recording


class Job:
    """One recording through one model: heard once, then written.

    Levels can be told at the end only, so what the network gives is put by
    (:class:`ChunkFile`, or a list) and read again.

    Arguments
    ---------
    separator : Separator
    task : str
        ``"separate"`` or ``"enhance"``.
    sample_rate : int
        Of the recording, in Hz.
    store : list or ChunkFile
        Takes ``(start, array)``, gives them back in order.
    name : str
        Of the recording, for messages.
    """

    def __init__(self, separator, task: str, sample_rate: int, store, name="the recording"):
        self.separator, self.task, self.store, self.name = separator, task, store, name
        self.sample_rate = sample_rate
        self.n_signals = separator.n_signals(task)
        self.fit = LevelFit(self.n_signals)
        self.samples = self.chunks = self.full_scale_samples = 0

    def hear(self, blocks: Iterable[np.ndarray], progress=None) -> None:
        """First pass: the network over all chunks of the recording, [T] blocks."""
        settings = self.separator
        rate = settings.sample_rate
        mixture = resampled(self._counted(blocks), self.sample_rate, rate)
        for chunk in cut(mixture, settings.chunk, settings.overlap, rate):
            signals = self._run(chunk.signal)
            self.fit.add(signals[:, chunk.fresh :], chunk.signal[chunk.fresh :])
            together = np.concatenate((signals, chunk.signal[None])).astype(np.float32)
            self.store.append((chunk.start, together))
            self.chunks += 1
            if progress:
                progress((len(chunk.signal) - chunk.fresh) / rate)

    def signals(self) -> Iterator[np.ndarray]:
        """Second pass: the finished signals at the recording's rate, [J, T] blocks."""
        stitched = self._stitched()
        back = resampled(
            stitched, self.separator.sample_rate, self.sample_rate, self.n_signals
        )
        yield from exactly(back, self.samples)

    def _counted(self, blocks) -> Iterator[np.ndarray]:
        for block in blocks:
            self.samples += len(block)
            self.full_scale_samples += int((np.abs(block) >= 1 - 2**-15).sum())
            yield block
        if not self.samples:
            raise UserError(f"{self.name}: is empty (0 samples)")

    def _run(self, mixture: np.ndarray) -> np.ndarray:
        """What the network makes of a chunk, [T] to [J, T], scaled as the chunk is."""
        level = float(np.sqrt(np.square(mixture, dtype=np.float64).mean()))
        scale = HEARD_LEVEL / level if level > 0 else 1.0
        samples = max(len(mixture), self.separator.model.minimum_samples)
        padded = np.zeros(samples, dtype=np.float32)
        padded[: len(mixture)] = scale * mixture.astype(np.float64)
        signals = self._heard(padded)[:, : len(mixture)]
        if not np.isfinite(signals).all():
            raise UserError(
                f"{self.name}: the model's output is not finite; its training has diverged"
            )
        # Whoever is judged by SI-SNR may have any offset; speech has none.
        return (signals - signals.mean(1, keepdims=True, dtype=np.float64)) / scale

    def _heard(self, mixture: np.ndarray) -> np.ndarray:
        """The network over one chunk, on its device."""
        model = self.separator.model
        work = model.separate if self.task == "separate" else model.enhance
        try:
            output = work(torch.from_numpy(mixture).unsqueeze(0).to(model.device))
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(
                f"{self.name}: a chunk needs more memory than there is; "
                "take shorter ones (chunk_seconds)"
            ) from error
        return output.reshape(self.n_signals, -1).float().cpu().numpy()

    def _stitched(self) -> Iterator[np.ndarray]:
        separator = self.separator
        gains = self.fit.gains().astype(np.float32)[:, None]
        stitcher = Stitcher(self.n_signals, separator.overlap, separator.sample_rate)
        for number, (start, stored) in enumerate(self.store, 1):
            signals = gains * stored[:-1]
            if separator.mixture_consistency and self.task == "separate":
                signals = consistent(signals, stored[-1])
            yield stitcher.add(start, signals, number == self.chunks)


class ChunkFile:
    """Arrays put by in a file without a name, read again in order.

    Example
    -------
    >>> with ChunkFile(getfixture("tmpdir")) as chunks:
    ...     chunks.append((0, np.ones((2, 3), dtype=np.float32)))
    ...     [(start, array.shape) for start, array in chunks]
    [(0, (2, 3))]
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._shapes: list[tuple] = []

    def __enter__(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.folder)
        except OSError as error:
            raise UserError(self._cannot(error)) from error
        return self

    def __exit__(self, *_):
        self._file.close()

    def append(self, item) -> None:
        start, array = item
        try:
            self._file.write(np.ascontiguousarray(array, dtype=np.float32).data)
        except OSError as error:
            raise UserError(self._cannot(error)) from error
        self._shapes.append((start, array.shape))

    def __iter__(self):
        self._file.seek(0)
        for start, shape in self._shapes:
            data = self._file.read(4 * shape[0] * shape[1])
            yield start, np.frombuffer(data, dtype=np.float32).reshape(shape)

    def _cannot(self, error) -> str:
        return (
            f"{self.folder}: cannot be written to ({error.strerror or error}); choose a "
            "folder with write permission and room on the disk"
        )


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


def _samples(key: str, seconds: float, sample_rate: int) -> int:
    """Seconds in samples, at least two."""
    samples = int(seconds * sample_rate) if np.isfinite(seconds) else 0
    if samples < 2:
        raise UserError(f"{key}: is {seconds:g}; expected seconds, more than 0")
    return samples
