"""How the two tasks of a run got along: its gradients.csv, in words and as a picture.

A row stands for a window of steps and a scope, which is ``all`` or the name of a module.
What the columns mean is said in docs/gradients.md.
"""

from __future__ import annotations

import csv
import re
import textwrap
from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.curves import png_bytes
from unified_se_ss.files import atomic_write, csv_text

#: Columns of whole numbers, and one of text.
WHOLE = {
    *("epoch", "step", "steps", "compared", "auxiliary_zero", "main_zero"),
    *("auxiliary_nonfinite", "main_nonfinite"),
}
TEXT = "scope"
#: Histograms name what their equal bins span.
HISTOGRAM = re.compile(r"(\w+)_from_(\S+)_to_(\S+)")
#: What one application of the rule covers, by granularity.
UNITS = {"parameter": "tensor", "module": "module", "global": "step"}
#: A mean cosine of less than this either way is called neither harmony nor fight.
ORTHOGONAL = 0.1
#: Against, with, neither: the same in all panels.
RED, BLUE, GRAY = "#b2182b", "#2166ac", "#666666"
GREEN, ORANGE, PURPLE = "#1b7837", "#e08214", "#762a83"
#: Longest name of a module in the picture; of longer ones the end is shown.
NAME_LENGTH = 56
#: Less than this share is nothing: what a rule leaves to rounding.
NOTHING = 5e-4
#: Characters in a line of the title, and in its first.
LINE_LENGTH, HEADLINE_LENGTH = 165, 118


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
        """What was logged so far, as :func:`read_gradients` returns it."""
        return read_gradients(self.path) if self.path.is_file() else []

    def add(self, epoch: int, windows: list[dict]) -> None:
        """Log an epoch; forget what was logged of it and of later ones.

        Arguments
        ---------
        epoch : int
            Its number.
        windows : list of dict
            As ``ConflictMonitor.windows`` returns them.
        """
        rows = [row for row in _cells(self.path) if int(row["epoch"]) < epoch]
        rows += [{"epoch": epoch, **{k: _cell(v) for k, v in w.items()}} for w in windows]
        atomic_write(self.path, csv_text(rows, None if rows else ["epoch"]))


def _cells(path) -> list[dict]:
    """The rows of the file as text; none if there is no file."""
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if any(not str(row.get("epoch")).isdigit() for row in rows):
            raise ValueError("a row has no epoch")
        return rows
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read as a gradients.csv ({error}); move it away to go on"
        ) from None


def _cell(value) -> str:
    """A value as it stands in the file; five digits are enough to draw and compare."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def read_gradients(path):
    """The rows of a gradients.csv.

    Arguments
    ---------
    path : str or Path
        CSV file with the columns epoch, step and scope, and any others of numbers or
        (histograms) of counts with blanks between them.

    Returns
    -------
    list of dict
        One per window and scope; empty cells are left out.

    Raises
    ------
    UserError
        If it cannot be read as such a file.

    Example
    -------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "gradients.csv"
    >>> _ = path.write_text("epoch,step,scope,cosine,cosine_from_-1_to_1\\n1,9,all,,0 3\\n")
    >>> read_gradients(path)
    [{'epoch': 1, 'step': 9, 'scope': 'all', 'cosine_from_-1_to_1': [0, 3]}]
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        missing = {"epoch", "step", "scope"} - set(rows[0] if rows else ())
        if rows and missing:
            raise ValueError(f"there is no column {sorted(missing)[0]}")
        return [{k: _value(k, v) for k, v in row.items() if v} for row in rows]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read as a gradients.csv ({error}); expected one row of "
            "numbers per window and scope under a line of column names."
        ) from None


def _value(column, text):
    """A cell as what it is."""
    if column == TEXT:
        return text
    if HISTOGRAM.fullmatch(column):
        return [int(count) for count in text.split()]
    return int(text) if column in WHOLE else float(text)


