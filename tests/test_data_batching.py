"""Batches: every item once, as many batches on every rank, resumable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.checkpoints import Checkpointer

from unified_se_ss.data.batching import BucketBatchSampler
from unified_se_ss.data.dataset import ItemKey
from unified_se_ss.errors import UserError


def _durations(n, seed=0):
    return np.random.default_rng(seed).uniform(1, 15, n)


def _ranks(durations, world_size, epoch=0, **options):
    """The batches of every rank."""
    ranks = []
    for rank in range(world_size):
        sampler = BucketBatchSampler(durations, rank=rank, world_size=world_size, **options)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        ranks.append(batches)
    return ranks


def _check_once_and_even(ranks, n, epoch):
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch for batches in ranks for batch in batches)
    seen = sorted(key for batches in ranks for batch in batches for key in batch)
    assert seen == [ItemKey(epoch, index) for index in range(n)]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300),
    batch_size=st.integers(1, 20),
    budget=st.floats(5, 90),
    world_size=st.integers(1, 9),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_item_once_in_even_batches(n, batch_size, budget, world_size, shuffle, epoch):
    if n < world_size:
        with pytest.raises(UserError, match=f"{n} item"):
            _ranks(_durations(n), world_size, batch_size=batch_size)
        return
    durations, options = _durations(n), {"shuffle": shuffle, "seed": 5}
    ranks = _ranks(durations, world_size, epoch, batch_size=batch_size, **options)
    assert ranks == _ranks(durations, world_size, epoch, batch_size=batch_size, **options)
    _check_once_and_even(ranks, n, epoch)
    lengths = [len(batch) for batches in ranks for batch in batches]
    assert max(lengths) <= batch_size + 1
    full, rest = divmod(n, batch_size * world_size)
    assert len(ranks[0]) == full + (rest >= world_size)
    n_larger = sum(length > batch_size for length in lengths)
    assert n_larger == (rest if rest < world_size else 0)

    ranks = _ranks(durations, world_size, epoch, batch_seconds=budget, **options)
    _check_once_and_even(ranks, n, epoch)
    # Only where there are too few items for one more step is the budget exceeded.
    if n >= (len(ranks[0]) + 1) * world_size:
        for batch in (batch for batches in ranks for batch in batches):
            longest = max(durations[key.index] for key in batch)
            assert len(batch) == 1 or longest * len(batch) <= budget


def test_batch_seconds_uses_its_budget():
    """Padding and left-over budget together stay below a quarter."""
    durations = _durations(5000)
    batches = list(BucketBatchSampler(durations, batch_seconds=60))
    assert durations.sum() / (60 * len(batches)) > 0.75


def test_epochs_and_seeds_differ():
    sampler = BucketBatchSampler(_durations(100), batch_size=4)
    first, iterator = list(sampler), iter(sampler)
    read = [next(iterator)]
    sampler.set_epoch(1)
    second = list(sampler)
    assert read + list(iterator) == first  # what runs already goes on as it was
    other = list(BucketBatchSampler(_durations(100), batch_size=4, seed=1))
    indices = [[[k.index for k in batch] for batch in of] for of in (first, second, other)]
    assert indices[0] != indices[1] and indices[0] != indices[2]
    assert {key.epoch for batch in second for key in batch} == {1}
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_batches_hold_similar_durations():
    durations = _durations(4096)
    batches = list(BucketBatchSampler(durations, batch_size=8))
    spread = [np.ptp(durations[[key.index for key in batch]]) for batch in batches]
    assert np.mean(spread) < 0.5 and len(batches) == 512
    means = [durations[[key.index for key in batch]].mean() for batch in batches]
    assert abs(np.corrcoef(means, range(512))[0, 1]) < 0.15


def test_ranks_of_a_step_get_similar_durations():
    durations = _durations(4096)
    longest = [
        [max(durations[key.index] for key in batch) for batch in rank]
        for rank in _ranks(durations, 4, batch_size=4)
    ]
    assert np.ptp(longest, axis=0).mean() < 1.0


def test_unshuffled_batches_are_filled_in_order():
    for durations, size, expected in (
        (_durations(10), {"batch_size": 4}, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        ([9, 1, 2, 1, 4, 5, 5], {"batch_seconds": 10}, [[0], [1, 2, 3], [4, 5], [6]]),
        ([1, 50, 1, 2], {"batch_seconds": 10}, [[0], [1], [2, 3]]),
    ):
        sampler = BucketBatchSampler(durations, shuffle=False, **size)
        assert [[key.index for key in batch] for batch in sampler] == expected


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "just one"),
        ({"batch_size": 2, "batch_seconds": 9}, "just one"),
        ({"batch_size": 0}, "batch_size: is 0"),
        ({"batch_seconds": -1}, "batch_seconds: is -1"),
        ({"batch_size": 1, "world_size": 4}, "3 item"),
    ],
)
def test_options_without_sense(options, words):
    with pytest.raises(UserError, match=words):
        BucketBatchSampler([1.0, 2.0, 3.0], **options)


class _Keys(dict):
    """A data set that gives back the keys that it is asked for."""

    def __missing__(self, key):
        return key


@pytest.mark.parametrize("workers, done", [(0, 0), (0, 3), (2, 9), (0, 10)])
def test_speechbrain_resumes_within_an_epoch(tmp_path, workers, done):
    def loader_and_checkpointer():
        sampler = BucketBatchSampler(_durations(37), batch_size=4)
        sampler.set_epoch(2)
        options = {"batch_sampler": sampler, "num_workers": workers, "collate_fn": list}
        loader = SaveableDataLoader(_Keys(), **options)
        return loader, Checkpointer(tmp_path, {"loader": loader})

    loader, checkpointer = loader_and_checkpointer()
    iterator = iter(loader)
    batches = [next(iterator) for _ in range(done)]
    checkpointer.save_checkpoint(end_of_epoch=False)
    rest = list(iterator)

    resumed, checkpointer = loader_and_checkpointer()
    checkpointer.recover_if_possible()
    assert list(resumed) == rest
    complete, _ = loader_and_checkpointer()
    assert batches + rest == list(complete) and len(complete) == 10
    resumed.batch_sampler.set_epoch(3)
    assert {key.epoch for batch in resumed for key in batch} == {3}
