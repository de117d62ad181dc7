"""Data of a guided network: a raw microphone, a beamformer's output, the target.

Axes: C microphones, T samples, 2 inputs (0 raw, 1 beamformed).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.corpora.array_recordings import STEMS
from unified_se_ss.data.dataset import ItemKey, ManifestDataset
from unified_se_ss.data.manifest import Item, Manifest
from unified_se_ss.data.pools import Recording
from unified_se_ss.errors import UserError

# The stems that a choice of `align` and `match_levels` means.
COMPENSATED = {"nothing": (), "beamformed": ("beamformed",), "all": STEMS[1:]}


class MicBeamExample(NamedTuple):
    """One item; all signals float32, as long as each other.

    id : unique in an epoch.
    inputs : [2, T], the raw reference microphone and the beamformer's output.
    target : [T], the speech without room, as both inputs are to become.
    components : [3, 2, T], what speech, interferer and noise contribute to each input
    (they add up to the inputs), or None where that is not known or was not asked for.
    conditions : what is known of the item, numbers by name: sir and snr in dB at the raw
    microphone, angle in degrees between target and interferer, and so on.
    """

    id: str
    inputs: torch.Tensor
    target: torch.Tensor
    components: torch.Tensor | None = None
    conditions: dict = {}


class RecordingDataset(ManifestDataset):
    """Recordings of an array, cropped where asked for.

    Arguments
    ---------
    manifest : Manifest
        As `prepare_recordings` writes it, read with the stems `STEMS`.
    segment_seconds, seed
        As for `ManifestDataset`.
    align : str
        "beamformed": the beamformed signal is shifted by the delay that the manifest
        tells, to be in time with the raw microphone; "all": the target, too;
        "nothing" (default). Whoever enhances a stream delays the earlier one instead.
    match_levels : str
        "beamformed": the beamformed signal gets the level of the raw microphone, by the
        difference in the manifest; "all": the target, too; "nothing" (default).

    Returns
    -------
    An item is a `MicBeamExample`. Its conditions are delay (samples) and level (dB) of the
    beamformed signal, and those of the target, as they were recorded.
    """

    def __init__(
        self,
        manifest: Manifest,
        segment_seconds: float | None = None,
        *,
        align: str = "nothing",
        match_levels: str = "nothing",
        seed: int = 0,
    ):
        super().__init__(manifest, STEMS, segment_seconds, seed)
        for name, choice in (("align", align), ("match_levels", match_levels)):
            if choice not in COMPENSATED:
                raise UserError(
                    f"{name}: is {choice!r}, but one of {', '.join(COMPENSATED)} is expected"
                )
        self._shifted, self._levelled = COMPENSATED[align], COMPENSATED[match_levels]

    def _example(self, rng, index):
        item = self.manifest.items[index]

        def read_target(start, stop):
            return [self._read(item, "target", start, stop - start)]

        start, (target,) = self._crop(read_target, item.frames, rng)
        inputs = [self._read(item, stem, start, len(target)) for stem in STEMS[:2]]
        return MicBeamExample(
            item.id,
            inputs=torch.from_numpy(np.stack(inputs)),
            target=torch.from_numpy(target),
            conditions={
                name: self._number(item, name)
                for name in ("delay", "target_delay", "level", "target_level")
            },
        )

    def _read(self, item: Item, stem: str, start: int, length: int) -> np.ndarray:
        """A stretch of a stem, shifted and levelled as chosen, float32 [length]."""
        prefix = "target_" if stem == "target" else ""
        if stem in self._shifted:
            start += int(self._number(item, f"{prefix}delay"))
        signal = _read_stretch(item, stem, start, length)
        if stem in self._levelled:
            signal *= np.float32(10 ** (-self._number(item, f"{prefix}level") / 20))
        return signal

    def _number(self, item: Item, name: str) -> float:
        """A number that the manifest holds of an item."""
        try:
            return float(item.attributes[name])
        except (KeyError, ValueError) as error:
            place = f"{self.manifest.path}, ID {item.id}"
            what = f"the {name} is {item.attributes.get(name)!r}, expected a number"
            raise UserError(f"{place}: {what}; delete it to make it again") from error


def _read_stretch(item: Item, stem: str, start: int, length: int) -> np.ndarray:
    """Samples [start, start + length) of a stem; silence where there are none."""
    path = item.paths[stem]
    header = audio.info(path)
    seconds = header.frames / header.sample_rate
    own = Item(item.id, seconds, header.sample_rate, {stem: path})
    recording = Recording(own, stem, item.sample_rate)
    first, last = (min(max(at, 0), recording.frames) for at in (start, start + length))
    signal = np.zeros(length, dtype=np.float32)
    if first < last:
        signal[first - start : last - start] = recording.read(first, last)
    return signal


class MultiBeamformerTestSet(torch.utils.data.Dataset):
    """The same test set with several beamformers, one after the other.

    Arguments
    ---------
    datasets : dict
        Data sets of `MicBeamExample` by the name of their beamformer.
    """

    def __init__(self, datasets: Mapping):
        self.datasets = dict(datasets)
        self._places = [
            (name, index) for name, data in datasets.items() for index in range(len(data))
        ]
        self.durations = [x for data in datasets.values() for x in data.durations]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key) -> MicBeamExample:
        """An item under an ID of its own; its conditions name the item and the guide."""
        key = ItemKey.of(key)
        name, index = self._places[key.index]
        example = self.datasets[name][key._replace(index=index)]
        return example._replace(
            id=f"{key.index:04d}_{name}",
            conditions={"item": example.id, **example.conditions, "guide": name},
        )

    def find(self, item_id: str) -> MicBeamExample:
        """The item of an ID, in the first epoch, as evaluations have it."""
        return self[int(item_id.partition("_")[0])]
