"""Enhance recordings with a network that a beamformer guides, in blocks.

Axes: C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from unified_se_ss.errors import UserError
from unified_se_ss.inference.gain import HEARD_LEVEL, gain_to
from unified_se_ss.inference.interface import FileResult, Interface
from unified_se_ss.inference.recordings import Recording
from unified_se_ss.inference.sound_files import (
    Writer,
    check_finite,
    exactly,
    opened,
    read_blocks,
    resampled,
)


class GuidedEnhancer(Interface):
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

    task = "enhance"

    def __init__(self, model, guide: Callable | None = None):
        if model.kind != "gsenet":
            raise UserError(f"the model is of kind {model.kind}; expected gsenet")
        super().__init__(model)
        self.guide = guide

    @classmethod
    def from_folder(cls, path, device=None, precision=None, guide=None) -> GuidedEnhancer:
        """As ``Separator.from_folder``; `guide` is that of the class."""
        return super().from_folder(path, device, precision, guide=guide)

    def n_signals(self, task: str) -> int:
        """One for ``"enhance"``; nothing else can be done.

        Raises
        ------
        UserError
            The task is another.
        """
        if task != "enhance":
            raise UserError(f"this model only enhances; it cannot {task}")
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
        _check_finite(recording, 0, sample_rate, name)
        sound = Recording.of_samples(recording, sample_rate).looked_at()
        return np.concatenate(list(self._enhanced(sound)), axis=1)[0]

    def _sound(self, path, channel, downmix, name) -> Recording:
        if channel is not None or downmix:
            raise UserError(
                "channel and downmix: a guided model needs all channels; leave them out"
            )

        def read():
            with opened(path, name) as file:
                for place, block in read_blocks(file, name):
                    _check_finite(block.T, place, file.samplerate, name)
                    yield np.ascontiguousarray(block.T)

        with opened(path, name) as file:
            rate, channels = file.samplerate, file.channels
        self._check_channels(channels, name)
        return Recording(read, rate, name, channels).looked_at()

    def _into_files(self, sound, outputs, task, subtype, progress) -> FileResult:
        writer = Writer(outputs, sound.sample_rate, sound.samples, subtype)
        writer.write(self._enhanced(sound))
        if progress:
            progress(sound.seconds)
        return FileResult.of(sound, writer, chunks=1, gains=[1.0])

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

    def _enhanced(self, sound: Recording) -> Iterator[np.ndarray]:
        """Blocks [1, T] of the output, at the recording's rate and level."""
        # The reference microphone gets the level that the network knows.
        scale = gain_to(HEARD_LEVEL, (block[0] for block in sound.blocks()))
        rate, own = self.sample_rate, sound.sample_rate
        back = resampled(self._streamed(self._heard(sound), scale), rate, own)
        yield from exactly((np.atleast_2d(block) for block in back), sound.samples)

    def _heard(self, sound: Recording) -> Iterator[np.ndarray]:
        """Raw and beamformed at the model's rate, [2, T] blocks."""
        blocks = sound.at_rate(self.sample_rate)
        if self.guide is None:
            return blocks
        whole = torch.from_numpy(np.concatenate(list(blocks), axis=1))
        pair = torch.stack([whole[0], self.guide(whole).to(whole)]).numpy()
        return Recording.of_samples(pair, self.sample_rate).read()

    def _streamed(self, blocks, scale: float) -> Iterator[np.ndarray]:
        """What the network makes of the blocks, [T] each, at their level."""
        stream, device = self.stream(), self.model.device
        for block in blocks:
            given = torch.from_numpy(np.ascontiguousarray(scale * block, dtype=np.float32))
            yield stream(given[None].to(device))[0].cpu().numpy() / scale
        yield stream.flush()[0].cpu().numpy() / scale


def _check_finite(block, place: int, sample_rate: int, name: str) -> None:
    """Stop at the first sample of any channel that is no number or infinite."""
    for number, channel in enumerate(block):
        check_finite(channel, place, sample_rate, f"{name}, channel {number}")
