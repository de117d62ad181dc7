"""Recognise what is said in recordings of any length, rate and kind, and enhance them.

Needs SpeechBrain and sentencepiece, which no other module here does.

Axes: B batch, C channels, T samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.errors import UserError
from unified_se_ss.files import written_whole
from unified_se_ss.inference.chunks import Stitcher, cut
from unified_se_ss.inference.models import load_model
from unified_se_ss.inference.pauses import PauseCutter
from unified_se_ss.inference.separator import (
    CHUNK_SECONDS,
    HEARD_LEVEL,
    OVERLAP_SECONDS,
    FileResult,
    as_samples,
)
from unified_se_ss.inference.sound_files import (
    BLOCK,
    FULL_SCALE,
    SoundFile,
    Writer,
    exactly,
    opened,
    resampled,
)
from unified_se_ss.recognition import BeamSearch, Tokens

SEGMENT_SECONDS = 20.0
LARGEST_TOKENIZER = 1 << 24  # bytes


class Recognition(NamedTuple):
    """What was recognised.

    Arguments
    ---------
    text : str
        The words; empty where there are none.
    enhanced : np.ndarray or torch.Tensor or None
        What the recogniser heard, [T], at the recording's rate and level; None of a
        model without a front.
    """

    text: str
    enhanced: np.ndarray | torch.Tensor | None


class Recognizer:
    """A trained model of Gradient Remedy that takes recordings as people have them.

    The recording is brought to the model's sampling rate and, as a whole, to the level
    that the front was trained at. Recordings longer than a chunk are enhanced in
    overlapping chunks that are faded into each other. What comes out is recognised in
    segments, which are cut at the quietest 0.3 s of the second half of the longest that
    a segment may be; their texts are joined by spaces. Neither memory nor the search
    grows with the length. A recording within a chunk and a segment is heard as one, as
    in the recipe's test. The enhanced signal is as long as the recording, at its
    sampling rate and its level.

    A segment of nothing but zeros, and one too short for a frame of the recogniser, has
    no words.

    Arguments
    ---------
    model : Model
        From :func:`~unified_se_ss.inference.models.load_model`, of kind ``recogniser``.
    chunk_seconds : float
        Longest piece that the front hears at once.
    overlap_seconds : float
        Least overlap of two pieces, at most half a piece.
    segment_seconds : float
        Longest piece that the recogniser hears at once; at most as long as there are
        positions for (of `max_length` frames and tokens).
    beam_size : int, optional
        Hypotheses that the search follows; by default as many as in the recipe's test.
        Fewer are faster.
    match_level : bool
        False: the network hears the recording at the level it has, as in the recipe's
        test, whose recordings have the level of the corpus.

    Example
    -------
    >>> Recognizer.from_folder("results/none/of/them")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: results/none/of/them: there is no such folder
    """

    def __init__(
        self,
        model,
        chunk_seconds: float = CHUNK_SECONDS,
        overlap_seconds: float = OVERLAP_SECONDS,
        segment_seconds: float = SEGMENT_SECONDS,
        beam_size: int | None = None,
        match_level: bool = True,
    ):
        if model.decoding is None:
            raise UserError(f"the model is of kind {model.kind}; expected recogniser")
        self.model, self.sample_rate = model, model.sample_rate
        self.front, self.network = model.network.front, model.network.recogniser
        self.chunk = int(chunk_seconds * self.sample_rate)
        self.overlap = int(overlap_seconds * self.sample_rate)
        if not 0 < self.overlap <= self.chunk // 2:
            raise UserError(
                f"overlap_seconds: is {overlap_seconds:g}; expected more than 0 and at most "
                f"half of chunk_seconds, {chunk_seconds:g}"
            )
        self.segment = int(segment_seconds * self.sample_rate)
        least, most = model.network.minimum_samples, longest_segment(self.network)
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
        self.level = heard_level(self.front) if match_level else None

    @classmethod
    def from_folder(cls, path, device=None, precision=None, **options) -> Recognizer:
        """Load one from an exported folder or a run's folder.

        Of a run the weights are the means over its best checkpoints, as many as its test
        took.

        Arguments
        ---------
        path : str or Path
            The folder.
        device : str or torch.device, optional
            By default a GPU if there is one.
        precision : str, optional
            ``"fp32"`` (default), ``"bf16"`` or ``"fp16"``; the search is fp32.
        **options
            Those of the class.
        """
        return cls(load_model(path, device, precision), **options)

    def __str__(self):
        return str(self.model)

    def n_signals(self, task: str) -> int:
        """How many signals a task gives: one with a front, none without.

        Raises
        ------
        UserError
            The task is another than ``"recognise"`` and ``"enhance"``, or there is no
            front to enhance with.
        """
        if task == "separate":
            raise UserError(
                "this model has no sources to separate; take recognise or enhance"
            )
        if task == "enhance" and self.front is None:
            raise UserError("this model has no front (system: noisy); take recognise")
        return 0 if self.front is None else 1

    def stream(self):
        """Recognise a signal while it is being made: no model here can.

        Raises
        ------
        UserError
            Always.
        """
        raise UserError(
            "this model is not causal: each sample and word of its output depends on all "
            "of its input, so it cannot take a stream. Long recordings are worked on in "
            "pieces by recognise and enhance"
        )

    # -------------------------------------------------------------- the network itself

    def recognise_batch(self, signals: torch.Tensor, lengths=None) -> list[Recognition]:
        """The network itself: its rate, its levels, no pieces.

        Arguments
        ---------
        signals : torch.Tensor
            [B, T] at ``sample_rate``.
        lengths : torch.Tensor, optional
            Real samples of each, [B]; each then gets what it would get alone.

        Returns
        -------
        list of Recognition
            Their signals are tensors on the model's device, [T], zero in the padding.
        """
        least = self.model.network.minimum_samples
        shortest = signals.shape[-1] if lengths is None else int(min(lengths))
        if signals.dim() != 2 or shortest < least:
            raise UserError(
                f"the signals are {tuple(signals.shape)}, the shortest {shortest} samples; "
                f"expected [B, T] of {least} samples or more"
            )
        signals = signals.to(self.model.device, torch.float32)
        enhanced, recognised = self.model.run(_recognised, signals, lengths)
        texts = self.search(recognised)
        if enhanced is None:
            return [Recognition(text, None) for text in texts]
        pairs = zip(texts, enhanced.float(), strict=True)
        return [Recognition(text, signal) for text, signal in pairs]

    # -------------------------------------------------------------- in memory

    def recognise(self, recording, sample_rate=None, channel=None, downmix: bool = False):
        """Recognise what is said in one recording.

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
        Recognition
            Its text, and the enhanced signal: an array for an array (of its type) and
            for a file (float32), a tensor for a tensor (of its type, on its device).

        Raises
        ------
        UserError
            The recording is empty, damaged, not finite, or has several channels and
            none was chosen.
        """
        return self._in_memory("recognise", recording, sample_rate, channel, downmix)

    def enhance(self, recording, sample_rate=None, channel=None, downmix: bool = False):
        """Denoise one recording by the front alone; as :meth:`recognise`, but [T]."""
        return self._in_memory("enhance", recording, sample_rate, channel, downmix)[1]

    def _in_memory(self, task: str, recording, sample_rate, channel, downmix):
        self.n_signals(task)
        if isinstance(recording, (str, os.PathLike)):
            sound = Recording.of_file(recording, channel, downmix)
            if sample_rate not in (None, sound.sample_rate):
                raise UserError(
                    f"{recording}: has {sound.sample_rate} Hz, not {sample_rate} Hz; "
                    "leave the sampling rate out"
                )
        else:
            samples = as_samples(recording, sample_rate, channel, downmix)
            sound = Recording.of_samples(samples, sample_rate)
        job = Job(self, task, sound)
        if self.front is None:
            job.listen()
            return Recognition(job.text, None)
        enhanced = np.concatenate([block[0] for block in job.signals()])
        if isinstance(recording, torch.Tensor):
            enhanced = torch.from_numpy(enhanced).to(recording.device, recording.dtype)
        elif isinstance(recording, np.ndarray):
            enhanced = enhanced.astype(recording.dtype, copy=False)
        return Recognition(job.text, enhanced)

    # -------------------------------------------------------------- files

    def separate_file(
        self,
        path,
        outputs: list,
        task: str = "recognise",
        channel: int | None = None,
        downmix: bool = False,
        subtype: str = "float",
        progress: Callable[[float], None] | None = None,
        name: str | None = None,
    ) -> RecognitionResult:
        """Recognise or enhance a sound file into files; as ``Separator.separate_file``.

        Arguments
        ---------
        path : str or Path
            Anything that libsndfile reads.
        outputs : list of str or Path
            The text file for ``"recognise"``, and a wav file for the enhanced signal
            where one is wanted; those that exist are replaced.
        task : str
            ``"recognise"`` or ``"enhance"``.
        channel, downmix : optional
            As for :meth:`recognise`.
        subtype : str
            ``"float"`` or ``"pcm16"``.
        progress : callable, optional
            Is told the seconds of sound that were worked on since it was told last.
        name : str, optional
            The file's name for messages.

        Returns
        -------
        RecognitionResult

        Raises
        ------
        UserError
            The file is empty, damaged, not finite or has several channels and none was
            chosen, or an output cannot be written; then none is there.
        """
        self.n_signals(task)
        outputs = [Path(output) for output in outputs]
        texts = [output for output in outputs if output.suffix == ".txt"]
        waves = [output for output in outputs if output not in texts]
        sound = Recording.of_file(path, channel, downmix, name)
        job = Job(self, task, sound, progress)
        writer = Writer(waves, sound.sample_rate, sound.samples, subtype)
        with written_whole(texts[0]) if texts else nullcontext() as temporary:
            if waves:
                writer.write(job.signals())
            else:
                job.listen()
            if texts:
                temporary.write_text(f"{job.text}\n", encoding="utf-8")
        return RecognitionResult(
            seconds=sound.samples / sound.sample_rate,
            sample_rate=sound.sample_rate,
            chunks=job.chunks,
            gains=[1.0] * len(waves),
            full_scale_samples=sound.full_scale_samples,
            turned_down_db=writer.turned_down_db,
            text=job.text,
            segments=job.segments,
        )


@dataclass
class RecognitionResult(FileResult):
    """What was done to a file.

    Arguments
    ---------
    text : str
        The words.
    segments : int
        Pieces that the recogniser heard; 0 where none was asked for.
    """

    text: str
    segments: int


# ------------------------------------------------------------------ one recording


@dataclass
class Recording:
    """One channel of a sound, to go through as often as one likes.

    Arguments
    ---------
    blocks : callable
        Gives its samples from the beginning, float32 [T] each.
    sample_rate : int
        Hz.
    name : str
        For messages.

    Attributes
    ----------
    samples, full_scale_samples : int
        How many there are, and how many at full scale; known once it was looked at.
    """

    blocks: Callable[[], Iterator[np.ndarray]]
    sample_rate: int
    name: str
    samples: int = 0
    full_scale_samples: int = 0

    @classmethod
    def of_samples(cls, samples: np.ndarray, sample_rate: int) -> Recording:
        """Samples [T] in memory."""

        def blocks():
            return (samples[at : at + BLOCK] for at in range(0, len(samples), BLOCK))

        return cls(blocks, sample_rate, "the recording")._looked_at()

    @classmethod
    def of_file(cls, path, channel, downmix: bool, name: str | None = None) -> Recording:
        """A sound file, opened anew for each time."""
        name = name or str(path)

        def blocks():
            with opened(path, name) as file:
                yield from SoundFile(file, name, channel, downmix).blocks()

        with opened(path, name) as file:
            rate = SoundFile(file, name, channel, downmix).sample_rate
        return cls(blocks, rate, name)._looked_at()

    def _looked_at(self) -> Recording:
        """Count its samples, which finds what cannot be read."""
        for block in self.blocks():
            self.samples += len(block)
            self.full_scale_samples += int((np.abs(block) >= FULL_SCALE).sum())
        if not self.samples:
            raise UserError(f"{self.name}: is empty (0 samples)")
        return self

    def at_rate(self, rate: int) -> Iterator[np.ndarray]:
        """Its blocks at another sampling rate."""
        return resampled(self.blocks(), self.sample_rate, rate)

    def level_at_rate(self, rate: int) -> float:
        """Root mean square at another sampling rate."""
        energy = samples = 0
        for block in self.at_rate(rate):
            energy += float(np.square(block, dtype=np.float64).sum())
            samples += len(block)
        return float(np.sqrt(energy / max(samples, 1)))


class Job:
    """One recording through front and recogniser, in one pass that holds a few pieces.

    Arguments
    ---------
    recognizer : Recognizer
    task : str
        ``"recognise"`` or ``"enhance"``.
    sound : Recording
    progress : callable, optional
        Is told seconds of sound.
    """

    def __init__(self, recognizer, task: str, sound: Recording, progress=None):
        self.owner, self.sound, self.progress = recognizer, sound, progress
        self.recognises = task == "recognise"
        self.scale, self.chunks, self.segments = self._scale(), 0, 0
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """The words, once all signals have been given."""
        return " ".join(text for text in self._texts if text)

    def signals(self) -> Iterator[np.ndarray]:
        """Do the work; give what is enhanced at the recording's rate and level, [1, T]."""
        rate, own = self.owner.sample_rate, self.sound.sample_rate
        blocks = (_scaled(1 / self.scale, block) for block in self._worked())
        back = resampled(blocks, rate, own)
        yield from exactly((block[None] for block in back), self.sound.samples)

    def listen(self) -> None:
        """Do the work for the words alone."""
        for _ in self._worked():
            pass

    def _worked(self) -> Iterator[np.ndarray]:
        """What the recogniser hears, [T] blocks, which it has heard when all are given."""
        rate = self.owner.sample_rate
        cutter = PauseCutter(self.owner.segment, rate)
        heard = self._heard()
        for block in self._enhanced(heard) if self.owner.front is not None else heard:
            if self.recognises:
                for segment in cutter.add(block):
                    self._recognise(segment)
            yield block
            if self.progress:
                self.progress(len(block) / rate)
        if self.recognises:
            for segment in cutter.rest():
                self._recognise(segment)

    def _heard(self) -> Iterator[np.ndarray]:
        """The recording at the model's rate and level."""
        for block in self.sound.at_rate(self.owner.sample_rate):
            yield _scaled(self.scale, block)

    def _enhanced(self, blocks) -> Iterator[np.ndarray]:
        """What the front makes of it, in overlapping chunks."""
        owner = self.owner
        stitcher = Stitcher(1, owner.overlap, owner.sample_rate)
        for chunk in cut(blocks, owner.chunk, owner.overlap, owner.sample_rate):
            given = torch.from_numpy(np.ascontiguousarray(chunk.signal))[None]
            enhanced = self._in_memory_that_is_there(owner.model.enhance, given)
            enhanced = enhanced.cpu().numpy()
            if not np.isfinite(enhanced).all():
                raise UserError(
                    f"{self.sound.name}: the model's output is not finite; its training "
                    "has diverged"
                )
            self.chunks += 1
            yield stitcher.add(chunk.start, enhanced, chunk.is_last)[0]

    def _recognise(self, segment: np.ndarray) -> None:
        """Add the words of a segment to the text."""
        owner = self.owner
        self.segments += 1
        if len(segment) < owner.model.network.minimum_samples or not segment.any():
            return
        signal = torch.from_numpy(np.ascontiguousarray(segment))[None]
        self._texts += self._in_memory_that_is_there(self._words, signal)

    def _words(self, signal: torch.Tensor) -> list[str]:
        """The words of a signal that is not to be enhanced, [1, T]."""
        owner = self.owner
        return owner.search(owner.model.run(_heard_as_it_is, signal))

    def _in_memory_that_is_there(self, work, signal):
        """Call a function, and say what to do where its memory does not suffice."""
        try:
            return work(signal)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(
                f"{self.sound.name}: a piece needs more memory than there is; take shorter "
                "ones (chunk_seconds, segment_seconds) or a smaller beam (beam_size)"
            ) from error

    def _scale(self) -> float:
        """What brings the recording to the level that the network knows."""
        if self.owner.level is None:
            return 1.0
        level = self.sound.level_at_rate(self.owner.sample_rate)
        return self.owner.level / level if level > 0 else 1.0