# ------------------------------------------------------------------ in words


def was_compared(rows) -> bool:
    """Whether two gradients ever met; not so in a run without an auxiliary task.

    Example
    -------
    >>> was_compared([{"scope": "all", "compared": 0}])
    False
    """
    return any(row.get("compared") for row in rows)


def conclusions(rows, rule="", granularity="parameter"):
    """What the rows say, in words.

    Arguments
    ---------
    rows : list of dict
        As :func:`read_gradients` returns them.
    rule : str
        Name of the rule, as it shall be called.
    granularity : str
        ``"parameter"``, ``"module"`` or ``"global"``.

    Returns
    -------
    list of str
        Whether the tasks fought and where; how their gradients lay to each other; what
        the rule did; and, if so, what went wrong. Empty if nothing was compared.

    Example
    -------
    >>> row = {"epoch": 1, "step": 50, "scope": "all", "steps": 50, "compared": 100,
    ...        "conflict_rate": 0.25, "cosine": 0.3, "removed": 0.05}
    >>> for line in conclusions([row], "project"):
    ...     print(line)
    25 % of the tensors' gradients conflict.
    On the whole they pull the same way (mean cosine 0.30).
    Rule project, tensor by tensor: took out 20 % of an auxiliary gradient in conflict.
    """
    if not was_compared(rows):
        return []
    whole = [row for row in rows if row["scope"] == "all"]
    unit = UNITS.get(granularity, "tensor")
    lines = [
        _on_conflicts(rows, whole, unit),
        _on_directions(whole, unit),
        _on_the_rule(whole, rule, unit),
        _on_what_is_missing(whole, unit),
    ]
    return [line for line in lines if line]


def _on_conflicts(rows, whole, unit) -> str:
    """How many groups conflict, when, and where most do."""
    of_what = "steps'" if unit == "step" else f"{unit}s'"
    text = f"{_percent(_mean(whole, 'conflict_rate'))} of the {of_what} gradients conflict"
    first, last = whole[0]["epoch"], whole[-1]["epoch"]
    rates = [
        _mean([row for row in whole if row["epoch"] == epoch], "conflict_rate")
        for epoch in (first, last)
    ]
    if first != last and None not in rates:
        begun, ended = map(_percent, rates)
        text += f" ({begun} in epoch {first}, {ended} in epoch {last})"
    modules = _conflicts_by_module(rows)
    if len(modules) > 1 and max(modules.values()) > 0:
        rate, name = max(zip(modules.values(), _short_names(modules)))
        text += f"; most in {name} ({_percent(rate)})"
    return text + "."


def _conflicts_by_module(rows) -> dict:
    """Conflict rate of each module over the run, in the order of the network."""
    by_module: dict = {}
    for row in rows:
        if row["scope"] != "all":
            by_module.setdefault(row["scope"], []).append(row)
    rates = {name: _mean(found, "conflict_rate") for name, found in by_module.items()}
    return {name: rate for name, rate in rates.items() if rate is not None}


def _on_directions(whole, unit) -> str:
    """Whether the gradients point the same way, and how long they are."""
    parts = []
    cosine = _mean(whole, "cosine", weight="steps")
    if cosine is not None:
        manner = "are nearly orthogonal"
        if abs(cosine) >= ORTHOGONAL:
            manner = "pull the same way" if cosine > 0 else "pull against each other"
        value = f"{cosine:.2f}".replace("-", "−")
        parts.append(f"On the whole they {manner} (mean cosine {value})")
    ratio = _mean(whole, "log10_ratio")
    if ratio is not None:
        of_what = "The" if unit == "step" else f"A {unit}'s"
        if parts:
            of_what = of_what.lower()
        times = f"{10**ratio:.3g} times as long as"
        if ratio < 0:
            times = f"{10**-ratio:.3g} times shorter than"
        parts.append(f"{of_what} auxiliary gradient is typically {times} the main one")
    return "; ".join(parts) + "." if parts else ""


