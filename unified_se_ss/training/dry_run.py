"""Training steps that leave no trace: to see what a batch of some size takes."""

from __future__ import annotations

import copy
import random
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from speechbrain import Stage

from unified_se_ss.data.skipping import EmptyBatch
from unified_se_ss.errors import UserError
from unified_se_ss.training.brain import TaskMeans
from unified_se_ss.training.probe import batch_of, longest_axis, middle_of
from unified_se_ss.training.signals import AsyncScalar
from unified_se_ss.training.skipped import SkippedItems


class TrialSteps:
    """Steps of a Brain on the longest items of its training set.

    To be made and used within :func:`as_it_was`.

    Arguments
    ---------
    brain : RecipeBrain
        As its ``on_fit_start`` leaves it, with its ``loaders``.
    """

    def __init__(self, brain):
        self.brain, self.loader = brain, brain.loaders["train"]
        self.durations = np.asarray(self.loader.dataset.durations, dtype=np.float64)
        self._by_length = np.argsort(-self.durations, kind="stable")
        brain.on_stage_start(Stage.TRAIN, 1)
        brain.modules.train()
        brain.zero_grad(set_to_none=True)

    @property
    def longest(self) -> float:
        """Seconds of the longest item."""
        return float(self.durations[self._by_length[0]])

    def batch(self, items: int, seconds: float | None = None):
        """The longest items, all that are usable, or one cut to some seconds; and its size.

        Returns
        -------
        batch : object
            As the loader makes it.
        share : float
            How much of the size that their durations promise they have: recordings that
            are played faster are shorter.
        """
        indices = self._by_length[:items]
        batch = self.filter_utterances(indices)
        promised = float(self.durations[indices].max()) * len(batch)
        rate, samples = self.brain.option("sample_rate", None), longest_axis(batch)
        share = min(1.0, samples * len(batch) / rate / promised) if rate and samples else 1
        if seconds is not None:
            batch = middle_of(batch, min(1.0, seconds / (share * promised / len(batch))))
        return batch, share * len(batch) / items

    def filter_utterances(self, indices):
        """A batch of items; stops where none of them can be used."""
        batch = batch_of(self.loader, indices)
        if isinstance(batch, EmptyBatch):
            raise UserError(
                f"the longest items of the training set cannot be used: {batch.skipped[0].reason}"
                "; --check looks at all of the data"
            )
        if getattr(batch, "skipped", ()):
            batch.skipped = ()  # training will meet them, and write them down
        return batch

    def forward_and_backward(self, batch) -> None:
        """Everything of a step that grows with the batch; no exchange with other ranks."""
        try:
            self._fit(batch, step=1, batches=3, accumulation=2)
        finally:
            self.brain.gradients.pending = 0

    def whole_step(self, batch) -> None:
        """A step of the optimizer, after which it has all of its memory; every rank's."""
        self._fit(batch, step=1, batches=1, accumulation=1)

    def _fit(self, batch, step: int, batches: int, accumulation: int) -> None:
        """Give a batch to the Brain, at some place of an epoch."""
        brain = self.brain
        brain.step, brain._batches, brain.grad_accumulation_factor = (
            step,
            batches,
            accumulation,
        )
        brain.fit_batch(copy.copy(batch))


@contextmanager
def as_it_was(brain):
    """Leave a Brain and all random states as they were, to the last bit.

    Parameters, buffers, gradients, optimizers, the scaler of losses, the two gradients'
    memory, what else a checkpoint holds, and the Brain's own attributes.

    Arguments
    ---------
    brain : RecipeBrain
        As its ``on_fit_start`` leaves it.

    Example
    -------
    >>> from unified_se_ss.gradients import TaskLoss
    >>> from unified_se_ss.training import RecipeBrain
    >>> class Example(RecipeBrain):
    ...     def compute_forward(self, batch, stage):
    ...         return self.modules.network(batch + torch.randn(4))
    ...     def compute_objectives(self, output, batch, stage):
    ...         return TaskLoss.of(output.square().mean(1))
    >>> network = torch.nn.Linear(4, 2)
    >>> brain = Example({"network": network}, torch.optim.Adam, {}, {"device": "cpu"})
    >>> brain.on_fit_start()
    >>> before, drawn = network.weight.clone(), torch.get_rng_state()
    >>> with as_it_was(brain):
    ...     brain._batches = 1
    ...     _ = brain.fit_batch(torch.ones(3, 4))
    ...     torch.equal(network.weight, before)
    False
    >>> torch.equal(network.weight, before), brain.optimizer.state_dict()["state"]
    (True, {})
    >>> torch.equal(torch.get_rng_state(), drawn)
    True
    """
    tensors = [*brain.modules.parameters(), *brain.modules.buffers()]
    # On the host, so that on a GPU there is as much room as there will be.
    kept = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    training = {module: module.training for module in brain.modules.modules()}
    states = [
        (one, copy.deepcopy(one.state_dict()))
        for one in (*brain.optimizers_dict.values(), brain.scaler, brain.gradients)
    ]
    # What they refer to and what is kept above is not copied along.
    alone = [brain, brain.checkpointer, *brain.optimizers_dict.values(), *tensors]
    memo = {id(one): one for one in (*alone, *brain.modules.modules())}
    others = [(one, copy.deepcopy(vars(one), memo)) for one in _plain_recoverables(brain)]
    attributes = dict(vars(brain))
    drawn = _random_states()
    brain.means, brain.monitor = TaskMeans(), copy.deepcopy(brain.monitor)
    brain.suspects, brain._votes = _Unwatched(), AsyncScalar()
    brain.skipped = SkippedItems(Path(brain.option("output_folder", ".")) / "trial", 1.0)
    brain.ranks_agree = True  # all have the same batch here, on purpose
    try:
        yield
    finally:
        vars(brain).clear()
        vars(brain).update(attributes)
        with torch.no_grad():
            for tensor, before in zip(tensors, kept):
                tensor.copy_(before)
        for one, state in states:
            one.load_state_dict(state)
        for one, values in others:
            vars(one).clear()
            vars(one).update(values)
        for module, mode in training.items():
            module.training = mode
        brain.zero_grad(set_to_none=True)
        _restore_random_states(drawn)


class _Unwatched:
    """In the place of :class:`NonFiniteMonitor`: nothing is looked at, nothing written."""

    def _nothing(self, *_) -> None:
        """Whatever is told is forgotten."""

    forward_begins = record_losses = note_gradients = look = _nothing


def _plain_recoverables(brain) -> list:
    """What else checkpoints hold and a step may move: schedulers, counters."""
    if brain.checkpointer is None:
        return []
    told_apart = (torch.nn.Module, torch.optim.Optimizer, torch.utils.data.DataLoader)
    kept = (brain, brain.scaler, brain.gradients, brain.monitor, brain.means)
    known = {id(one) for one in kept}
    return [
        one
        for one in brain.checkpointer.recoverables.values()
        if hasattr(one, "__dict__")
        and not isinstance(one, told_apart)
        and id(one) not in known
    ]


def _random_states() -> tuple:
    """The states of all generators that are everybody's."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _restore_random_states(states: tuple) -> None:
    """Go on from what :func:`_random_states` returned."""
    of_python, of_numpy, of_torch, of_cuda = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
    if of_cuda is not None:
        torch.cuda.set_rng_state_all(of_cuda)
