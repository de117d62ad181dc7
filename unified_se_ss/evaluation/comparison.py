"""Runs compared: several settings ("cells"), each trained with several seeds.

Two things vary by chance: the seed of the training and the utterances of the test set.
All runs of a comparison are tested on the same utterances, so seeds and utterances are
crossed: a score is x[s, u], and a difference of two cells is d[s, u], paired by both.
What is said of a mean or a difference is meant for new seeds and for new utterances.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.curves import png_bytes
from unified_se_ss.evaluation.results import (
    BOOTSTRAP_SEED,
    COVERAGE,
    HEADLINES,
    LOWER_IS_BETTER,
    RATES,
    RESAMPLES,
)
from unified_se_ss.files import atomic_write, csv_text

#: What is compared unless told otherwise: columns of results.csv.
METRICS = ("snr_i", "si_snr_i", "se_si_snr_i", "delta_itd", "delta_ild", "wer")
_RESAMPLES_AT_ONCE = 100
# A cell whose mean is this many intervals away from the others is drawn at the edge.
_FAR = 8.0
_COLOURS = {"better": "tab:green", "worse": "tab:red"}


@dataclass(frozen=True)
class Estimate:
    """What the runs of a cell say of one metric, in its unit.

    Arguments
    ---------
    seeds : tuple of str
        Those that have a run.
    per_seed : tuple of float
        The mean over the utterances of each seed.
    mean : float
        Their mean.
    standard_deviation : float or None
        Their sample deviation; None under two seeds.
    low, high : float or None
        Ends of the 95 % bootstrap interval of the mean, see `bootstrap_interval`.
    utterances : int
        Those with a value in every run of the cell.

    Example
    -------
    >>> estimate(np.array([[1.0, 3.0], [2.0, 4.0]]), ("1", "2")).per_seed
    (2.0, 3.0)
    """

    seeds: tuple[str, ...]
    per_seed: tuple[float, ...]
    mean: float
    standard_deviation: float | None
    low: float | None
    high: float | None
    utterances: int


@dataclass(frozen=True)
class Difference:
    """A cell's scores minus the baseline's, paired by seed and utterance.

    Arguments
    ---------
    seeds : tuple of str
        Those that both have a run of.
    per_seed : tuple of float
        The mean difference of each seed.
    mean : float
        Their mean.
    low, high : float or None
        Ends of the 95 % interval, see `paired_interval`; None under two seeds.
    utterances : int
        Those with a value in every run of both.
    lower_is_better : bool
        Whether the metric is an error.

    Example
    -------
    >>> Difference(("1", "2"), (0.5, 0.7), 0.6, 0.2, 1.0, 60).verdict
    'better'
    """

    seeds: tuple[str, ...]
    per_seed: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    utterances: int
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``within the noise``, or ``one seed cannot tell``."""
        if self.low is None:
            return "one seed cannot tell"
        if self.low <= 0 <= self.high:
            return "within the noise"
        return "better" if (self.mean > 0) != self.lower_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """Cells side by side; made by `compare`.

    Arguments
    ---------
    baseline : str
        The cell that the others are compared with.
    seeds : dict
        The seeds of each cell, in the order of the table; empty without a finished run.
    estimates : dict
        By metric, an `Estimate` of each cell that has the metric.
    differences : dict
        By metric, a `Difference` of each cell that can be compared with the baseline.

    Example
    -------
    >>> rows = [{"ID": "a", "si_snr_i": 1.0}, {"ID": "b", "si_snr_i": 2.0}]
    >>> comparison = compare({"rule=sum": {"1": rows}, "rule=project": {}})
    >>> comparison.seeds
    {'rule=sum': ('1',), 'rule=project': ()}
    >>> comparison.baseline
    'rule=sum'
    """

    baseline: str
    seeds: dict[str, tuple[str, ...]]
    estimates: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Difference]]

    def table(self) -> str:
        """The comparison as aligned text, a block for each metric."""
        blocks = [self._cells(metric) for metric in self.estimates]
        widths = [max(map(len, column)) for column in zip(*sum(blocks, []))]
        texts = []
        for block in blocks:
            lines = [_aligned(row, widths) for row in block]
            texts.append("\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]))
        return "\n\n".join(texts)

    def markdown(self) -> str:
        """The comparison as Markdown: a table for each metric, then what it means."""
        parts = []
        for metric in self.estimates:
            head, *rows = self._cells(metric)
            rule = ["---", *["--:"] * (len(head) - 2), "---"]
            lines = [_markdown_row(row) for row in (head, rule, *rows)]
            parts.append("\n".join(lines))
        return "\n\n".join([*parts, *self.notes()]) + "\n"

    def csv(self) -> str:
        """The comparison as CSV: a row for each cell, numbers in full."""
        rows = []
        for cell, seeds in self.seeds.items():
            row = {"cell": cell, "seeds": " ".join(seeds)}
            for metric in self.estimates:
                row.update(self._numbers(metric, cell))
            rows.append(row)
        return csv_text(rows)

    def png(self) -> bytes:
        """The comparison as a picture: scores, and differences to the baseline."""
        return _draw(self)

    def notes(self) -> list[str]:
        """What the intervals mean, and what they do not, in sentences."""
        told = [d for row in self.differences.values() for d in row.values()]
        count = sum(difference.low is not None for difference in told)
        utterances = {e.utterances for row in self.estimates.values() for e in row.values()}
        notes = [
            f"Test utterances: {' or '.join(map(str, sorted(utterances)))}. Std. dev.: of "
            "the seeds' means.",
            f"Interval of a mean: {COVERAGE:.0%} bootstrap, {RESAMPLES} resamples of seeds "
            "and of utterances, these alike for all seeds. It says how well the mean is "
            "known; two cells are not to be compared by it, since what makes an utterance "
            "hard is the same for both. With few seeds the bootstrap knows their spread "
            "badly and makes it too small.",
            f"Minus {self.baseline}: paired by seed and utterance, with a {COVERAGE:.0%} "
            "t-interval for new seeds and new utterances. Within the noise: it holds 0, so "
            "these runs cannot tell the two apart; that is no proof that they are equal.",
        ]
        if count:
            notes.append(
                f"Each interval stands alone. Of {count} "
                f"{'difference' if count == 1 else 'differences'} as tested here, "
                f"{count * (1 - COVERAGE):.2g} would come out as better or worse on average "
                "if all cells were equal."
            )
        return [note.replace("95%", "95 %") for note in notes]

    def _cells(self, metric) -> list[list[str]]:
        """Heading and rows of a metric's table, as text."""
        interval = f"{COVERAGE:.0%} interval".replace("%", " %")
        head = [_heading(metric), "seeds", "mean", "std. dev.", interval]
        head += [f"minus {self.baseline}", interval, "in words"]
        rows = []
        for cell, seeds in self.seeds.items():
            found = self.estimates[metric].get(cell)
            difference = self.differences[metric].get(cell)
            row = [cell, str(len(seeds)), *_estimate_cells(found)]
            row += _difference_cells(difference)
            rows.append([*row, self._words(metric, cell)])
        return [head, *rows]

    def _words(self, metric, cell) -> str:
        """A cell's difference to the baseline in words."""
        if not self.seeds[cell]:
            return "no finished run"
        if cell not in self.estimates[metric]:
            return ""
        if cell == self.baseline:
            return "baseline"
        difference = self.differences[metric].get(cell)
        if difference is None:
            return "no run in common with the baseline"
        if difference.verdict not in _COLOURS:
            return difference.verdict
        return f"{difference.verdict} by {abs(difference.mean):.2f}{_unit(metric)}"

    def _numbers(self, metric, cell) -> dict:
        """The columns of a metric in a cell's row of the CSV."""
        found = self.estimates[metric].get(cell)
        difference = self.differences[metric].get(cell)
        numbers = {
            "mean": found and found.mean,
            "std": found and found.standard_deviation,
            "low": found and found.low,
            "high": found and found.high,
            "per_seed": " ".join(f"{x:.6f}" for x in found.per_seed) if found else None,
            "difference": difference and difference.mean,
            "difference_low": difference and difference.low,
            "difference_high": difference and difference.high,
        }
        row = {f"{metric}_{name}": _plain(value) for name, value in numbers.items()}
        return {**row, f"{metric}_verdict": self._words(metric, cell)}


def compare(results, baseline=None, metrics=METRICS) -> Comparison:
    """Compare cells by what their runs got on the test utterances.

    Arguments
    ---------
    results : dict
        By cell, then by seed: the rows of the run's results.csv, as `read_results`
        gives them. A cell may have no run yet.
    baseline : str, optional
        The cell that the others are compared with; the first by default.
    metrics : sequence of str
        Columns of results.csv; higher is better, but of `LOWER_IS_BETTER`. What no run
        has is left out.

    Returns
    -------
    Comparison

    Raises
    ------
    UserError
        If there is nothing to compare, no such baseline, or runs of one cell that were
        tested on other utterances.

    Example
    -------
    >>> rows = [{"ID": "a", "si_snr_i": 1.0}, {"ID": "b", "si_snr_i": 2.0}]
    >>> compare({"rule=sum": {1: rows}}).estimates["si_snr_i"]["rule=sum"].mean
    1.5
    """
    results = {
        cell: {str(seed): rows for seed, rows in runs.items()}
        for cell, runs in results.items()
    }
    if not any(results.values()):
        raise UserError("there is no finished run to compare; run some first")
    baseline = next(iter(results)) if baseline is None else baseline
    if baseline not in results:
        raise UserError(
            f"baseline: is '{baseline}'; expected one of the cells: {', '.join(results)}"
        )
    estimates, differences = {}, {}
    for metric in metrics:
        scores = {cell: _scores(cell, runs, metric) for cell, runs in results.items()}
        scores = {cell: found for cell, found in scores.items() if found}
        if scores:
            estimates[metric] = {c: estimate(*_matrix(s)) for c, s in scores.items()}
            lower = metric in LOWER_IS_BETTER
            differences[metric] = _differences(scores, baseline, lower)
    if not estimates:
        rows = next(rows for runs in results.values() for rows in runs.values())
        raise UserError(
            f"results.csv has none of the columns {', '.join(metrics)}; "
            f"it has: {', '.join(rows[0])}"
        )
    seeds = {cell: tuple(runs) for cell, runs in results.items()}
    return Comparison(baseline, seeds, estimates, differences)


def write_comparison(comparison, folder) -> list[Path]:
    """Write comparison.md, comparison.csv and comparison.png.

    Arguments
    ---------
    comparison : Comparison
        As `compare` gives it.
    folder : str or Path
        Earlier files of these names are replaced, each as a whole.

    Returns
    -------
    list of Path
        The files.

    Example
    -------
    >>> import tempfile
    >>> runs = {"rule=sum": {1: [{"ID": "a", "si_snr_i": 1.0}]}}
    >>> [path.name for path in write_comparison(compare(runs), tempfile.mkdtemp())]
    ['comparison.md', 'comparison.csv', 'comparison.png']
    """
    folder = Path(folder)
    return [
        atomic_write(folder / "comparison.md", comparison.markdown()),
        atomic_write(folder / "comparison.csv", comparison.csv()),
        atomic_write(folder / "comparison.png", comparison.png()),
    ]


# ------------------------------------------------------------------ statistics


def estimate(scores, seeds) -> Estimate:
    """Mean, deviation and interval of a cell.

    Arguments
    ---------
    scores : np.ndarray
        Of each seed on each utterance, [S, U], all finite.
    seeds : sequence of str
        Their names.

    Returns
    -------
    Estimate

    Example
    -------
    >>> estimate(np.array([[1.0, 3.0], [2.0, 4.0]]), ("1", "2")).mean
    2.5
    """
    per_seed = scores.mean(axis=1)
    deviation = float(per_seed.std(ddof=1)) if len(seeds) > 1 else None
    return Estimate(
        tuple(seeds),
        tuple(per_seed.tolist()),
        float(per_seed.mean()),
        deviation,
        *bootstrap_interval(scores),
        scores.shape[1],
    )


def bootstrap_interval(scores, resamples=RESAMPLES):
    """Percentile bootstrap interval of a mean over seeds and utterances.

    Each resample draws seeds, and one set of utterances for all of them: the seeds were
    tested on the same utterances, so that to draw others for every seed would make
    their share of the variance too small by the number of seeds. Source: Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1 (2007).

    Arguments
    ---------
    scores : np.ndarray
        Of each seed on each utterance, [S, U].
    resamples : int
        How many (default 1000), from a fixed seed: the same scores give the same interval.

    Returns
    -------
    tuple of float
        Both ends of the 95 % interval; (None, None) for a single score.

    Example
    -------
    >>> bootstrap_interval(np.array([[1.0, 1.0], [1.0, 1.0]]))
    (1.0, 1.0)
    """
    seeds, utterances = scores.shape
    if scores.size < 2:
        return None, None
    rng = np.random.default_rng([BOOTSTRAP_SEED, seeds, utterances])
    means = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, resamples - start)
        per_seed = rng.multinomial(seeds, [1 / seeds] * seeds, count) / seeds
        per_item = rng.multinomial(utterances, [1 / utterances] * utterances, count)
        means.append((per_seed @ scores * per_item).sum(axis=1) / utterances)
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def paired_interval(differences):
    """Confidence interval of a mean difference, for new seeds and new utterances.

    The wider of two t-intervals. The first takes seeds and utterances as crossed random
    effects, with variance (M_S + max(M_U - M_SU, 0)) / SU of the mean squares M between
    seeds, between utterances, and of their interaction, and with Hillis' degrees of
    freedom (Statistics in Medicine 26, 2007). The second takes the seeds' means alone,
    with S - 1 degrees of freedom. The first by itself is too narrow where seeds differ
    much and are few, the second where utterances do. Simulated with three seeds and
    without a true difference, 5 % of these intervals miss 0, whichever share of the
    noise is due to seeds (the bootstrap: up to 22 %); see tests.

    Arguments
    ---------
    differences : np.ndarray
        Paired by seed and utterance, [S, U], two seeds or more.

    Returns
    -------
    tuple of float
        Both ends of the 95 % interval.

    Example
    -------
    >>> low, high = paired_interval(np.array([[0.9, 1.1], [1.0, 1.2], [0.8, 1.0]]))
    >>> round(low, 2), round(high, 2)
    (0.75, 1.25)
    """
    seeds, utterances = differences.shape
    mean = differences.mean()
    by_seed, by_item = differences.mean(axis=1), differences.mean(axis=0)
    between_seeds = utterances * by_seed.var(ddof=1)
    above_chance = 0.0
    if utterances > 1:
        residual = differences - by_seed[:, None] - by_item + mean
        interaction = np.square(residual).sum() / ((seeds - 1) * (utterances - 1))
        above_chance = max(seeds * by_item.var(ddof=1) - interaction, 0.0)
    freedom = np.inf
    if between_seeds > 0:
        freedom = (seeds - 1) * (1 + above_chance / between_seeds) ** 2
    crossed = _t(freedom) * np.sqrt((between_seeds + above_chance) / differences.size)
    seeds_alone = _t(seeds - 1) * np.sqrt(between_seeds / differences.size)
    half = max(crossed, seeds_alone)
    return float(mean - half), float(mean + half)


