"""Learning curves and the spread of results, and the style that all plots share.

matplotlib is used by its Figure objects alone: no backend is chosen, no global state is
touched, and it is imported only when something is drawn.
"""

from __future__ import annotations

import io

import numpy as np

from unified_se_ss.files import atomic_write

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


def png_bytes(figure, dpi=110) -> bytes:
    """A matplotlib figure as a PNG file; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    # Without the version of the software, the same rows give the same bytes.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


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


def plot_curves(train_log_rows, path_png):
    """Draw the learning curves into a PNG file.

    Large panels show SI-SNR(i) and losses over the epochs, small ones the enhancement
    loss, the learning rate, the share of steps whose two gradients conflict, and
    whatever else was logged as train_NAME and valid_NAME.

    Arguments
    ---------
    train_log_rows : list of dict
        One per epoch; keys of the panels above, and `epoch`. Any may be missing.
    path_png : str or Path
        The file; one of that name is replaced.

    Returns
    -------
    Path
        The file.
    """
    return atomic_write(path_png, curves_png(train_log_rows))


def curves_png(train_log_rows) -> bytes:
    """The learning curves as a PNG; rows as for `plot_curves`."""
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
