"""Enhance recordings with a network that a beamformer guides, in blocks.

Axes: C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from unified_se_ss.errors import UserError
from unified_se_ss.inference.models import load_model
from unified_se_ss.inference.separator import HEARD_LEVEL, FileResult
from unified_se_ss.inference.sound_files import (
    BLOCK,
    FULL_SCALE,
    Writer,
    check_finite,
    exactly,
    opened,
    resampled,
)


class GuidedEnhancer:
    """A trained GSENet that takes recordings as people have them.

    A recording holds two channels, the raw reference microphone and the beamformer's
    output, in this order; or all microphones, the reference first, of which `guide`
    makes the beamformer's output. What comes out is as long as what went in, to the
    sample, at its sampling rate and level. The network hears everything at the level of
    LibriMix's mixtures, as a stream, so that memory does not grow with the length (but
    with a guide, which looks at the whole).

    Arguments
    ---------
    model : Model
        From :func:`~unified_se_ss.inference.models.load_model`, of kind ``gsenet``.
    guide : callable, optional
        From microphones [C, T] at the model's sampling rate, a float32 tensor, to the
        beamformer's output [T].

    Example
    -------
    >>> from unified_se_ss.inference import Model
    >>> from unified_se_ss.networks import GSENet
    >>> network = GSENet([[4, 8, 2, 2, True]], bottleneck=4)
    >>> enhancer = GuidedEnhancer(Model(network, "gsenet", 16000, "cpu"))
    >>> raw_and_beamformed = 0.1 * np.ones((2, 44100), dtype=np.float32)
    >>> enhancer.enhance(raw_and_beamformed, 44100).shape
    (44100,)
    """

    def __init__(self, model, guide: Callable | None = None):
        if model.kind != "gsenet":
            raise UserError(f"the model is of kind {model.kind}; expected gsenet")
        self.model, self.guide = model, guide
        self.sample_rate: int = model.sample_rate

    @classmethod
    def from_folder(cls, path, device=None, precision=None, guide=None) -> GuidedEnhancer:
        """Load one from an exported folder or a run's folder.

        Arguments
        ---------
        path : str or Path
            The folder.
        device : str or torch.device, optional
            By default a GPU if there is one.
        precision : str, optional
            ``"fp32"`` (default), ``"bf16"`` or ``"fp16"``.
        guide : callable, optional
            That of the class.
        """
        return cls(load_model(path, device, precision), guide)

    def __str__(self):
        return str(self.model)

    def n_signals(self, task: str) -> int:
        """One for ``"enhance"``; nothing else can be done.

        Raises
        ------
        UserError
            The task is another.
        """
        if task != "enhance":
            raise UserError("this model only enhances; it cannot separate")
        return 1

    def stream(self):
        """A stream at the model's rate, :class:`~unified_se_ss.networks.GSENetStream`."""
        return self.model.network.stream()

    def enhance(self, recording: np.ndarray, sample_rate: int) -> np.ndarray:
        """Enhance one recording in memory.

        Arguments
        ---------
        recording : np.ndarray
            Floating-point samples within ±1, [2, T] or, with a guide, [C, T].
        sample_rate : int
            Hz.

        Returns
        -------
        np.ndarray
            float32, [T].

        Raises
        ------
        UserError
            Another number of channels, nothing in it, or samples that are not finite.
        """
        name = "the recording"
        recording = np.asarray(recording, dtype=np.float32)
        if recording.ndim != 2:
            raise UserError(f"{name} has the shape {recording.shape}; expected [C, T]")
        self._check_channels(len(recording), name)
        samples = recording.shape[1]
        if not samples:
            raise UserError(f"{name}: is empty (0 samples)")
        _check_finite(recording, 0, sample_rate, name)
        blocks = [recording[:, at : at + BLOCK] for at in range(0, samples, BLOCK)]
        parts = self._enhanced(lambda: iter(blocks), sample_rate, samples)
        return np.concatenate(list(parts), axis=1)[0]

    def separate_file(
        self,
        path,
        outputs: list,
        task: str = "enhance",
        channel: int | None = None,
        downmix: bool = False,
        subtype: str = "float",
        progress: Callable[[float], None] | None = None,
        name: str | None = None,
    ) -> FileResult:
        """Enhance a sound file into a sound file; as ``Separator.separate_file``.

        Arguments
        ---------
        path : str or Path
            Anything that libsndfile reads: two channels, or all microphones.
        outputs : list of str or Path
            One wav file; if it exists it is replaced.
        task : str
            ``"enhance"``.
        channel, downmix : optional
            Refused: all channels are needed.
        subtype : str
            ``"float"`` or ``"pcm16"``.
        progress : callable, optional
            Is told the seconds of sound that were worked on.
        name : str, optional
            The file's name for messages.

        Returns
        -------
        FileResult

        Raises
        ------
        UserError
            The file is empty, damaged, not finite or has other channels, or the output
            cannot be written; then it is not there.
        """
        self.n_signals(task)
        if channel is not None or downmix:
            raise UserError(
                "channel and downmix: a guided model needs all channels; leave them out"
            )
        name = name or str(path)
        with opened(path, name) as file:
            rate = file.samplerate
            self._check_channels(file.channels, name)
        samples, full_scale = 0, 0
        for block in _blocks(path, name):
            samples += block.shape[1]
            full_scale += int((np.abs(block) >= FULL_SCALE).sum())
        if not samples:
            raise UserError(f"{name}: is empty (0 samples)")
        writer = Writer([Path(output) for output in outputs], rate, samples, subtype)
        writer.write(self._enhanced(lambda: _blocks(path, name), rate, samples))
        if progress:
            progress(samples / rate)
        return FileResult(
            seconds=samples / rate,
            sample_rate=rate,
            chunks=1,
            gains=[1.0],
            full_scale_samples=full_scale,
            turned_down_db=writer.turned_down_db,
        )

    def _check_channels(self, channels: int, name: str) -> None:
        """Stop at channels of which nobody can know what they are."""
        if self.guide is None and channels != 2:
            raise UserError(
                f"{name}: has {channels} channel{'s' * (channels != 1)}; expected two, the "
                "raw reference microphone and the beamformer's output, or name the "
                "beamformer for all microphones (--guide)"
            )
        if self.guide is not None and channels < 2:
            raise UserError(f"{name}: has one channel; a beamformer needs two or more")

    def _enhanced(self, blocks, sample_rate: int, samples: int) -> Iterator[np.ndarray]:
        """Blocks [1, T] of the output, from a function that gives the input's anew."""
        scale = _scale(blocks())
        heard = self._heard(blocks(), sample_rate)
        stream, device = self.stream(), self.model.device
        back = resampled(
            self._streamed(stream, heard, scale, device), self.sample_rate, sample_rate, 1
        )
        yield from exactly((np.atleast_2d(block) for block in back), samples)

    def _heard(self, blocks, sample_rate: int) -> Iterator[np.ndarray]:
        """Raw and beamformed at the model's rate, [2, T] blocks."""
        first = next(blocks)
        channels = len(first)
        blocks = resampled(_chain(first, blocks), sample_rate, self.sample_rate, channels)
        if self.guide is None:
            yield from blocks
            return
        whole = torch.from_numpy(np.concatenate(list(blocks), axis=1))
        pair = torch.stack([whole[0], self.guide(whole).to(whole)]).numpy()
        yield from (pair[:, at : at + BLOCK] for at in range(0, pair.shape[1], BLOCK))

    @staticmethod
    def _streamed(stream, blocks, scale: float, device) -> Iterator[np.ndarray]:
        """What the network makes of the blocks, [T] each, at their level."""
        for block in blocks:
            given = torch.from_numpy(np.ascontiguousarray(scale * block, dtype=np.float32))
            yield stream(given[None].to(device))[0].cpu().numpy() / scale
        yield stream.flush()[0].cpu().numpy() / scale