def _on_the_rule(whole, rule, unit) -> str:
    """What the rule did about it."""
    named = f"Rule {rule}, {unit} by {unit}" if rule else f"The rule, {unit} by {unit}"
    found = {
        key: _mean(whole, key) or 0 for key in ("removed", "added", "lost", "rescaled")
    }
    deeds = []
    if found["removed"] > NOTHING:
        share = _percent(found["removed"] / _mean(whole, "conflict_rate"))
        deeds.append(f"took out {share} of an auxiliary gradient in conflict")
    for key, words in (
        ("added", "added {} to the main gradient"),
        ("lost", "took {} off the main gradient"),
        ("rescaled", "rescaled {} of the auxiliary gradients"),
    ):
        if found[key] > NOTHING:
            deeds.append(words.format(_percent(found[key])))
    if not deeds:
        return f"{named}: changed nothing."
    stretch = _mean(whole, "stretch")
    if stretch is not None:
        largest = max(row.get("largest_stretch", 0) for row in whole)
        deeds.append(
            f"the update is {stretch:.2f} times as long as the sum (most: {largest:.3g})"
        )
    return f"{named}: {'; '.join(deeds)}."


def _on_what_is_missing(whole, unit) -> str:
    """Gradients that were zero or not finite."""
    parts = []
    for key, words in (
        ("main_nonfinite", "skipped, as the main gradient was not finite"),
        ("auxiliary_nonfinite", "taken with the main gradient alone"),
    ):
        count = sum(row.get(key, 0) for row in whole)
        if count:
            parts.append(f"{count:.0f} {'step' if count == 1 else 'steps'} {words}")
    compared = sum(row.get("compared", 0) for row in whole)
    for key, task in (("auxiliary_zero", "auxiliary"), ("main_zero", "main")):
        count = sum(row.get(key, 0) for row in whole)
        if count:
            share = _percent(count / (compared + count))
            parts.append(f"{share} of the {unit}s had no {task} gradient")
    text = "; ".join(parts)
    return text + "." if text else ""


def _mean(rows, key, weight="compared"):
    """Mean of a column over rows, weighted; None where nothing is defined."""
    pairs = [(row[key], row.get(weight, 0)) for row in rows if key in row]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def _percent(share) -> str:
    """A share in words; a small one with the digit that it needs."""
    if share is None:
        return "–"
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    return f"{100 * share:.{1 if share < 0.0995 else 0}f} %".replace(".0 %", " %")


# ------------------------------------------------------------------ as a picture


def plot_conflicts(rows, path_png, rule="", granularity="parameter"):
    """Draw how the two tasks got along into a PNG file.

    Arguments
    ---------
    rows : list of dict
        As :func:`read_gradients` returns them.
    path_png : str or Path
        The file; one of that name is replaced.
    rule, granularity : str
        As for :func:`conclusions`.

    Returns
    -------
    Path or None
        The file; None, and nothing is drawn, if no two gradients were ever compared.

    Example
    -------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "gradients.png"
    >>> print(plot_conflicts([], path), path.exists())
    None False
    """
    if not was_compared(rows):
        return None
    return atomic_write(path_png, conflicts_png(rows, rule, granularity))


