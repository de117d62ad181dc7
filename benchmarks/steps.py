"""One training step in several ways: the published one, and this project's.

All start from the same weights and the same batch, so that their losses can be compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from speechbrain.nnet.losses import get_si_snr_with_pitwrapper
from torch import nn
from torch.profiler import record_function

from benchmarks.networks import PublishedNetwork
from unified_se_ss.gradients import (
    ConflictMonitor,
    TaskLoss,
    TwoTaskGradients,
    TwoTaskLosses,
)
from unified_se_ss.losses import permutation_invariant_si_snr, representation_loss

MODULATION = "modulation"  # how profiles name what makes one gradient of the two
SHARED = ["encoder", "enhancer"]
LEARNING_RATE, MAX_NORM, THRESHOLD, WEIGHT = 1.5e-4, 5.0, -30.0, 0.1


class Batch(NamedTuple):
    """Noise in place of speech, which costs the same.

    Arguments
    ---------
    mixture : torch.Tensor
        [B, T].
    sources : torch.Tensor
        [B, J, T].
    """

    mixture: torch.Tensor
    sources: torch.Tensor

    @classmethod
    def of(cls, items: int, samples: int, device: torch.device, sources: int = 2) -> Batch:
        """The same numbers at every call."""
        generator = torch.Generator().manual_seed(1)
        spoken = 0.1 * torch.randn(items, sources, samples, generator=generator)
        noise = 0.05 * torch.randn(items, samples, generator=generator)
        return cls((spoken.sum(1) + noise).to(device), spoken.to(device))


class Step(ABC):
    """A training step: call it to take one.

    Arguments
    ---------
    network : torch.nn.Module
        Its weights are changed.
    batch : Batch
        The same at every step.
    autocast : torch.dtype, optional
        In which the network runs; by default in fp32.
    """

    def __init__(self, network: nn.Module, batch: Batch, autocast=None):
        self.network, self.batch = network, batch
        self.autocast = autocast
        self.optimizer = self.make_optimizer(list(network.parameters()))

    def precision(self):
        """The context that the forward pass runs in."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.batch.mixture.device.type, self.autocast)

    @abstractmethod
    def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean separation and weighted enhancement loss, with their graph."""

    @abstractmethod
    def __call__(self) -> None:
        """Take a step."""

    @abstractmethod
    def make_optimizer(self, parameters):
        """Adam."""


class PublishedStep(Step):
    """SpeechBrain's modules and loss, and two backward passes with a loop over tensors.

    As YUCHEN005/Unified-Enhance-Separation has it (train_unified_gm.py), with both
    gradients kept apart, and means over the items of a batch.
    """

    def make_optimizer(self, parameters):
        """Adam as it is by default."""
        return torch.optim.Adam(parameters, LEARNING_RATE)

    def losses(self):
        """See :class:`Step`."""
        mixture, sources = self.batch
        with self.precision():
            estimates, enhanced, clean = self.network(mixture, sources.sum(1))
        # The loss multiplies what it is given in place.
        loss = get_si_snr_with_pitwrapper(sources.transpose(1, 2), estimates.float())
        kept = loss[loss > THRESHOLD]
        main = kept.mean() if kept.nelement() > 0 else 0.0 * loss.mean()
        distance = nn.functional.mse_loss(enhanced.float(), clean.float(), reduction="sum")
        return main, WEIGHT * distance / len(mixture)

    def __call__(self) -> None:
        main, auxiliary = self.losses()
        shared = [p for name in SHARED for p in getattr(self.network, name).parameters()]
        auxiliary.backward(retain_graph=True)
        kept = [parameter.grad.clone() for parameter in shared]
        self.optimizer.zero_grad()
        main.backward()
        with record_function(MODULATION):
            modulate(shared, kept)
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def modulate(parameters, auxiliary_gradients) -> None:
    """The published loop: tensor by tensor, a branch for each (arXiv 2302.11131)."""
    for parameter, kept in zip(parameters, auxiliary_gradients):
        of_main, of_auxiliary = parameter.grad.clone().view(-1), kept.view(-1)
        product = torch.dot(of_auxiliary, of_main)
        if product < 0:
            of_auxiliary = of_auxiliary - product * of_main / of_main.norm() ** 2
        parameter.grad = parameter.grad + of_auxiliary.view_as(parameter)


class ProjectStep(Step):
    """This project's network, losses and gradients, as its recipe takes a step."""

    def __init__(self, network: nn.Module, batch: Batch, autocast=None):
        super().__init__(network, batch, autocast)
        named = network.named_parameters()
        self.gradients = TwoTaskGradients(named, SHARED, "project")
        self.monitor = ConflictMonitor(self.gradients.groups)

    def make_optimizer(self, parameters):
        """Adam as the recipe has it."""
        on_cuda = self.batch.mixture.is_cuda  # for graphs of the whole step
        return torch.optim.Adam(
            parameters, LEARNING_RATE, weight_decay=0, fused=True, capturable=on_cuda
        )

    def losses(self):
        """See :class:`Step`."""
        return tuple(loss.total / loss.items for loss in self.task_losses())

    def task_losses(self) -> TwoTaskLosses:
        """The losses as the recipe has them."""
        mixture, sources = self.batch
        with self.precision():
            output = self.network(mixture)
            clean = self.network.encoder(sources.sum(1))
            scores, _ = permutation_invariant_si_snr(output.sources, sources)
            distance = representation_loss(output.enhanced_representation, clean)
        main = TaskLoss.of(-scores, -scores > THRESHOLD)
        return TwoTaskLosses(main, TaskLoss.of(WEIGHT * distance))

    def __call__(self) -> None:
        self.monitor.update(self.work())

    def work(self):
        """What a step does on the device, without what watches it."""
        self.gradients.accumulate(self.task_losses())
        with record_function(MODULATION):
            combined = self.gradients.combine()
        self.update(combined.main_finite)
        return combined

    def update(self, finite: torch.Tensor) -> None:
        """Clip and step, unless the gradient is not finite; all on the device."""
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM)
        self.optimizer.found_inf = (~finite).to(torch.float32)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class SingleBackwardStep(ProjectStep):
    """The same, but with one backward pass of the sum of both losses."""

    def __call__(self) -> None:
        losses = self.losses()
        sum(losses).backward()
        self.update(torch.isfinite(sum(losses)))


def published(kind: str, network, batch: Batch, autocast=None) -> PublishedStep:
    """The published step with the weights of a network of ours, which stays as it is."""
    theirs = PublishedNetwork(kind, network).to(batch.mixture.device)
    return PublishedStep(theirs, batch, autocast)


def graphed(step: ProjectStep) -> Callable[[], None]:
    """The whole step as one CUDA graph, after steps that warm it up."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.work()
    return graph.replay
