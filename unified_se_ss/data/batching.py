"""Which items go into which batch, on which rank, in which epoch, and which are left out.

The plan of an epoch follows from (seed, epoch) alone. Every rank makes the whole plan
and takes its part, so that nothing need be exchanged between them.

An item that cannot be read, or that is not finite, is left out by name and never
replaced: it becomes a `SkippedItem`; the batch is made of the others and says which were
left out. Neither the worker nor the rank changes which items these are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.data import audio
from unified_se_ss.data.dataset import ItemKey, signals_of
from unified_se_ss.errors import UserError

BATCHES_PER_POOL = 64


class BucketBatchSampler(torch.utils.data.Sampler):
    """Batches of items of similar duration, the same number of them on every rank.

    Each epoch: the items are shuffled, sorted by duration within pools of 64 batches,
    cut into batches, and these are shuffled. Every item comes once, on one rank. A
    remainder that cannot give each rank a batch is dealt out to the batches of the
    last full step, which may so be one item larger.

    To be used as the `batch_sampler` of a DataLoader. `set_epoch` must be called before
    an epoch is iterated over; iterating does not change the sampler, so that skipping
    k batches of a new iterator resumes an epoch.

    Arguments
    ---------
    durations : sequence of float
        Seconds of each item.
    batch_size : int, optional
        Items in a batch, on each rank.
    batch_seconds : float, optional
        Instead of batch_size: seconds of audio in a batch on each rank, padding
        included. An item that is longer is a batch of its own.
    shuffle : bool
        Default True; False keeps the order of the items, for evaluation.
    seed : int
        Default 0.
    rank : int
        Of this process (default 0).
    world_size : int
        Number of processes (default 1).

    Example
    -------
    >>> sampler = BucketBatchSampler([1.0, 3.0, 2.0], batch_size=2, shuffle=False)
    >>> list(sampler)  # doctest: +NORMALIZE_WHITESPACE
    [[ItemKey(epoch=0, index=0), ItemKey(epoch=0, index=1)],
     [ItemKey(epoch=0, index=2)]]
    """

    def __init__(
        self,
        durations,
        batch_size=None,
        batch_seconds=None,
        shuffle=True,
        seed=0,
        rank=0,
        world_size=1,
    ):
        _check_budget(batch_size, batch_seconds)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} ranks")
        if len(durations) < world_size:
            counts = f"{len(durations)} item(s) for {world_size} processes"
            raise UserError(f"there are {counts}; use fewer processes or more data")
        self.durations = np.asarray(durations, dtype=np.float64)
        self.batch_size, self.batch_seconds = batch_size, batch_seconds
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Gives the batches of an epoch, from 0, from now on."""
        self.epoch = int(epoch)
        self._batches = self._plan()[self.rank :: self.world_size]

    def set_batch_seconds(self, batch_seconds):
        """Cuts the epoch into batches of another size, where one in seconds was given."""
        _check_budget(self.batch_size, batch_seconds)
        self.batch_seconds = batch_seconds
        self.set_epoch(self.epoch)

    def __len__(self):
        return len(self._batches)

    def __iter__(self):
        epoch, batches = self.epoch, self._batches
        return ([ItemKey(epoch, int(index)) for index in batch] for batch in batches)

    def _plan(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = [batch for pool in self._pools(rng) for batch in self._cut(pool)]
        batches = self._evened(batches)
        return self._shuffled_steps(batches, rng) if self.shuffle else batches

    def _pools(self, rng):
        """The items in the order in which they are cut into batches, pool by pool."""
        if not self.shuffle:
            return [np.arange(len(self.durations))]
        order = rng.permutation(len(self.durations))
        per_batch = self.batch_size or self.batch_seconds / self.durations.mean()
        size = BATCHES_PER_POOL * self.world_size * max(1, int(per_batch))
        pools = [order[first : first + size] for first in range(0, len(order), size)]
        return [pool[np.argsort(self.durations[pool], kind="stable")] for pool in pools]

    def _cut(self, pool):
        """Cuts the items of a pool into batches."""
        if self.batch_size is not None:
            size = self.batch_size
            return [pool[first : first + size] for first in range(0, len(pool), size)]
        batches, first, longest = [], 0, 0.0
        for position, duration in enumerate(self.durations[pool]):
            longest = max(longest, duration)
            if longest * (position + 1 - first) > self.batch_seconds and position > first:
                batches.append(pool[first:position])
                first, longest = position, duration
        return [*batches, pool[first:]]

    def _evened(self, batches):
        """Makes the number of batches a multiple of the number of ranks."""
        n_over = len(batches) % self.world_size
        if n_over == 0:
            return batches
        full, over = batches[: len(batches) - n_over], batches[len(batches) - n_over :]
        if sum(map(len, over)) >= self.world_size:
            return full + _split(over, self.world_size)
        if self.batch_seconds is not None:
            # Smaller batches keep within the budget, larger ones would not.
            n_steps = len(full) // self.world_size + 1
            if len(self.durations) >= n_steps * self.world_size:
                return _split(batches, n_steps * self.world_size)
        last = [list(batch) for batch in full[-self.world_size :]]
        for receiver, index in zip(reversed(last), np.concatenate(over)):
            receiver.append(index)
        return full[: -self.world_size] + last

    def _shuffled_steps(self, batches, rng):
        # The batches of one step stay together: they are of similar duration, so that no
        # rank waits long for another.
        world = self.world_size
        steps = [batches[first : first + world] for first in range(0, len(batches), world)]
        order = rng.permutation(len(steps))
        return [steps[step][rank] for step in order for rank in rng.permutation(world)]


def _split(batches, count):
    """Halves the largest batch, again and again, until there are `count`."""
    batches = list(batches)
    while len(batches) < count:
        at = int(np.argmax([len(batch) for batch in batches]))
        batches[at : at + 1] = np.array_split(batches[at], 2)
    return batches


def _check_budget(batch_size, batch_seconds):
    """Raises a UserError unless just one way to measure batches is given."""
    if (batch_size is None) == (batch_seconds is None):
        values = f"batch_size is {batch_size} and batch_seconds is {batch_seconds}"
        raise UserError(f"{values}, but just one must be set (the other null)")
    if batch_size is not None and (batch_size != int(batch_size) or batch_size < 1):
        raise UserError(f"batch_size: is {batch_size}, a whole number from 1 was expected")
    if batch_seconds is not None and not 0 < batch_seconds < float("inf"):
        raise UserError(f"batch_seconds: is {batch_seconds}, seconds above 0 were expected")


class SkippedItem(NamedTuple):
    """Placeholder of an item that cannot be used.

    id : the item's, where the data set has a manifest, else its index.
    file : the file at fault, "" if it is not known.
    reason : what is wrong, in words.
    """

    id: str
    file: str
    reason: str


@dataclass
class EmptyBatch:
    """A batch all of whose items were skipped, a tuple of SkippedItem.

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
        bad = _nonfinite_signal(example)
        if bad is None:
            return example
        return self._skipped(key, f"{bad} holds values that are not finite (NaN, infinity)")

    def _skipped(self, key, reason) -> SkippedItem:
        """Name and fault of an item that cannot be used."""
        index = ItemKey.of(key).index
        items = getattr(getattr(self.dataset, "manifest", None), "items", None)
        if not isinstance(items, tuple):
            return SkippedItem(str(index), _file_in(reason), reason)
        item = items[index]
        file = next((p for p in item.paths.values() if p in reason), None)
        file = file or _file_in(reason) or _first_nonfinite(item.paths.values())
        return SkippedItem(item.id, file, reason)


def _nonfinite_signal(example) -> str | None:
    """Names the first signal of an example that is not finite throughout.

    Others than signals, such as directions that are not known, may hold what they like.
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
            audio.read_all(path)
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