def _t(freedom) -> float:
    """Half width of a t-interval in standard errors."""
    return stats.t.ppf((1 + COVERAGE) / 2, freedom)


# ------------------------------------------------------------------ pairing


def _scores(cell, runs, metric) -> dict[str, dict[str, float]]:
    """A metric by seed and utterance: those that have it in every run of the cell."""
    scores = {}
    for seed, rows in runs.items():
        values = _rates(rows, metric) if metric in RATES else None
        values = values or {row["ID"]: row.get(metric) for row in rows}
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and np.isfinite(value)
        }
        if numbers:
            scores[seed] = numbers
    if scores and not _common(scores.values()):
        raise UserError(
            f"{cell}: its runs have no test utterance in common; expected runs that "
            "differ in their seed alone"
        )
    return scores


def _rates(rows, metric) -> dict[str, float]:
    """Shares of a rate whose mean over the utterances is that of all of them together."""
    errors, of = RATES[metric]
    counts = {row["ID"]: (row.get(errors), row.get(of)) for row in rows}
    counts = {name: pair for name, pair in counts.items() if None not in pair and pair[1]}
    total = sum(number for _, number in counts.values())
    return {name: 100 * wrong * len(counts) / total for name, (wrong, _) in counts.items()}


def _common(runs: Iterable[dict]) -> list[str]:
    """The utterances that all runs have, sorted."""
    return sorted(set.intersection(*(set(run) for run in runs)))


