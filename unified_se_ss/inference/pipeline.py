"""Recordings through trained models: one pipeline, a class for each way to use a model.

A recording is read, brought to the model's sampling rate and level, goes through the
network in chunks or as a stream, is brought back, and written. A class says which
channels are taken (`_choose`), what the first pass over the recording finds, and what the
second gives.

Axes: B batch, C channels, J sources, E ears (left, right), T samples.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data.audio import BLOCK
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path
from unified_se_ss.inference import sound_files
from unified_se_ss.inference.chunks import (
    ChunkFile,
    LevelFit,
    SilenceSplitter,
    Stitcher,
    cut,
)
from unified_se_ss.inference.folders import load_model, read_tokens
from unified_se_ss.inference.models import KINDS, Model, RecognitionSystem

CHUNK_OPTIONS = {"chunk_seconds", "overlap_seconds"}
CHUNK_SECONDS = 20.0
OVERLAP_SECONDS = 4.0
SEGMENT_SECONDS = 20.0
MODEL_RMS = 0.05
"""Root mean square of what networks are given; that of LibriMix's mixtures."""


@dataclass
class FileResult:
    """Result of a file.

    `chunks` are pieces that the network was given, `gains` what each output was multiplied
    by, `full_scale_samples` the input's samples at full scale (clipped, most likely);
    `turned_down_db` is 0 unless outputs were turned down to fit into 16 bit. Of a recogniser,
    its words and the pieces that were recognised.
    """

    seconds: float
    sample_rate: int
    chunks: int
    gains: list
    full_scale_samples: int
    turned_down_db: float
    text: str | None = None
    segments: int | None = None


@dataclass
class _Run:
    """One recording on its way through a pipeline, and what is known of it by now."""

    sound: sound_files.Recording
    task: str
    n_signals: int
    store: list | ChunkFile = field(default_factory=list)
    progress: Callable[[float], None] = lambda seconds: None
    scale: float = 1.0
    mixture: np.ndarray | None = None
    chunks: int = 0
    gains: list = field(default_factory=list)
    text: str | None = None
    segments: int | None = None