def conflicts_png(rows, rule="", granularity="parameter"):
    """How the two tasks got along, as the bytes of a PNG file.

    Above, conflict rate and cosines over the steps; in the middle a map of the cosine,
    module by step, with each module's conflict rate; below, histograms, and what the
    rule did. The conclusions in words stand over it.

    Arguments
    ---------
    rows : list of dict
        As :func:`read_gradients` returns them, with something compared.
    rule, granularity : str
        As for :func:`conclusions`.

    Returns
    -------
    bytes

    Example
    -------
    >>> row = {"epoch": 1, "step": 9, "scope": "all", "compared": 8, "conflict_rate": 0.5}
    >>> conflicts_png([row])[1:4]
    b'PNG'
    """
    from matplotlib.figure import Figure

    whole = [row for row in rows if row["scope"] == "all"]
    modules = list(dict.fromkeys(r["scope"] for r in rows if r["scope"] != "all"))
    words = conclusions(rows, rule, granularity)
    unit = UNITS.get(granularity, "tensor")
    lines = _wrapped(words)
    heights = [2.3, 0.8 + max(0.17 * len(modules), min(0.3 * len(modules), 1.5)), 2.4]
    title = 0.45 + 0.21 * len(lines)
    if not modules:
        del heights[1]
    size = (12, sum(heights) + title)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(
        rect=(0.005, 0.005, 0.99, 0.99 - title / size[1]), h_pad=0.07, w_pad=0.07
    )
    _write_title(figure, lines, size[1])
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    _draw_curves(figure, grid[0].subgridspec(1, 2), whole, unit)
    if modules:
        _draw_map(figure, grid[1].subgridspec(1, 2, width_ratios=[5, 1]), rows, modules)
    below = grid[-1].subgridspec(1, 4, width_ratios=[1, 1, 1.15, 1.15])
    _draw_histograms(figure, below, whole, unit)
    _draw_rule(figure, below, whole, rule)
    return png_bytes(figure)


def _wrapped(words) -> list[tuple[str, bool]]:
    """The lines of the title, and whether they belong to the headline."""
    return [
        (line, number == 0)
        for number, text in enumerate(words)
        for line in textwrap.wrap(text, LINE_LENGTH if number else HEADLINE_LENGTH)
    ]


def _write_title(figure, lines, height) -> None:
    """The conclusions, the first of which is the headline."""
    place = dict(x=0.012, ha="left", va="top")
    figure.text(
        y=1 - 0.12 / height, s="How the two tasks got along", color=GRAY, size=9, **place
    )
    for number, (line, headline) in enumerate(lines):
        y = 1 - (0.34 + 0.05 * (not headline) + 0.21 * number) / height
        weight, size = ("bold", 12) if headline else ("normal", 9.5)
        figure.text(y=y, s=line, weight=weight, size=size, **place)


def _draw_curves(figure, cells, whole, unit) -> None:
    """Conflict rate, and cosines, over the steps."""
    rate, cosine = (figure.add_subplot(cells[0, column]) for column in range(2))
    _line(rate, whole, "conflict_rate", RED, fill=True, factor=100)
    rate.set_ylim(0, max(5, min(103, 1.15 * rate.get_ylim()[1])))
    _style(rate, f"Conflict rate: {unit}s whose gradients oppose", f"% of {unit}s")
    _line(cosine, whole, "mean_cosine", BLUE, f"mean over the {unit}s")
    if unit != "step":
        _line(cosine, whole, "cosine", ORANGE, "all shared parameters as one vector")
    cosine.axhline(0, color="k", lw=0.8)
    low, high = cosine.get_ylim()
    low, high = min(low, -0.05), max(high, 0.05)
    cosine.set_ylim(low, high + 0.2 * (high - low))  # room for the legend
    _style(cosine, "Cosine of the two gradients", "← against   with →")
    if cosine.get_legend_handles_labels()[1]:
        cosine.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    for axes in (rate, cosine):
        _mark_epochs(axes, whole)


