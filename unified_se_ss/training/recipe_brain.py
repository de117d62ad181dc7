"""The Brain of every recipe: what becomes of an epoch, beyond its steps."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from speechbrain import Stage
from speechbrain.nnet import schedulers
from speechbrain.utils.checkpoints import (
    average_checkpoints,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_broadcast, if_main_process

from unified_se_ss.data.batching import EmptyBatch
from unified_se_ss.evaluation.plots import curves_png
from unified_se_ss.files import atomic_write
from unified_se_ss.gradients import NonFiniteMonitor, TaskLoss, TwoTaskLosses
from unified_se_ss.training.autotune import (
    ChosenPrecision,
    choose_precision,
    find_batch_seconds,
)
from unified_se_ss.training.brain import TwoTaskBrain, percent
from unified_se_ss.training.distributed import gather
from unified_se_ss.training.log import (
    MAX_SKIPPED_SHARE,
    EpochTable,
    SkippedItems,
    TrainLog,
    log_gradients,
)

# Between checkpoints within an epoch, if neither minutes nor steps are asked for.
CKPT_INTERVAL_MINUTES = 15

SUBSETS = {Stage.TRAIN: "train", Stage.VALID: "dev", Stage.TEST: "test"}


@register_checkpoint_hooks
class TimeBudget:
    """Wall time of training, over all starts of a run, and the share of it that is used.

    A machine that is fast enough trains all epochs, and nothing follows from the clock. On
    a slower one the learning rate is at any time that of the epoch which a run of the full
    length would have reached with the same share, and training ends when the budget is
    used up, within an epoch. A checkpoint holds the time that was used.

    Arguments
    ---------
    minutes : float, optional
        By default there is no limit.
    epochs : int
        That the schedule is made for (default 1).

    Example
    -------
    >>> budget = TimeBudget(minutes=2, epochs=8)
    >>> budget.used = 61.0
    >>> budget.scheduled_epoch(epoch=2), budget.scheduled_epoch(epoch=7), budget.is_spent
    (5, 7, False)
    """

    def __init__(self, minutes: float | None = None, epochs: int = 1):
        self.seconds = None if minutes is None else 60.0 * minutes
        self.epochs = epochs
        self.used = 0.0
        self._since = None

    @property
    def is_spent(self) -> bool:
        """True when training is to end."""
        return self.seconds is not None and self.used >= self.seconds

    def start(self) -> None:
        """Have the time count from now on."""
        self._since = time.monotonic()

    def update(self) -> None:
        """Bring ``used`` up to now: the first rank's time, where there are several."""
        self._count()
        if self.seconds is not None:
            self.used = ddp_broadcast(self.used, src=0)

    def _count(self) -> None:
        if self._since is not None:
            now = time.monotonic()
            self.used, self._since = self.used + now - self._since, now

    def scheduled_epoch(self, epoch: int) -> int:
        """The epoch whose learning rate holds in an epoch: itself, or a later one."""
        if self.seconds is None:
            return epoch
        reached = 1 + int(self.epochs * min(1.0, self.used / self.seconds))
        return max(epoch, min(self.epochs, reached))

    def __str__(self):
        return f"{self.used / 60:.1f} of {self.seconds / 60:g} minutes"

    @mark_as_saver
    def _save(self, path):
        self._count()
        Path(path).write_text(repr(self.used), encoding="utf-8")

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        self.used = float(Path(path).read_text(encoding="utf-8"))


