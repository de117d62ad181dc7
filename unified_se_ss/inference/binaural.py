"""Separate binaural recordings of any length and rate into what both ears hear of each talker.

Axes: B batch, J sources, E ears (left, right), T samples.
"""

from __future__ import annotations

import os

import numpy as np
import torch

from unified_se_ss.errors import UserError
from unified_se_ss.inference.chunks import Stitcher, cut
from unified_se_ss.inference.gain import HEARD_LEVEL, consistent, gain_to, scaled
from unified_se_ss.inference.interface import (
    CHUNK_SECONDS,
    OVERLAP_SECONDS,
    FileResult,
    Interface,
    check_output,
    chunk_and_overlap,
)
from unified_se_ss.inference.recordings import Recording, as_given, check_rate_of_file
from unified_se_ss.inference.sound_files import (
    BLOCK,
    Writer,
    check_finite,
    exactly,
    opened,
    read_blocks,
    resampled,
)

EARS = 2


class BinauralSeparator(Interface):
    """A trained binaural model that takes recordings as people have them.

    A recording has two channels, left ear first. What comes out is as long as what went
    in, to the sample, at its sampling rate. Levels are the model's own, those of the
    talkers in the mixture: no ear, no talker and no chunk gets a gain of its own, which
    would move the talkers. The network hears everything at the level of LibriMix's
    mixtures.

    A causal model works through the recording as a stream. Others hear a long one in
    overlapping chunks, whose talkers are matched where they overlap
    (:class:`~unified_se_ss.inference.chunks.Stitcher`). The recording is held in memory.

    Arguments
    ---------
    model : Model
        From :func:`~unified_se_ss.inference.models.load_model`, of kind ``binaural``.
    chunk_seconds : float
        Longest piece that the network hears at once, unless it is causal.
    overlap_seconds : float
        Least overlap of two pieces, at most half a piece.
    mixture_consistency : bool
        Share out what the talkers lack to the mixture, so that they add up to it (below
        half the model's sampling rate). Gives back what the model took for noise.

    Example
    -------
    >>> from unified_se_ss.inference import Model
    >>> from unified_se_ss.networks import BinauralNetwork
    >>> network = BinauralNetwork("mimo", blocks=2, repeats=1)
    >>> separator = BinauralSeparator(Model(network, "binaural", 8000, "cpu"))
    >>> ears = np.random.default_rng(0).standard_normal((2, 44100)).astype(np.float32)
    >>> separator.separate(ears, 44100).shape
    (2, 2, 44100)
    """

    task = "separate"

    def __init__(
        self,
        model,
        chunk_seconds: float = CHUNK_SECONDS,
        overlap_seconds: float = OVERLAP_SECONDS,
        mixture_consistency: bool = False,
    ):
        if model.kind != "binaural":
            raise UserError(f"the model is of kind {model.kind}; expected binaural")
        super().__init__(model)
        self.mixture_consistency = mixture_consistency
        self.chunk, self.overlap = chunk_and_overlap(model, chunk_seconds, overlap_seconds)

    def n_signals(self, task: str) -> int:
        """How many signals of two ears a task gives.

        Raises
        ------
        UserError
            The task is another than ``"separate"``.
        """
        if task != "separate":
            raise UserError(f"this model only separates; it cannot {task}")
        return self.model.n_sources

    def stream(self):
        """Separate a signal while it is being made; for causal models alone.

        Returns
        -------
        unified_se_ss.networks.binaural_stream.BinauralStream
            Takes blocks [1, 2, T] of any length at the model's rate and device, and gives
            [1, J, 2, T']. Joined, they are what the network gives at once.

        Raises
        ------
        UserError
            The model needs the whole signal before it can give a first sample.
        """
        if not self.model.causal:
            raise UserError(
                "this model is not causal: each sample of its output depends on all of its "
                "input, so it cannot take a stream; train one with causal: True"
            )
        return self.model.network.stream()

    # -------------------------------------------------------------- recordings

    def separate(self, recording, sample_rate: int | None = None):
        """Separate one recording.

        Arguments
        ---------
        recording : np.ndarray, torch.Tensor, str or Path
            Floating-point samples within ±1, [2, T], or a sound file of two channels.
        sample_rate : int
            Of the samples, in Hz; a file has its own.

        Returns
        -------
        np.ndarray or torch.Tensor
            [J, 2, T]: an array for an array (of its type) and for a file (float32), a
            tensor for a tensor (of its type, on its device).

        Raises
        ------
        UserError
            The recording is empty, damaged, not finite, or has not two channels.
        """
        if isinstance(recording, (str, os.PathLike)):
            samples, rate = read_ears(recording)
            check_rate_of_file(recording, rate, sample_rate)
            return self._separated(samples, rate)
        name = "the recording"
        is_tensor = isinstance(recording, torch.Tensor)
        samples = recording.detach().cpu().numpy() if is_tensor else np.asarray(recording)
        if samples.dtype.kind != "f" or not sample_rate:
            raise UserError(
                f"{name} is {samples.dtype} at {sample_rate} Hz; expected floating-point "
                "samples within ±1 and their sampling rate"
            )
        check_ears(samples, name)
        signals = self._separated(samples.astype(np.float32), sample_rate)
        return as_given(signals, recording if is_tensor else samples)

    def _sound(self, path, channel, downmix, name) -> Recording:
        if channel is not None or downmix:
            raise UserError(
                "channel and downmix: a binaural model needs both ears; leave them out"
            )
        samples, rate = read_ears(path, name)
        return Recording(lambda: iter([samples]), rate, name, EARS)  # one block: held whole

    def _into_files(self, sound, outputs, task, subtype, progress) -> FileResult:
        (samples,) = sound.blocks()
        signals = self._separated(samples, sound.sample_rate, sound.name)
        writer = Writer(outputs, sound.sample_rate, sound.samples, subtype)
        writer.write([signals])
        if progress:
            progress(sound.seconds)
        gains = [1.0] * len(outputs)
        return FileResult.of(sound, writer, chunks=self._chunks, gains=gains)

    def _separated(self, samples, rate: int, name: str = "the recording") -> np.ndarray:
        """Both ears [E, T] to [J, E, T], both at the recording's rate."""
        heard = _at_rate(samples, rate, self.sample_rate)
        scale = gain_to(HEARD_LEVEL, [heard])
        work = self._streamed if self.model.causal else self._stitched
        signals = work(scaled(scale, heard)) / scale
        check_output(signals, name)
        if self.mixture_consistency:
            signals = consistent(signals, heard)
        n_sources = len(signals)
        back = _at_rate(signals.reshape(n_sources * EARS, -1), self.sample_rate, rate)
        whole = np.concatenate(list(exactly([back], samples.shape[1])), axis=1)
        return whole.reshape(n_sources, EARS, -1).astype(np.float32, copy=False)

    def _streamed(self, heard) -> np.ndarray:
        """Block after block, so that memory stays small: what the whole would give."""
        stream, self._chunks = self.stream(), 1
        given = torch.from_numpy(heard).to(self.model.device)[None]
        parts = [stream(block) for block in given.split(BLOCK, -1)]
        return torch.cat([*parts, stream.flush()], -1)[0].float().cpu().numpy()

    def _stitched(self, heard) -> np.ndarray:
        """Chunk after chunk, each talker where it was in the chunk before."""
        stitcher = Stitcher(self.model.n_sources, self.overlap, self.sample_rate)
        parts = []
        # Where to cut is decided by what both ears hear together.
        for chunk in cut([heard.mean(0)], self.chunk, self.overlap, self.sample_rate):
            piece = heard[:, chunk.start : chunk.start + len(chunk.signal)]
            given = torch.from_numpy(np.ascontiguousarray(piece))[None]
            signals = self.model.separate(given)[0].cpu().numpy()
            parts.append(stitcher.add(chunk.start, signals, chunk.is_last))
        self._chunks = len(parts)
        return np.concatenate(parts, -1)


