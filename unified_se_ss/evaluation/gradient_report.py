"""Conflicts of the two tasks of a run: its gradients.csv, in numbers and as a picture.

A row stands for a window of steps and a scope, which is ``all`` or the name of a module.
docs/gradients.md explains the columns.
"""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation import plots
from unified_se_ss.files import atomic_write, csv_text

#: Histograms name what their equal bins span.
HISTOGRAM = re.compile(r"(\w+)_from_(\S+)_to_(\S+)")
#: What one application of the rule covers, by granularity.
UNITS = {"parameter": "tensor", "module": "module", "global": "step"}
#: The summary's means over a run: column, what it is, and what it is multiplied by.
MEANS = (
    ("conflict_rate", "% of the {unit}s' gradients conflict", 100),
    ("cosine", "mean cosine", 1),
    ("log10_ratio", "log10 of the lengths' ratio, auxiliary to main", 1),
    ("removed", "% of the auxiliary gradient removed", 100),
    ("added", "% added to the main gradient", 100),
    ("lost", "% of the main gradient lost", 100),
    ("rescaled", "% of the auxiliary gradients rescaled", 100),
    ("stretch", "times the sum's length", 1),
)
#: The summary's counts, where there are any.
COUNTS = (
    ("main_nonfinite", "steps skipped, as the main gradient was not finite"),
    ("auxiliary_nonfinite", "steps with the main gradient alone"),
    ("auxiliary_zero", "{unit}s without an auxiliary gradient"),
    ("main_zero", "{unit}s without a main gradient"),
)
#: Opposed, agreeing, neither: the same in all panels.
RED, BLUE, GRAY = "#b2182b", "#2166ac", "#666666"
GREEN, ORANGE, PURPLE = "#1b7837", "#e08214", "#762a83"
#: Longest name of a module in the picture; of longer ones the end is shown.
NAME_LENGTH = 56
#: Less than this share is nothing: what a rule leaves to rounding.
NOTHING = 5e-4
#: Characters in a line of the title.
LINE_LENGTH = 165


class GradientLog:
    """One row per window and scope in ``gradients.csv``, written whole epoch by epoch.

    A run that is resumed from an earlier epoch replaces the rows from there on.

    Arguments
    ---------
    folder : str or Path
        The run's folder.

    Example
    -------
    >>> import tempfile
    >>> log = GradientLog(tempfile.mkdtemp())
    >>> log.add(1, [{"step": 50, "scope": "all", "conflict_rate": 0.25}])
    >>> log.rows
    [{'epoch': 1, 'step': 50, 'scope': 'all', 'conflict_rate': 0.25}]
    """

    def __init__(self, folder):
        self.path = Path(folder) / "gradients.csv"

    @property
    def rows(self) -> list[dict]:
        """The rows so far, without their empty cells; a UserError if they are none."""
        try:
            return [_parsed(row) for row in self._cells()]
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.path}: cannot be read as a gradients.csv ({error}); expected one row "
                "of numbers per window and scope; move it away to go on"
            ) from None

    def add(self, epoch: int, windows: list[dict]) -> None:
        """Log an epoch's ``ConflictMonitor.windows``; drop earlier rows of it and of later ones."""
        rows = [
            cells for cells, row in zip(self._cells(), self.rows) if row["epoch"] < epoch
        ]
        rows += [{"epoch": epoch, **{k: _cell(v) for k, v in w.items()}} for w in windows]
        atomic_write(self.path, csv_text(rows, None if rows else ["epoch"]))

    def _cells(self) -> list[dict]:
        return plots.read_csv(self.path, "a gradients.csv") if self.path.is_file() else []


def _parsed(cells: dict) -> dict:
    row = {column: _value(column, text) for column, text in cells.items() if text}
    for name in ("epoch", "step", "scope"):
        if name not in row:
            raise ValueError(f"a row has no {name}")
    return row


def _cell(value) -> str:
    """A value as it stands in the file; five digits are enough to draw and compare."""
    return f"{value:.5g}" if isinstance(value, float) else plots.as_text(value)


