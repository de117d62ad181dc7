"""Runs compared: several settings ("cells"), each trained with several seeds.

Two things vary by chance: the seed of the training and the utterances of the test set.
All runs are tested on the same utterances, so seeds and utterances are crossed: a score is
x[s, u], and a difference of two cells is d[s, u], paired by both. Intervals are meant for
new seeds and for new utterances.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation import plots
from unified_se_ss.evaluation.metrics import Column
from unified_se_ss.evaluation.results import (
    COVERAGE,
    INTERVAL,
    KNOWN,
    RESAMPLES,
    bootstrap_interval,
    is_finite,
)
from unified_se_ss.files import atomic_write, csv_text

#: What is compared by default: columns of results.csv.
METRICS = ("snr_i", "si_snr_i", "se_si_snr_i", "delta_itd", "delta_ild", "wer")
_COLOURS = {"better": "tab:green", "worse": "tab:red"}
UNDECIDED = "0.55"


@dataclass(frozen=True)
class _Estimate:
    """One metric of a cell's runs, or its difference to the baseline, in its unit.

    Arguments
    ---------
    seeds : tuple of str
        Those that have a run; of a difference, those that both have.
    per_seed : tuple of float
        The mean over the utterances of each seed.
    mean : float
        Their mean.
    low, high : float or None
        Ends of its 95 % interval: `bootstrap_interval` of a score; `paired_interval` of a
        difference, None under two seeds.
    utterances : int
        Those with a value in every run.
    lower_is_better : bool
        True if the metric is an error.
    """

    seeds: tuple[str, ...]
    per_seed: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    utterances: int
    lower_is_better: bool = False

    @property
    def standard_deviation(self) -> float | None:
        """Sample deviation of the seeds' means; None under two seeds."""
        return float(np.std(self.per_seed, ddof=1)) if len(self.seeds) > 1 else None

    @property
    def verdict(self) -> str:
        """Of a difference: better, worse, within the noise, or one seed cannot tell."""
        if self.low is None:
            return "one seed cannot tell"
        if self.low <= 0 <= self.high:
            return "within the noise"
        return "better" if (self.mean > 0) != self.lower_is_better else "worse"


@dataclass(frozen=True)
class _Comparison:
    """Cells side by side: seeds by cell, estimates and differences by metric and cell."""

    baseline: str
    seeds: dict[str, tuple[str, ...]]
    estimates: dict[str, dict[str, _Estimate]]
    differences: dict[str, dict[str, _Estimate]]

    def table(self) -> str:
        """The comparison as aligned text, a block for each metric."""
        blocks = [self._cells(metric) for metric in self.estimates]
        return "\n\n".join(plots.aligned_table(*block, words=(0, -1)) for block in blocks)

    def markdown(self) -> str:
        """The comparison as Markdown: a table for each metric, then notes."""
        blocks = [self._cells(metric) for metric in self.estimates]
        tables = [plots.markdown_table(*block, words=(0, -1)) for block in blocks]
        return "\n\n".join([*tables, *self.notes()]) + "\n"

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
        """What the intervals are, and what they do not say."""
        differences = [d for row in self.differences.values() for d in row.values()]
        count = sum(difference.low is not None for difference in differences)
        utterances = {e.utterances for row in self.estimates.values() for e in row.values()}
        share = f"{100 * COVERAGE:.0f} %"
        notes = [
            f"Test utterances: {' or '.join(map(str, sorted(utterances)))}. Std. dev.: of "
            "the seeds' means.",
            f"Interval of a mean: {share} bootstrap, {RESAMPLES} resamples of seeds and of "
            "utterances, these alike for all seeds. Two cells are not to be compared by it, "
            "since what makes an utterance hard is the same for both. With few seeds it is "
            "too small.",
            f"Minus {self.baseline}: paired by seed and utterance, with a {share} t-interval "
            "for new seeds and new utterances. Within the noise: it holds 0, so these runs "
            "cannot tell the two apart; that is no proof that they are equal.",
        ]
        if count:
            notes.append(
                f"Each interval stands alone: if all cells were equal, "
                f"{count * (1 - COVERAGE):.2g} of {count} would come out as better or worse "
                "on average."
            )
        return notes

    def _cells(self, metric):
        """Heading and rows of a metric's table, as text."""
        head = [_column(metric).label, "seeds", "mean", "std. dev.", INTERVAL]
        head += [f"minus {self.baseline}", INTERVAL, "in words"]
        rows = []
        for cell, seeds in self.seeds.items():
            row = [cell, str(len(seeds)), *[""] * 5, self._words(metric, cell)]
            if found := self.estimates[metric].get(cell):
                row[2] = plots.decimals(found.mean)
                if len(found.seeds) > 1:
                    row[3] = plots.decimals(found.standard_deviation)
                row[4] = plots.interval_text(found.low, found.high)
            if difference := self.differences[metric].get(cell):
                row[5] = plots.decimals(difference.mean, "+")
                row[6] = plots.interval_text(difference.low, difference.high, "+")
            rows.append(row)
        return head, rows

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
        by = f"{abs(difference.mean):.2f} {_column(metric).unit}".rstrip()
        return f"{difference.verdict} by {by}"

    def _numbers(self, metric, cell) -> dict:
        """The columns of a metric in a cell's row of the CSV."""
        numbers = dict.fromkeys(["mean", "std", "low", "high", "per_seed"])
        if found := self.estimates[metric].get(cell):
            numbers |= {"mean": found.mean, "std": found.standard_deviation}
            numbers |= {"low": found.low, "high": found.high}
            numbers["per_seed"] = " ".join(f"{x:.6f}" for x in found.per_seed)
        difference = self.differences[metric].get(cell)
        for name, key in (("", "mean"), ("_low", "low"), ("_high", "high")):
            numbers[f"difference{name}"] = getattr(difference, key, None)
        numbers["verdict"] = self._words(metric, cell)
        return {f"{metric}_{name}": plots.as_text(value) for name, value in numbers.items()}


