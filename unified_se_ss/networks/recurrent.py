"""The sequence model of DPRNN: a bidirectional LSTM.

Axes: B batch, L steps, N features.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Recurrent(nn.Module):
    """Bidirectional LSTM along a sequence.

    Arguments
    ---------
    n_features : int
        Features N of the input.
    hidden : int
        Units per direction.
    layers : int
        Number of layers.
    dropout : float
        Dropout between the layers.

    Source: Luo et al., "Dual-path RNN", arXiv 1910.06379.

    Example
    -------
    >>> Recurrent(n_features=64, hidden=32)(torch.randn(3, 20, 64)).shape
    torch.Size([3, 20, 64])
    """

    def __init__(self, n_features: int, hidden: int, layers: int = 1, dropout: float = 0.0):
        super().__init__()
        self.n_features = n_features
        self.n_outputs = 2 * hidden
        self.rnn = nn.LSTM(
            n_features,
            hidden,
            layers,
            batch_first=True,
            dropout=dropout,
            bidirectional=True,
        )

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Run along the sequences, [B, L, N] to [B, L, 2 * hidden].

        Arguments
        ---------
        x : torch.Tensor
            [B, L, N].
        lengths : torch.Tensor, optional
            Real steps of each sequence, [B], on the CPU. What follows them does not
            reach them, not even backwards.
        """
        if lengths is None:
            return self.rnn(x)[0]
        # Longest first, as cuDNN wants them. Sorted here, on the host: where packing sorts,
        # it sends the order to the device and fetches it again, waiting both times.
        lengths, order = lengths.sort(descending=True, stable=True)
        back = order.argsort()
        order, back = (index.to(x.device, non_blocking=True) for index in (order, back))
        packed = pack_padded_sequence(x.index_select(0, order), lengths, batch_first=True)
        y, _ = pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        return y.index_select(0, back)