def _value(column, text):
    if column == "scope":
        return text
    if HISTOGRAM.fullmatch(column):
        return [int(count) for count in text.split()]
    return int(text) if text.isdigit() else float(text)


# ------------------------------------------------------------------ in numbers


def _was_compared(rows) -> bool:
    """True if two gradients were compared; not so in a run without an auxiliary task."""
    return any(row.get("compared") for row in rows)


def _summary(rows, granularity="parameter") -> list[str]:
    """Means over the run of what was measured, and counts of what was missing.

    Example
    -------
    >>> row = {"epoch": 1, "step": 50, "scope": "all", "steps": 50, "compared": 100,
    ...        "conflict_rate": 0.25, "cosine": 0.3, "main_nonfinite": 2}
    >>> for line in _summary([row]):
    ...     print(line)
    25 % of the tensors' gradients conflict
    0.3 mean cosine
    2 steps skipped, as the main gradient was not finite
    """
    whole, unit = [row for row in rows if row["scope"] == "all"], _unit(granularity)
    means = [(factor * _mean(whole, key), words) for key, words, factor in MEANS]
    counts = [(sum(row.get(key, 0) for row in whole), words) for key, words in COUNTS]
    found = [pair for pair in means if np.isfinite(pair[0])]
    found += [pair for pair in counts if pair[0]]
    return [f"{number:.3g} {words.format(unit=unit)}" for number, words in found]


def _mean(rows, key) -> float:
    """Mean of a column over rows, weighted by what was compared; nan without any."""
    weight = "steps" if key == "cosine" else "compared"
    pairs = [(row[key], row.get(weight, 0)) for row in rows if key in row]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else np.nan


def _unit(granularity) -> str:
    return UNITS.get(granularity, "tensor")


# ------------------------------------------------------------------ as a picture


def gradients_section(rows, rule="", granularity="parameter") -> plots.Section | None:
    """The report's section on the two tasks' gradients; None without rows."""
    if not rows:
        return None
    parts = ["There were no two gradients to compare: no auxiliary task, or a dead one."]
    if _was_compared(rows):
        words = "; ".join(_summary(rows, granularity))
        parts = [
            "Gradients of the auxiliary and the main task in the parameters that both train, "
            "as the rule saw them: red where they oppose each other, blue where they agree. "
            "gradients.csv holds every window and module; docs/gradients.md says what is "
            "measured.",
            plots.Picture(_conflicts_png(rows, rule, granularity), words),
        ]
    return plots.Section("gradients", "How the two tasks got along", parts)


def plot_conflicts(rows, path_png, rule="", granularity="parameter") -> Path | None:
    """Draw :func:`_conflicts_png` into a file; None if no two gradients were compared."""
    if not _was_compared(rows):
        return None
    return atomic_write(path_png, _conflicts_png(rows, rule, granularity))


def _conflicts_png(rows, rule="", granularity="parameter") -> bytes:
    """The summary, and below it a picture of a run's gradients, as a PNG.

    Above, conflict rate and cosines over the steps; in the middle a map of the cosine,
    module by step, with each module's conflict rate; below, histograms, and the effect of
    the rule. Something was compared.
    """
    from matplotlib.figure import Figure

    whole = [row for row in rows if row["scope"] == "all"]
    modules = list(dict.fromkeys(r["scope"] for r in rows if r["scope"] != "all"))
    unit = _unit(granularity)
    words = "; ".join(_summary(rows, granularity))
    lines = ["How the two tasks got along", *textwrap.wrap(words, LINE_LENGTH)]
    heights = [2.3, 0.8 + max(0.17 * len(modules), min(0.3 * len(modules), 1.5)), 2.4]
    if not modules:
        del heights[1]
    size = (12, sum(heights) + 0.2 * len(lines))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("\n".join(lines), x=0.012, ha="left", fontsize=9.5)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    _draw_curves(*_panels(figure, grid[0], [1, 1]), whole, unit)
    if modules:
        _draw_map(*_panels(figure, grid[1], [5, 1]), rows, whole, modules)
    cosine, ratio, along, length = _panels(figure, grid[-1], [1, 1, 1.15, 1.15])
    _draw_histograms(cosine, ratio, whole, unit)
    _draw_rule(along, length, whole, rule)
    return plots.png_bytes(figure)


