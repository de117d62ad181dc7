"""How long an input may be where a transformer knows a fixed number of positions.

This project's transformer makes further positions as they are needed; SpeechBrain's and
a graph in a file have those that they were saved with.
"""

from __future__ import annotations

from unified_se_ss.networks import DualPath, Transformer
from unified_se_ss.networks.dual_path import count_chunks

POSITIONS = 2500  # source: max_len of speechbrain's PositionalEncoding


def longest_input(network) -> int | None:
    """Samples that :data:`POSITIONS` suffice for; None where nothing counts positions.

    Arguments
    ---------
    network : torch.nn.Module
        With an ``encoder``; the transformers that run across the chunks of its
        ``DualPath`` modules are looked at.

    Example
    -------
    >>> from functools import partial
    >>> from unified_se_ss.networks import Decoder, Encoder, UnifiedNetwork
    >>> model = partial(Transformer, n_features=8, layers=1, heads=2, feed_forward=8)
    >>> masks = DualPath(model, model, n_basis=32, n_features=8, n_sources=2,
    ...     blocks=1, chunk_length=250, linear_after=False)
    >>> network = UnifiedNetwork(Encoder(32, 16, 8), masks, Decoder(32, 16, 8))
    >>> longest_input(network) / 8000  # seconds
    312.375
    """
    lengths = [
        module.chunk_length
        for module in network.modules()
        if isinstance(module, DualPath) and isinstance(module.blocks[0].inter, Transformer)
    ]
    if not lengths:
        return None
    frames = POSITIONS * min(lengths) // 2
    while count_chunks(frames, min(lengths)) > POSITIONS:
        frames -= 1
    convolution = network.encoder.convolution
    return convolution.kernel_size[0] + (frames - 1) * convolution.stride[0]
