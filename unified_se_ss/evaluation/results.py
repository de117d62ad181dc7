"""The results of an evaluation: one row per utterance, and what they say together."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation import plots
from unified_se_ss.evaluation.metrics import Column
from unified_se_ss.evaluation.rows import CONDITIONS, COUNTS, HEADLINES, INPUTS, PER_SOURCE
from unified_se_ss.files import atomic_write, csv_text

#: Headline metrics by their keys.
KNOWN = {column.key: column for column in HEADLINES}
#: Columns that stand in the files, but in no table of metrics.
NOT_HEADLINES = {*COUNTS, *(column.key for column in CONDITIONS)}
RESAMPLES = 1000
BOOTSTRAP_SEED = 2302
COVERAGE = 0.95
INTERVAL = f"{100 * COVERAGE:.0f} % interval"


@dataclass(frozen=True)
class _MetricSummary:
    """One metric over the utterances, in its unit.

    Mean, median, sample deviation, and the ends of the 95 % bootstrap confidence interval of
    the mean, of the `count` utterances that have a value; None where they are too few.
    `empty` utterances have none, such as those with a silent target.
    """

    mean: float | None
    median: float | None
    standard_deviation: float | None
    low: float | None
    high: float | None
    count: int
    empty: int


@dataclass(frozen=True)
class Summary:
    """The results of an evaluation: number of rows, and a `_MetricSummary` of each numeric column.

    Example
    -------
    >>> print(summarise([{"ID": "a", "sdr": 1.0}, {"ID": "b", "sdr": 3.0}]).table())
    metric      mean   95 % interval   median   std. dev.   utterances   empty
    --------------------------------------------------------------------------
    SDR      2.00 dB     1.00 … 3.00     2.00        1.41            2       0
    """

    utterances: int
    metrics: dict[str, _MetricSummary]

    def table(self) -> str:
        """The headline metrics as an aligned table for the terminal."""
        return plots.aligned_table(*self._as_text())

    def markdown(self) -> str:
        """The headline metrics as a Markdown table."""
        return plots.markdown_table(*self._as_text()) + "\n"

    def to_dict(self) -> dict:
        """The content of summary.json."""
        return {
            "utterances": self.utterances,
            "coverage": COVERAGE,
            "resamples": RESAMPLES,
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
        }

    def headlines(self) -> list[tuple[Column, _MetricSummary]]:
        """The metrics that belong in a table: not of single sources, not conditions."""
        return [
            (KNOWN.get(key, Column(key, key)), metric)
            for key, metric in self.metrics.items()
            if not (_is_per_source(key) or _is_of_input(key) or key in NOT_HEADLINES)
        ]

    def rows(self) -> plots.Table:
        """The table of the headline metrics; the means are pairs of number and unit."""
        head = ["metric", "mean", INTERVAL, "median", "std. dev.", "utterances", "empty"]
        rows = [
            [
                column.heading,
                (plots.decimals(metric.mean), column.unit),
                plots.interval_text(metric.low, metric.high),
                plots.decimals(metric.median),
                plots.decimals(metric.standard_deviation),
                str(metric.count),
                str(metric.empty),
            ]
            for column, metric in self.headlines()
        ]
        return plots.Table(head, rows, kind="results")

    def _as_text(self):
        head, rows, *_ = self.rows()
        return head, [[name, " ".join(mean).strip(), *rest] for name, mean, *rest in rows]


def summarise_values(values) -> _MetricSummary:
    """Mean, median, deviation and confidence interval of some values.

    None, nan and infinite ones are counted as empty.

    Example
    -------
    >>> summarise_values([1.0, 2.0, 3.0, None]).median
    2.0
    """
    there = np.array([float(value) for value in values if is_finite(value)])
    empty = len(values) - len(there)
    if len(there) == 0:
        return _MetricSummary(None, None, None, None, None, 0, empty)
    mean, median = float(there.mean()), float(np.median(there))
    if len(there) == 1:
        return _MetricSummary(mean, median, None, None, None, 1, empty)
    low, high = bootstrap_interval(there)
    deviation = float(there.std(ddof=1))
    return _MetricSummary(mean, median, deviation, low, high, len(there), empty)


def bootstrap_interval(scores, weights=None, resamples=RESAMPLES):
    """95 % percentile bootstrap interval of the mean over utterances, and over seeds.

    Resamples of the utterances (Efron, 1979) from a fixed seed. Of several trainings, each
    resample draws seeds, and one set of utterances for all of them, as all were tested on the
    same: others for every seed would make their share of the variance too small by the number
    of seeds. Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007).

    Arguments
    ---------
    scores : np.ndarray
        Of each utterance, [U], or of each seed on each utterance, [S, U].
    weights : np.ndarray
        [U]; then of the sum of the scores over that of the weights.

    Returns
    -------
    tuple of float
        Both ends; (None, None) for a single score.

    Example
    -------
    >>> bootstrap_interval(np.array([[1.0, 1.0], [1.0, 1.0]]))
    (1.0, 1.0)
    """
    scores = np.atleast_2d(scores)
    seeds, utterances = scores.shape
    if scores.size < 2:
        return None, None
    weights = np.ones(utterances) if weights is None else weights
    rng = np.random.default_rng([BOOTSTRAP_SEED, *scores.shape[seeds == 1 :]])
    means, values = [], scores[0]
    for _ in range(resamples):
        if seeds > 1:
            values = scores[rng.integers(seeds, size=seeds)].mean(axis=0)
        draw = rng.integers(utterances, size=utterances)
        means.append(values[draw].sum() / max(weights[draw].sum(), 1e-300))
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def summarise(rows) -> Summary:
    """The summary of all numeric columns of rows, one per utterance."""
    metrics = {}
    for column in result_columns(rows):
        values = [row.get(column) for row in rows]
        if column in ("ID", "permutation"):
            continue
        if column in KNOWN and KNOWN[column].errors:
            metrics[column] = _summarise_rate(rows, column)
        elif all(value is None or _is_number(value) for value in values):
            metrics[column] = summarise_values(values)
    return Summary(len(rows), metrics)


def _summarise_rate(rows, column):
    """The mean of a rate is all errors over all words, so that long utterances weigh more."""
    alone = summarise_values([row.get(column) for row in rows])
    pairs = [[row.get(key) for key in (KNOWN[column].errors, "words")] for row in rows]
    errors, words = np.array([p for p in pairs if None not in p], float).reshape(-1, 2).T
    if words.sum() == 0:
        return alone
    mean = float(100 * errors.sum() / words.sum())
    if len(words) < 2:
        return replace(alone, mean=mean)
    low, high = bootstrap_interval(100 * errors, words)
    return replace(alone, mean=mean, low=low, high=high)


def result_columns(rows) -> list[str]:
    """The columns of results.csv in their fixed order.

    ID, the headline metrics, those of each source, the permutation, then any other key in the
    order in which it first appears.

    Example
    -------
    >>> result_columns([{"sdr_1": 1.0, "length": 3, "sdr": 1.0, "ID": "a"}])
    ['ID', 'sdr', 'sdr_1', 'length']
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    sources = sorted({int(k.rsplit("_", 1)[1]) for k in keys if _is_per_source(k)})
    order = ["ID", *KNOWN]
    order += [f"{name}_{j}" for j in sources for name in PER_SOURCE]
    order += ["permutation"]
    return [key for key in order if key in keys] + [k for k in keys if k not in order]