def _matrix(scores, names=None):
    """Scores as an array [S, U] over the common utterances, and the seeds."""
    names = _common(scores.values()) if names is None else names
    values = [[run[name] for name in names] for run in scores.values()]
    return np.array(values), tuple(scores)


def _differences(scores, baseline, lower_is_better) -> dict[str, Difference]:
    """What can be paired with the baseline, by cell."""
    differences = {}
    for cell in scores if baseline in scores else ():
        seeds = [seed for seed in scores[cell] if seed in scores[baseline]]
        ours, theirs = ({s: scores[c][s] for s in seeds} for c in (cell, baseline))
        names = _common([*ours.values(), *theirs.values()]) if seeds else []
        if cell == baseline or not names:
            continue
        paired = _matrix(ours, names)[0] - _matrix(theirs, names)[0]
        ends = paired_interval(paired) if len(seeds) > 1 else (None, None)
        per_seed = tuple(paired.mean(axis=1).tolist())
        mean = float(paired.mean())
        told = (tuple(seeds), per_seed, mean, *ends, len(names))
        differences[cell] = Difference(*told, lower_is_better)
    return differences


# ------------------------------------------------------------------ words


def _heading(metric) -> str:
    """A metric's heading with its unit."""
    known = {key: f"{heading} ({unit})" for key, heading, unit in HEADLINES}
    return known.get(metric, metric)


