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

#: Panels in the order of drawing, by what is logged; others follow under their own names.
TITLES = {
    "si_snr": "SI-SNR (dB)",
    "si_snr_i": "SI-SNRi (dB)",
    "se_si_snr_i": "SI-SNRi of the enhanced mixture (dB)",
    "loss": "Loss (lower is better)",
    "se_loss": "Enhancement loss",
    "lr": "Learning rate",
    "conflict_rate": "Conflicting gradients (% of groups)",
}
#: What is logged as train_NAME and valid_NAME, or as NAME alone: label, colour, style.
STAGES = {
    "train": ("training", "tab:blue", "--"),
    "valid": ("validation", "tab:orange", "-"),
    "": (None, "tab:gray", "-"),
}
ALONE = ("lr", "conflict_rate")
PER_ROW = 3


def curves_png(log_rows) -> bytes:
    """The learning curves of a training as a PNG.

    A panel for whatever is logged as train_NAME and valid_NAME, for the learning rate, and for
    the share of steps whose two gradients conflict.

    Arguments
    ---------
    log_rows : list of dict
        One per epoch; keys of the panels, and `epoch`. Any may be missing.
    """
    curves = _curves(log_rows)
    columns = min(PER_ROW, max(1, len(curves)))
    figure, grid = panels(-(-max(1, len(curves)) // columns), columns, 10 / columns, 2.6)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    if not curves:
        figure.text(0.5, 0.5, "no epoch has been logged yet", ha="center")
    epochs = column_of(log_rows, "epoch")
    epochs = np.where(np.isfinite(epochs), epochs, np.arange(1, len(epochs) + 1))
    for axes, (name, of_stage) in zip(grid.flat, curves.items()):
        _draw_panel(axes, name, of_stage, epochs)
    return png_bytes(figure)


def _curves(rows) -> dict:
    """By name of a panel, then by stage: the values of all epochs."""
    found: dict = {name: {} for name in TITLES}
    for key in dict.fromkeys(key for row in rows for key in row):
        stage, _, name = ("", "", key) if key in ALONE else key.partition("_")
        values = column_of(rows, key) if stage in STAGES and name else np.array([])
        if np.isfinite(values).any():
            found.setdefault(name, {})[stage] = values
    return {name: curves for name, curves in found.items() if curves}


def _draw_panel(axes, name, curves, epochs) -> None:
    from matplotlib.ticker import MaxNLocator

    for stage, values in curves.items():
        there = np.isfinite(values)
        label, colour, style = STAGES[stage]
        style = {"ls": style, "color": colour, "marker": "o" if there.sum() < 25 else ""}
        scale = 100 if name == "conflict_rate" else 1
        axes.plot(epochs[there], scale * values[there], **style, ms=3, label=label)
    style_axes(axes, "epoch", "", TITLES.get(name, name.replace("_", " ")))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if name in ALONE:
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1] or 1)