def _blocks(path, name: str) -> Iterator[np.ndarray]:
    """All channels of a file, float32 [C, T] each; stops at what is not a number."""
    place = 0
    with opened(path, name) as file:
        while True:
            try:
                block = file.read(BLOCK, dtype="float32", always_2d=True).T
            except soundfile.LibsndfileError as error:
                raise UserError(
                    f"{name}: is damaged, it breaks off at {place / file.samplerate:.2f} s; "
                    "get the file again"
                ) from error
            if not block.shape[1]:
                return
            _check_finite(block, place, file.samplerate, name)
            place += block.shape[1]
            yield np.ascontiguousarray(block)


def _check_finite(block, place: int, sample_rate: int, name: str) -> None:
    """Stop at the first sample of any channel that is no number or infinite."""
    for number, channel in enumerate(block):
        check_finite(channel, place, sample_rate, f"{name}, channel {number}")


def _scale(blocks) -> float:
    """Factor that gives the reference microphone the level that the network knows."""
    energy = samples = 0
    for block in blocks:
        energy += float(np.square(block[0], dtype=np.float64).sum())
        samples += block.shape[1]
    return float(HEARD_LEVEL / np.sqrt(energy / samples)) if energy > 0 else 1.0


def _chain(first, rest):
    yield first
    yield from rest
