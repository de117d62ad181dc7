"""Separate and enhance recordings of any length, rate and kind.

Axes: B batch, C channels, T samples, J sources.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from unified_se_ss.errors import UserError
from unified_se_ss.inference.chunks import Stitcher, cut
from unified_se_ss.inference.gain import (
    HEARD_LEVEL,
    LevelFit,
    consistent,
    gain_to,
    scaled,
)
from unified_se_ss.inference.interface import (
    CHUNK_SECONDS,
    OVERLAP_SECONDS,
    FileResult,
    Interface,
    check_output,
    chunk_and_overlap,
    enough_memory,
)
from unified_se_ss.inference.recordings import Recording, as_given
from unified_se_ss.inference.sound_files import Writer, exactly, resampled


class Separator(Interface):
    """A trained model that takes recordings as people have them.

    What comes out is as long as what went in, to the sample, at its sampling rate and
    at its level (:class:`~unified_se_ss.inference.gain.LevelFit`), without an offset.
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

    task = "separate"

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
        super().__init__(model)
        self.mixture_consistency = mixture_consistency
        self.chunk, self.overlap = chunk_and_overlap(model, chunk_seconds, overlap_seconds)

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
        if task == "recognise":
            raise UserError("this model has no recogniser; take separate or enhance")
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
        sound = Recording.of(recording, sample_rate, channel, downmix)
        job = Job(self, task, sound, [])
        job.hear()
        signals = np.empty((job.n_signals, sound.samples), dtype=np.float32)
        at = 0
        for block in job.signals():
            signals[:, at : at + block.shape[1]] = block
            at += block.shape[1]
        return as_given(signals, recording)

    # -------------------------------------------------------------- files

    def _into_files(self, sound, outputs, task, subtype, progress) -> FileResult:
        with ChunkFile(outputs[0].parent) as store:
            job = Job(self, task, sound, store)
            job.hear(progress)
            writer = Writer(outputs, sound.sample_rate, sound.samples, subtype)
            writer.write(job.signals())
        return FileResult.of(
            sound, writer, chunks=job.chunks, gains=job.fit.gains().tolist()
        )


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
    sound : Recording
    store : list or ChunkFile
        Takes ``(start, array)``, gives them back in order.
    """

    def __init__(self, separator, task: str, sound: Recording, store):
        self.separator, self.task, self.sound, self.store = separator, task, sound, store
        self.n_signals = separator.n_signals(task)
        self.fit = LevelFit(self.n_signals)
        self.chunks = 0

    def hear(self, progress=None) -> None:
        """First pass: the network over all chunks of the recording."""
        settings = self.separator
        rate = settings.sample_rate
        mixture = self.sound.at_rate(rate)
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
        rate, own = self.separator.sample_rate, self.sound.sample_rate
        back = resampled(self._stitched(), rate, own, self.n_signals)
        yield from exactly(back, self.sound.samples)

    def _run(self, mixture: np.ndarray) -> np.ndarray:
        """What the network makes of a chunk, [T] to [J, T], scaled as the chunk is."""
        scale = gain_to(HEARD_LEVEL, [mixture])
        samples = max(len(mixture), self.separator.model.minimum_samples)
        padded = np.zeros(samples, dtype=np.float32)
        padded[: len(mixture)] = scaled(scale, mixture)
        signals = self._heard(padded)[:, : len(mixture)]
        check_output(signals, self.sound.name)
        # Whoever is judged by SI-SNR may have any offset; speech has none.
        return (signals - signals.mean(1, keepdims=True, dtype=np.float64)) / scale

    def _heard(self, mixture: np.ndarray) -> np.ndarray:
        """The network over one chunk, on its device."""
        model = self.separator.model
        work = model.separate if self.task == "separate" else model.enhance
        with enough_memory(
            f"{self.sound.name}: a chunk", "take shorter ones (chunk_seconds)"
        ):
            output = work(torch.from_numpy(mixture).unsqueeze(0).to(model.device))
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
