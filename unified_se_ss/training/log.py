"""What a run writes down at the end of each epoch."""

from __future__ import annotations

import csv
from contextlib import suppress
from pathlib import Path

from unified_se_ss.evaluation.gradient_report import GradientLog, plot_conflicts
from unified_se_ss.files import atomic_write, csv_text
from unified_se_ss.training.tensorboard import write_events


class EpochTable:
    """A CSV file with one row per epoch, written whole.

    A run that is resumed from an earlier epoch replaces the rows from there on.

    Arguments
    ---------
    path : str or Path
        The file.

    Example
    -------
    >>> import tempfile
    >>> table = EpochTable(Path(tempfile.mkdtemp()) / "timing.csv")
    >>> table.add({"epoch": 1, "data_wait": 0.1})
    >>> table.rows
    [{'epoch': 1, 'data_wait': 0.1}]
    """

    def __init__(self, path):
        self.csv_path = Path(path)

    @property
    def rows(self) -> list[dict]:
        """What was logged so far; numbers, empty cells left out."""
        if not self.csv_path.is_file():
            return []
        with open(self.csv_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{k: _value(v) for k, v in row.items() if v} for row in rows]

    def add(self, row: dict) -> None:
        """Log an epoch; forget what was logged of it and of later ones."""
        rows = [r for r in self.rows if r["epoch"] < row["epoch"]]
        rows.append({key: value for key, value in row.items() if value is not None})
        atomic_write(self.csv_path, csv_text(rows))


def _value(text: str):
    """A cell as a number, if it is one."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


class TrainLog(EpochTable):
    """One row per epoch in ``train_log.csv``, one line in ``train_log.txt``.

    What is in it follows from the run's settings alone: a run that was killed and went on
    writes the same. What depends on the clock stands in ``timing.csv``.

    Arguments
    ---------
    folder : str or Path
        The run's folder.

    Example
    -------
    >>> import tempfile
    >>> log = TrainLog(tempfile.mkdtemp())
    >>> log.add({"epoch": 1, "lr": 0.1})
    >>> log.rows
    [{'epoch': 1, 'lr': 0.1}]
    """

    def __init__(self, folder):
        super().__init__(Path(folder) / "train_log.csv")
        self.text_path = Path(folder) / "train_log.txt"

    def add(self, row: dict) -> None:
        """Log an epoch; forget what was logged of it and of later ones."""
        super().add(row)
        atomic_write(self.text_path, "".join(_line(r) + "\n" for r in self.rows))


def _line(row: dict) -> str:
    """One epoch in one line."""
    return ", ".join(
        f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in row.items()
    )


def describe_rule(hparams: dict) -> str:
    """The rule with its options, for pictures and the report.

    Example
    -------
    >>> describe_rule({"rule": "remedy", "rule_options": {"strict": True, "k": 3}})
    'remedy (strict: True, k: 3)'
    """
    options = ", ".join(f"{k}: {v}" for k, v in (hparams.get("rule_options") or {}).items())
    return hparams["rule"] + (f" ({options})" if options else "")


def log_gradients(brain, log_row: dict) -> None:
    """Write and draw what the monitor saw in an epoch; for the main process alone.

    ``gradients.csv`` and ``gradients.png`` in the run's folder, and events for
    TensorBoard where ``hparams`` ask for it (``tensorboard``).

    Arguments
    ---------
    brain : TwoTaskBrain
        Its ``monitor`` has seen the epoch.
    log_row : dict
        The epoch's row in the :class:`TrainLog`.
    """
    hparams = vars(brain.hparams)
    folder, windows = Path(hparams["output_folder"]), brain.monitor.windows()
    if "rule" in hparams:  # else there is one task, and nothing to compare
        log = GradientLog(folder)
        log.add(log_row["epoch"], windows)
        rule, granularity = describe_rule(hparams), hparams["granularity"]
        plot_conflicts(log.rows, folder / "gradients.png", rule, granularity)
    if hparams.get("tensorboard"):
        write_events(folder / "tensorboard", log_row, windows)
