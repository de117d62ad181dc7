"""Learning curves of a run, from its train_log.csv.

matplotlib is used by its Figure objects alone: no backend is chosen, no global state
is touched, and it is imported only when something is drawn.
"""

from __future__ import annotations

import csv
import io

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write

#: Panels in the order of drawing: title, axis label, then key, label, colour, style.
LARGE_PANELS = (
    (
        "Separation and enhancement (higher is better)",
        "dB",
        (
            ("train_si_snr", "SI-SNR, training", "tab:blue", "--"),
            ("valid_si_snr", "SI-SNR, validation", "tab:blue", "-"),
            ("valid_si_snr_i", "SI-SNRi, validation", "tab:orange", "-"),
            ("valid_se_si_snr_i", "SI-SNRi, enhanced mixture", "tab:green", "-"),
        ),
    ),
    (
        "Losses (lower is better)",
        "loss",
        (
            ("train_loss", "training", "tab:blue", "--"),
            ("valid_loss", "validation", "tab:blue", "-"),
        ),
    ),
)
SMALL_PANELS = (
    ("Enhancement loss", "loss", (("train_se_loss", "", "tab:green", "--"),)),
    ("Learning rate", "", (("lr", "", "tab:gray", "-"),)),
    ("Conflicting gradients", "% of groups", (("conflict_rate", "", "tab:red", "-"),)),
)

#: Small panels beside one another.
PER_ROW = 4

#: How what is logged as train_NAME and valid_NAME is drawn: label, colour, style.
STAGES = {
    "train": ("training", "tab:blue", "--"),
    "valid": ("validation", "tab:orange", "-"),
}


def read_log(path):
    """The rows of a train_log.csv.

    Arguments
    ---------
    path : str or Path
        CSV file with a column `epoch` and any of the keys of `plot_curves`.

    Returns
    -------
    list of dict
        One per epoch, numbers as float; empty cells are left out.

    Raises
    ------
    UserError
        If it cannot be read as such a file.

    Example
    -------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "train_log.csv"
    >>> _ = path.write_text("epoch,lr,valid_loss\\n1,0.001,\\n2,0.001,-3.5\\n")
    >>> read_log(path)[1]
    {'epoch': 2.0, 'lr': 0.001, 'valid_loss': -3.5}
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and "epoch" not in rows[0]:
            raise ValueError("there is no column epoch")
        return [{k: float(v) for k, v in row.items() if v} for row in rows]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read as a train_log.csv ({error}); expected one row "
            "of numbers per epoch under a line of column names."
        ) from None


def plot_curves(train_log_rows, path_png):
    """Draw the learning curves into a PNG file.

    Large panels show SI-SNR(i) and losses over the epochs, small ones the enhancement
    loss, the learning rate, the share of steps whose two gradients conflict, and
    whatever else was logged as train_NAME and valid_NAME. What is not in the rows is not
    drawn.

    Arguments
    ---------
    train_log_rows : list of dict
        One per epoch; keys: epoch, lr, train_loss, train_si_snr, train_se_loss,
        conflict_rate (0 to 1), valid_loss, valid_si_snr, valid_si_snr_i,
        valid_se_si_snr_i, and others of training and validation. Any may be missing;
        without epoch the rows are counted.
    path_png : str or Path
        The file; one of that name is replaced.

    Returns
    -------
    Path
        The file.

    Example
    -------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "curves.png"
    >>> plot_curves([{"epoch": 1, "lr": 0.1}, {"epoch": 2, "lr": 0.1}], path).name
    'curves.png'
    """
    return atomic_write(path_png, curves_png(train_log_rows))


def curves_png(train_log_rows):
    """The learning curves as the bytes of a PNG file.

    Arguments
    ---------
    train_log_rows : list of dict
        As for `plot_curves`.

    Returns
    -------
    bytes

    Example
    -------
    >>> curves_png([{"epoch": 1, "lr": 0.1}])[1:4]
    b'PNG'
    """
    from matplotlib.figure import Figure

    large = _panels_with_data(LARGE_PANELS, train_log_rows)
    others = _other_panels(train_log_rows)
    small = _panels_with_data((*others, *SMALL_PANELS), train_log_rows)
    rows = [small[first : first + PER_ROW] for first in range(0, len(small), PER_ROW)]
    layout = [panels for panels in (large, *rows) if panels]
    if not layout:
        figure = Figure(figsize=(6, 1.2))
        figure.text(0.5, 0.5, "no epoch has been logged yet", ha="center")
        return png_bytes(figure)
    heights = [3.4 if panels is large else 1.9 for panels in layout]
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(layout), 1, height_ratios=heights)
    for row, panels in enumerate(layout):
        cells = grid[row].subgridspec(1, len(panels))
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(cells[column])
            _draw_panel(axes, panel, train_log_rows)
    return png_bytes(figure)


def png_bytes(figure, dpi=110):
    """A matplotlib figure as the bytes of a PNG file.

    Arguments
    ---------
    figure : matplotlib.figure.Figure
        The figure.
    dpi : int
        Pixels per inch.

    Returns
    -------
    bytes

    Example
    -------
    >>> from matplotlib.figure import Figure
    >>> png_bytes(Figure(figsize=(1, 1)))[1:4]
    b'PNG'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    # Without the version of the software, the same rows give the same bytes.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def plain_axes(axes) -> None:
    """Small figures, a faint grid, no frame."""
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _panels_with_data(panels, rows):
    """The panels, and their curves, of which the rows hold something."""
    kept = []
    for title, label, curves in panels:
        curves = [c for c in curves if np.isfinite(_column(rows, c[0])).any()]
        if curves:
            kept.append((title, label, curves))
    return kept


def _other_panels(rows):
    """A panel for each quantity of training and validation that has none yet."""
    drawn = {c[0] for panel in (*LARGE_PANELS, *SMALL_PANELS) for c in panel[2]}
    panels = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        stage, _, name = key.partition("_")
        if stage in STAGES and key not in drawn:
            panels.setdefault(name, []).append((key, *STAGES[stage]))
    return [(name.replace("_", " "), "", tuple(curves)) for name, curves in panels.items()]


def _draw_panel(axes, panel, rows):
    """One panel with its curves."""
    from matplotlib.ticker import MaxNLocator

    title, label, curves = panel
    epochs = _column(rows, "epoch")
    epochs = np.where(np.isfinite(epochs), epochs, np.arange(1, len(rows) + 1))
    for key, name, colour, style in curves:
        values = _column(rows, key) * (100 if key == "conflict_rate" else 1)
        there = np.isfinite(values)
        marker = "o" if there.sum() < 25 else ""
        axes.plot(
            epochs[there],
            values[there],
            style,
            color=colour,
            label=name,
            marker=marker,
            markersize=3,
        )
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_ylabel(label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if curves[0][0] == "lr":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.yaxis.get_offset_text().set_fontsize(8)
    if curves[0][0] in ("lr", "conflict_rate"):
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1] or 1)
    if any(name for _, name, _, _ in curves):
        axes.legend(fontsize=8, framealpha=0.8, edgecolor="none")


def _column(rows, key):
    """One key of all rows as numbers; nan where it is missing."""
    values = [row.get(key) for row in rows]
    return np.array([np.nan if v is None else float(v) for v in values], dtype=float)
