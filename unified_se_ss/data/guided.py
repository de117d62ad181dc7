"""What a guided network learns from: a raw microphone, a beamformer's output, the target.

Axes: B batch, C microphones, T samples, 2 inputs (0 raw, 1 beamformed).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

INPUTS = ("raw", "beamformed")
COMPONENTS = ("speech", "interferer", "noise")


class MicBeamExample(NamedTuple):
    """One item; all signals float32, as long as each other.

    id : unique in an epoch.
    inputs : [2, T], the raw reference microphone and the beamformer's output.
    target : [T], the speech without room, as both inputs are to become.
    components : [3, 2, T], what speech, interferer and noise contribute to each input
    (they add up to the inputs), or None where that is not known or was not asked for.
    microphones : [C, T], all of them, or None where there are none or not asked for.
    conditions : what is known of the item, numbers by name: sir and snr in dB at the raw
    microphone, angle in degrees between target and interferer, and so on.
    """

    id: str
    inputs: torch.Tensor
    target: torch.Tensor
    components: torch.Tensor | None = None
    microphones: torch.Tensor | None = None
    conditions: dict = {}


@dataclass
class MicBeamBatch:
    """Items padded with zeros to the longest.

    Arguments
    ---------
    ids : list of str
        B names.
    inputs : torch.Tensor
        [B, 2, T], 0 raw, 1 beamformed.
    target : torch.Tensor
        [B, T]
    lengths : torch.Tensor
        int64 [B] on the CPU, samples without padding.
    components : torch.Tensor, optional
        [B, 3, 2, T], shares of speech, interferer and noise in both inputs; None if one
        of the items has none.
    microphones : torch.Tensor, optional
        [B, C, T]; None if one of the items has none, or another number of them.
    conditions : list of dict
        B times what is known of an item.

    Example
    -------
    >>> batch = collate_mic_beam([MicBeamExample("a", torch.ones(2, 3), torch.ones(3))])
    >>> batch.raw, len(batch)
    (tensor([[1., 1., 1.]]), 1)
    """

    ids: list
    inputs: torch.Tensor
    target: torch.Tensor
    lengths: torch.Tensor
    components: torch.Tensor | None = None
    microphones: torch.Tensor | None = None
    conditions: list = field(default_factory=list)

    def __len__(self):
        return len(self.ids)

    @property
    def raw(self) -> torch.Tensor:
        """The reference microphone, [B, T]."""
        return self.inputs[:, 0]

    @property
    def beamformed(self) -> torch.Tensor:
        """The beamformer's output, [B, T]."""
        return self.inputs[:, 1]

    def to(self, device) -> MicBeamBatch:
        """Moves the signals to a device, in place, and returns the batch.

        The lengths stay on the CPU: whoever asks for them there need not wait for a
        GPU.
        """
        return self._with_each(lambda signal: signal.to(device, non_blocking=True))

    def pin_memory(self) -> MicBeamBatch:
        """Moves the signals to page-locked memory, from which copies to a GPU are fast."""
        return self._with_each(torch.Tensor.pin_memory)

    def _with_each(self, change) -> MicBeamBatch:
        """Changes every signal that there is, in place."""
        for name in ("inputs", "target", "components", "microphones"):
            signal = getattr(self, name)
            if signal is not None:
                setattr(self, name, change(signal))
        return self


def collate_mic_beam(examples: list[MicBeamExample]) -> MicBeamBatch:
    """Pads items with zeros to the longest and stacks them.

    Arguments
    ---------
    examples : list of MicBeamExample
        At least one.

    Returns
    -------
    MicBeamBatch

    Example
    -------
    >>> short = MicBeamExample("a", torch.ones(2, 2), torch.ones(2))
    >>> long = MicBeamExample("b", torch.ones(2, 3), torch.ones(3))
    >>> batch = collate_mic_beam([short, long])
    >>> batch.target, batch.lengths
    (tensor([[1., 1., 0.],
            [1., 1., 1.]]), tensor([2, 3]))
    """
    return MicBeamBatch(
        ids=[example.id for example in examples],
        inputs=_padded([example.inputs for example in examples]),
        target=_padded([example.target for example in examples]),
        lengths=torch.tensor([example.target.shape[-1] for example in examples]),
        components=_padded([example.components for example in examples]),
        microphones=_padded([example.microphones for example in examples]),
        conditions=[dict(example.conditions) for example in examples],
    )


def _padded(signals: list) -> torch.Tensor | None:
    """Signals [..., T] of any lengths as [B, ..., T]; None unless all are of one kind."""
    if any(signal is None for signal in signals):
        return None
    if len({signal.shape[:-1] for signal in signals}) > 1:
        return None
    longest = max(signal.shape[-1] for signal in signals)
    padded = signals[0].new_zeros(len(signals), *signals[0].shape[:-1], longest)
    for row, signal in zip(padded, signals, strict=True):
        row[..., : signal.shape[-1]] = signal
    return padded
