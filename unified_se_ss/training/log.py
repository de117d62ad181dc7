"""Files of a run: a row per epoch, gradients, TensorBoard's events, and a copy elsewhere."""

from __future__ import annotations

import csv
import logging
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
from fsspec.core import url_to_fs
from speechbrain.utils.distributed import run_on_main

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.gradient_report import HISTOGRAM, GradientLog, plot_conflicts
from unified_se_ss.files import atomic_write, csv_text
from unified_se_ss.training.distributed import gather

logger = logging.getLogger(__name__)

MAX_SKIPPED_SHARE = 0.01
SKIPPED_COLUMNS = ["epoch", "subset", "batch", "ID", "file", "reason"]
# Of a run's folder, what is not uploaded: other checkpoints, and what only this run needs.
NOT_UPLOADED = {"save", "tensorboard", "manifests"}


class EpochTable:
    """A CSV file with one row per epoch, replaced as a whole.

    A run that is resumed from an earlier epoch replaces the rows from there on.

    Example
    -------
    >>> import tempfile
    >>> table = EpochTable(Path(tempfile.mkdtemp()) / "timing.csv")
    >>> table.add({"epoch": 1, "data_wait": 0.1})
    >>> table.rows
    [{'epoch': 1, 'data_wait': 0.1}]
    """

    def __init__(self, path):
        self.path = Path(path)

    @property
    def rows(self) -> list[dict]:
        """The rows so far; numbers where they are some, empty cells left out."""
        return [{k: _value(v) for k, v in row.items() if v} for row in _rows_of(self.path)]

    def add(self, row: dict) -> None:
        """Log an epoch; forget what was logged of it and of later ones."""
        rows = [r for r in self.rows if r["epoch"] < row["epoch"]]
        rows.append({key: value for key, value in row.items() if value is not None})
        atomic_write(self.path, csv_text(rows))


def _rows_of(path: Path, columns: list | None = None) -> list[dict]:
    """The rows of a CSV file, none if it is not there; without `columns`, it has a header."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, columns))


def _value(text: str):
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


class TrainLog(EpochTable):
    """One row per epoch in ``train_log.csv``, one line in ``train_log.txt``.

    It follows from the run's settings alone: a run that was killed and went on writes the
    same. Times stand in ``timing.csv``.

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
        super().add(row)
        atomic_write(self.text_path, "".join(_line(r) + "\n" for r in self.rows))


def _line(row: dict) -> str:
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
    """Write and draw an epoch's gradient statistics; on the main process alone.

    ``gradients.csv`` and ``gradients.png`` in the run's folder, and events for
    TensorBoard where ``hparams`` ask for it (``tensorboard``).
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


# ------------------------------------------------------------------ items left out


class SkippedItems:
    """The file ``skipped.csv`` of a run, one row per item and epoch.

    Each rank adds the rows of its own items as soon as it meets them. A run that is
    resumed forgets what was written after the place from which it goes on, so that the
    file is the same as that of a run which was never stopped.

    Arguments
    ---------
    folder : str or Path
        The run's folder.
    most : float
        The share of a subset's items that may be skipped in one pass (default 0.01).

    Example
    -------
    >>> from unified_se_ss.data.batching import SkippedItem
    >>> items = SkippedItems(getfixture("tmpdir"), most=0.5)
    >>> items.begin("train", epoch=1, n_items=4)
    >>> items.add([SkippedItem("a", "a.wav", "a.wav: does not exist")], batch=3)
    >>> items.count, items.rows[0]["ID"]
    (1, 'a')
    """

    def __init__(self, folder, most: float = MAX_SKIPPED_SHARE):
        self.path = Path(folder) / "skipped.csv"
        if not 0 <= most <= 1:
            raise UserError(f"max_skipped_share: is {most}; expected a share from 0 to 1")
        self.most = most
        self.subset, self.epoch, self.n_items = "", 0, 0
        self.count = self._before = 0

    @property
    def rows(self) -> list[dict]:
        """All ranks' and epochs' items so far."""
        rows = _rows_of(self.path, SKIPPED_COLUMNS)
        # Two ranks that meet their first item at once both write a header.
        return [row for row in rows if row["epoch"] != "epoch" and row["reason"]]

    def begin(self, subset: str, epoch: int, n_items: int, batches: int = 0) -> None:
        """Begin a pass over a subset of `n_items`, or go on in it after some batches."""
        self.subset, self.epoch, self.n_items = subset, int(epoch), n_items
        now = _place({"subset": subset, "epoch": epoch, "batch": batches})
        before = [place for place in map(_place, self.rows) if place <= now]
        self.count = self._before = sum(place[:-1] == now[:-1] for place in before)
        run_on_main(self._keep_until, [now])  # before any rank adds rows

    def _keep_until(self, now: tuple) -> None:
        if not self.path.is_file():
            return
        kept = (row for row in self.rows if _place(row) <= now)
        text = csv_text(kept, SKIPPED_COLUMNS)
        if text != self.path.read_text(encoding="utf-8"):
            atomic_write(self.path, text)

    def add(self, skipped, batch: int) -> None:
        """Write down the items that a batch left out; stop the run at too many.

        Arguments
        ---------
        skipped : sequence of SkippedItem
        batch : int
            Its number in this pass, from 1.
        """
        here = self.epoch, self.subset, batch
        cells = ((*here, item.id, item.file, item.reason) for item in skipped)
        text = csv_text(dict(zip(SKIPPED_COLUMNS, row)) for row in cells)
        try:
            # One write, into which no other process can write.
            with open(self.path, "ab", buffering=0) as file:
                text = text.partition("\n")[2] if file.tell() else text
                file.write(text.encode("utf-8"))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        self.count += len(skipped)
        self.check(self.count, skipped[0].reason)

    def check(self, count: int, reason: str = "") -> None:
        """Stop the run if more than the share that is allowed, or all, were skipped."""
        if count <= self.most * self.n_items and count < self.n_items:
            return
        example = f", such as: {reason}" if reason else ""
        raise UserError(
            f"{count} of the {self.n_items} items of the subset {self.subset} could not be "
            f"used{example}; mend or take out those that {self.path} names, or raise "
            f"--max_skipped_share, which allows {self.most:g} of them"
        )

    def end(self) -> int:
        """All ranks' number of skipped items of this pass; stops the run at too many."""
        total = self._before + sum(gather([self.count - self._before]))
        if total:
            self.check(total)
        return total


