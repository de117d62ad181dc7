"""Separation of a signal that comes in blocks.

Axes: B batch, E ears (left, right), T samples, J sources.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from unified_se_ss.networks.binaural import BinauralNetwork


class BinauralStream:
    """Separates blocks of any length; joined, they are what the network gives at once.

    Made by :meth:`unified_se_ss.networks.BinauralNetwork.stream`. The network must not
    be trained or moved in between. What comes out lags behind what went in by at least
    half of the encoder's window and at most all of it, 2 ms: the algorithmic latency.

    Arguments
    ---------
    network : unified_se_ss.networks.BinauralNetwork
        A causal one.
    n_batch : int
        Signals B that are separated at once.

    Example
    -------
    >>> from unified_se_ss.networks import BinauralNetwork
    >>> network = BinauralNetwork("independent", blocks=2, repeats=1, causal=True)
    >>> stream = network.stream()
    >>> stream(torch.randn(1, 2, 20)).shape, stream(torch.randn(1, 2, 3)).shape
    (torch.Size([1, 2, 2, 8]), torch.Size([1, 2, 2, 0]))
    >>> stream.flush().shape
    torch.Size([1, 2, 2, 15])
    """

    def __init__(self, network: BinauralNetwork, n_batch: int = 1):
        if not network.causal:
            raise ValueError(
                "only a causal network can separate a stream; build it with causal=True"
            )
        self.network = network
        self.n_batch = n_batch
        self.reset()

    def reset(self) -> None:
        """Forget what has been heard: the next block begins another signal."""
        weight = next(self.network.parameters())
        self.memory: dict = {}
        # Samples not yet passed by: part of a window, or all that comes after a hop.
        self.waiting = weight.new_zeros(self.n_batch, 2, 0)
        # What the frames so far say about samples that later frames cover, too.
        overlap = self.network.kernel_size - self.network.stride
        self.tail = weight.new_zeros(self.n_batch, self.network.n_sources, 2, overlap)

    @torch.inference_mode()
    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        """Take the next samples, and give those that are complete.

        Arguments
        ---------
        block : torch.Tensor
            [B, 2, T], any T.

        Returns
        -------
        torch.Tensor
            Estimates, [B, J, 2, T']: whole hops, none where a window is not yet full.
        """
        if block.dim() != 3 or block.shape[:2] != (self.n_batch, 2):
            raise ValueError(
                f"the block is {list(block.shape)}; expected [{self.n_batch}, 2, samples]"
            )
        kernel_size, stride = self.network.kernel_size, self.network.stride
        waiting = torch.cat((self.waiting, block), -1)
        complete = max((waiting.shape[-1] - kernel_size) // stride + 1, 0) * stride
        self.waiting = waiting[..., complete:].clone()
        if not complete:
            return self.tail[..., :0]
        heard = waiting[..., : complete + kernel_size - stride]
        separated = self.network.separate_frames(heard, memory=self.memory)
        signal = self.network.decode(separated, heard.shape[-1])
        signal[..., : self.tail.shape[-1]] += self.tail
        self.tail = signal[..., complete:].clone()
        return signal[..., :complete]

    @torch.inference_mode()
    def flush(self) -> torch.Tensor:
        """Give the samples that are still missing, and begin anew.

        Returns
        -------
        torch.Tensor
            Estimates, [B, J, 2, T'] with T' below the encoder's window.
        """
        missing = self.waiting.shape[-1]
        if not self.memory:  # less than one window, which the network fills up to one
            rest = self.network(self.waiting) if missing else self.tail[..., :0]
        else:
            rest = torch.nn.functional.pad(self.tail, (0, missing - self.tail.shape[-1]))
        self.reset()
        return rest

    @property
    def state_bytes(self) -> int:
        """Memory that is kept from block to block."""
        kept = (self.waiting, self.tail, *self.memory.values())
        return sum(x.nbytes for x in kept)