class RecipeBrain(TwoTaskBrain):
    """A Brain that logs each epoch, changes the learning rate, and keeps the best.

    A subclass writes ``compute_forward`` and ``compute_objectives``. The latter returns
    the loss (or the two losses) of the batch. Outside training it also adds a row for each
    item of the batch (:meth:`add_rows`): in validation, numbers by name, whose means over
    all items are logged ("loss", which the learning rate follows, is one of them); in the
    test, the row of results.csv, with its "ID". After a stage ``self.rows`` holds those of
    all ranks. For wavs and report, ``signals_of(batch, outputs, item)`` returns the signals
    of one item of a test batch as NumPy arrays: mixture [T], estimates [J, T], targets
    [J, T] and, where there is one, enhanced [T].

    Besides what :class:`~unified_se_ss.training.brain.TwoTaskBrain` reads, these keys of
    ``hparams`` are read: ``output_folder``, ``lr_scheduler`` (one of SpeechBrain's),
    ``average_checkpoints`` (how many of the best are kept, default 1),
    ``max_skipped_share``, ``budget_minutes``, ``batch_seconds``, and those of
    :func:`~unified_se_ss.training.log.log_gradients`.

    Attributes
    ----------
    best : str
        The best checkpoint is the one with the largest ``valid_<best>``.
    rows : list of dict
        Of the items of this stage.
    loaders : dict
        By subset: train, dev, test.
    skipped : SkippedItems
        Items that could not be used.
    nonfinite : NonFiniteMonitor
        Names the batches that were not finite.
    """

    best = "si_snr_i"
    loaders = {}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not (self.ckpt_interval_minutes or self.ckpt_interval_steps):
            self.ckpt_interval_minutes = CKPT_INTERVAL_MINUTES
        share = self.option("max_skipped_share", MAX_SKIPPED_SHARE)
        self.skipped = SkippedItems(self.option("output_folder", "."), share)
        self.nonfinite = NonFiniteMonitor()
        self.budget = TimeBudget(
            self.option("budget_minutes", None), self.option("number_of_epochs", 1)
        )
        self.chosen_precision = ChosenPrecision()
        if self.checkpointer is not None:
            add = self.checkpointer.add_recoverable
            add("budget", self.budget, optional_load=True)
            add("precision", self.chosen_precision, optional_load=True)

    def on_fit_start(self):
        """Begin as a Brain does; find batch size and precision, if that is asked for."""
        super().on_fit_start()
        find_batch_seconds(self)
        choose_precision(self)
        self.budget.start()
        if self.budget.is_spent and self.step == 0:  # else an epoch waits for its end
            self.end_with_this_epoch()

    # ------------------------------------------- for a subclass to write

    def before_training(self) -> None:
        """Give modules their first weights; called once, when ``loaders`` are there."""

    def report_options(self) -> dict:
        """More for the report, as ``evaluation.publish`` takes it."""
        return {}

    def after_report(self) -> None:
        """Write what else a recipe reports; called on the main process."""

    def training_fields(self, means: dict) -> dict:
        """More columns of the log, from the mean losses ``main`` and ``auxiliary``."""
        return {}

    def epoch_message(self, row: dict) -> str:
        """Text printed after an epoch, from its row in the log."""
        return f"validation {self.best} {row['valid_' + self.best]:.2f}"

    # ------------------------------------------- rows

    def add_rows(self, columns: dict) -> None:
        """Add a row for each item of a batch.

        Arguments
        ---------
        columns : dict
            A tensor [B] or a list of B values by name.
        """
        lists = (c.tolist() if hasattr(c, "tolist") else c for c in columns.values())
        self.rows += [dict(zip(columns, row)) for row in zip(*lists)]

    @torch.no_grad()
    def signals_of_id(self, item_id: str) -> dict:
        """Evaluate one item of the test set again; its signals as ``signals_of``."""
        loader, dataset = self.loaders["test"], self.loaders["test"].dataset
        if hasattr(dataset, "find"):
            example = dataset.find(item_id)
        else:
            ids = [item.id for item in dataset.manifest.items]
            example = dataset[ids.index(item_id)]
        batch = loader.collate_fn([example])
        with self.evaluation_ctx:
            outputs = self.compute_forward(batch, Stage.TEST)
        return self.signals_of(batch, outputs, 0)

    # ------------------------------------------- stages

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Load the best checkpoint, or the means of the best ones' weights."""
        super().on_evaluate_start(max_key, min_key)
        count = self.option("average_checkpoints", 1)
        if count > 1:
            best = self.checkpointer.find_checkpoints(
                max_key=max_key, max_num_checkpoints=count
            )
            load = partial(torch.load, map_location=self.device, weights_only=True)
            for name, module in self.modules.items() if best else ():
                module.load_state_dict(average_checkpoints(best, name, load))

    def on_stage_start(self, stage, epoch=None):
        self.stage, self.rows = stage, []
        subset = SUBSETS[stage]
        n_items = len(self.loaders[subset].dataset) if subset in self.loaders else 0
        self.skipped.begin(subset, epoch or 0, n_items, self.step)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, schedule, and keep the best checkpoint; after the test, gather."""
        self.n_skipped = self.skipped.end()
        if stage == Stage.TRAIN:
            self.train_row = self.training_row(epoch)
            self.timing = self.progress.timing()
        elif stage == Stage.VALID:
            self.finish_epoch(epoch)
        else:
            self.rows = sorted(gather(self.rows), key=lambda row: row["ID"])

    def training_row(self, epoch) -> dict:
        means, found = self.means.read(all_ranks=True), self.monitor.read()
        row = {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": means["main"],
            **self.training_fields(means),
            "skipped_steps": found["main_nonfinite"],
        }
        if means["auxiliary"] is not None:
            row |= {key: found[key] for key in ("conflict_rate", "mean_cosine")}
            row["steps_without_auxiliary"] = found["auxiliary_nonfinite"]
        return {**row, **self.skipped_field("skipped_items")}

    def skipped_field(self, name: str) -> dict:
        return {name: self.n_skipped} if self.n_skipped else {}

    # ------------------------------------------- batches

    def on_fit_batch_start(self, batch, should_step):
        """Write down the items that the batch had to leave out."""
        if skipped := getattr(batch, "skipped", ()):
            self.skipped.add(skipped, self.step)

    def evaluate_batch(self, batch, stage):
        """Write down the items that the batch had to leave out, and evaluate the others."""
        if skipped := getattr(batch, "skipped", ()):
            self.skipped.add(skipped, self.step)
        return super().evaluate_batch(batch, stage)

    def losses_of(self, batch, stage):
        """As TwoTaskBrain; a batch of which nothing is left takes its part in the step."""
        if isinstance(batch, EmptyBatch):
            none = torch.zeros((), device=self.device)
            return None, TwoTaskLosses(TaskLoss(none, none))
        return super().losses_of(batch, stage)

    def on_fit_batch_end(self, batch, outputs, losses, should_step):
        """Keep for the log which losses and gradients are not finite."""
        place = f"epoch {self.skipped.epoch}, batch {self.step}"
        # The loss scale of fp16 overflows now and then, on purpose.
        combined = self.combined if should_step and not self.scaler.is_enabled() else None
        self.nonfinite.record(place, getattr(batch, "ids", ()), losses, combined)

    def progress_fields(self):
        """Losses, conflicts and skipped items; logs the batches that were not finite."""
        self.nonfinite.flush()
        fields = super().progress_fields()
        return {**fields, "skipped": self.skipped.count} if self.skipped.count else fields

    # ------------------------------------------------------------ the time

    def ends_early(self):
        """Bring the learning rate to the share of the time that is used, up to the end."""
        self.budget.update()
        epoch = self.budget.scheduled_epoch(self._epoch)
        if epoch > self._epoch:
            self.move_schedule(epoch)
        return self.budget.is_spent and not self.gradients.pending

    def move_schedule(self, epoch):
        """Have the learning rate of a later epoch, if the scheduler is one of epochs or steps.

        Those that follow the validation, or have no end, go on as they are.
        """
        scheduler = self.hparams.lr_scheduler
        if isinstance(scheduler, schedulers.LinearWarmupScheduler):
            ahead = (epoch - 1) * self._batches // self.grad_accumulation_factor
            scheduler.current_step = max(scheduler.current_step, ahead)
        elif isinstance(scheduler, schedulers.LinearScheduler):
            self.change_learning_rate(epoch - 1, None)

    def end_with_this_epoch(self):
        counter = self.hparams.epoch_counter
        counter.limit = min(counter.limit, counter.current)

    # ------------------------------------------------------------ the end of an epoch

    def finish_epoch(self, epoch):
        """Log the epoch, change the learning rate, keep the best and the last."""
        rows = gather(self.rows)
        means = {f"valid_{key}": _mean(rows, key) for key in rows[0]}
        row = {**self.train_row, **means, **self.skipped_field("skipped_items_dev")}
        self.budget.update()
        next_epoch = self.budget.scheduled_epoch(epoch + 1)
        self.change_learning_rate(next_epoch - 1, row["valid_loss"])
        if if_main_process():
            self.log_epoch(epoch, row)
        self.checkpointer.save_and_keep_only(
            meta={self.best: row[f"valid_{self.best}"], "epoch": epoch},
            max_keys=[self.best],
            num_to_keep=self.option("average_checkpoints", 1),
        )
        if self.budget.is_spent:
            self.end_with_this_epoch()
        self.leave_if_asked(f"epoch {epoch}, at its end")

    def log_epoch(self, epoch, row):
        """Write, draw and print an epoch's row."""
        folder = Path(self.hparams.output_folder)
        log = TrainLog(folder)
        log.add(row)
        atomic_write(folder / "curves.png", curves_png(log.rows))
        log_gradients(self, row)
        EpochTable(folder / "timing.csv").add({"epoch": epoch, **self.timing})
        print(
            f"Epoch {epoch}: {self.epoch_message(row)}, lr {row['lr']:.2g}, "
            f"{percent(self.timing['data_wait'])} of {self.timing['minutes']:.1f} min "
            "waited for data" + (f", {self.budget}" if self.budget.seconds else "")
        )
        epochs = self.hparams.epoch_counter.limit
        if self.budget.is_spent and epoch < epochs:
            print(f"budget_minutes: used up in epoch {epoch} of {epochs}")

    def change_learning_rate(self, epoch, valid_loss):
        """Ask the scheduler: ReduceLROnPlateau follows the loss, others the epoch."""
        scheduler = self.hparams.lr_scheduler
        if isinstance(scheduler, schedulers.ReduceLROnPlateau):
            _, lr = scheduler([self.optimizer], epoch, valid_loss)
        else:
            _, lr = scheduler(epoch)
        schedulers.update_learning_rate(self.optimizer, lr)


def item_arrays(signals: dict, item: int, lengths) -> dict:
    """Cut one item out of a batch's signals.

    Arguments
    ---------
    signals : dict
        Tensors [B, ..., T] by name.
    item : int
        Its place in the batch.
    lengths : torch.Tensor
        Samples of each item, [B].

    Returns
    -------
    dict
        float32 NumPy arrays [..., length] by name.
    """
    length = int(lengths[item])
    return {n: x[item, ..., :length].float().cpu().numpy() for n, x in signals.items()}


def _mean(rows: list[dict], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)
