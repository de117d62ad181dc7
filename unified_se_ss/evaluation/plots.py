"""Tables, plots and the parts of a report, in one style; and the learning curves.

matplotlib is used by its Figure objects alone: no backend is chosen, no global state is
touched, and it is imported only when something is drawn.
"""

from __future__ import annotations

import csv
import io
from typing import NamedTuple

import numpy as np

from unified_se_ss.errors import UserError

# ------------------------------------------------------------------ tables


def decimals(value, sign="") -> str:
    """Two decimals, or a dash for None."""
    return "–" if value is None else f"{value:{sign}.2f}"


def interval_text(low, high, sign="") -> str:
    """Both ends of an interval with two decimals, or a dash for None."""
    return "–" if low is None else f"{low:{sign}.2f} … {high:{sign}.2f}"


def as_text(value, places=6) -> str:
    """A value as a cell of a CSV file: numbers with fixed decimals, None empty."""
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return " ".join(str(part) for part in value)
    if isinstance(value, (float, np.floating)):
        return f"{value:.{places}f}" if np.isfinite(value) else ""
    return str(value)


def read_csv(path, kind) -> list[dict]:
    """The rows of a CSV file as text; a UserError, which names the kind of file, if it is none."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as {kind} ({error})") from None


def aligned_table(head, rows, words=(0,)) -> str:
    """A table for the terminal, with a rule under its head.

    Columns of numbers `words` are aligned to the left, the others to the right.

    Example
    -------
    >>> print(aligned_table(["metric", "mean"], [["SDR", "12.00 dB"]]))
    metric       mean
    -----------------
    SDR      12.00 dB
    """
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    words = {number % len(head) for number in words}
    lines = [
        "   ".join(
            cell.ljust(width) if number in words else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in (head, *rows)
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def markdown_table(head, rows, words=(0,)) -> str:
    """A table in Markdown; arguments as for `aligned_table`."""
    words = {number % len(head) for number in words}
    rule = ["---" if number in words else "--:" for number in range(len(head))]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])
    )


class Picture(NamedTuple):
    """A plot in a report: PNG, and what it shows in words."""

    png: bytes
    alt: str


class Table(NamedTuple):
    """A table in a report; the first cell names the row, a pair is set bold, then plain.

    Folded under some words if these are given; `kind` is the class of its style.
    """

    head: list
    rows: list
    folded: str = ""
    kind: str = ""


class Text(NamedTuple):
    """A paragraph in a report, or with the tag `h3` a heading within a section."""

    text: str
    tag: str = "p"


class Section(NamedTuple):
    """A section of a report: anchor, heading, and parts; a str is a note in small letters."""

    id: str
    heading: str
    parts: list


# ------------------------------------------------------------------ plots


def png_bytes(figure, dpi=110) -> bytes:
    """A matplotlib figure as a PNG file; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    # Without the version of the software, the same rows give the same bytes.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def panels(rows, columns, width=5.0, height=2.7):
    """A figure and its axes [rows, columns], each of so many inches."""
    from matplotlib.figure import Figure

    size = (width * columns, height * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def style_axes(axes, xlabel="", ylabel="", title="", legend=8, grid="both") -> None:
    """Small letters, a faint grid, no frame, and a legend if something is labelled."""
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    if title:
        axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend and axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=legend, framealpha=0.8, edgecolor="none")


def column_of(rows, key):
    """One key of all rows as numbers [N]; nan where it is missing."""
    values = [row.get(key) for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=float)


# ------------------------------------------------------------------ learning curves

#: Panels in the order of drawing: title, axis label, then key, label, colour, style.
_SEPARATION = (
    ("train_si_snr", "SI-SNR, training", "tab:blue", "--"),
    ("valid_si_snr", "SI-SNR, validation", "tab:blue", "-"),
    ("valid_si_snr_i", "SI-SNRi, validation", "tab:orange", "-"),
    ("valid_se_si_snr_i", "SI-SNRi, enhanced mixture", "tab:green", "-"),
)
_LOSSES = (
    ("train_loss", "training", "tab:blue", "--"),
    ("valid_loss", "validation", "tab:blue", "-"),
)
LARGE_PANELS = (
    ("Separation and enhancement (higher is better)", "dB", _SEPARATION),
    ("Losses (lower is better)", "loss", _LOSSES),
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


def curves_png(log_rows) -> bytes:
    """The learning curves of a training as a PNG.

    Large panels show SI-SNR(i) and losses over the epochs, small ones the enhancement
    loss, the learning rate, the share of steps whose two gradients conflict, and
    whatever else was logged as train_NAME and valid_NAME.

    Arguments
    ---------
    log_rows : list of dict
        One per epoch; keys of the panels, and `epoch`. Any may be missing.
    """
    from matplotlib.figure import Figure

    large = _panels_with_data(LARGE_PANELS, log_rows)
    others = _other_panels(log_rows)
    small = _panels_with_data((*others, *SMALL_PANELS), log_rows)
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
            _draw_panel(axes, panel, log_rows)
    return png_bytes(figure)


def _panels_with_data(panels, rows):
    """The panels, and their curves, of which the rows hold something."""
    kept = []
    for title, label, curves in panels:
        curves = [c for c in curves if np.isfinite(column_of(rows, c[0])).any()]
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
    epochs = column_of(rows, "epoch")
    epochs = np.where(np.isfinite(epochs), epochs, np.arange(1, len(rows) + 1))
    for key, name, colour, style in curves:
        values = column_of(rows, key) * (100 if key == "conflict_rate" else 1)
        there = np.isfinite(values)
        style = {"ls": style, "color": colour, "marker": "o" if there.sum() < 25 else ""}
        axes.plot(epochs[there], values[there], **style, ms=3, label=name or None)
    style_axes(axes, "epoch", label, title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if curves[0][0] == "lr":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.yaxis.get_offset_text().set_fontsize(8)
    if curves[0][0] in ("lr", "conflict_rate"):
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1] or 1)
