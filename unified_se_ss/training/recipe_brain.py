"""The Brain of every recipe: what becomes of an epoch, beyond its steps."""

from __future__ import annotations

from pathlib import Path

from speechbrain import Stage
from speechbrain.nnet.schedulers import (
    LinearScheduler,
    LinearWarmupScheduler,
    ReduceLROnPlateau,
    update_learning_rate,
)
from speechbrain.utils.distributed import if_main_process

from unified_se_ss.evaluation.curves import plot_curves
from unified_se_ss.training.batch_size import find_batch_seconds
from unified_se_ss.training.brain import TwoTaskBrain, percent
from unified_se_ss.training.gather import gather
from unified_se_ss.training.log import EpochTable, TrainLog, log_gradients
from unified_se_ss.training.nonfinite import NonFiniteMonitor
from unified_se_ss.training.precision import ChosenPrecision, choose_precision
from unified_se_ss.training.skipped import MAX_SKIPPED_SHARE, SkippedItems
from unified_se_ss.training.time_budget import TimeBudget

# Between checkpoints within an epoch, if neither minutes nor steps are asked for.
CKPT_INTERVAL_MINUTES = 15

SUBSETS = {Stage.TRAIN: "train", Stage.VALID: "dev", Stage.TEST: "test"}


class RecipeBrain(TwoTaskBrain):
    """A Brain that logs each epoch, changes the learning rate, and keeps the best.

    A subclass writes ``compute_forward`` and ``compute_objectives``. The latter returns
    the loss (or the two losses) of the batch, and outside training it also appends to
    ``self.rows`` a dict for each item of the batch: in validation, numbers by name, whose
    means over all items are logged ("loss", which the learning rate follows, is one of
    them); in the test, the row of results.csv, with its "ID".
    Afterwards ``self.rows`` holds those of all ranks.

    Besides what :class:`~unified_se_ss.training.brain.TwoTaskBrain` reads, these keys of
    ``hparams`` are read: ``output_folder``, ``lr_scheduler`` (in either of SpeechBrain's
    two manners), ``average_checkpoints`` (how many of the best are kept, default 1), and
    those of :func:`~unified_se_ss.training.log_gradients`.

    Attributes
    ----------
    best : str
        What the best checkpoint is chosen by: the larger ``valid_<best>``, the better.
    rows : list of dict
        What each item got in this stage.
    loaders : dict
        By subset: train, dev, test.
    skipped : SkippedItems
        Items that could not be used, of which ``hparams.max_skipped_share`` (default
        0.01) of a subset are put up with.
    suspects : Suspects
        Batches that were not finite.
    """

    best = "si_snr_i"
    loaders = {}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not (self.ckpt_interval_minutes or self.ckpt_interval_steps):
            self.ckpt_interval_minutes = CKPT_INTERVAL_MINUTES
        share = self.option("max_skipped_share", MAX_SKIPPED_SHARE)
        self.skipped = SkippedItems(self.option("output_folder", "."), share)
        self.suspects = NonFiniteMonitor(self)
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

    def training_fields(self, means: dict) -> dict:
        """More columns of the log, from the mean losses ``main`` and ``auxiliary``."""
        return {}

    def epoch_message(self, row: dict) -> str:
        """What is printed of an epoch, from its row in the log."""
        return f"validation {self.best} {row['valid_' + self.best]:.2f}"

    def on_stage_start(self, stage, epoch=None):
        """Begin a list of what each item got."""
        self.stage, self.rows = stage, []
        subset = SUBSETS[stage]
        loader = self.loaders.get(subset)
        self.skipped.begin(
            subset, epoch or 0, len(loader.dataset) if loader else 0, self.step
        )

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
        """What training says of an epoch, for the log."""
        means, found = self.means.read(all_ranks=True), self.monitor.read()
        row = {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": means["main"],
            **self.training_fields(means),
            "skipped_steps": found["main_nonfinite"],
        }
        if means["auxiliary"] is not None:
            row["conflict_rate"] = found["conflict_rate"]
            row["mean_cosine"] = found["mean_cosine"]
            row["steps_without_auxiliary"] = found["auxiliary_nonfinite"]
        return {**row, **self.skipped_field("skipped_items")}

    def skipped_field(self, name: str) -> dict:
        """A column of the log for the items that could not be used, if there were any."""
        return {name: self.n_skipped} if self.n_skipped else {}

    # ------------------------------------------- what cannot be used, what is not finite

    def on_fit_batch_start(self, batch, should_step):
        """Write down what the batch had to leave out."""
        super().on_fit_batch_start(batch, should_step)
        self.skipped.add(getattr(batch, "skipped", ()), self.step)
        self.suspects.forward_begins()

    def evaluate_batch(self, batch, stage):
        """Write down what the batch had to leave out, and evaluate the others."""
        self.skipped.add(getattr(batch, "skipped", ()), self.step)
        return super().evaluate_batch(batch, stage)

    def on_losses(self, batch, losses):
        """Watch whether they are finite."""
        self.suspects.record_losses(batch, losses)

    def on_gradients(self, combined):
        """Watch whether they are finite."""
        self.suspects.note_gradients(combined)

    def progress_fields(self):
        """What the progress bar shows; saves batches that were not finite, too."""
        self.suspects.look()
        return {**super().progress_fields(), **self.skipped_progress()}

    def skipped_progress(self) -> dict:
        """What the progress bar says of the items that could not be used."""
        return {"skipped": self.skipped.count} if self.skipped.count else {}

    # ------------------------------------------------------------ the time

    def ends_early(self):
        """Bring the learning rate to the share of the time that is used, up to the end."""
        self.budget.look()
        epoch = self.budget.scheduled_epoch(self._epoch)
        if epoch > self._epoch:
            self.move_schedule(epoch)
        return self.budget.is_spent and not self.gradients.pending

    def move_schedule(self, epoch):
        """Have the learning rate of a later epoch, if the scheduler is one of epochs or steps.

        Those that follow the validation, or have no end, go on as they are.
        """
        scheduler = self.hparams.lr_scheduler
        if isinstance(scheduler, LinearWarmupScheduler):
            ahead = (epoch - 1) * self._batches // self.grad_accumulation_factor
            scheduler.current_step = max(scheduler.current_step, ahead)
        elif isinstance(scheduler, LinearScheduler):
            self.change_learning_rate(epoch - 1, None)

    def end_with_this_epoch(self):
        """Have no further epoch."""
        counter = self.hparams.epoch_counter
        counter.limit = min(counter.limit, counter.current)

    # ------------------------------------------------------------ the end of an epoch

    def finish_epoch(self, epoch):
        """Log the epoch, change the learning rate, keep the best and the last."""
        rows = gather(self.rows)
        means = {f"valid_{key}": _mean(rows, key) for key in rows[0]}
        row = {**self.train_row, **means, **self.skipped_field("skipped_items_dev")}
        self.budget.look()
        next_epoch = self.budget.scheduled_epoch(epoch + 1)
        self.change_learning_rate(next_epoch - 1, row["valid_loss"])
        if if_main_process():
            folder = Path(self.hparams.output_folder)
            log = TrainLog(folder)
            log.add(row)
            plot_curves(log.rows, folder / "curves.png")
            log_gradients(self, row)
            EpochTable(folder / "timing.csv").add({"epoch": epoch, **self.timing})
            print(
                f"Epoch {epoch}: {self.epoch_message(row)}, lr {row['lr']:.2g}, "
                f"{percent(self.timing['data_wait'])} of {self.timing['minutes']:.1f} min "
                "waited for data" + (f", {self.budget}" if self.budget.seconds else "")
            )
            if self.budget.is_spent and epoch < self.hparams.epoch_counter.limit:
                print(
                    f"budget_minutes: used up in epoch {epoch} of "
                    f"{self.hparams.epoch_counter.limit}; the learning rate has come to its "
                    "end with it. More minutes go on from here"
                )
        self.checkpointer.save_and_keep_only(
            meta={self.best: row[f"valid_{self.best}"], "epoch": epoch},
            max_keys=[self.best],
            num_to_keep=self.option("average_checkpoints", 1),
        )
        if self.budget.is_spent:
            self.end_with_this_epoch()
        self.leave_if_asked(f"epoch {epoch}, at its end")

    def change_learning_rate(self, epoch, valid_loss):
        """Ask the scheduler, whichever of SpeechBrain's two manners of asking it has."""
        scheduler = self.hparams.lr_scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            _, lr = scheduler([self.optimizer], epoch, valid_loss)
        else:
            _, lr = scheduler(epoch)
        update_learning_rate(self.optimizer, lr)


def _mean(rows: list[dict], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)