def _place(row: dict) -> tuple:
    """Order of a run's batches: training, validation, the next epoch; the test is last."""
    subset, epoch, batch = row["subset"], int(row["epoch"]), int(row["batch"])
    return (subset == "test", epoch, subset != "train", batch)


# ------------------------------------------------------------------ TensorBoard


def check_tensorboard() -> None:
    """Stop if TensorBoard's package is missing, before hours have gone by."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"tensorboard: the package cannot be used ({error}); set it to False, or "
            "pip install 'unified_se_ss[tensorboard]'"
        ) from error


def write_events(folder, log_row: dict, windows: list[dict]) -> Path:
    """Add an epoch to what ``tensorboard --logdir`` shows.

    Each epoch is an event file of its own, and takes the place of what was written of
    the same and of later steps before a run was resumed.

    Arguments
    ---------
    folder : str or Path
        Of the event files.
    log_row : dict
        The epoch's numbers, as for :class:`TrainLog`; shown as ``epoch/…``.
    windows : list of dict
        As ``ConflictMonitor.windows`` returns them. Of the rows of all groups, numbers
        are shown as ``gradients/…`` and histograms as such, over the optimizer's steps.
    """
    from torch.utils.tensorboard import SummaryWriter

    rows = [row for row in windows if row["scope"] == "all"]
    first = rows[0]["step"] - rows[0]["steps"] + 1 if rows else None
    with SummaryWriter(str(folder), purge_step=first) as writer:
        for row in rows:
            for key, value in row.items():
                if HISTOGRAM.fullmatch(key):
                    _add_histogram(writer, key, value, row["step"])
                elif isinstance(value, (int, float)) and key != "step":
                    writer.add_scalar(f"gradients/{key}", value, row["step"])
        last = rows[-1]["step"] if rows else log_row["epoch"]
        for key, value in log_row.items():
            if isinstance(value, (int, float)):
                writer.add_scalar(f"epoch/{key}", value, last)
    return Path(folder)


def _add_histogram(writer, column, counts, step) -> None:
    """Add a histogram of counts; the column's name has the limits of its bins."""
    name, low, high = HISTOGRAM.fullmatch(column).groups()
    edges = np.linspace(float(low), float(high), len(counts) + 1)
    middles = np.repeat((edges[:-1] + edges[1:]) / 2, counts)
    if len(middles):
        writer.add_histogram(f"gradients/{name}_of_each_group", middles, step, bins=edges)


# ------------------------------------------------------------------ a copy elsewhere


def check_upload(uri: str | None) -> None:
    """Stop at a destination of :func:`upload` of an unknown kind, before hours have gone by.

    Example
    -------
    >>> check_upload(None), check_upload("memory://bucket/run")
    (None, None)
    """
    if uri is None:
        return
    try:
        fsspec.get_filesystem_class(fsspec.utils.get_protocol(str(uri)))
    except (ImportError, ValueError) as error:  # no s3fs, say; or no such protocol
        raise UserError(
            f"upload_uri: {uri}: {error}; expected such as s3://bucket/name, "
            "gs://bucket/name, or a folder"
        ) from error


def upload(folder, checkpoint, uri: str | None) -> str | None:
    """Copy a run's files and one checkpoint; a failure is a warning.

    Arguments
    ---------
    folder : str or Path
        The run's folder: all files in it and in ``wavs`` and so on are copied, but no
        other checkpoints.
    checkpoint : str or Path or None
        Folder of the checkpoint; goes to ``save/`` under its own name, so that the
        destination, fetched again, is a run's folder.
    uri : str or None
        A folder wherever fsspec can write: ``s3://bucket/name``, ``gs://bucket/name``,
        ``memory://name``, or a path. None: nothing is done.

    Returns
    -------
    str or None
        The destination if everything got there.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir"))
    >>> _ = (folder / "results.csv").write_text("ID,si_snr")
    >>> upload(folder, None, "memory://demo/run")
    'memory://demo/run'
    >>> fsspec.filesystem("memory").cat("/demo/run/results.csv")
    b'ID,si_snr'
    """
    if uri is None:
        return None
    folder = Path(folder)
    files = {path.relative_to(folder): path for path in _files_of(folder)}
    files = {name: p for name, p in files.items() if name.parts[0] not in NOT_UPLOADED}
    if checkpoint is not None:
        place = Path("save", Path(checkpoint).name)
        files |= {place / p.relative_to(checkpoint): p for p in _files_of(checkpoint)}
    try:
        system, root = url_to_fs(str(uri))
        for name, path in files.items():
            to = f"{root.rstrip('/')}/{name.as_posix()}"
            system.makedirs(to.rpartition("/")[0], exist_ok=True)
            system.put_file(str(path), to)
    except Exception as error:  # whatever a cloud's package raises: the run is done
        reason = f"{type(error).__name__}: {error}"
        logger.warning(
            f"upload_uri: could not copy everything to {uri} ({reason}); it is in {folder}"
        )
        return None
    return str(uri)


def _files_of(folder) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())