class Pipeline(ABC):
    """A trained model that takes recordings as people have them.

    Arguments
    ---------
    model : Model
        From :func:`~unified_se_ss.inference.load_model`.
    chunk_seconds : float
        Longest piece that the network is given at once, unless it is causal.
    overlap_seconds : float
        Least overlap of two pieces, at most half a piece.
    mixture_consistency : bool
        Share out what the sources lack to the mixture, so that they add up to it (below
        half the model's sampling rate). Gives back what the model took for noise.
    """

    kind: str | None = None
    task: str
    ears = 1
    both_channels = ""
    """The channels of a model of two, in words."""
    guide: Callable | None = None
    remedy = "take shorter ones (chunk_seconds)"

    def __init__(
        self,
        model: Model,
        chunk_seconds: float = CHUNK_SECONDS,
        overlap_seconds: float = OVERLAP_SECONDS,
        mixture_consistency: bool = False,
    ):
        fits = model.channels == 1 if self.kind is None else model.kind == self.kind
        if not fits:
            raise UserError(
                f"a model of kind {model.kind} is for {KINDS[model.kind].pipeline}, not for "
                f"{type(self).__name__}"
            )
        self.model = model
        self.sample_rate: int = model.sample_rate
        self.chunk, self.overlap = _chunk_and_overlap(model, chunk_seconds, overlap_seconds)
        self.mixture_consistency = mixture_consistency

    @classmethod
    def from_folder(cls, path, device=None, precision=None, **options):
        """Load one from an exported folder or a run's folder.

        Of a recogniser's run the weights are the means over its best checkpoints, as
        many as its test took. A search for words is fp32 in any precision. Arguments are
        those of :func:`~unified_se_ss.inference.load_model` and of the class.
        """
        return cls(load_model(path, device, precision), **options)

    def __str__(self):
        return str(self.model)

    def n_signals(self, task: str) -> int:
        """Signals that a task gives; a UserError where the model cannot do it."""
        self.model.check_task(task)
        return self.model.n_sources if task == "separate" else int(self.model.can_enhance)

    def stream(self):
        """Takes blocks [1, C, T] of any length at the model's rate and device.

        With ``flush()``, it gives what the network gives at once. A UserError unless the
        model is causal.
        """
        if not self.model.causal:
            raise UserError(
                "this model is not causal, so it cannot take a stream; give it recordings"
            )
        return self.model.network.stream()

    def separate(self, recording, sample_rate=None, channel=None, downmix: bool = False):
        """Separate one recording.

        Arguments
        ---------
        recording : np.ndarray, torch.Tensor, str or Path
            Floating-point samples within ±1, [T] or [C, T], or a sound file.
        sample_rate : int
            Of the samples, in Hz; a file has its own.
        channel, downmix : optional
            As for :meth:`separate_file`.

        Returns
        -------
        np.ndarray or torch.Tensor
            [J, T], of a binaural model [J, E, T]: an array for an array (of its type) and
            for a file (float32), a tensor for a tensor (of its type, on its device).
        """
        return self._in_memory("separate", recording, sample_rate, channel, downmix)[1]

    def enhance(self, recording, sample_rate=None, channel=None, downmix: bool = False):
        """Denoise one recording: as :meth:`separate`, but the result is [T]."""
        return self._in_memory("enhance", recording, sample_rate, channel, downmix)[1][0]

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
            Anything that libsndfile reads, of the channels that the class takes.
        outputs : list of str or Path
            A wav file for each signal (of a binaural model in stereo), replaced if it exists.
            For ``"recognise"`` the text file, and a wav file if one is wanted.
        task : str
            ``"separate"``, ``"enhance"`` or ``"recognise"``; by default that of the class.
        channel : int, optional
            The channel to take, from 0; refused by models that need all.
        downmix : bool
            Take the mean of the channels instead.
        subtype : str
            ``"float"`` or ``"pcm16"``; see
            :class:`~unified_se_ss.inference.sound_files.Writer`.
        progress : callable, optional
            Is given the seconds of sound that were worked on since the last call.
        name : str, optional
            The file's name for messages.

        Raises
        ------
        UserError
            The model was not made for the task, the file is empty, damaged, not finite or
            has several channels and none was chosen, or an output cannot be written; then
            none is there.
        """
        task = self.task if task is None else task
        n_signals = self.n_signals(task)
        sound = self._recording(path, None, channel, downmix, name)
        paths = [Path(output) for output in outputs]
        texts = [output for output in paths if output.suffix == ".txt"]
        waves = [output for output in paths if output not in texts]
        with ExitStack() as stack:
            run = _Run(sound, task, n_signals)
            run.store = stack.enter_context(ChunkFile(paths[0].parent))
            run.progress = progress or run.progress
            text_file = stack.enter_context(atomic_path(texts[0])) if texts else None
            self._first_pass(run)
            writer = sound_files.Writer(waves, sound.sample_rate, sound.samples, subtype)
            if waves:
                writer.write(self._signals(run))
            else:
                deque(self._second_pass(run), maxlen=0)
            if text_file:
                text_file.write_text(f"{run.text}\n", encoding="utf-8")
        return FileResult(
            sound.seconds,
            sound.sample_rate,
            run.chunks,
            run.gains or [1.0] * len(waves),
            sound.full_scale_samples,
            writer.turned_down_db,
            run.text,
            run.segments,
        )

    # -------------------------------------------------------------- the steps

    def _recording(self, source, sample_rate, channel=None, downmix=False, name=None):
        """The channels of an array, a tensor or a sound file that the model takes."""
        choose = partial(self._choose, channel=channel, downmix=downmix)
        if not isinstance(source, (str, os.PathLike)):
            return sound_files.Recording.of_samples(source, sample_rate, choose)
        sound = sound_files.Recording.of_file(source, choose, name)
        if sample_rate not in (None, sound.sample_rate):
            raise UserError(f"{source}: has {sound.sample_rate} Hz; leave sample_rate out")
        return sound

    def _choose(self, channels: int, name: str, channel: int | None, downmix: bool):
        if not self.both_channels:
            return sound_files.choose_channel(channels, name, channel, downmix)
        if channel is not None or downmix:
            raise UserError(
                f"{name}: the model needs all channels; do not choose among them"
            )
        if channels < 2 or (channels > 2 and self.guide is None):
            raise UserError(
                f"{name}: has {channels} channel{'s' * (channels != 1)}; expected two "
                f"channels, {self.both_channels}"
            )
        return sound_files.ALL

    @abstractmethod
    def _first_pass(self, run: _Run) -> None:
        """Go through the recording, which finds what cannot be read; find its level."""

    @abstractmethod
    def _second_pass(self, run: _Run) -> Iterator[np.ndarray]:
        """The signals at the model's rate, [J, T] or [J, E, T] blocks."""

    def _signals(self, run: _Run) -> Iterator[np.ndarray]:
        """The signals at the recording's rate and of its length."""
        rows = run.n_signals * self.ears
        flat = (block.reshape(rows, -1) for block in self._second_pass(run))
        back = sound_files.resampled(flat, self.sample_rate, run.sound.sample_rate, rows)
        for block in sound_files.exactly(back, run.sound.samples):
            yield block if self.ears == 1 else block.reshape(run.n_signals, self.ears, -1)

    def _in_memory(self, task: str, recording, sample_rate, channel=None, downmix=False):
        """The run of a task, and its signals as the recording was given."""
        n_signals = self.n_signals(task)
        sound = self._recording(recording, sample_rate, channel, downmix)
        run = _Run(sound, task, n_signals)
        self._first_pass(run)
        if not n_signals:
            deque(self._second_pass(run), maxlen=0)
            return run, None
        signals = np.concatenate(list(self._signals(run)), axis=-1)
        return run, sound_files.as_given(signals.astype(np.float32, copy=False), recording)

    def _network(self, run: _Run, work: Callable, chunk: np.ndarray) -> np.ndarray:
        with self._enough_memory(run):
            signals = _array(work(self._tensor(chunk)))
        _check_output(signals, run.sound.name)
        run.chunks += 1
        return signals

    def _streamed(self, run: _Run, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The network over blocks [C, T], so that memory stays small."""
        stream, run.chunks = self.stream(), 1
        for block in blocks:
            yield _array(stream(self._tensor(block)))
            run.progress(block.shape[-1] / self.sample_rate)
        yield _array(stream.flush())

    def _tensor(self, signal: np.ndarray) -> torch.Tensor:
        """A batch of one."""
        return torch.as_tensor(np.ascontiguousarray(signal), device=self.model.device)[None]

    @contextmanager
    def _enough_memory(self, run: _Run):
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(
                f"{run.sound.name}: a piece needs more memory than there is; {self.remedy}"
            ) from error


class Separator(Pipeline):
    """Separates or enhances recordings of one channel.

    What comes out is as long as what went in, to the sample, at its sampling rate and
    at its level (:class:`~unified_se_ss.inference.chunks.LevelFit`), without an offset.
    The network is given every chunk at the level of LibriMix's mixtures. Signals longer
    than a chunk are worked on in overlapping chunks
    (:class:`~unified_se_ss.inference.chunks.Stitcher`). Levels are known at the end only,
    so of files what the network gives is kept on the disk and read again.

    Arguments are those of :class:`Pipeline`; a model of one channel.

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

    def forward_wav(self, wav: torch.Tensor) -> torch.Tensor:
        """The network itself, its rate and levels, no chunks: [B, T] to [B, J, T], or [T] to [J, T]."""
        mixtures = wav if wav.dim() > 1 else wav.unsqueeze(0)
        sources = self.model.separate(mixtures.to(self.model.device))
        return sources if wav.dim() > 1 else sources.squeeze(0)

    def _first_pass(self, run):
        """The network over all chunks, put by until levels are known."""
        fit, mixture = LevelFit(run.n_signals), run.sound.at_rate(self.sample_rate)
        for chunk in cut(mixture, self.chunk, self.overlap, self.sample_rate):
            signals = self._chunk_signals(run, chunk.signal)
            fit.add(signals[:, chunk.fresh :], chunk.signal[chunk.fresh :])
            together = np.concatenate((signals, chunk.signal[None])).astype(np.float32)
            run.store.append((chunk.start, together))
            run.progress((len(chunk.signal) - chunk.fresh) / self.sample_rate)
        run.gains = fit.gains().tolist()

    def _chunk_signals(self, run, mixture: np.ndarray) -> np.ndarray:
        scale = rms_gain(MODEL_RMS, [mixture])
        padded = np.zeros(max(len(mixture), self.model.minimum_samples), dtype=np.float32)
        padded[: len(mixture)] = scaled(scale, mixture)
        work = self.model.separate if run.task == "separate" else self.model.enhance
        signals = self._network(run, work, padded).reshape(run.n_signals, -1)
        signals = signals[:, : len(mixture)]
        # Whoever is judged by SI-SNR may have any offset; speech has none.
        return (signals - signals.mean(1, keepdims=True, dtype=np.float64)) / scale

    def _second_pass(self, run):
        gains = np.array(run.gains, dtype=np.float32)[:, None]
        stitcher = Stitcher(run.n_signals, self.overlap, self.sample_rate)
        for number, (start, stored) in enumerate(run.store, 1):
            signals = gains * stored[:-1]
            if self.mixture_consistency and run.task == "separate":
                signals = consistent(signals, stored[-1])
            yield stitcher.add(start, signals, number == run.chunks)


class BinauralSeparator(Pipeline):
    """Separates binaural recordings into what both ears hear of each talker.

    A recording has two channels, left ear first. What comes out is as long as what went
    in, to the sample, at its sampling rate. Levels are the model's own: no ear, talker or
    chunk gets a gain of its own, which would move the talkers. The network is given
    everything at the level of LibriMix's mixtures; a causal one as a stream, others in
    overlapping chunks. The recording is held in memory.

    Arguments are those of :class:`Pipeline`; a model of kind ``binaural``.
    """

    kind = "binaural"
    task = "separate"
    ears = 2
    both_channels = "the left ear and the right one"

    def _first_pass(self, run):
        run.mixture = np.concatenate(list(run.sound.at_rate(self.sample_rate)), axis=1)
        run.scale = rms_gain(MODEL_RMS, [run.mixture])

    def _second_pass(self, run):
        given, end = scaled(run.scale, run.mixture), 0
        if self.model.causal:
            parts = self._streamed(run, _in_blocks(given))
        else:
            parts = self._stitched(run, given)
        for part in parts:
            part = part / run.scale
            start, end = end, end + part.shape[-1]
            _check_output(part, run.sound.name)
            if self.mixture_consistency:
                part = consistent(part, run.mixture[:, start:end])
            yield part

    def _stitched(self, run, mixture: np.ndarray) -> Iterator[np.ndarray]:
        """Chunk after chunk, each talker where it was in the chunk before."""
        stitcher = Stitcher(run.n_signals, self.overlap, self.sample_rate)
        # Where to cut is decided by the mean of both ears.
        for chunk in cut([mixture.mean(0)], self.chunk, self.overlap, self.sample_rate):
            ears = mixture[:, chunk.start : chunk.start + len(chunk.signal)]
            signals = self._network(run, self.model.separate, ears)
            yield stitcher.add(chunk.start, signals, chunk.is_last)
            run.progress((len(chunk.signal) - chunk.fresh) / self.sample_rate)


class GuidedEnhancer(Pipeline):
    """Enhances recordings with a GSENet, which a beamformer guides, as a stream.

    A recording holds two channels, the raw reference microphone and the beamformer's
    output, in this order; or all microphones, the reference first, of which `guide`
    makes the beamformer's output. What comes out is as long as what went in, to the
    sample, at its sampling rate and level. The network is given everything at the level
    of LibriMix's mixtures. Memory does not grow with the length, but with a guide, which
    needs all of it.

    Arguments
    ---------
    model : Model
        Of kind ``gsenet``.
    guide : callable or str, optional
        From microphones [C, T] at the model's sampling rate, a float32 tensor, to the
        beamformer's output [T]; or the name of a beamformer that needs no directions, as
        :class:`~unified_se_ss.spatial.BeamformerFrontend` knows it.
    context_seconds : float
        Of a named beamformer: recordings begin with noise alone for so long.
    """

    kind = "gsenet"
    task = "enhance"
    both_channels = (
        "the raw reference microphone and the beamformer's output, or name the beamformer "
        "for all microphones (--guide)"
    )

    def __init__(
        self, model, guide: Callable | str | None = None, context_seconds: float = 0.5
    ):
        super().__init__(model)
        if isinstance(guide, str):
            guide = _named_guide(guide, self.sample_rate, context_seconds)
        self.guide = guide

    def _first_pass(self, run):
        """The level of the reference microphone."""
        run.scale = rms_gain(MODEL_RMS, (block[0] for block in run.sound.blocks()))

    def _second_pass(self, run):
        blocks = (np.float32(run.scale) * block for block in self._pairs(run.sound))
        for part in self._streamed(run, blocks):
            yield part[None] / run.scale

    def _pairs(self, sound: sound_files.Recording) -> Iterator[np.ndarray]:
        """Raw and beamformed at the model's rate, [2, T] blocks."""
        blocks = sound.at_rate(self.sample_rate)
        if self.guide is None:
            return blocks
        microphones = torch.from_numpy(np.concatenate(list(blocks), axis=1))
        pair = torch.stack([microphones[0], self.guide(microphones).to(microphones)])
        return _in_blocks(pair.numpy())


def _named_guide(name: str, sample_rate: int, context_seconds: float):
    """The beamformer of a name; a UserError where it would need directions."""
    from unified_se_ss.spatial import BeamformerFrontend

    how = {"sample_rate": sample_rate, "context_seconds": context_seconds}
    try:
        guide = BeamformerFrontend(name, **how)
    except ValueError as error:
        raise UserError(f"--guide: {error}") from error
    if guide.is_steered:
        raise UserError(
            f"--guide: {name} needs to know where microphones and source are; take "
            "multichannel_wiener, souden_mvdr or rtf_mvdr"
        )
    return guide


class Recognition(NamedTuple):
    """Words of a recording, and what was recognised, [T], at its rate and level.

    The signal is None of a model without a front.
    """

    text: str
    enhanced: np.ndarray | torch.Tensor | None


class Recognizer(Pipeline):
    """Recognises what is said in recordings with a model of Gradient Remedy.

    The recording is brought to the model's sampling rate and, as a whole, to the level
    that the front was trained at. Longer ones are enhanced in overlapping chunks that are
    faded into each other. What comes out is recognised in segments, which are cut at the
    quietest 0.3 s of the second half of the longest that a segment may be; their texts are
    joined by spaces. A recording within a chunk and a segment is one piece, as in the
    recipe's test. The enhanced signal is as long as the recording, at its rate and level.

    A segment of nothing but zeros, and one too short for a frame of the recogniser, has
    no words. Needs SpeechBrain and sentencepiece.

    Arguments
    ---------
    model, chunk_seconds, overlap_seconds
        As for :class:`Pipeline`; a model of kind ``recogniser``, whose front is given
        the chunks.
    segment_seconds : float
        Longest piece that is recognised at once; at most as long as there are positions for.
    beam_size : int, optional
        Hypotheses that the search follows; by default as many as in the recipe's test.
    match_level : bool
        False: the network is given the recording at the level it has, as in the recipe's
        test, whose recordings have the level of the corpus.
    """

    kind = "recogniser"
    task = "recognise"
    remedy = (
        "take shorter ones (chunk_seconds, segment_seconds) or a smaller beam (beam_size)"
    )

    def __init__(
        self,
        model,
        chunk_seconds: float = CHUNK_SECONDS,
        overlap_seconds: float = OVERLAP_SECONDS,
        segment_seconds: float = SEGMENT_SECONDS,
        beam_size: int | None = None,
        match_level: bool = True,
    ):
        super().__init__(model, chunk_seconds, overlap_seconds)
        from unified_se_ss.recognition import BeamSearch

        self.front, self.network = model.network.front, model.network.recogniser
        self.segment = int(segment_seconds * self.sample_rate)
        least, most = model.network.minimum_samples, model.network.maximum_samples
        if not least <= self.segment <= most:
            raise UserError(
                f"segment_seconds: is {segment_seconds:g}; the model takes "
                f"{least / self.sample_rate:g} to {most / self.sample_rate:g}"
            )
        decoding = model.decoding
        if beam_size is not None:
            decoding = replace(decoding, beam_size=beam_size)
        tokens = read_tokens(decoding.tokens, model.network.n_tokens)
        self.search = BeamSearch(
            self.network, tokens, decoding.beam_size, decoding.ctc_weight
        )
        self.rms = training_rms(self.front) if match_level else None

    def recognise_batch(self, signals: torch.Tensor, lengths=None) -> list[Recognition]:
        """The network itself: its rate, its levels, no pieces.

        Signals [B, T], of which `lengths` [B] samples are real; each gets what it would get
        alone. Enhanced signals are tensors on the model's device, zero in the padding.
        """
        least = self.model.network.minimum_samples
        shortest = signals.shape[-1] if lengths is None else int(min(lengths))
        if signals.dim() != 2 or shortest < least:
            raise UserError(
                f"the signals are {tuple(signals.shape)}, the shortest {shortest} samples; "
                f"expected [B, T] of {least} samples or more"
            )
        signals = signals.to(self.model.device, torch.float32)
        enhanced, recognised = self.model.run(RecognitionSystem.forward, signals, lengths)
        texts = self.search(recognised)
        signals = [None] * len(texts) if enhanced is None else enhanced.float()
        return list(map(Recognition, texts, signals))

    def recognise(self, recording, sample_rate=None, channel=None, downmix: bool = False):
        """Recognise one recording; arguments and enhanced signal as of :meth:`separate`."""
        run, enhanced = self._in_memory(
            "recognise", recording, sample_rate, channel, downmix
        )
        return Recognition(run.text, None if enhanced is None else enhanced[0])

    def _first_pass(self, run):
        run.text, run.segments = "", 0
        blocks = run.sound.at_rate(self.sample_rate)
        if self.rms is None:
            deque(blocks, maxlen=0)
        else:
            run.scale = rms_gain(self.rms, blocks)

    def _second_pass(self, run):
        """Words so far, at the recording's level; all of them at the end."""
        splitter = SilenceSplitter(self.segment, self.sample_rate)
        mixture = run.sound.at_rate(self.sample_rate)
        blocks = (scaled(run.scale, block) for block in mixture)
        for block in blocks if self.front is None else self._enhanced(run, blocks):
            self._recognise(run, splitter.add(block))
            yield scaled(1 / run.scale, block)[None]
            run.progress(len(block) / self.sample_rate)
        self._recognise(run, splitter.rest())

    def _enhanced(self, run, blocks) -> Iterator[np.ndarray]:
        """The front's output in overlapping chunks, [T] blocks."""
        stitcher = Stitcher(1, self.overlap, self.sample_rate)
        for chunk in cut(blocks, self.chunk, self.overlap, self.sample_rate):
            enhanced = self._network(run, self.model.enhance, chunk.signal)
            yield stitcher.add(chunk.start, enhanced[None], chunk.is_last)[0]

    def _recognise(self, run, segments: Iterable[np.ndarray]) -> None:
        """Add the words of segments to the text."""
        for segment in segments if run.task == "recognise" else ():
            run.segments += 1
            if len(segment) < self.model.network.minimum_samples or not segment.any():
                continue
            with self._enough_memory(run):
                recognised = self.model.run(_recognise_alone, self._tensor(segment))
                words = self.search(recognised)
            run.text = " ".join(text for text in (run.text, *words) if text)


def _recognise_alone(system, signals, lengths):
    return system.recogniser(signals, lengths)


# ------------------------------------------------------------------ of several classes


def open_pipeline(folder, device=None, precision=None, **options) -> Pipeline:
    """Load the model of a folder as what works on files, whichever kind it is.

    `options` are those of its class; a UserError where it does not know one. Those of chunks
    are for all: a stream has none.
    """
    model = load_model(folder, device, precision)
    make = globals()[KINDS[model.kind].pipeline]
    known = signature(make).parameters
    unknown = options.keys() - known - CHUNK_OPTIONS
    if unknown:
        raise UserError(
            f"--{min(unknown)}: a model of kind {model.kind} does not use it; leave it out"
        )
    return make(model, **{key: options[key] for key in options if key in known})


def _chunk_and_overlap(model, chunk_seconds: float, overlap_seconds: float):
    """Samples of a chunk, and of the least overlap of two; a UserError where none can be."""
    rate, times = model.sample_rate, (chunk_seconds, overlap_seconds)
    chunk, overlap = (int(s * rate) if np.isfinite(s) else 0 for s in times)
    if not 2 <= overlap <= chunk // 2 or chunk < model.minimum_samples:
        raise UserError(
            f"chunk_seconds: is {chunk_seconds:g}, overlap_seconds: is {overlap_seconds:g}; "
            "expected an overlap of more than 0 and at most half of chunk_seconds, of which "
            f"the model needs at least {model.minimum_samples / rate:g}"
        )
    return chunk, overlap


def _in_blocks(signals: np.ndarray) -> Iterator[np.ndarray]:
    starts = range(0, signals.shape[1], BLOCK)
    return (signals[:, start : start + BLOCK] for start in starts)


def _array(batch: torch.Tensor) -> np.ndarray:
    return batch[0].float().cpu().numpy()


def _check_output(signals: np.ndarray, name: str) -> None:
    if not np.isfinite(signals).all():
        raise UserError(
            f"{name}: the model's output is not finite; its training has diverged"
        )


# ------------------------------------------------------------------ level


def rms_gain(rms: float, blocks: Iterable[np.ndarray]) -> float:
    """Factor that gives a signal, which comes in blocks, a root mean square; 1 for silence."""
    energy = samples = 0
    for block in blocks:
        energy += float(np.square(block, dtype=np.float64).sum())
        samples += block.size
    own = float(np.sqrt(energy / max(samples, 1)))
    return rms / own if own > 0 else 1.0


def scaled(gain: float, signal: np.ndarray) -> np.ndarray:
    """Samples, float32, with a gain that float32 may be too small for."""
    return (gain * signal.astype(np.float64)).astype(np.float32)


def training_rms(front) -> float:
    """Root mean square of the signals that a front was trained on.

    Its normalisation holds mean and deviation of each bin's magnitude, whose squares
    add up to the signals' power (Parseval). Without a front, a level that suits: the
    features' normalisation takes it out.
    """
    if front is None:
        return MODEL_RMS
    power = (front.mean.double().square() + front.deviation.double().square()).cpu()
    both_halves = power.sum() + power[1:-1].sum()
    window = front.window.double().cpu().square().sum()
    return float((both_halves / (front.n_fft * window)).sqrt())


def consistent(signals: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """Share out what signals [J, T] lack to the mixture [T], so that they add up to it.

    Source: Wisdom et al., "Differentiable consistency constraints for improved deep
    speech enhancement", arXiv 1811.08521 (equal shares).
    """
    return signals + (mixture - signals.sum(0)) / len(signals)
