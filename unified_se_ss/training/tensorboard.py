"""A run's numbers for TensorBoard; the package is needed only where this is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.gradient_report import HISTOGRAM


def check_tensorboard() -> None:
    """Stop if TensorBoard's package is missing, before hours have gone by.

    Raises
    ------
    UserError
        Says what to install.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"tensorboard: is True, but the package tensorboard cannot be used ({error}); "
            "pip install 'unified_se_ss[tensorboard]', or set tensorboard to False"
        ) from error


def write_events(folder, log_row: dict, windows: list[dict]) -> Path:
    """Add an epoch to what ``tensorboard --logdir`` shows.

    Each epoch is an event file of its own, and takes the place of what was written of
    the same and of later steps before a run was resumed.

    Arguments
    ---------
    folder : str or Path
        Where event files go.
    log_row : dict
        The epoch's numbers, as for ``TrainLog``; shown as ``epoch/…``.
    windows : list of dict
        As ``ConflictMonitor.windows`` returns them. Of the rows of all groups, numbers
        are shown as ``gradients/…`` and histograms as such, over the optimizer's steps.

    Returns
    -------
    Path
        The folder.
    """
    from torch.utils.tensorboard import SummaryWriter

    whole = [row for row in windows if row["scope"] == "all"]
    first = whole[0]["step"] - whole[0]["steps"] + 1 if whole else None
    with SummaryWriter(str(folder), purge_step=first) as writer:
        for row in whole:
            for key, value in row.items():
                if HISTOGRAM.fullmatch(key):
                    _add_histogram(writer, key, value, row["step"])
                elif isinstance(value, (int, float)) and key != "step":
                    writer.add_scalar(f"gradients/{key}", value, row["step"])
        last = whole[-1]["step"] if whole else log_row["epoch"]
        for key, value in log_row.items():
            if isinstance(value, (int, float)):
                writer.add_scalar(f"epoch/{key}", value, last)
    return Path(folder)


def _add_histogram(writer, column, counts, step) -> None:
    """A histogram from its counts; the column's name says what its bins span."""
    name, low, high = HISTOGRAM.fullmatch(column).groups()
    edges = np.linspace(float(low), float(high), len(counts) + 1)
    middles, counts = (edges[:-1] + edges[1:]) / 2, np.array(counts)
    if counts.sum():
        writer.add_histogram_raw(
            f"gradients/{name}_of_each_group",
            min=edges[0],
            max=edges[-1],
            num=int(counts.sum()),
            sum=float(counts @ middles),
            sum_squares=float(counts @ middles**2),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
