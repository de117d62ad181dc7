"""Items that cannot be used are left out by name, never replaced.

A data set's item that cannot be read, or that is not finite, becomes a
:class:`SkippedItem`; the batch is made of the others and says what was left out. Which
items these are follows from the data set and the keys, not from the worker or the rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.dataset import as_item_key, signals_of
from unified_se_ss.errors import UserError


class SkippedItem(NamedTuple):
    """What stands in the place of an item that cannot be used.

    id : the item's, where the data set has a manifest, else its index.
    file : the file at fault, "" if it is not known.
    reason : what is wrong, in words.
    """

    id: str
    file: str
    reason: str


@dataclass
class EmptyBatch:
    """What is left of a batch if all of its items were skipped, a tuple of SkippedItem.

    A rank that gets one still takes its part in the step.
    """

    skipped: tuple
    ids: tuple = ()

    def __len__(self):
        return 0

    def to(self, device):
        """There is nothing to move."""
        return self

    def pin_memory(self):
        """Itself: there is nothing to pin."""
        return self


class SkippingDataset(torch.utils.data.Dataset):
    """A data set whose items that cannot be used say so, instead of ending the run.

    An item cannot be used if reading it raises a UserError or an OSError, or if one of
    its signals holds a value that is not finite. Any other exception is a mistake in the
    program and is raised. In all else this is the data set that it was made of: its
    ``durations``, its ``manifest`` and so on.

    Arguments
    ---------
    dataset : torch.utils.data.Dataset
        Takes an ItemKey or a whole number.

    Example
    -------
    >>> class Files(torch.utils.data.Dataset):
    ...     def __getitem__(self, key):
    ...         raise UserError("b.wav: is empty (0 bytes)")
    >>> SkippingDataset(Files())[1]
    SkippedItem(id='1', file='b.wav', reason='b.wav: is empty (0 bytes)')
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getattr__(self, name):
        if name == "dataset" or name.startswith("__"):  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, key):
        try:
            example = self.dataset[key]
        except (UserError, OSError) as error:
            return self._skipped(key, str(error))
        bad = nonfinite_signal(example)
        if bad is None:
            return example
        return self._skipped(key, f"{bad} holds values that are not finite (NaN, infinity)")

    def _skipped(self, key, reason) -> SkippedItem:
        """What is known of an item that cannot be used."""
        index = as_item_key(key).index
        items = getattr(getattr(self.dataset, "manifest", None), "items", None)
        if not isinstance(items, tuple):
            return SkippedItem(str(index), _file_in(reason), reason)
        item = items[index]
        file = next((p for p in item.paths.values() if p in reason), None)
        file = file or _file_in(reason) or _first_nonfinite(item.paths.values())
        return SkippedItem(item.id, file, reason)


def nonfinite_signal(example) -> str | None:
    """Names the first signal of an example that is not finite throughout; None if all are.

    Signals are the arrays that are as long as the first; others, such as directions that
    are not known, may hold what they like.

    Arguments
    ---------
    example : NamedTuple, tuple, dict, torch.Tensor or np.ndarray
        Signals [..., T] by name or by place, among other things.
    """
    if isinstance(example, dict):
        fields = example
    elif hasattr(example, "_asdict"):
        fields = example._asdict()
    elif isinstance(example, (tuple, list)):
        fields = {f"signal {place}": field for place, field in enumerate(example)}
    else:
        fields = {"the signal": example}
    for name, signal in signals_of(fields).items():
        if not _is_finite(torch.as_tensor(signal)):
            return name
    return None


def _is_finite(array: torch.Tensor) -> bool:
    # Only a sum of finite values can be finite; it is the cheaper look.
    return math.isfinite(array.sum()) or bool(array.isfinite().all())


def _file_in(reason) -> str:
    start, colon, _ = reason.partition(": ")
    return start if colon and ("/" in start or "." in start) else ""


def _first_nonfinite(paths) -> str:
    """The first of some files that holds a value that is not finite, or "" if none does."""
    for path in paths:
        try:
            with audio.opened(path) as file:
                if not all(np.isfinite(block).all() for block in file.blocks(1 << 16)):
                    return str(path)
        except (UserError, OSError):
            return str(path)
    return ""


class LeavingOut:
    """A collate function for batches whose items may have been skipped.

    The batch is made of the others; its attribute ``skipped`` says which were not. A
    batch of which nothing is left is an :class:`EmptyBatch`.

    Arguments
    ---------
    collate : callable
        Makes a batch of a list of examples.
    """

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, examples):
        skipped = tuple(e for e in examples if isinstance(e, SkippedItem))
        if not skipped:
            return self.collate(examples)
        good = [e for e in examples if not isinstance(e, SkippedItem)]
        if not good:
            return EmptyBatch(skipped)
        batch = self.collate(good)
        try:
            batch.skipped = skipped
        except AttributeError as error:  # a tuple, say: cannot tell what was left out
            raise UserError(skipped[0].reason) from error
        return batch
