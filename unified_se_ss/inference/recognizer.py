"""Recognise what is said in recordings of any length, rate and kind, and enhance them.

Needs SpeechBrain and sentencepiece, which few modules here do.

Axes: B batch, C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path
from unified_se_ss.inference.chunks import Stitcher, cut
from unified_se_ss.inference.gain import gain_to, heard_level, scaled
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
from unified_se_ss.inference.silence_split import PauseCutter
from unified_se_ss.inference.sound_files import Writer, exactly, resampled
from unified_se_ss.inference.tokenizer import read_tokens
from unified_se_ss.recognition import BeamSearch

SEGMENT_SECONDS = 20.0


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


class Recognizer(Interface):
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

    task = "recognise"

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
        super().__init__(model)
        self.front, self.network = model.network.front, model.network.recogniser
        self.chunk, self.overlap = chunk_and_overlap(model, chunk_seconds, overlap_seconds)
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
        self.level = heard_level(self.front) if match_level else None

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
        sound = Recording.of(recording, sample_rate, channel, downmix)
        job = Job(self, task, sound)
        if self.front is None:
            job.listen()
            return Recognition(job.text, None)
        enhanced = np.concatenate([block[0] for block in job.signals()])
        return Recognition(job.text, as_given(enhanced, recording))

    # -------------------------------------------------------------- files

    def _into_files(self, sound, outputs, task, subtype, progress) -> RecognitionResult:
        texts = [output for output in outputs if output.suffix == ".txt"]
        waves = [output for output in outputs if output not in texts]
        job = Job(self, task, sound, progress)
        writer = Writer(waves, sound.sample_rate, sound.samples, subtype)
        with atomic_path(texts[0]) if texts else nullcontext() as temporary:
            if waves:
                writer.write(job.signals())
            else:
                job.listen()
            if texts:
                temporary.write_text(f"{job.text}\n", encoding="utf-8")
        return RecognitionResult.of(
            sound,
            writer,
            chunks=job.chunks,
            gains=[1.0] * len(waves),
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
        blocks = (scaled(1 / self.scale, block) for block in self._worked())
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
            yield scaled(self.scale, block)

    def _enhanced(self, blocks) -> Iterator[np.ndarray]:
        """What the front makes of it, in overlapping chunks."""
        owner = self.owner
        stitcher = Stitcher(1, owner.overlap, owner.sample_rate)
        for chunk in cut(blocks, owner.chunk, owner.overlap, owner.sample_rate):
            given = torch.from_numpy(np.ascontiguousarray(chunk.signal))[None]
            with self._enough_memory():
                enhanced = owner.model.enhance(given)
            enhanced = enhanced.cpu().numpy()
            check_output(enhanced, self.sound.name)
            self.chunks += 1
            yield stitcher.add(chunk.start, enhanced, chunk.is_last)[0]

    def _recognise(self, segment: np.ndarray) -> None:
        """Add the words of a segment to the text."""
        owner = self.owner
        self.segments += 1
        if len(segment) < owner.model.network.minimum_samples or not segment.any():
            return
        signal = torch.from_numpy(np.ascontiguousarray(segment))[None]
        with self._enough_memory():
            self._texts += owner.search(owner.model.run(_heard_as_it_is, signal))

    def _scale(self) -> float:
        """What brings the recording to the level that the network knows.

        The recording is gone through, which finds what cannot be read.
        """
        if self.owner.level is None:
            self.sound.looked_at()
            return 1.0
        return gain_to(self.owner.level, self.sound.at_rate(self.owner.sample_rate))

    def _enough_memory(self):
        """The context in which a piece is worked on."""
        return enough_memory(
            f"{self.sound.name}: a piece",
            "take shorter ones (chunk_seconds, segment_seconds) or a smaller beam (beam_size)",
        )


def _recognised(system, signals, lengths):
    """Front and recogniser."""
    return system(signals, lengths)


def _heard_as_it_is(system, signals, lengths):
    """The recogniser alone."""
    return system.recogniser(signals, lengths)