def read_ears(path, name: str | None = None) -> tuple[np.ndarray, int]:
    """Both channels of a sound file, float32 [E, T], and its sampling rate.

    Raises
    ------
    UserError
        It is missing, damaged, empty, not finite, or has not two channels.

    Example
    -------
    >>> import soundfile
    >>> path = str(getfixture("tmpdir") / "ears.wav")
    >>> soundfile.write(path, np.zeros((5, 2)), 8000)
    >>> read_ears(path)[0].shape
    (2, 5)
    """
    name = name or str(path)
    blocks = []
    with opened(path, name) as file:
        rate, channels = file.samplerate, file.channels
        for place, block in read_blocks(file, name):
            for ear in block.T:
                check_finite(ear, place, rate, name)
            blocks.append(block.T)
    samples = np.concatenate(blocks, 1) if blocks else np.zeros((channels, 0), "f4")
    check_ears(samples, name)
    return samples, rate


def check_ears(samples, name: str) -> None:
    """Stop at what cannot be two ears.

    Example
    -------
    >>> check_ears(np.zeros((1, 9)), "a.wav")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: a.wav: has the shape (1, 9); expected two channels, the \
left ear and the right one, [2, T]
    """
    if samples.ndim != 2 or len(samples) != EARS:
        raise UserError(
            f"{name}: has the shape {samples.shape}; expected two channels, the left ear "
            "and the right one, [2, T]"
        )
    if not samples.shape[1]:
        raise UserError(f"{name}: is empty (0 samples)")
    if not np.isfinite(samples).all():
        raise UserError(f"{name}: holds samples that are not finite")


def _at_rate(signals, from_rate: int, to_rate: int) -> np.ndarray:
    """Signals [N, T] at another sampling rate."""
    parts = list(resampled([signals.astype(np.float32)], from_rate, to_rate, len(signals)))
    return np.concatenate(parts, axis=1)
