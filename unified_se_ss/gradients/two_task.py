"""Take the gradients of two tasks apart, add them up, and make one of them."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.distributed

from unified_se_ss.gradients.layout import BLOCK, Layout
from unified_se_ss.gradients.rules import find_rule


class TaskLoss(NamedTuple):
    """The loss of one task on one batch: a sum over items, with its graph, and their number.

    Means over the items of all micro-batches and ranks are taken once, after all have been
    added up, so that neither an uneven last batch nor an item that one rank drops gives any
    other item more weight. Both are scalars on one device.
    """

    total: torch.Tensor
    items: torch.Tensor

    @classmethod
    def of(cls, losses: torch.Tensor, keep: torch.Tensor | None = None) -> TaskLoss:
        """Add up the losses of a batch, [B]; of the items with `keep`, boolean [B], where given.

        Example
        -------
        >>> TaskLoss.of(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([True, True, False]))
        TaskLoss(total=tensor(6.), items=tensor(2.))
        """
        if keep is None:
            keep = torch.ones_like(losses, dtype=torch.bool)
        kept = torch.where(keep, losses, 0.0)
        return cls(kept.sum(), keep.sum().to(kept.dtype))

    def mean(self) -> torch.Tensor:
        """Mean over the items, without a graph; 0 where there are none."""
        return self.total.detach() / self.items.clamp(min=1)


class TwoTaskLosses(NamedTuple):
    """The losses of the main task, which must not suffer, and the weighted auxiliary one."""

    main: TaskLoss
    auxiliary: TaskLoss | None = None


class GradNormEMA:
    """A factor for g_a that keeps its norm at a ratio to that of g_m, on average.

    A fixed weight means nothing where two losses have different units. This factor is
    ratio * sqrt(mean ||g_m||^2 / mean ||g_a||^2), with moving averages of the squared norms
    over all shared parameters, the present step's included.

    Arguments
    ---------
    ratio : float
        The wanted ||g_a|| / ||g_m||, above 0.
    decay : float
        Share of the averages kept at each step, from 0 (this step alone) to below 1.

    Example
    -------
    >>> factor = GradNormEMA(ratio=0.5)
    >>> true = torch.tensor(True)
    >>> factor.update(torch.tensor([400.0]).double(), torch.tensor([4.0]).double(), true)
    tensor(0.0500, dtype=torch.float64)
    """

    def __init__(self, ratio: float = 1.0, decay: float = 0.99):
        if not ratio > 0:
            raise ValueError(f"aux_ratio is {ratio}; expected more than 0")
        if not 0 <= decay < 1:
            raise ValueError(f"aux_decay is {decay}; expected 0 or more and less than 1")
        self.ratio, self.decay = ratio, decay
        self.averages = torch.zeros(2, dtype=torch.float64)

    def update(
        self, a: torch.Tensor, b: torch.Tensor, finite: torch.Tensor
    ) -> torch.Tensor:
        """Factor of g_a, a scalar; 1 as long as either task had no gradient.

        `a` and `b`, [G], are ||g_a||^2 and ||g_m||^2 of a step, which counts if `finite`.
        """
        norms = torch.stack([a.sum(), b.sum()])
        # Both averages start at zero, so their ratio needs no correction of that.
        new = torch.lerp(norms, self.averages.to(norms), self.decay)
        counts = finite & (norms > 0).all()
        self.averages = torch.where(counts, new, self.averages.to(norms))
        of_auxiliary, of_main = self.averages
        there = of_auxiliary > 0
        quotient = of_main / torch.where(there, of_auxiliary, 1.0)
        return torch.where(there, self.ratio * quotient.sqrt(), 1.0)


logger = logging.getLogger(__name__)

#: Blocks that are worked on at once, by kind of device: on a CPU few enough for its cache,
#: on a GPU enough for few kernels, and never a copy of a whole gradient.
PORTIONS = {"cpu": 512, "cuda": 16384}

#: What `aux_scale` may be.
AUX_SCALES = (None, "ema")


class CombinedGradients(NamedTuple):
    """The numbers of one step; tensors on the device, nothing fetched.

    Norms are as the rule saw them: without the loss scale of fp16, and with g_a multiplied
    by `auxiliary_scale`. Per group, float64, [G]: ||g_a||^2, ||g_m||^2, <g_a, g_m>, and w_a
    and w_m as they were used. Scalars: the scale, float64; whether the auxiliary gradient
    was finite and used; whether the main one was (if not, skip the whole step).
    """

    auxiliary_squared: torch.Tensor
    main_squared: torch.Tensor
    product: torch.Tensor
    auxiliary_weight: torch.Tensor
    main_weight: torch.Tensor
    auxiliary_scale: torch.Tensor
    auxiliary_finite: torch.Tensor
    main_finite: torch.Tensor


class TwoTaskGradients:
    """Gradients of a main and an auxiliary task, combined by a rule where shared.

    The shared parameters get w_a * g_a + w_m * g_m with the rule's weights, those of the
    auxiliary task alone (such as the head of its loss) get the auxiliary gradient, and all
    others the main gradient. Both are gradients of means over the items of all accumulated
    micro-batches and of all ranks; the rule is applied to these, once per step.

    One flat buffer holds everything, so a step has one collective and few kernels, and no
    number is fetched from the device. A rank may raise ``flag``; how many did is known to
    all after the step (``flags``, on the device).

    Arguments
    ---------
    named_parameters : iterable of (str, torch.nn.Parameter)
        As ``module.named_parameters()`` gives them; frozen ones are left out.
    shared, auxiliary : iterable of str
        Names of the modules (or parameters) that the tasks share, such as
        ``["encoder", "enhancer"]``, and of those that the auxiliary task alone uses.
    rule, rule_options : str, dict
        See :mod:`unified_se_ss.gradients.rules`.
    granularity : str
        ``"parameter"`` (what the published codes do), ``"module"`` or ``"global"`` (what
        the papers' figures draw).
    aux_scale, aux_ratio, aux_decay : str, float, float
        ``"ema"``: multiply g_a by a factor that keeps ||g_a|| at `aux_ratio` times ||g_m||,
        see :class:`~unified_se_ss.gradients.two_task.GradNormEMA`. By default the
        losses' own scales count.

    Raises
    ------
    ValueError
        Unknown rule, option or granularity, a name that no parameter has, parameters of
        several dtypes or devices, or (at the first step) an auxiliary parameter that the
        main task reaches.

    Example
    -------
    >>> from unified_se_ss.gradients import TaskLoss
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    >>> gradients = TwoTaskGradients(network.named_parameters(), shared=["0"])
    >>> hidden = network[0](torch.randn(5, 4))
    >>> main = TaskLoss.of(network[1](hidden).square().sum(1))
    >>> auxiliary = TaskLoss.of(hidden.square().sum(1))
    >>> gradients.accumulate(TwoTaskLosses(main, auxiliary))
    >>> bool(gradients.combine().main_finite)  # every p.grad is ready for an optimizer
    True
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        shared: Iterable[str],
        rule: str = "project",
        granularity: str = "parameter",
        rule_options: dict | None = None,
        auxiliary: Iterable[str] = (),
        aux_scale: str | None = None,
        aux_ratio: float = 1.0,
        aux_decay: float = 0.99,
    ):
        if aux_scale not in AUX_SCALES:
            raise ValueError(f"aux_scale is '{aux_scale}'; expected null or ema")
        self.rule = find_rule(rule, rule_options)
        self.moving_ratio = GradNormEMA(aux_ratio, aux_decay) if aux_scale else None
        self._place(dict(named_parameters), shared, auxiliary, granularity)
        self.pending = 0
        self.flag = False
        self._checked = False
        self._allocate()

    def _place(
        self,
        parameters: dict[str, torch.nn.Parameter],
        shared: Iterable[str],
        auxiliary: Iterable[str],
        granularity: str,
    ) -> None:
        """Say of each trainable parameter whose it is."""
        trainable = {n: p for n, p in parameters.items() if p.requires_grad}
        names_shared = self._select(trainable, shared, "shared")
        names_auxiliary = self._select(trainable, auxiliary, "auxiliary")
        if both := sorted(names_shared & names_auxiliary):
            raise ValueError(f"{both[0]} is both shared and auxiliary; name it once")

        def layout(names: set[str], granularity: str = "global") -> Layout:
            # In the order of the parameters, which is the same on every rank; a set has none.
            return Layout({n: p for n, p in trainable.items() if n in names}, granularity)

        self.shared = layout(names_shared, granularity)
        self.auxiliary = layout(names_auxiliary)
        self.others = layout(trainable.keys() - names_shared - names_auxiliary)

    @staticmethod
    def _select(parameters: Iterable[str], names: Iterable[str], what: str) -> set[str]:
        selected = set()
        for name in [names] if isinstance(names, str) else names:
            found = {n for n in parameters if n == name or n.startswith(f"{name}.")}
            if not found:
                modules = _modules_of(parameters)
                near = difflib.get_close_matches(str(name), modules, 1)
                hint = f"did you mean '{near[0]}'? " if near else ""
                raise ValueError(
                    f"{what}: no trainable parameter belongs to '{name}'; "
                    f"{hint}The modules are: {', '.join(modules)}"
                )
            selected |= found
        return selected

    def _allocate(self) -> None:
        """One buffer: main of shared and others, auxiliary of shared and own, counts."""
        layouts = (self.shared, self.others, self.auxiliary)
        parameters = [p for layout in layouts for p in layout.parameters.values()]
        if not parameters:
            raise ValueError("there is no parameter to train")
        kinds = {(p.dtype, p.device) for p in parameters}
        if len(kinds) > 1:
            raise ValueError(f"parameters must have one dtype and device, not {kinds}")
        ((dtype, device),) = kinds
        shared, others, own = (layout.size for layout in layouts)
        sizes = [shared, others, shared, own, 3]
        self._buffer = torch.zeros(sum(sizes), dtype=dtype, device=device)
        parts = self._buffer.split(sizes)
        self._main, self._others, self._auxiliary, self._own, counts = parts
        self._items, self.flags = counts[:2], counts[2]
        self._parameters = parameters
        of_main = self.shared.views(self._main) + self.others.views(self._others)
        of_own = self.auxiliary.views(self._own)
        self._gradient_views = of_main + of_own
        self._auxiliary_views = self.shared.views(self._auxiliary) + of_own
        of_auxiliary_task = self.shared.parameters | self.auxiliary.parameters
        self._of_auxiliary_task = list(of_auxiliary_task.values())
        blocks = torch.tensor(self.shared.blocks_of_group, dtype=torch.long, device=device)
        self._blocks_of_group = blocks
        self._group_of_block = torch.repeat_interleave(
            torch.arange(len(blocks), device=device),
            blocks,
            output_size=sum(self.shared.blocks_of_group),
        )
        self._memory = torch.zeros(len(blocks), dtype=torch.float64, device=device)
        self._one = torch.ones((), dtype=torch.float32, device=device)
        self._loss_scale = self._one

    def state_dict(self) -> dict:
        """The rule's memory, the moving averages, and this rank's gradients since the last step."""
        ratio, pending = self.moving_ratio, self.pending > 0
        return {
            "memory": self._memory,
            "averages": ratio.averages if ratio else None,
            "pending": self.pending,
            "buffer": self._buffer if pending else None,
            "loss_scale": self._loss_scale if pending else None,
        }

    def load_state_dict(self, state: dict) -> None:
        self._memory = state["memory"].to(self._memory)
        if self.moving_ratio and state["averages"] is not None:
            self.moving_ratio.averages = state["averages"].to(self._memory)
        self.pending = state.get("pending", 0)
        if self.pending:
            self._buffer.copy_(state["buffer"])
            self._loss_scale = state["loss_scale"].to(self._one)

    @property
    def groups(self) -> list[str]:
        """Names of the groups that the rule is applied to, [G]."""
        return self.shared.groups

    def accumulate(
        self,
        losses: TwoTaskLosses,
        scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
    ) -> None:
        """Add the gradients of one micro-batch; `scale` is fp16's ``GradScaler.scale``.

        One backward pass through the shared part for the auxiliary task, then one through
        everything for the main task.
        """
        if not self._checked:
            self._check_reach(losses)
        if self.pending == 0:
            self._buffer.zero_()
            self._loss_scale = scale(self._one)
        just_resumed = self._parameters[0].grad is not self._gradient_views[0]
        if self.pending == 0 or just_resumed:
            self._let_gradients_live_in_the_buffer()
        self.pending += 1
        auxiliary = losses.auxiliary
        if auxiliary is not None and auxiliary.total.requires_grad:
            if self._of_auxiliary_task:
                self._backward_auxiliary(scale(auxiliary.total))
            self._items[1] += auxiliary.items
        if losses.main.total.requires_grad:
            scale(losses.main.total).backward()
        self._items[0] += losses.main.items

    def _check_reach(self, losses: TwoTaskLosses) -> None:
        """Look once which parameters each loss reaches, and say what nobody may expect."""
        if losses.auxiliary is None:
            return
        self._checked = True
        by_main, by_auxiliary = map(_reached, (losses.main, losses.auxiliary))
        for name, parameter in self.auxiliary.parameters.items():
            if id(parameter) in by_main:
                raise ValueError(
                    f"auxiliary: the main task uses {name} too; name its module as shared"
                )
        if not self._of_auxiliary_task:
            raise ValueError(
                "shared: names no module, so the auxiliary task would train nothing; name "
                "the modules that both tasks use, or leave the auxiliary loss out"
            )
        if not any(id(parameter) in by_auxiliary for parameter in self._of_auxiliary_task):
            logger.warning(
                "The auxiliary loss depends on no parameter that it may train: it changes "
                "nothing. Was it detached?"
            )
        lost, both = [], set()
        for name, parameter in self.others.parameters.items():
            if id(parameter) in by_auxiliary:
                if id(parameter) in by_main:
                    both.add(name.rpartition(".")[0] or name)
                else:
                    lost.append(name)
        if lost:
            logger.warning(
                f"Only the auxiliary task reaches {', '.join(lost)}, which are not trained by "
                "it; name their modules in auxiliary_modules, or freeze them"
            )
        if both:
            names = ", ".join(sorted(both))
            logger.info(
                f"Both tasks reach {names}, not named as shared: trained by the main task alone"
            )

    def _let_gradients_live_in_the_buffer(self) -> None:
        for parameter, view in zip(self._parameters, self._gradient_views):
            parameter.grad = view

    def _backward_auxiliary(self, loss: torch.Tensor) -> None:
        for parameter, view in zip(self._of_auxiliary_task, self._auxiliary_views):
            parameter.grad = view
        # Added where they belong one by one and freed; there is no second copy of them all.
        loss.backward(retain_graph=True, inputs=self._of_auxiliary_task)
        self._let_gradients_live_in_the_buffer()

    @torch.no_grad()
    def combine(self) -> CombinedGradients:
        """Make one gradient of the two and leave it in every ``parameter.grad``.

        Ranks are added up first, in one collective, so all do the same to the last bit. A group
        whose main gradient is zero keeps its auxiliary gradient. If the auxiliary gradient is
        not finite anywhere, the main gradient stands alone; if the main gradient is not finite,
        nothing that is left in ``parameter.grad`` may be used. Neither changes what a rule
        remembers.
        """
        self.pending = 0
        if self.flag:
            self.flags.fill_(1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._buffer)
        # Means are taken with the weights at the end, not in a pass of their own.
        of_main, of_auxiliary = self._items.double().clamp(min=1).reciprocal()
        unscale = self._loss_scale.double().reciprocal()
        a, b, c = self._inner_products()
        a = a * (of_auxiliary * unscale).square()
        b = b * (of_main * unscale).square()
        c = c * (of_auxiliary * of_main * unscale.square())
        auxiliary_finite = a.isfinite().all() & self._is_finite(self._own)
        main_finite = b.isfinite().all() & self._is_finite(self._others)
        finite = auxiliary_finite & main_finite

        factor = torch.ones_like(unscale)
        if self.moving_ratio is not None:
            factor = self.moving_ratio.update(a, b, finite)
            a, c = a * factor.square(), c * factor
        w_a, w_m, memory = self.rule.step(a, b, c, self._memory)
        self._memory = torch.where(finite, memory, self._memory)
        w_a = torch.where(auxiliary_finite, w_a, 0.0)
        w_m = torch.where(auxiliary_finite, w_m, 1.0)
        of_auxiliary = of_auxiliary * factor
        self._apply(w_a * of_auxiliary, w_m * of_main, auxiliary_finite)
        self._others.mul_(of_main)
        self._own.masked_fill_(~auxiliary_finite, 0.0).mul_(of_auxiliary)
        return CombinedGradients(a, b, c, w_a, w_m, factor, auxiliary_finite, main_finite)

    def _inner_products(self) -> list[torch.Tensor]:
        """||g_a||^2, ||g_m||^2 and <g_a, g_m> of each group as they lie there, [G] each."""
        if not self.groups:
            return list(self._buffer.new_zeros(3, 0, dtype=torch.float64))
        sums = [
            torch.stack([(x * x).sum(1), (y * y).sum(1), (x * y).sum(1)])
            for x, y in zip(self._portions(self._auxiliary), self._portions(self._main))
        ]
        return [
            torch.segment_reduce(
                of_blocks,
                "sum",
                lengths=self._blocks_of_group,
                unsafe=True,  # what it would check, it would read on the host
            )
            for of_blocks in torch.cat(sums, 1).double()
        ]

    def _apply(
        self, w_a: torch.Tensor, w_m: torch.Tensor, auxiliary_finite: torch.Tensor
    ) -> None:
        of_blocks = (w[self._group_of_block].to(self._buffer.dtype) for w in (w_a, w_m))
        columns = (weights.unsqueeze(1).split(self._portion) for weights in of_blocks)
        parts = (self._portions(x) for x in (self._auxiliary, self._main))
        for auxiliary, main, w_a, w_m in zip(*parts, *columns):
            # Replaced, not multiplied by zero: 0 * inf is NaN.
            auxiliary = torch.where(auxiliary_finite, auxiliary, 0.0)
            main.mul_(w_m).addcmul_(auxiliary, w_a)

    @property
    def _portion(self) -> int:
        return PORTIONS.get(self._buffer.device.type, PORTIONS["cuda"])

    def _portions(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.view(x.numel() // BLOCK, BLOCK).split(self._portion)

    def _is_finite(self, x: torch.Tensor) -> torch.Tensor:
        sums = [(part * part).sum() for part in self._portions(x)]
        return torch.stack(sums).isfinite().all()


def _reached(loss: TaskLoss) -> set[int]:
    nodes, seen, leaves = [loss.total.grad_fn], set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        nodes += [following for following, _ in node.next_functions]
    return leaves


def _modules_of(parameters: Iterable[str]) -> list[str]:
    paths = [name.split(".")[:-1] for name in parameters]
    return sorted({".".join(path[:depth]) for path in paths for depth in (1, 2) if path})