def _unit(metric) -> str:
    """A metric's unit after a space, if it is known."""
    return "".join(f" {unit}" for key, _, unit in HEADLINES if key == metric)


def _estimate_cells(found) -> list[str]:
    """Mean, deviation and interval as text; empty where there are none."""
    if found is None:
        return ["", "", ""]
    deviation = found.standard_deviation
    interval = "" if found.low is None else f"{found.low:.2f} … {found.high:.2f}"
    return [f"{found.mean:.2f}", "" if deviation is None else f"{deviation:.2f}", interval]


def _difference_cells(difference) -> list[str]:
    """Difference and its interval as text; empty where there are none."""
    if difference is None:
        return ["", ""]
    low, high = difference.low, difference.high
    interval = "" if low is None else f"{low:+.2f} … {high:+.2f}"
    return [f"{difference.mean:+.2f}", interval]


def _plain(value) -> str:
    """A value of the CSV; numbers keep six decimals."""
    return f"{value:.6f}" if isinstance(value, float) else value or ""


def _markdown_row(cells) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _aligned(cells, widths) -> str:
    """A line of the terminal's table: names and words to the left, numbers to the right."""
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:-1], widths[1:-1])]
    line = [cells[0].ljust(widths[0]), *numbers, cells[-1].ljust(widths[-1])]
    return "   ".join(line).rstrip()