def _scaled(gain: float, block: np.ndarray) -> np.ndarray:
    """Samples with a gain that float32 may be too small for."""
    return (gain * block.astype(np.float64)).astype(np.float32)


def _recognised(system, signals, lengths):
    """Front and recogniser."""
    return system(signals, lengths)


def _heard_as_it_is(system, signals, lengths):
    """The recogniser alone."""
    return system.recogniser(signals, lengths)


# ------------------------------------------------------------------ what a model knows


def longest_segment(network) -> int:
    """Samples whose frames and tokens all have positions.

    Arguments
    ---------
    network : RecognitionNetwork
        SpeechBrain's positions end with its transformer's ``max_length``.
    """
    modules = network.transformer.modules()
    positions = min(m.max_len for m in modules if hasattr(m, "max_len"))
    samples = 4 * positions * network.hop
    while network.count_frames(samples) > positions:
        samples -= network.hop
    return samples


def heard_level(front) -> float:
    """Root mean square of the signals that a front was trained on.

    Its normalisation holds mean and deviation of each bin's magnitude, whose squares
    add up to the signals' power (Parseval). Without a front, a level that suits: the
    features' normalisation takes it out.

    Arguments
    ---------
    front : MaskingFront or None

    Example
    -------
    >>> from unified_se_ss.networks import MaskingFront
    >>> front = MaskingFront(n_fft=64, hop=32, hidden=8, layers=1)
    >>> generator = torch.Generator().manual_seed(0)
    >>> front.fit_normalisation([0.03 * torch.randn(90000, generator=generator)])
    >>> round(heard_level(front), 3)
    0.03
    """
    if front is None:
        return HEARD_LEVEL
    power = (front.mean.double().square() + front.deviation.double().square()).cpu()
    both_halves = power.sum() + power[1:-1].sum()
    window = front.window.double().cpu().square().sum()
    return float((both_halves / (front.n_fft * window)).sqrt())


def read_tokens(path, n_tokens: int) -> Tokens:
    """A recogniser's tokenizer, from a file that somebody else may have made.

    Arguments
    ---------
    path : str or Path
        A sentencepiece model.
    n_tokens : int
        How many the network knows.

    Raises
    ------
    UserError
        It is too large, no sentencepiece model, holds what is no text, or more tokens
        than the network knows.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if size > LARGEST_TOKENIZER:
        raise UserError(
            f"{path}: has {size} bytes, more than {LARGEST_TOKENIZER}; no tokenizer of a "
            "recogniser here"
        )
    tokens = Tokens(path)
    if len(tokens) > n_tokens:
        raise UserError(
            f"{path}: holds {len(tokens)} tokens, but the network knows {n_tokens}; take "
            "the file that belongs to these weights"
        )
    try:
        for number in range(len(tokens)):
            tokens.decode([number])
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: holds tokens that are no text; it is damaged") from error
    return tokens