def _panels(figure, cell, widths):
    cells = cell.subgridspec(1, len(widths), width_ratios=widths)
    return [figure.add_subplot(cells[column]) for column in range(len(widths))]


def _draw_curves(rate, cosine, whole, unit) -> None:
    """Conflict rate, and cosines, over the steps."""
    _line(rate, whole, "conflict_rate", RED, factor=100)
    rate.set_ylim(0, max(5, min(103, 1.15 * rate.get_ylim()[1])))
    title = f"Conflict rate: {unit}s whose gradients oppose"
    _over_steps(rate, title, f"% of {unit}s", whole)
    _line(cosine, whole, "mean_cosine", BLUE, f"mean over the {unit}s")
    if unit != "step":
        _line(cosine, whole, "cosine", ORANGE, "all shared parameters as one vector")
    cosine.axhline(0, color="k", lw=0.8)
    low, high = cosine.get_ylim()
    low, high = min(low, -0.05), max(high, 0.05)
    cosine.set_ylim(low, high + 0.2 * (high - low))  # the legend stands above the lines
    _over_steps(cosine, "Cosine of the two gradients", "← against   with →", whole)


def _line(axes, whole, key, colour, label=None, factor=1) -> None:
    """A column over the steps; where there are many windows, with its moving average."""
    steps = np.array([row["step"] - row.get("steps", 0) / 2 for row in whole])
    values = factor * plots.column_of(whole, key)
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if not len(values):
        return
    if len(values) >= 80:
        axes.plot(steps, values, color=colour, lw=0.6, alpha=0.35)
        kernel = np.ones(2 * (len(values) // 40) + 1)
        counts = np.convolve(np.ones(len(values)), kernel, "same")
        values = np.convolve(values, kernel, "same") / counts
    marker = "o" if len(values) < 25 else ""
    axes.plot(steps, values, color=colour, lw=1.6, label=label, marker=marker, ms=3)


def _draw_map(axes, share, rows, whole, modules) -> None:
    """Cosine of each module over the steps, and how often each is in conflict."""
    edges = [_start(whole), *(row["step"] for row in whole)]
    place = {row["step"]: column for column, row in enumerate(whole)}
    values = np.full((len(modules), len(whole)), np.nan)
    for row in rows:
        if row["scope"] != "all" and row["step"] in place:
            values[modules.index(row["scope"]), place[row["step"]]] = row.get("cosine")
    finite = np.abs(values[np.isfinite(values)])
    limit = max(0.1, float(np.quantile(finite, 0.98)) if len(finite) else 0)
    borders = np.arange(len(modules) + 1) - 0.5
    colours = {"cmap": "RdBu", "vmin": -limit, "vmax": limit, "rasterized": True}
    picture = axes.pcolormesh(edges, borders, np.ma.masked_invalid(values), **colours)
    axes.set_facecolor("0.9")
    title = "Where: cosine of each module; red: against, blue: with each other"
    _over_steps(axes, title, "", whole, colour="w")
    names = _short_names(modules)
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) < 20 else 6.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.figure.colorbar(picture, ax=axes, pad=0.01, aspect=40)
    by_module = [[row for row in rows if row["scope"] == name] for name in modules]
    shares = np.nan_to_num([100 * _mean(found, "conflict_rate") for found in by_module])
    bars = share.barh(range(len(modules)), shares, height=0.7, color=RED, alpha=0.75)
    share.bar_label(bars, fmt=" %.0f", fontsize=6.5, color=GRAY)
    share.set_xlim(0, max(5, 1.18 * max(shares)))
    share.set_ylim(axes.get_ylim())
    share.set_yticks([])
    _titled(share, "In conflict", "%", "")
    for panel in (axes, share):
        panel.grid(False)


def _short_names(modules) -> list[str]:
    """Names without the parts that all begin with, cut at their beginnings."""
    parts = [name.split(".") for name in modules]
    common = len(os.path.commonprefix([p[:-1] for p in parts]))
    names = [".".join(p[common:]) for p in parts]
    return [n if len(n) <= NAME_LENGTH else "…" + n[1 - NAME_LENGTH :] for n in names]


def _draw_histograms(cosine, ratio, whole, unit) -> None:
    """Cosines, and ratios of lengths, of the two gradients."""
    _draw_histogram(cosine, whole, "cosine", RED, BLUE)
    cosine.set_xlim(-1, 1)
    _titled(cosine, f"Cosine of each {unit}", "cosine", f"% of {unit}s")
    drawn = _draw_histogram(ratio, whole, "log10_ratio", GRAY, "#bbbbbb")
    low, high = min([-1, *drawn]), max([1, *drawn])
    ratio.set_xlim(low, high)
    ratio.axvline(0, color="k", lw=0.8)
    ticks = [t for t in range(-4, 5) if low <= t <= high]
    ratio.set_xticks(ticks, [f"$10^{{{t}}}$" for t in ticks])
    below = "main longer  ←  ‖aux‖/‖main‖  →  aux longer"
    _titled(ratio, "Ratio of lengths", below, "")


def _draw_histogram(axes, whole, name, below_zero, above_zero):
    """A histogram summed over the windows, in %; gives the edges of its bars."""
    for column in dict.fromkeys(key for row in whole for key in row):
        match = HISTOGRAM.fullmatch(column)
        if match and match[1] == name:
            counts = np.sum([row[column] for row in whole if column in row], 0)
            if counts.sum():
                edges = np.linspace(float(match[2]), float(match[3]), len(counts) + 1)
                shares = 100 * counts / counts.sum()
                colours = [below_zero if x < -1e-9 else above_zero for x in edges[:-1]]
                axes.bar(edges[:-1], shares, np.diff(edges), align="edge", color=colours)
                there = np.flatnonzero(shares)
                return edges[there[0]], edges[there[-1] + 1]
    return ()


def _draw_rule(along, length, whole, rule) -> None:
    """The effect of the rule along the main gradient, and in length."""
    _line(along, whole, "removed", GREEN, "removed of aux", 100)
    _line(along, whole, "added", BLUE, "added to main", 100)
    if np.nanmax(plots.column_of(whole, "lost"), initial=0) > NOTHING:
        _line(along, whole, "lost", RED, "lost of main", 100)
    _line(length, whole, "rescaled", PURPLE, "aux gradients rescaled", 100)
    _line(length, whole, "stretch", ORANGE, "update / plain sum", 100)
    length.axhline(100, color="k", lw=0.8, ls=":")
    for axes in (along, length):
        top = axes.get_ylim()[1]
        if top > 400:
            axes.set_yscale("symlog", linthresh=100)
        axes.set_ylim(0, top * 4 if top > 400 else max(5, 1.45 * top))
    name = f"Rule {rule}" if rule else "The rule"
    label = "% of the gradient's length"
    _over_steps(along, f"{name}: along the main gradient", label, whole)
    _over_steps(length, f"{name}: in length", "%", whole)


def _over_steps(axes, title, label, whole, colour="0.75") -> None:
    """Steps below; thin lines where epochs end, of many epochs some."""
    from matplotlib.ticker import MaxNLocator

    _titled(axes, title, "step", label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ends = list({row["epoch"]: row["step"] for row in whole}.values())
    start, every = _start(whole), -(-len(ends) // 12)
    axes.set_xlim(start, max(ends[-1], start + 1))
    for end in ends[every - 1 : -1 : every]:
        axes.axvline(end, color=colour, lw=0.7, zorder=0.5 if colour != "w" else 3)


def _titled(axes, title, below, label) -> None:
    plots.style_axes(axes, below, label)
    axes.set_title(title, fontsize=10, loc="left")


def _start(whole):
    """The step before the first window."""
    return whole[0]["step"] - whole[0].get("steps", whole[0]["step"])
