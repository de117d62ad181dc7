"""Recordings of an array as items of a guided network.

Axes: T samples, 2 inputs (0 raw, 1 beamformed).
"""

from __future__ import annotations

import numpy as np
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.augment import perturbed_frames, read_perturbed, speed_ratio
from unified_se_ss.data.corpora.array_recordings import STEMS
from unified_se_ss.data.dataset import CROP_ATTEMPTS, as_item_key, check_segment
from unified_se_ss.data.guided import MicBeamExample
from unified_se_ss.data.manifest import Item, Manifest, read_manifest
from unified_se_ss.errors import UserError

COMPENSATED = ("nothing", "beamformed", "all")


class RecordingDataset(torch.utils.data.Dataset):
    """Recordings of a manifest, cropped where asked for.

    An item is a function of (seed, epoch, index) alone.

    Arguments
    ---------
    manifest : Manifest
        As `read_recordings` reads it.
    segment_seconds : float, optional
        Length of a random crop; shorter recordings are taken whole. By default all are.
    align : str
        "beamformed": the beamformed signal is shifted by the delay that the manifest
        tells, to be in time with the raw microphone; "all": the target, too;
        "nothing" (default). Whoever enhances a stream delays the earlier one instead.
    match_levels : str
        "beamformed": the beamformed signal gets the level of the raw microphone, by the
        difference that the manifest tells; "all": the target, too; "nothing" (default).
    seed : int
        Default 0.

    Raises
    ------
    UserError
        If the manifest cannot serve, or a choice is none.

    Example
    -------
    An item is `dataset[ItemKey(epoch, index)]`, a `MicBeamExample`. Its conditions are
    delay (samples) and level (dB) of the beamformed signal, and those of the target, as
    they were recorded.
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
        check_segment(segment_seconds)
        for name, choice in (("align", align), ("match_levels", match_levels)):
            if choice not in COMPENSATED:
                raise UserError(
                    f"{name}: is {choice!r}, but one of {', '.join(COMPENSATED)} is expected"
                )
        missing = [stem for stem in STEMS if stem not in manifest.stems]
        if missing:
            raise UserError(
                f"{manifest.path}: has no column {missing[0]}; make it with "
                "prepare_recordings, and read it with read_recordings"
            )
        if manifest.sample_rate is None:
            raise UserError(f"{manifest.path}: the items have different sampling rates")
        self.manifest = manifest
        self.segment_seconds = segment_seconds
        self.seed = seed
        # Whoever is compared with whom: stem, column of its delay or level, whether.
        self._shifted = _chosen(align)
        self._levelled = _chosen(match_levels)

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.manifest.sample_rate

    @property
    def durations(self) -> list[float]:
        """Seconds of each item after cropping."""
        longest = self.segment_seconds or float("inf")
        return [min(item.duration, longest) for item in self.manifest.items]

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key) -> MicBeamExample:
        key = as_item_key(key)
        item = self.manifest.items[key.index]
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        length = item.frames
        if self.segment_seconds is not None:
            length = min(length, round(self.segment_seconds * self.sample_rate))
        for _ in range(CROP_ATTEMPTS if length < item.frames else 1):
            start = int(rng.integers(0, item.frames - length + 1))
            target = self._read(item, "target", start, length)
            if not audio.is_silent(target):
                break
        inputs = [self._read(item, stem, start, length) for stem in STEMS[:2]]
        return MicBeamExample(
            item.id,
            inputs=torch.from_numpy(np.stack(inputs)),
            target=torch.from_numpy(target),
            conditions={
                name: _number(self.manifest.path, item, name)
                for name in ("delay", "target_delay", "level", "target_level")
            },
        )

    def _read(self, item: Item, stem: str, start: int, length: int) -> np.ndarray:
        """A stretch of a stem, shifted and levelled as chosen, float32 [length]."""
        prefix = "target_" if stem == "target" else ""
        late = 0
        if stem in self._shifted:
            late = int(_number(self.manifest.path, item, f"{prefix}delay"))
        signal = _stretch(item, stem, start + late, length)
        if stem in self._levelled:
            level = _number(self.manifest.path, item, f"{prefix}level")
            signal *= np.float32(10 ** (-level / 20))
        return signal


def read_recordings(path, data_root) -> Manifest:
    """Read a manifest that `prepare_recordings` wrote.

    Arguments
    ---------
    path : str or Path
        The CSV file.
    data_root : str or Path
        The subset's folder of recordings.

    Returns
    -------
    Manifest
        With the stems raw, beamformed and target.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    return read_manifest(path, data_root, STEMS)


def _stretch(item: Item, stem: str, start: int, length: int) -> np.ndarray:
    """Samples [start, start + length) of a stem; silence where there are none."""
    path = item.paths[stem]
    recorded = audio.info(path)
    ratio = speed_ratio(100, recorded.sample_rate, item.sample_rate)
    frames = perturbed_frames(recorded.frames, ratio)
    first, last = (min(max(at, 0), frames) for at in (start, start + length))
    signal = np.zeros(length, dtype=np.float32)
    if first < last:
        seconds = recorded.frames / recorded.sample_rate
        own = Item(item.id, seconds, recorded.sample_rate, {stem: path})
        signal[first - start : last - start] = read_perturbed(own, stem, first, last, ratio)
    return signal


def _chosen(choice: str) -> tuple:
    """The stems that a choice of `COMPENSATED` means."""
    return {"nothing": (), "beamformed": ("beamformed",), "all": STEMS[1:]}[choice]


def _number(path: str, item: Item, name: str) -> float:
    """A number that the manifest tells of an item."""
    try:
        return float(item.attributes[name])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}, ID {item.id}: the {name} is {item.attributes.get(name)!r}, a number "
            "was expected; delete the manifest to make it again"
        ) from error