def write_results(rows, folder) -> Summary:
    """Write results.csv, summary.json and summary.md; each replaces an earlier one as a whole.

    Arguments
    ---------
    rows : list of dict
        One per utterance, with an `ID` of its own; None becomes an empty cell.
    folder : str or Path
        Made if it is not there.

    Raises
    ------
    UserError
        If there are no rows, or an ID is missing or there twice.
    """
    folder = Path(folder)
    _check_rows(rows, folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = result_columns(rows)
    cells = ({column: plots.as_text(row.get(column)) for column in columns} for row in rows)
    summary = summarise(rows)
    numbers = json.dumps(summary.to_dict(), indent=2, allow_nan=False)
    atomic_write(folder / "results.csv", csv_text(cells, columns))
    atomic_write(folder / "summary.json", numbers + "\n")
    atomic_write(folder / "summary.md", summary.markdown())
    return summary


def read_results(path) -> list[dict]:
    """The rows of a results.csv, as they were given to `write_results`.

    Raises
    ------
    UserError
        If it cannot be read as such a file.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = write_results([{"ID": "a", "sdr": None, "permutation": (1, 0)}], folder)
    >>> read_results(Path(folder) / "results.csv")
    [{'ID': 'a', 'sdr': None, 'permutation': (1, 0)}]
    """
    rows = plots.read_csv(path, "a results.csv")
    whole = all(None not in row and None not in row.values() for row in rows)
    if not rows or not whole or "ID" not in rows[0]:
        raise UserError(
            f"{path}: expected rows of equal length with a column ID, as the "
            "evaluation writes them. Run the evaluation again."
        )
    return [{key: _value(key, cell) for key, cell in row.items()} for row in rows]


def _check_rows(rows, folder):
    if not rows:
        raise UserError(
            f"{folder}: nothing was evaluated, so there are no results to write; "
            "expected at least one utterance in the test manifest."
        )
    seen = set()
    for row in rows:
        name = row.get("ID")
        if name in (None, ""):
            raise UserError(f"{folder}: a result has no ID; every utterance needs one.")
        if name in seen:
            raise UserError(
                f"{folder}: the ID {name!r} is there twice; every utterance of the "
                "test manifest needs an ID of its own."
            )
        seen.add(name)


def _is_per_source(key):
    """Such as `sdr_i_2`."""
    name, _, number = key.rpartition("_")
    return name in PER_SOURCE and number.isdigit()


def _is_of_input(key):
    """Such as `raw_si_snr`."""
    return key.startswith(tuple(f"{name}_" for name in INPUTS))


def _is_number(value):
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def is_finite(value) -> bool:
    """True for a finite number; False for None, text and truth values."""
    return _is_number(value) and bool(np.isfinite(value))


def _value(key, cell):
    if key == "ID":
        return cell
    if cell in ("", None):
        return None
    try:
        if key == "permutation":
            return tuple(int(part) for part in cell.split())
        return float(cell)
    except ValueError:
        return cell