# ------------------------------------------------------------------ picture


def _draw(comparison) -> bytes:
    """A row of two panels for each metric: scores, and differences to the baseline."""
    from matplotlib.figure import Figure

    cells = list(comparison.seeds)
    row_height = 0.95 + 0.34 * len(cells)
    size = (10, row_height * len(comparison.estimates) + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    axes = figure.subplots(len(comparison.estimates), 2, squeeze=False, sharey=True)
    for panels, metric in zip(axes, comparison.estimates):
        _draw_metric(*panels, comparison, metric)
        panels[0].set_yticks(range(len(cells)), [_short(cell) for cell in cells])
        panels[0].set_ylim(len(cells) - 0.5, -0.5)
    axes[0, 0].set_title("mean of each seed (dots) and of all, 95 % interval", fontsize=10)
    axes[0, 1].set_title("paired difference, 95 % interval", fontsize=10)
    _draw_legend(figure)
    return png_bytes(figure, dpi=130)


def _draw_metric(left, right, comparison, metric) -> None:
    """Scores to the left, differences to the right."""
    cells, baseline = list(comparison.seeds), comparison.baseline
    estimates, differences = comparison.estimates[metric], comparison.differences[metric]
    blue = {cell: "0.25" if cell == baseline else "tab:blue" for cell in cells}
    judged = {cell: _judged(differences.get(cell)) for cell in cells}
    _draw_rows(left, cells, estimates, blue)
    _draw_rows(right, cells, differences, judged, in_view=[0.0])
    if baseline in estimates:
        _draw_reference(left, estimates[baseline].mean)
        _draw_reference(right, 0.0)
    left.set_xlabel(_heading(metric), fontsize=9)
    unit = _unit(metric).strip()
    right.set_xlabel(f"minus {_short(baseline)}" + f" ({unit})" * bool(unit), fontsize=9)


def _draw_reference(axes, place) -> None:
    """A line where the baseline is, if that is in view."""
    low, high = axes.get_xlim()
    if low <= place <= high:
        axes.axvline(place, color="0.35", lw=1, ls="--", zorder=1)


def _draw_rows(axes, cells, found, colours, in_view=()) -> None:
    """Dots of the seeds, the mean, and its interval, a cell in a row."""
    far = _far_away(found)
    _set_limits(axes, [item for cell, item in found.items() if cell not in far], in_view)
    for row, cell in enumerate(cells):
        if cell in far:
            _draw_at_the_edge(axes, row, found[cell].mean, colours[cell])
        elif cell in found:
            _draw_row(axes, row, found[cell], colours[cell])
    axes.tick_params(labelsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for row in range(1, len(cells), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.5", alpha=0.07, lw=0, zorder=0)


def _draw_row(axes, row, item, colour) -> None:
    """One cell's dots, mean and interval."""
    if item.low is not None:
        axes.plot([item.low, item.high], [row, row], color=colour, lw=3.2, alpha=0.45)
    # Spread a little, so that equal seeds do not hide each other.
    count = len(item.per_seed)
    places = row + 0.16 * (np.arange(count) - (count - 1) / 2) / max(count - 1, 1) * 2
    axes.plot(item.mean, row, "|", ms=15, mew=2.2, color=colour, zorder=3)
    dots = {"ms": 4.5, "mec": "white", "mew": 0.6, "zorder": 4}
    axes.plot(item.per_seed, places, "o", color=colour, **dots)


def _draw_at_the_edge(axes, row, mean, colour) -> None:
    """An arrow towards a cell that is too far away to draw, with its mean."""
    left = mean < sum(axes.get_xlim()) / 2
    place, arrow = (0.0, "◂ {:.2f}") if left else (1.0, "{:.2f} ▸")
    axes.annotate(
        arrow.format(mean),
        (place, row),
        xycoords=("axes fraction", "data"),
        ha="left" if left else "right",
        va="center",
        fontsize=9,
        color=colour,
    )


def _draw_legend(figure) -> None:
    """What the colours of differences say, below everything."""
    from matplotlib.lines import Line2D

    colours = {**_COLOURS, "within the noise, or one seed": _judged(None)}
    handles = [Line2D([], [], color=c, lw=4, label=name) for name, c in colours.items()]
    place = {"loc": "outside lower right", "ncols": 3}
    figure.legend(handles=handles, **place, fontsize=9, frameon=False)


def _far_away(found) -> set[str]:
    """Cells that would press all others together if they were drawn to scale.

    Cells are parted where a gap between means is many intervals wide; the largest part
    stays, of equals the better one.
    """
    widths = [item.high - item.low for item in found.values() if item.low is not None]
    limit = _FAR * float(np.median(widths)) if widths else np.inf
    parts: list[list[str]] = []
    for cell in sorted(found, key=lambda cell: found[cell].mean):
        if not parts or found[cell].mean - found[parts[-1][-1]].mean > limit:
            parts.append([])
        parts[-1].append(cell)
    kept = max(reversed(parts), key=len, default=[])
    return set(found) - set(kept)


def _set_limits(axes, items, places) -> None:
    """Show all of the items and places, with some room around them."""
    ends = [x for item in items for x in (*item.per_seed, item.low, item.high)]
    places = [x for x in (*places, *ends) if x is not None]
    if places:
        room = 0.06 * (max(places) - min(places)) or 0.5
        axes.set_xlim(min(places) - room, max(places) + room)


def _judged(difference) -> str:
    """The colour of a difference: what can be said of it."""
    return _COLOURS.get(difference.verdict if difference else "", "0.55")


def _short(name, length=36) -> str:
    """A cell's name that fits beside a picture."""
    return name if len(name) <= length else re.sub(r"\s+$", "", name[: length - 1]) + "…"