def _line(axes, whole, key, colour, label=None, factor=1, fill=False, style="-") -> None:
    """A column over the steps; where there are many windows, with its moving average."""
    steps, values = _middles(whole), factor * _column(whole, key)
    there = np.isfinite(values)
    steps, values = steps[there], values[there]
    if not len(values):
        return
    smooth = _moving_average(values, len(values) // 40)
    marker = "o" if len(values) < 25 else ""
    if len(values) >= 80:
        axes.plot(steps, values, color=colour, lw=0.6, alpha=0.35)
    axes.plot(steps, smooth, style, color=colour, lw=1.6, label=label, marker=marker, ms=3)
    if fill:
        axes.fill_between(steps, 0, smooth, color=colour, alpha=0.12, lw=0)


def _moving_average(values, width):
    """Mean over `width` neighbours on each side, fewer at the ends."""
    if width < 1:
        return values
    kernel = np.ones(min(2 * width + 1, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(
        np.ones(len(values)), kernel, "same"
    )


def _draw_map(figure, cells, rows, modules) -> None:
    """Cosine of each module over the steps, and how often each is in conflict."""
    whole = [row for row in rows if row["scope"] == "all"]
    axes = figure.add_subplot(cells[0, 0])
    share = figure.add_subplot(cells[0, 1], sharey=axes)
    edges = [whole[0]["step"] - whole[0].get("steps", whole[0]["step"])]
    edges += [row["step"] for row in whole]
    place = {row["step"]: column for column, row in enumerate(whole)}
    values = np.full((len(modules), len(whole)), np.nan)
    for row in rows:
        if row["scope"] != "all" and row["step"] in place:
            values[modules.index(row["scope"]), place[row["step"]]] = row.get("cosine")
    finite = np.abs(values[np.isfinite(values)])
    limit = max(0.1, float(np.quantile(finite, 0.98)) if len(finite) else 0)
    axes.set_facecolor("0.9")
    picture = axes.pcolormesh(
        edges,
        np.arange(len(modules) + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap="RdBu",
        vmin=-limit,
        vmax=limit,
        rasterized=True,
    )
    names = _short_names(modules)
    _style(axes, "Where: cosine of each module; red: against, blue: with each other", "")
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) < 20 else 6.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False)
    _mark_epochs(axes, whole, colour="w")
    bar = figure.colorbar(picture, cax=axes.inset_axes([1.01, 0, 0.012, 1]))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)
    _draw_shares(share, _conflicts_by_module(rows), modules)


def _draw_shares(axes, rates, modules) -> None:
    """A bar per module: how often its groups conflict."""
    values = [100 * rates.get(name, 0) for name in modules]
    axes.barh(range(len(modules)), values, height=0.7, color=RED, alpha=0.75)
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.0f}", va="center", fontsize=6.5, color=GRAY)
    axes.set_xlim(0, max(5, 1.18 * max(values)))
    _style(axes, "In conflict", "", "%")
    axes.set_title("In conflict", fontsize=10, loc="left", pad=14)
    axes.tick_params(axis="y", labelleft=False, length=0)
    axes.grid(False)


def _short_names(modules) -> list[str]:
    """Names without the parts that all begin with, cut at their beginnings."""
    parts = [name.split(".") for name in modules]
    common = 0
    while all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    names = [".".join(p[common:]) for p in parts]
    return [n if len(n) <= NAME_LENGTH else "…" + n[1 - NAME_LENGTH :] for n in names]


def _draw_histograms(figure, cells, whole, unit) -> None:
    """Histograms of the cosine and of the ratio of norms over the whole run."""
    cosine, ratio = (figure.add_subplot(cells[0, column]) for column in range(2))
    found = _histogram(whole, "cosine")
    if found is not None:
        edges, shares = found
        colours = [RED if left < -1e-9 else BLUE for left in edges[:-1]]
        cosine.bar(edges[:-1], shares, np.diff(edges), align="edge", color=colours)
        cosine.set_xlim(-1, 1)
    _style(cosine, f"Cosine of each {unit}", f"% of {unit}s", "cosine")
    found = _histogram(whole, "log10_ratio")
    if found is not None:
        edges, shares = found
        colours = [GRAY if left < -1e-9 else "#bbbbbb" for left in edges[:-1]]
        ratio.bar(edges[:-1], shares, np.diff(edges), align="edge", color=colours)
        there = np.flatnonzero(shares)
        ratio.set_xlim(min(edges[there[0]], -1), max(edges[there[-1] + 1], 1))
        ratio.axvline(0, color="k", lw=0.8)
        ratio.set_xticks(
            ticks := [
                t for t in range(-4, 5) if ratio.get_xlim()[0] <= t <= ratio.get_xlim()[1]
            ],
            [f"$10^{{{t}}}$" for t in ticks],
        )
    _style(ratio, "Ratio of lengths", "", "main longer  ←  ‖aux‖/‖main‖  →  aux longer")
    for axes in (cosine, ratio):
        axes.grid(False, axis="x")


