"""Take the gradients of two tasks apart, add them up, and make one of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed

from unified_se_ss.gradients.layout import BLOCK, Layout
from unified_se_ss.gradients.losses import TwoTaskLosses
from unified_se_ss.gradients.rules import find_rule


class CombinedGradients(NamedTuple):
    """What was found and done at one step; tensors on the device, nothing fetched.

    Arguments
    ---------
    auxiliary_squared : torch.Tensor
        ||g_a||^2 of each group, float64, [G].
    main_squared : torch.Tensor
        ||g_m||^2 of each group, float64, [G].
    product : torch.Tensor
        <g_a, g_m> of each group, float64, [G].
    auxiliary_finite : torch.Tensor
        Whether the auxiliary gradient was finite and was used, boolean scalar.
    main_finite : torch.Tensor
        Whether the main gradient was finite, boolean scalar; if not, the step must be
        skipped as a whole.
    """

    auxiliary_squared: torch.Tensor
    main_squared: torch.Tensor
    product: torch.Tensor
    auxiliary_finite: torch.Tensor
    main_finite: torch.Tensor


class TwoTaskGradients:
    """Gradients of a main and an auxiliary task, combined by a rule where shared.

    The shared parameters get w_a * g_a + w_m * g_m with the rule's weights, all others
    the main gradient alone. Both gradients are those of means over the items of all
    accumulated micro-batches and of all ranks; the rule sees these, once per step.

    One flat buffer holds everything, so a step has one collective and few kernels, and
    no number is fetched from the device.

    Arguments
    ---------
    named_parameters : iterable of (str, torch.nn.Parameter)
        All parameters to train, as ``module.named_parameters()`` gives them. Frozen
        ones are left out.
    shared : sequence of str
        Names of the modules (or parameters) that the tasks share, such as
        ``["encoder", "enhancer"]``.
    rule : str
        Name of the rule, see :mod:`unified_se_ss.gradients.rules`.
    granularity : str
        ``"parameter"`` (what the published codes do), ``"module"`` or ``"global"``
        (what the papers' figures draw).
    process_group : torch.distributed.ProcessGroup, optional
        Ranks to add up over. By default all, if torch.distributed is initialised.

    Raises
    ------
    ValueError
        Unknown rule or granularity, a shared name that no parameter has, or
        parameters of several dtypes or devices.

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
        named_parameters,
        shared,
        rule: str = "project",
        granularity: str = "parameter",
        process_group=None,
    ):
        self.rule = find_rule(rule)
        self.process_group = process_group
        trainable = {n: p for n, p in named_parameters if p.requires_grad}
        names = self._select(trainable, shared)
        # In the order of the parameters, which is the same on every rank; a set has none.
        self.shared = Layout(
            {n: p for n, p in trainable.items() if n in names}, granularity
        )
        self.others = Layout(
            {n: p for n, p in trainable.items() if n not in names}, "global"
        )
        self.pending = 0
        self._allocate()

    @staticmethod
    def _select(parameters, names) -> set[str]:
        """Names of the parameters in the named modules; a name without any is an error."""
        selected = set()
        for name in names:
            found = {n for n in parameters if n == name or n.startswith(name + ".")}
            if not found:
                raise ValueError(
                    f"shared: no trainable parameter belongs to '{name}'; "
                    f"the modules are: {', '.join(_modules_of(parameters))}"
                )
            selected |= found
        return selected

    def _allocate(self) -> None:
        """One buffer: main of the shared, main of the others, auxiliary, two counts."""
        parameters = [*self.shared.parameters.values(), *self.others.parameters.values()]
        if not parameters:
            raise ValueError("there is no parameter to train")
        kinds = {(p.dtype, p.device) for p in parameters}
        if len(kinds) > 1:
            raise ValueError(f"parameters must have one dtype and device, not {kinds}")
        ((dtype, device),) = kinds
        sizes = [self.shared.size, self.others.size, self.shared.size, 2]
        self._buffer = torch.zeros(sum(sizes), dtype=dtype, device=device)
        main, rest, auxiliary, self._items = self._buffer.split(sizes)
        self._main, self._rest, self._auxiliary = main, rest, auxiliary
        self._main_views = self.shared.views(main) + self.others.views(rest)
        self._auxiliary_views = self.shared.views(auxiliary)
        self._parameters = parameters
        blocks = torch.tensor(self.shared.blocks_of_group, dtype=torch.long, device=device)
        self._blocks_of_group = blocks
        self._group_of_block = torch.repeat_interleave(
            torch.arange(len(blocks), device=device), blocks
        )

    @property
    def groups(self) -> list[str]:
        """Names of the groups that the rule is applied to, [G]."""
        return self.shared.groups

    def accumulate(self, losses: TwoTaskLosses, scale=lambda loss: loss) -> None:
        """Add the gradients of one micro-batch.

        One backward pass through the shared part for the auxiliary task, then one
        through everything for the main task.

        Arguments
        ---------
        losses : TwoTaskLosses
            Sums over the items of the micro-batch, with their graph.
        scale : callable
            Scales a loss before its backward pass, for fp16: ``GradScaler.scale``.
        """
        if self.pending == 0:
            self._start()
        self.pending += 1
        auxiliary = losses.auxiliary
        if auxiliary is not None and auxiliary.total.requires_grad:
            if self.shared.parameters:
                self._backward_auxiliary(scale(auxiliary.total))
            self._items[1] += auxiliary.items
        if losses.main.total.requires_grad:
            scale(losses.main.total).backward()
        self._items[0] += losses.main.items

    def _start(self) -> None:
        """Begin a new step: zero the buffer and let every gradient live in it."""
        self._buffer.zero_()
        for parameter, view in zip(self._parameters, self._main_views):
            parameter.grad = view

    def _backward_auxiliary(self, loss: torch.Tensor) -> None:
        """Add the auxiliary gradient of the shared parameters; keep the graph for the main."""
        gradients = torch.autograd.grad(
            loss,
            list(self.shared.parameters.values()),
            retain_graph=True,
            allow_unused=True,
        )
        pairs = [(v, g) for v, g in zip(self._auxiliary_views, gradients) if g is not None]
        if pairs:
            views, found = zip(*pairs)
            torch._foreach_add_(views, found)

    @torch.no_grad()
    def combine(self) -> CombinedGradients:
        """Make one gradient of the two and leave it in every ``parameter.grad``.

        Ranks are added up first, in one collective, and the rule sees the result, so
        all ranks do the same to the last bit. A group whose main gradient is zero keeps
        its auxiliary gradient. If the auxiliary gradient is not finite anywhere, the
        main gradient stands alone; if the main gradient is not finite, nothing that is
        left in ``parameter.grad`` may be used.

        Returns
        -------
        CombinedGradients
            What was found, on the device.
        """
        self.pending = 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._buffer, group=self.process_group)
        items = self._items.clamp(min=1)
        self._main.div_(items[0])
        self._rest.div_(items[0])
        self._auxiliary.div_(items[1])

        a = self._inner_product(self._auxiliary, self._auxiliary)
        b = self._inner_product(self._main, self._main)
        c = self._inner_product(self._auxiliary, self._main)
        auxiliary_finite = a.isfinite().all()
        main_finite = (
            b.isfinite().all() & _block_sums(self._rest, self._rest).isfinite().all()
        )
        self._apply(*self.rule(a, b, c), auxiliary_finite)
        return CombinedGradients(a, b, c, auxiliary_finite, main_finite)

    def _inner_product(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """<x, y> of each group, [G], in float64."""
        if not self.groups:
            return x.new_zeros(0, dtype=torch.float64)
        return torch.segment_reduce(_block_sums(x, y), "sum", lengths=self._blocks_of_group)

    def _apply(self, w_a, w_m, auxiliary_finite) -> None:
        """Put w_a * g_a + w_m * g_m where the main gradient was."""
        # Filled, not multiplied by zero: 0 * inf is NaN.
        self._auxiliary.masked_fill_(~auxiliary_finite, 0.0)
        w_m = torch.where(auxiliary_finite, w_m, 1.0)
        w_a = torch.where(auxiliary_finite, w_a, 0.0)
        main, auxiliary = _in_blocks(self._main), _in_blocks(self._auxiliary)
        main.mul_(self._per_block(w_m)).addcmul_(auxiliary, self._per_block(w_a))

    def _per_block(self, weights: torch.Tensor) -> torch.Tensor:
        """The weight of each block's group, as a column."""
        return weights[self._group_of_block].to(self._buffer.dtype).unsqueeze(1)


def _in_blocks(x: torch.Tensor) -> torch.Tensor:
    """A flat buffer as rows of one block each; it may be empty."""
    return x.view(x.numel() // BLOCK, BLOCK)


def _block_sums(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sum of x * y over each block, as float64 (products are summed pairwise)."""
    return _in_blocks(x * y).sum(1).double()


def _modules_of(parameters) -> list[str]:
    """Names of the modules two levels deep, for messages."""
    return sorted({".".join(name.split(".")[:2]) for name in parameters})