def compare(results, baseline=None, metrics=METRICS) -> _Comparison:
    """Compare cells by the results of their runs on the test utterances.

    Arguments
    ---------
    results : dict
        By cell, then by seed: the rows of the run's results.csv, as `read_results`
        gives them. A cell may have no run yet.
    baseline : str, optional
        The cell that the others are compared with; the first by default.
    metrics : sequence of str
        Columns of results.csv; those that no run has are left out.

    Returns
    -------
    _Comparison

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
            estimates[metric] = {
                cell: _estimate(
                    found,
                    _matrix(found, found, _common(list(found.values()))),
                    bootstrap_interval,
                )
                for cell, found in scores.items()
            }
            lower = _column(metric).lower_is_better
            differences[metric] = _differences(scores, baseline, lower)
    if not estimates:
        rows = next(rows for runs in results.values() for rows in runs.values())
        raise UserError(
            f"results.csv has none of the columns {', '.join(metrics)}; "
            f"it has: {', '.join(rows[0])}"
        )
    seeds = {cell: tuple(runs) for cell, runs in results.items()}
    return _Comparison(baseline, seeds, estimates, differences)


def write_comparison(comparison, folder) -> list[Path]:
    """Write comparison.md, comparison.csv and comparison.png, each as a whole."""
    folder = Path(folder)
    return [
        atomic_write(folder / "comparison.md", comparison.markdown()),
        atomic_write(folder / "comparison.csv", comparison.csv()),
        atomic_write(folder / "comparison.png", comparison.png()),
    ]


def _column(metric) -> Column:
    return KNOWN.get(metric, Column(metric, metric))


# ------------------------------------------------------------------ statistics


def _paired_interval(differences):
    """Confidence interval of a mean difference, for new seeds and new utterances.

    The wider of two t-intervals. The first takes seeds and utterances as crossed random
    effects, with variance (M_S + max(M_U - M_SU, 0)) / SU of the mean squares M between seeds,
    between utterances, and of their interaction, and with Hillis' degrees of freedom
    (Statistics in Medicine 26, 2007); it is too narrow where seeds differ much and are few. The
    second takes the seeds' means alone, with S - 1 degrees of freedom. Simulated with three
    seeds and without a true difference, 5 % of these intervals miss 0, whichever share of the
    noise is due to seeds (the bootstrap: up to 22 %); see tests.

    Arguments
    ---------
    differences : np.ndarray
        Paired by seed and utterance, [S, U].

    Returns
    -------
    tuple of float
        Both ends of the 95 % interval; (None, None) under two seeds.

    Example
    -------
    >>> low, high = _paired_interval(np.array([[0.9, 1.1], [1.0, 1.2], [0.8, 1.0]]))
    >>> round(low, 2), round(high, 2)
    (0.75, 1.25)
    """
    seeds, utterances = differences.shape
    if seeds < 2:
        return None, None
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
        values = _rates(rows, metric) or {row["ID"]: row.get(metric) for row in rows}
        numbers = {name: float(value) for name, value in values.items() if is_finite(value)}
        if numbers:
            scores[seed] = numbers
    if scores and not _common(list(scores.values())):
        raise UserError(
            f"{cell}: its runs have no test utterance in common; expected runs that "
            "differ in their seed alone"
        )
    return scores


def _rates(rows, metric) -> dict[str, float]:
    """Shares of a rate whose mean over the utterances is that of all of them together."""
    errors = _column(metric).errors
    counts = {row["ID"]: (row.get(errors), row.get("words")) for row in rows}
    counts = {name: pair for name, pair in counts.items() if None not in pair and pair[1]}
    total = sum(number for _, number in counts.values())
    return {name: 100 * wrong * len(counts) / total for name, (wrong, _) in counts.items()}


def _common(runs: list[dict]) -> list[str]:
    """The utterances that all runs have, sorted."""
    return sorted(set.intersection(*map(set, runs))) if runs else []


def _matrix(scores, seeds, names):
    """Scores of seeds as an array [S, U] over the utterances."""
    return np.array([[scores[seed][name] for name in names] for seed in seeds])


def _estimate(seeds, scores, interval, lower_is_better=False) -> _Estimate:
    """The estimate from scores or differences [S, U]."""
    each = tuple(scores.mean(axis=1).tolist())
    mean, (low, high) = float(np.mean(each)), interval(scores)
    return _Estimate(tuple(seeds), each, mean, low, high, scores.shape[1], lower_is_better)


def _differences(scores, baseline, lower_is_better) -> dict[str, _Estimate]:
    """Utterances that can be paired with the baseline, by cell."""
    differences = {}
    theirs = scores.get(baseline, {})
    for cell, ours in scores.items():
        seeds = tuple(seed for seed in ours if seed in theirs)
        names = _common([runs[seed] for runs in (ours, theirs) for seed in seeds])
        if cell != baseline and names:
            paired = _matrix(ours, seeds, names) - _matrix(theirs, seeds, names)
            differences[cell] = _estimate(seeds, paired, _paired_interval, lower_is_better)
    return differences


# ------------------------------------------------------------------ picture


def _draw(comparison) -> bytes:
    """A row of two panels for each metric: scores, and differences to the baseline."""
    cells, baseline = list(comparison.seeds), comparison.baseline
    height = 0.95 + 0.34 * len(cells)
    figure, grid = plots.panels(len(comparison.estimates), 2, height=height)
    for (left, right), (metric, estimates) in zip(grid, comparison.estimates.items()):
        differences, column = comparison.differences[metric], _column(metric)
        for row, cell in enumerate(cells):
            colour = "0.25" if cell == baseline else "tab:blue"
            _draw_estimate(left, row, estimates.get(cell), colour)
            difference = differences.get(cell)
            verdict = difference.verdict if difference else ""
            _draw_estimate(right, row, difference, _COLOURS.get(verdict, UNDECIDED))
        if baseline in estimates:
            left.axvline(estimates[baseline].mean, color="0.35", lw=1, ls="--", zorder=1)
            right.axvline(0.0, color="0.35", lw=1, ls="--", zorder=1)
        plots.style_axes(left, column.label, title="mean of each seed (dots) and of all")
        plots.style_axes(
            right, f"minus {_short(baseline)}", title="green: better, red: worse"
        )
        left.set_yticks(range(len(cells)), [_short(cell) for cell in cells])
        right.set_yticks([])
        for axes in (left, right):
            axes.set_ylim(len(cells) - 0.5, -0.5)
    return plots.png_bytes(figure, dpi=130)


def _draw_estimate(axes, row, item, colour) -> None:
    """Dots of the seeds, the mean, and its interval."""
    if item is None:
        return
    if item.low is not None:
        axes.plot([item.low, item.high], [row, row], color=colour, lw=3.2, alpha=0.45)
    # Spread a little, so that equal seeds do not hide each other.
    spread = 0.16 * (len(item.per_seed) > 1)
    places = row + np.linspace(-spread, spread, len(item.per_seed))
    axes.plot(item.mean, row, "|", ms=15, mew=2.2, color=colour, zorder=3)
    axes.plot(item.per_seed, places, "o", color=colour, ms=4.5, mec="white", zorder=4)


def _short(name, length=36) -> str:
    """A cell's name that fits beside a picture."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"