def _histogram(whole, name):
    """Edges and shares in % of a histogram summed over the windows; None without any."""
    for column in dict.fromkeys(key for row in whole for key in row):
        match = HISTOGRAM.fullmatch(column)
        if match and match[1] == name:
            counts = np.sum([row[column] for row in whole if column in row], 0)
            if counts.sum():
                edges = np.linspace(float(match[2]), float(match[3]), len(counts) + 1)
                return edges, 100 * counts / counts.sum()
    return None


def _draw_rule(figure, cells, whole, rule) -> None:
    """What the rule changed along the main gradient, and in length."""
    along, length = (figure.add_subplot(cells[0, column]) for column in (2, 3))
    _line(along, whole, "removed", GREEN, "removed of aux", 100)
    _line(along, whole, "added", BLUE, "added to main", 100)
    if np.nanmax(_column(whole, "lost"), initial=0) > NOTHING:
        _line(along, whole, "lost", RED, "lost of main", 100)
    name = f"Rule {rule}" if rule else "The rule"
    _style(along, f"{name}: along the main gradient", "% of the gradient's length")
    _line(length, whole, "rescaled", PURPLE, "aux gradients rescaled", 100)
    _line(length, whole, "stretch", ORANGE, "update / plain sum", 100)
    length.axhline(100, color="k", lw=0.8, ls=":")
    _style(length, f"{name}: in length", "%")
    for axes in (along, length):
        top = axes.get_ylim()[1]
        if top > 400:
            axes.set_yscale("symlog", linthresh=100)
        axes.set_ylim(0, top * 4 if top > 400 else max(5, 1.45 * top))
        _mark_epochs(axes, whole, labels=False)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7.5, edgecolor="none", loc="upper right", handlelength=1.2)


def _mark_epochs(axes, whole, colour="0.75", labels=True) -> None:
    """Thin lines where epochs end, with their numbers above."""
    ends = {row["epoch"]: row["step"] for row in whole}
    every = -(-len(ends) // 12)
    start = whole[0]["step"] - whole[0].get("steps", whole[0]["step"])
    axes.set_xlim(start, whole[-1]["step"] if whole[-1]["step"] > start else start + 1)
    for number, end in enumerate(list(ends.values())[:-1], 1):
        if number % every == 0:
            axes.axvline(end, color=colour, lw=0.7, zorder=0.5 if colour != "w" else 3)
    if not labels:
        return
    shown = [e for number, e in enumerate(ends, 1) if number % every == 0]
    above = axes.secondary_xaxis("top")
    above.set_xticks([ends[e] for e in shown], [str(e) for e in shown])
    above.tick_params(labelsize=7, length=2, colors=GRAY, pad=1)
    above.spines["top"].set_visible(False)
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=10, pad=14)
    axes.annotate(
        "epoch ends", (1, 1), (0, 13), xycoords="axes fraction", size=7, color=GRAY,
        textcoords="offset points", ha="right",
    )  # fmt: skip


def _style(axes, title, label, below="step") -> None:
    """What all panels have in common."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(label, fontsize=8.5)
    axes.set_xlabel(below, fontsize=8.5)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if below == "step":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _middles(whole):
    """The step in the middle of each window."""
    return np.array([row["step"] - row.get("steps", 0) / 2 for row in whole])


def _column(rows, key):
    """One key of all rows as numbers; nan where it is missing."""
    return np.array([row.get(key, np.nan) for row in rows], dtype=float)
