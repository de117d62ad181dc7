"""GSENet on a signal that is still coming in.

Axes: B batch, C channels, T samples, L frames, F bins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from unified_se_ss.networks.causal import CausalTransposedConvolution

if TYPE_CHECKING:
    from unified_se_ss.networks.gsenet import GSENet

#: (features [B, 4, L, F], memory, start) to [B, 2, L, F].
Step = Callable[[torch.Tensor, list[torch.Tensor], int], torch.Tensor]


class GSENetStream:
    """Enhance blocks as they come; joined, the outputs are the whole signal's output.

    A hop of output is given as soon as the hop after it has come in completely: with n
    samples taken, (n // hop - 1) * hop are given. Nothing is trained here: no gradient
    flows. Get one from :meth:`GSENet.stream`; one stream at a time, one signal (or
    batch of signals) each.

    Arguments
    ---------
    network : GSENet
        On any device; blocks must be there too. Its weights are used as they are at
        each call.
    step : callable, optional
        Takes the place of ``network.map``: (features [B, 4, L, F], memory, start) to
        [B, 2, L, F], with the memory replaced in place.

    Example
    -------
    >>> from unified_se_ss.networks import GSENet
    >>> stream = GSENet([[4, 8, 2, 2, False]], bottleneck=4).stream()
    >>> [stream(torch.randn(1, 2, 160)).shape[-1] for block in range(3)]
    [0, 160, 160]
    >>> stream(torch.randn(1, 2, 7)).shape[-1], stream.flush().shape[-1]
    (0, 167)
    """

    def __init__(self, network: GSENet, step: Step | None = None):
        self.network = network
        self.step: Step = step or network.map
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next block starts a new signal, of any batch size."""
        self.taken = self.given = self.start = self.ahead = 0
        self.memory: list[torch.Tensor] = []
        self.waiting = self.overlap = torch.empty(0)

    @torch.no_grad()
    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        """Take a block of any length, give what is complete.

        Arguments
        ---------
        block : torch.Tensor
            Raw reference microphone and beamformer output, [B, 2, n]; n may be 0.

        Returns
        -------
        torch.Tensor
            [B, m]; m is 0 where no further hop is complete.
        """
        self._begin(block)
        self.taken += block.shape[-1]
        output = self._advance(block)
        self.given += output.shape[-1]
        return output

    @torch.no_grad()
    def flush(self) -> torch.Tensor:
        """End the signal: give what is left of it, and forget everything.

        Returns
        -------
        torch.Tensor
            [B, m]; with it, as many samples have been given as were taken. Without
            any block before, [1, 0].
        """
        if not self.memory:
            return self.network.head.convolution.weight.new_zeros(1, 0)
        hop = self.network.stft.hop
        left = self.taken - self.given
        # The last hop is complete, and heard, with one hop of silence after it.
        silence = -self.taken % hop + hop
        output = self._advance(self.waiting.new_zeros(*self.waiting.shape[:2], silence))
        self.reset()
        return output[:, :left]

    def state_size(self) -> int:
        """Numbers that one signal of the batch keeps between two blocks, at most.

        Returns
        -------
        int
            Memory of the layers, samples that are not yet a hop and the one before,
            and the overlap of the output; 4 bytes each in float32.

        Example
        -------
        >>> from unified_se_ss.networks import GSENet
        >>> GSENet().stream().state_size()
        262486
        """
        hop = self.network.stft.hop
        layers = sum(channels * frames * bins for channels, frames, bins in self._shapes())
        return layers + 2 * (2 * hop - 1) + hop

    def _shapes(self) -> list[tuple[int, int, int]]:
        """Shapes of the memory where most is waiting in it."""
        shapes = list(self.network.shapes)
        for layer in self.network.decoder.modules():
            if isinstance(layer, CausalTransposedConvolution):
                shapes[layer.place] = layer.remembered(start=1)
        return shapes

    def _begin(self, block: torch.Tensor) -> None:
        """Check a block; before the first of a signal, have silence behind."""
        if block.dim() != 3 or block.shape[1] != 2:
            raise ValueError(
                f"a block has the shape {tuple(block.shape)}; expected [batch, 2, samples]: "
                "raw and beamformed"
            )
        if not self.memory:
            hop, batch = self.network.stft.hop, block.shape[0]
            self.memory = self.network.memory(batch)
            self.waiting = block.new_zeros(batch, 2, hop)
            self.overlap = block.new_zeros(batch, hop)
            self.ahead = hop  # what frame 0 gives ahead of the first sample
        elif block.shape[0] != self.waiting.shape[0]:
            raise ValueError(
                f"a block of {block.shape[0]} signals in a stream of "
                f"{self.waiting.shape[0]}; call reset() or flush() between signals"
            )

    def _advance(self, block: torch.Tensor) -> torch.Tensor:
        """Pass on what is complete, [B, 2, n] to [B, m]."""
        network, hop = self.network, self.network.stft.hop
        signals = torch.cat((self.waiting, block), -1)
        frames = signals.shape[-1] // hop - 1
        self.waiting = signals[..., frames * hop :].clone()
        if not frames:
            return signals.new_zeros(signals.shape[0], 0)
        spectra = network.stft.analyse(signals[..., : (frames + 1) * hop])
        parts = self.step(network.features(spectra), self.memory, self.start)
        self.start = (self.start + frames) % network.time_stride
        output = self._overlap_add(network.spectrum(parts, spectra))[:, self.ahead :]
        self.ahead = 0
        return output

    def _overlap_add(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Add complex [B, L, F] to what is left of the frames before, to [B, L * hop]."""
        older, newer = self.network.stft.frames(spectrum).split(self.network.stft.hop, -1)
        halves = torch.cat((self.overlap.unsqueeze(1), newer), 1)
        self.overlap = halves[:, -1].clone()
        return (halves[:, :-1] + older).flatten(1)
