"""SpeechBrain's Brain with the gradients of two tasks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

import speechbrain as sb
import torch
import torch._functorch.config
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process

from unified_se_ss.errors import UserError
from unified_se_ss.gradients import (
    ConflictMonitor,
    TaskLoss,
    TwoTaskGradients,
    TwoTaskLosses,
)
from unified_se_ss.progress import progress_bar
from unified_se_ss.training.checkpoints import RandomStates
from unified_se_ss.training.distributed import (
    RankCount,
    check_first_step,
    sum_of_ranks,
    world_size,
)
from unified_se_ss.training.signals import AsyncScalar, stop_signals

logger = logging.getLogger(__name__)

# In the names of parameters, by parallel and compiling wrappers.
WRAPPERS = {"_orig_mod", "module"}

# Of the monitor, at most.
WINDOWS_PER_EPOCH = 20
WINDOWS = 1000


class TaskMeans:
    """Means of both tasks' losses over the items of an epoch, kept on the device.

    Example
    -------
    >>> from unified_se_ss.gradients import TaskLoss
    >>> means = TaskMeans()
    >>> means.update(TwoTaskLosses(TaskLoss.of(torch.tensor([1.0, 3.0]))))
    >>> means.read()
    {'main': 2.0, 'auxiliary': None}
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._sums = torch.zeros(4, dtype=torch.float64)

    def update(self, losses: TwoTaskLosses) -> None:
        """Add one batch; losses that are not finite are left out."""
        main, auxiliary = losses
        zero = torch.zeros_like(main.items)
        total, items = (zero, zero) if auxiliary is None else auxiliary
        sums = torch.stack([main.total.detach(), main.items, total.detach(), items])
        # Each task's total and count stand or fall together.
        finite = sums.isfinite().view(2, 2).all(1).repeat_interleave(2)
        self._sums = self._sums.to(sums.device) + torch.where(finite, sums, 0.0).double()

    def read(self, all_ranks: bool = False) -> dict:
        """Fetch the means (one transfer); None where there were no items.

        Arguments
        ---------
        all_ranks : bool
            Over the items of all ranks, each of which must call this; by default over
            this rank's own.
        """
        sums = self._sums_of_all_ranks() if all_ranks else self._sums
        main, main_items, auxiliary, auxiliary_items = sums.tolist()
        return {
            "main": main / main_items if main_items else None,
            "auxiliary": auxiliary / auxiliary_items if auxiliary_items else None,
        }

    def _sums_of_all_ranks(self) -> torch.Tensor:
        return sum_of_ranks(self._sums.clone())

    @mark_as_saver
    def _save(self, path):
        sums = self._sums_of_all_ranks()
        if if_main_process():
            torch.save(sums.cpu(), path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        self._sums = torch.load(path, map_location="cpu", weights_only=True)
        if not if_main_process():  # which goes on for all
            self.reset()


register_checkpoint_hooks(TaskMeans, save_on_main_only=False)  # all ranks take part


@dataclass
class Progress:
    """A loader with a progress bar around it, and the time that was waited for it.

    Arguments
    ---------
    loader : iterable
        Batches; must have a length.
    fields : callable
        Returns the dict to show; called rarely, as it may wait for the device.
    description : str
        Stands before the bar.
    start : int
        Batches that are done already.
    interval : int
        Batches between two calls of `fields`.
    show : bool
        Draw the bar.
    ends_early : callable
        Returns True to leave the rest of the batches; asked before the first and with
        `fields`.
    """

    loader: Iterable
    fields: Callable
    description: str
    start: int = 0
    interval: int = 1
    show: bool = True
    ends_early: Callable = lambda: False
    waited: float = field(default=0.0, init=False)
    elapsed: float = field(default=0.0, init=False)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        began = asked = time.perf_counter()
        with progress_bar(
            description=self.description,
            total=len(self),
            unit="batch",
            initial=self.start,
            disable=not self.show,
        ) as bar:
            for number, batch in enumerate(() if self.ends_early() else self.loader, 1):
                self.waited += time.perf_counter() - asked
                yield batch
                asked = time.perf_counter()
                self.elapsed = asked - began
                if number % self.interval == 0:
                    bar.set_postfix(self.fields(), refresh=False)
                bar.update()
                if number % self.interval == 0 and self.ends_early():
                    break
            bar.set_postfix(self.fields())

    def timing(self) -> dict:
        """Minutes since it began, and the share of them that was waited for data."""
        data_wait = self.waited / self.elapsed if self.elapsed else 0.0
        return {"minutes": round(self.elapsed / 60, 3), "data_wait": round(data_wait, 4)}


class TwoTaskBrain(sb.Brain):
    """A Brain for two tasks that share parameters.

    A subclass writes ``compute_forward`` and ``compute_objectives``; the latter returns
    :class:`~unified_se_ss.gradients.TwoTaskLosses`, or simply ``main, auxiliary``, two
    mean losses (each batch then counts alike, whatever its size), or a single loss where
    there is one task. Everything else that a Brain does is done as there, except for this:

    * The two gradients are summed over micro-batches and ranks and then combined by a
      rule (:class:`~unified_se_ss.gradients.TwoTaskGradients`). The modules are not
      wrapped in DistributedDataParallel, which would reduce the first of two backward
      passes and skip the second.
    * The last batches of an epoch are stepped even if they are fewer than
      ``grad_accumulation_factor``.
    * A step whose main gradient is not finite is skipped as a whole, in any precision;
      more than ``nonfinite_patience`` of them in an epoch stop the run.
    * All parameter groups are clipped to ``max_grad_norm``, unless it is 0 or less.
    * A checkpoint also holds random states and the gradients of micro-batches that wait
      for their step. A signal that asks the run to leave (under
      :func:`unified_se_ss.training.run`) has it save first, between two micro-batches.
    * With a fused optimizer, nothing is fetched from the device but every
      ``log_interval`` steps.

    Besides Brain's own, these keys of ``hparams`` are read: ``shared_modules`` and
    ``auxiliary_modules`` (names as in ``modules``, such as ``network.encoder``; the
    latter are those that the auxiliary task alone uses), ``rule``, ``rule_options``,
    ``granularity``, ``aux_scale``, ``aux_ratio``, ``aux_decay``, as
    :class:`~unified_se_ss.gradients.TwoTaskGradients` takes them, ``log_interval``
    (default 50; always 1 on the CPU), ``number_of_epochs``, and
    ``activation_checkpointing`` (default False): modules that have an attribute of that
    name run their blocks again backwards instead of keeping their activations.

    Example
    -------
    >>> from unified_se_ss.gradients import TaskLoss
    >>> class Example(TwoTaskBrain):
    ...     def compute_forward(self, batch, stage):
    ...         hidden = self.modules.shared(batch)
    ...         return hidden, self.modules.head(hidden)
    ...     def compute_objectives(self, predictions, batch, stage):
    ...         hidden, output = predictions
    ...         return TwoTaskLosses(
    ...             TaskLoss.of(output.square().sum(1)), TaskLoss.of(hidden.square().sum(1)))
    >>> brain = Example(
    ...     modules={"shared": torch.nn.Linear(4, 3), "head": torch.nn.Linear(3, 2)},
    ...     opt_class=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ...     hparams={"shared_modules": ["shared"], "rule": "project"},
    ...     run_opts={"device": "cpu", "noprogressbar": True})
    >>> loader = torch.utils.data.DataLoader(torch.randn(20, 4), batch_size=5)
    >>> brain.fit(range(1, 3), loader)
    >>> brain.means.read()["main"] > 0
    True
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self, "hparams"):
            raise UserError("TwoTaskBrain needs hparams with the key shared_modules")
        if self.data_parallel_backend:
            raise UserError("data_parallel_backend is not supported; start with torchrun")
        for name in ("fit_batch", "optimizers_step"):
            if getattr(type(self), name) is not getattr(TwoTaskBrain, name):
                logger.warning(
                    f"{type(self).__name__} has a {name} of its own; take it out, or call "
                    "TwoTaskBrain's there"
                )
        if self.option("activation_checkpointing", False):
            self._checkpoint_activations()
        on_cpu = self.device_type == "cpu"
        self.log_interval = 1 if on_cpu else self.option("log_interval", 50)
        self.means = TaskMeans()
        self.monitor = self.gradients = self.combined = None
        self._test_bar = progress_bar(disable=True)
        self._mean_loss = torch.zeros(())
        self._votes = AsyncScalar()
        self.rank_count, self.ranks_agree = RankCount(), world_size() == 1
        if self.checkpointer is not None:
            add = self.checkpointer.add_recoverable
            add("means", self.means)
            add("random", RandomStates(), optional_load=True)
            add("ranks", self.rank_count, optional_load=True)

    def _checkpoint_activations(self):
        name = "activation_checkpointing"
        able = [module for module in self.modules.modules() if hasattr(module, name)]
        if not able:
            raise UserError(f"{name}: no module of this network can; set it to False")
        for module in able:
            module.activation_checkpointing = True

    def option(self, name, default):
        """A key of hparams, or its default."""
        return getattr(self.hparams, name, default)

    def _make_gradients(self):
        options = ("rule_options", "aux_scale", "aux_ratio", "aux_decay")
        known = vars(self.hparams)
        with _as_user_error():
            self.gradients = TwoTaskGradients(
                [(plain_name(n), p) for n, p in self.modules.named_parameters()],
                shared=self.option("shared_modules", ()),
                auxiliary=self.option("auxiliary_modules", ()),
                rule=self.option("rule", "project"),
                granularity=self.option("granularity", "parameter"),
                **{name: known[name] for name in options if name in known},
            )
        self.monitor = ConflictMonitor(
            self.gradients.groups,
            self.option("granularity", "parameter"),
            capacity=self.log_interval,
        )
        if self.checkpointer is not None:
            hooks = {"custom_load_hook": _load_state, "custom_save_hook": _save_state}
            add = self.checkpointer.add_recoverable
            add("gradients", self.gradients, **hooks)
            add("monitor", self.monitor, **hooks, optional_load=True)  # it only watches

    def _compile(self):
        """Compile as a Brain does, into graphs that can be walked backwards twice."""
        if self.compile or self.compile_module_keys:
            torch._functorch.config.donated_buffer = False
        super()._compile()

    def _wrap_distributed(self):
        """Give every rank rank 0's modules; gradients are reduced where they are combined.

        Here the modules are those that will be trained and nothing has been recovered yet,
        so this is also where the two gradients are made.
        """
        for name, module in self.modules.items() if self.distributed_launch else ():
            if self.device_type == "cuda":
                module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
                self.modules[name] = module
            for tensor in [*module.parameters(), *module.buffers()]:
                torch.distributed.broadcast(tensor.detach(), src=0)
        self._make_gradients()

    def _fit_train(self, train_set, epoch, enable):
        """One epoch as Brain runs it, with this class' own progress bar around the data."""
        if hasattr(self.train_sampler, "set_epoch"):
            self.train_sampler.set_epoch(epoch)  # before its length is asked for
        self._epoch, self._batches = epoch, len(train_set)
        self.rank_count.check()
        if self.step == 0:  # else the epoch is being resumed
            self.means.reset()
            self.monitor.reset(self.optimizer_step, self._window())
        self.progress = Progress(
            train_set,
            self.progress_fields,
            f"Epoch {epoch}",
            start=self.step,
            interval=self.log_interval,
            show=enable,
            ends_early=self.ends_early,
        )
        super()._fit_train(self.progress, epoch, enable=False)

    def _fit_valid(self, valid_set, epoch, enable):
        """Validate as Brain does, with the project's own progress bar."""
        if valid_set is not None:
            valid_set = progress_bar(
                valid_set, f"Epoch {epoch}, validation", unit="batch", disable=not enable
            )
        super()._fit_valid(valid_set, epoch, enable=False)

    def evaluate(self, test_set, *args, progressbar=None, **kwargs):
        """Evaluate as Brain does, with the project's own progress bar."""
        show = not self.noprogressbar if progressbar is None else progressbar
        total = len(test_set) if hasattr(test_set, "batch_sampler") else None
        show = show and if_main_process()
        with progress_bar(
            description="Test", total=total, unit="batch", disable=not show
        ) as self._test_bar:
            return super().evaluate(test_set, *args, progressbar=False, **kwargs)

    def _window(self) -> int:
        """Steps over which the monitor averages, which divide an epoch evenly."""
        steps = -(-self._batches // self.grad_accumulation_factor)
        epochs = max(1, self.option("number_of_epochs", 1))
        most = max(1, min(WINDOWS_PER_EPOCH, WINDOWS // epochs))
        return max(1, -(-steps // max(1, min(most, steps // self.log_interval))))

    def progress_fields(self) -> dict:
        """Read the device: losses and conflicts for the progress bar; checks patience."""
        means, found = self.means.read(), self.monitor.read()
        self._mean_loss = torch.tensor(means["main"] or 0.0)
        self.avg_train_loss = self._mean_loss.item()
        self.check_patience(found["main_nonfinite"])
        fields = self.loss_fields(means)
        if means["auxiliary"] is not None:
            fields["conflicts"] = percent(found["conflict_rate"])
        return fields

    def ends_early(self) -> bool:
        """True leaves the rest of the epoch's batches; all ranks must say the same."""
        return False

    def loss_fields(self, means: dict) -> dict:
        """The losses as the progress bar shows them; override to speak of other units."""
        return {name: f"{value:.3f}" for name, value in means.items() if value is not None}

    def check_patience(self, skipped: int) -> None:
        """Stop if more steps were skipped in this epoch than ``nonfinite_patience`` allows."""
        if skipped > self.nonfinite_patience:
            raise UserError(
                f"{skipped} steps of this epoch had a non-finite main gradient, "
                f"nonfinite_patience allows {self.nonfinite_patience}; look at the data, "
                "lower the learning rate, or run with --precision fp32"
            )

    @property
    def _completes_accumulation(self) -> bool:
        if self.step % self.grad_accumulation_factor == 0 or self.step >= self._batches:
            return True
        return self.debug and self.step == self.debug_batches

    def fit_batch(self, batch):
        """Take both gradients of a batch; combine and step when enough have been added.

        Returns
        -------
        torch.Tensor
            Mean main loss of the epoch when the device was last read, on the CPU.
        """
        if not self.ranks_agree:
            check_first_step(self, batch)
        should_step = self._completes_accumulation
        self.on_fit_batch_start(batch, should_step)
        with self.training_ctx:
            outputs, losses = self.losses_of(batch, sb.Stage.TRAIN)
        with _as_user_error():
            self.gradients.accumulate(losses, self.scaler.scale)
        self.means.update(losses)
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, losses, should_step)
        return self._mean_loss

    def losses_of(self, batch, stage) -> tuple:
        """Outputs of a batch, and its losses as TwoTaskLosses."""
        outputs = self.compute_forward(batch, stage)
        losses = self.compute_objectives(outputs, batch, stage)
        one_task = not self.option("shared_modules", ())
        return outputs, as_two_task_losses(losses, one_task)

    def update_average(self, loss, avg_loss):
        """In training, the loss is an average already; else as Brain does it."""
        if self.modules.training:
            return float(loss)
        return super().update_average(loss, avg_loss)

    def optimizers_step(self):
        """Combine the gradients, clip them, and step every optimizer that is not frozen."""
        self.gradients.flag = stop_signals.asked
        self.combined = combined = self.gradients.combine()
        if torch.distributed.is_initialized():
            self._votes.write(self.gradients.flags)
        self.monitor.update(combined)
        optimizers = list(self.freeze_optimizers(self.optimizers_dict).values())
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
            if self.max_grad_norm > 0:
                parameters = [
                    p for group in optimizer.param_groups for p in group["params"]
                ]
                torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            self._step(optimizer, combined.main_finite)
        self.scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def _step(self, optimizer, finite: torch.Tensor) -> None:
        """Step if the gradients are finite; a fused optimizer finds out on the device."""
        if self.scaler.is_enabled():
            self.scaler.step(optimizer)
        elif getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = (~finite).to(torch.float32)
            optimizer.step()
            del optimizer.found_inf
        elif bool(finite):
            optimizer.step()

    def fit(self, *args, **kwargs):
        """Train as Brain does; a signal to stop is obeyed where nothing is lost."""
        with stop_signals.defer():
            super().fit(*args, **kwargs)
        stop_signals.leave_if_asked()

    def leave_if_asked(self, place: str) -> None:
        """Leave if any rank was asked to; for where all is saved. Every rank calls this."""
        if sum_of_ranks(torch.tensor(float(stop_signals.asked), device=self.device)):
            stop_signals.leave(place)

    def _save_and_leave(self, place: str) -> None:
        if self.checkpointer is None:
            stop_signals.leave()
        self._save_intra_epoch_ckpt()
        stop_signals.leave(place)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """As Brain decides, but never between the micro-batches of one step.

        If the run was asked to leave, it saves and leaves here, between any two of them;
        several ranks, which have to agree, do so after a step. That a checkpoint is due
        they agree on every ``log_interval`` steps, as they wait for each other to do so.
        """
        distributed = torch.distributed.is_initialized()
        if self._votes.read() if distributed else stop_signals.asked:
            place = f"epoch {self._epoch}, batch {self.step} of {self._batches}"
            self._save_and_leave(place)
        unlooked = self.optimizer_step % self.log_interval > 0
        if self.gradients.pending or (distributed and unlooked):
            return False
        return super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)

    @torch.no_grad()
    def evaluate_batch(self, batch, stage):
        """Mean main loss of a batch, on the CPU."""
        with self.evaluation_ctx:
            _, losses = self.losses_of(batch, stage)
        alone = world_size() == 1  # several ranks: at the epoch's end
        if stage == sb.Stage.VALID and alone and stop_signals.asked:
            self.step = self._batches  # those of training, all done; this begins anew
            self._save_and_leave(f"epoch {self._epoch}, before its validation")
        if stage == sb.Stage.TEST:
            self._test_bar.update()
        return losses.main.mean().cpu()


def as_two_task_losses(losses, one_task: bool = False) -> TwoTaskLosses:
    """Make TwoTaskLosses of any losses; plain means count as one item each.

    Arguments
    ---------
    losses : TwoTaskLosses, tuple, TaskLoss or torch.Tensor
        The losses of both tasks or, where there is one task, one loss.
    one_task : bool
        Accept one loss: not where two tasks share modules, since it may be their sum.

    Raises
    ------
    UserError
        It is something else.

    Example
    -------
    >>> as_two_task_losses((torch.tensor(3.0), torch.tensor(0.5))).main
    TaskLoss(total=tensor(3.), items=tensor(1.))
    """
    pair = losses
    if isinstance(losses, (TaskLoss, torch.Tensor)):
        pair = (losses, None) if one_task else None
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise UserError(
            f"compute_objectives returned a {type(losses).__name__}; expected the main and "
            "the auxiliary loss, as TwoTaskLosses or as two scalars (main, auxiliary); one loss "
            "alone where there is one task and no shared_modules"
        )
    main, auxiliary = pair
    return TwoTaskLosses(
        _as_task_loss(main, "main"),
        None if auxiliary is None else _as_task_loss(auxiliary, "auxiliary"),
    )


def _as_task_loss(loss, task: str) -> TaskLoss:
    if isinstance(loss, TaskLoss):
        return loss
    if isinstance(loss, torch.Tensor) and loss.dim() == 0:
        return TaskLoss(loss, torch.ones_like(loss.detach()))
    shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else ""
    raise UserError(
        f"compute_objectives: the {task} loss is a {type(loss).__name__}{shape}; expected a "
        "scalar tensor, or TaskLoss.of(losses) for one loss per item"
    )


@contextmanager
def _as_user_error():
    """Turn what the gradients cannot work with into one message."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def _save_state(kept, path):
    torch.save(kept.state_dict(), path)


def _load_state(kept, path, end_of_epoch):
    del end_of_epoch
    kept.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers add to it.

    Example
    -------
    >>> plain_name("network._orig_mod.encoder.weight")
    'network.encoder.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def percent(share: float | None) -> str:
    """A share for people to read.

    Example
    -------
    >>> percent(0.314), percent(None)
    ('31 %', '-')
    """
    return "-" if share is None else f"{100 * share:.0f} %"
