"""The sequence model of DPRNN: a bidirectional LSTM.

Axes: B batch, L steps, N features.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

#: oneDNN, which runs LSTMs on a CPU, raises in bf16 where the processor has no AVX-512.
FP32_ONLY = (
    torch.backends.mkldnn.is_available()
    and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
)


class Recurrent(nn.Module):
    """Bidirectional LSTM along a sequence, [B, L, N] to [B, L, 2 * hidden].

    Under bf16 autocast on a CPU that has no such LSTM it computes in fp32. Dropout is between
    the layers.

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
        """Run along the sequences; `lengths`, [B], on the CPU, are the real steps of each.

        What follows them does not reach them, not even backwards, and is zero in the output.
        """
        if FP32_ONLY and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.forward(x.float(), lengths)
        if lengths is None:
            return self.rnn(x)[0]
        if x.device.type == "cpu":
            return self._each_way(x, lengths)
        return self._packed(x, lengths)

    def _each_way(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Both directions apart, the second on sequences that are turned round.

        A CPU takes packed sequences step by step, and each step's backward pass fills a tensor of
        the size of all steps: the cost grows with the square of the length.
        """
        steps = torch.arange(x.shape[1])
        ends = lengths.unsqueeze(1)
        real = steps < ends
        turned = torch.where(real, ends - 1 - steps, steps).unsqueeze(-1)
        for layer in range(self.rnn.num_layers):
            if layer:
                x = nn.functional.dropout(x, self.rnn.dropout, self.training)
            forwards, backwards = self._weights(layer)
            there = self._one_way(x, forwards)
            back = self._one_way(x.take_along_dim(turned, 1), backwards)
            x = torch.cat([there, back.take_along_dim(turned, 1)], -1)
        return torch.where(real.unsqueeze(-1), x, 0.0)

    def _weights(self, layer: int) -> tuple[list, list]:
        of_layer = self.rnn._flat_weights[8 * layer : 8 * layer + 8]
        return of_layer[:4], of_layer[4:]

    def _one_way(self, x: torch.Tensor, weights: list) -> torch.Tensor:
        state = x.new_zeros(1, len(x), self.rnn.hidden_size)
        arguments = (True, 1, 0.0, self.training, False, True)
        return torch._VF.lstm(x, (state, state), weights, *arguments)[0]

    def _packed(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
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
