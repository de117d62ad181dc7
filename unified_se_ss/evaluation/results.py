"""The results of an evaluation: one row per utterance, and what they say together."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.interaural import BANDS, PLACES
from unified_se_ss.evaluation.item_stats import CONDITIONS
from unified_se_ss.files import atomic_write, csv_text

#: Headline metrics in the order of every table: key, heading, unit.
HEADLINES = (
    ("snr", "SNR", "dB"),
    ("snr_i", "SNRi", "dB"),
    ("delta_itd", "ΔITD", "µs"),
    ("delta_ild", "ΔILD", "dB"),
    *(
        (f"delta_ild_{low}_{high}", f"ΔILD, {low} to {high} Hz", "dB")
        for low, high in BANDS
    ),
    ("si_snr", "SI-SNR", "dB"),
    ("si_snr_i", "SI-SNRi", "dB"),
    ("sdr", "SDR", "dB"),
    ("sdr_i", "SDRi", "dB"),
    ("sir", "SIR", "dB"),
    ("sir_i", "SIRi", "dB"),
    ("sar", "SAR", "dB"),
    ("sar_i", "SARi", "dB"),
    ("pesq_nb", "PESQ (narrow band)", ""),
    ("pesq_nb_i", "PESQi (narrow band)", ""),
    ("pesq_wb", "PESQ (wide band)", ""),
    ("pesq_wb_i", "PESQi (wide band)", ""),
    ("stoi", "STOI", "%"),
    ("stoi_i", "STOIi", "%"),
    ("estoi", "ESTOI", "%"),
    ("estoi_i", "ESTOIi", "%"),
    ("dnsmos", "DNSMOS", ""),
    ("dnsmos_i", "DNSMOSi", ""),
    ("wer", "WER", "%"),
    ("wer_reference", "WER of the references", "%"),
    ("wer_noisy", "WER without the front", "%"),
    ("wer_untrained", "WER before training", "%"),
    ("se_si_snr", "SI-SNR of the enhanced mixture", "dB"),
    ("se_si_snr_i", "SI-SNRi of the enhanced mixture", "dB"),
)
#: The per-source metrics, of which `_1`, `_2` ... are columns.
LOWER_IS_BETTER = frozenset(
    key for key, _, _ in HEADLINES if key.startswith(("delta_", "wer"))
)
#: Rates in percent whose mean is that of all utterances together: errors, of how many.
RATES = {
    "wer": ("word_errors", "words"),
    **{
        f"wer_{of}": (f"word_errors_{of}", "words")
        for of in ("reference", "noisy", "untrained")
    },
}
COUNTS = ("words", *(errors for errors, _ in RATES.values()))
PER_SOURCE = (
    *(key for key, _, _ in HEADLINES if not key.startswith("se_")),
    *COUNTS,
    *PLACES,
)
#: Columns that stand in the files, but in no table of metrics.
NOT_HEADLINES = {*COUNTS, *(key for key, _, _ in CONDITIONS)}
#: What an enhancement was given, of which the same metrics are columns: raw_si_snr ...
INPUTS = ("raw", "beamformed")
RESAMPLES = 1000
BOOTSTRAP_SEED = 2302
COVERAGE = 0.95


@dataclass(frozen=True)
class MetricSummary:
    """What the utterances say of one metric, in its unit.

    Arguments
    ---------
    mean, median, standard_deviation : float
        Of the utterances that have a value (sample deviation); None if too few.
    low, high : float
        Ends of the 95 % bootstrap confidence interval of the mean; None under two
        values.
    count : int
        Utterances with a value.
    empty : int
        Utterances without one, such as those with a silent target.

    Example
    -------
    >>> summarise_values([1.0, 3.0, None]).mean
    2.0
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
    """The results of an evaluation in a few numbers.

    Arguments
    ---------
    utterances : int
        Number of rows.
    metrics : dict
        A `MetricSummary` of each numeric column, in column order.

    Example
    -------
    >>> print(summarise([{"ID": "a", "sdr": 1.0}, {"ID": "b", "sdr": 3.0}]).table())
    metric      mean   95 % interval   median   std. dev.   utterances   empty
    --------------------------------------------------------------------------
    SDR      2.00 dB     1.00 … 3.00     2.00        1.41            2       0
    """

    utterances: int
    metrics: dict[str, MetricSummary]

    def table(self):
        """The headline metrics as an aligned table for the terminal.

        Returns
        -------
        str
            Lines without a line break at the end.
        """
        head, rows = self._cells()
        widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
        lines = [_aligned(line, widths) for line in [head, *rows]]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join(lines)

    def markdown(self):
        """The headline metrics as a Markdown table.

        Returns
        -------
        str
            Lines, with a line break at the end.
        """
        head, rows = self._cells()
        rule = ["---"] + ["--:"] * (len(head) - 1)
        lines = ["| " + " | ".join(line) + " |" for line in [head, rule, *rows]]
        return "\n".join(lines) + "\n"

    def to_dict(self):
        """The summary as plain numbers.

        Returns
        -------
        dict
            What summary.json holds.
        """
        return {
            "utterances": self.utterances,
            "coverage": COVERAGE,
            "resamples": RESAMPLES,
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
        }

    def headlines(self):
        """The metrics that belong in a table: not of single sources, not conditions.

        Returns
        -------
        list
            Tuples (key, heading, unit, `MetricSummary`).
        """
        known = {key: (heading, unit) for key, heading, unit in HEADLINES}
        return [
            (key, *known.get(key, (key, "")), metric)
            for key, metric in self.metrics.items()
            if not (_is_per_source(key) or _is_of_input(key) or key in NOT_HEADLINES)
        ]

    def _cells(self):
        """Heading and rows of the tables, as text."""
        head = ["metric", "mean", f"{COVERAGE:.0%} interval".replace("%", " %")]
        head += ["median", "std. dev.", "utterances", "empty"]
        rows = []
        for _, heading, unit, metric in self.headlines():
            interval = "–"
            if metric.low is not None:
                interval = f"{metric.low:.2f} … {metric.high:.2f}"
            row = [heading, f"{decimals(metric.mean)} {unit}".strip(), interval]
            row += [decimals(metric.median), decimals(metric.standard_deviation)]
            rows.append(row + [str(metric.count), str(metric.empty)])
        return head, rows


def summarise_values(values):
    """Mean, median, deviation and confidence interval of some values.

    The interval is the percentile bootstrap of the mean (Efron, 1979): 1000 resamples
    of the utterances with a fixed seed: the same values give the same interval.

    Arguments
    ---------
    values : list of float
        One per utterance; None, nan and infinite ones are counted as empty.

    Returns
    -------
    MetricSummary

    Example
    -------
    >>> summarise_values([1.0, 2.0, 3.0, 4.0]).median
    2.5
    """
    there = np.array([float(v) for v in values if _is_number(v) and np.isfinite(v)])
    empty = len(values) - len(there)
    if len(there) == 0:
        return MetricSummary(None, None, None, None, None, 0, empty)
    mean, median = float(there.mean()), float(np.median(there))
    if len(there) == 1:
        return MetricSummary(mean, median, None, None, None, 1, empty)
    low, high = _bootstrap_interval(there)
    deviation = float(there.std(ddof=1))
    return MetricSummary(mean, median, deviation, low, high, len(there), empty)


def summarise(rows):
    """The summary of all numeric columns of the rows.

    Arguments
    ---------
    rows : list of dict
        One per utterance, as `evaluate_item` gives them, with an `ID`.

    Returns
    -------
    Summary

    Example
    -------
    >>> summarise([{"ID": "a", "si_snr": 1.0}]).metrics["si_snr"].count
    1
    """
    columns = [c for c in result_columns(rows) if c not in ("ID", "permutation")]
    metrics = {}
    for column in columns:
        values = [row.get(column) for row in rows]
        if column in RATES:
            metrics[column] = _summarise_rate(rows, column)
        elif all(value is None or _is_number(value) for value in values):
            metrics[column] = summarise_values(values)
    return Summary(len(rows), metrics)


def result_columns(rows):
    """The columns of results.csv in their fixed order.

    Arguments
    ---------
    rows : list of dict
        One per utterance.

    Returns
    -------
    list of str
        ID, the headline metrics, those of each source, the permutation, then any other
        key in the order in which it first appears.

    Example
    -------
    >>> result_columns([{"sdr_1": 1.0, "length": 3, "sdr": 1.0, "ID": "a"}])
    ['ID', 'sdr', 'sdr_1', 'length']
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    sources = sorted({int(k.rsplit("_", 1)[1]) for k in keys if _is_per_source(k)})
    order = ["ID"] + [key for key, _, _ in HEADLINES]
    order += [f"{name}_{j}" for j in sources for name in PER_SOURCE]
    order += ["permutation"]
    return [key for key in order if key in keys] + [k for k in keys if k not in order]


def write_results(rows, folder):
    """Write results.csv, summary.json and summary.md of an evaluation.

    Files of an earlier evaluation in the same folder are replaced, each as a whole.

    Arguments
    ---------
    rows : list of dict
        One per utterance, as `evaluate_item` gives them, with an `ID` of its own.
        None becomes an empty cell.
    folder : str or Path
        Made if it is not there.

    Returns
    -------
    Summary
        Its `table()` is what a run prints at its end.

    Raises
    ------
    UserError
        If there are no rows, or an ID is missing or there twice.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> summary = write_results([{"ID": "a", "si_snr": 9.5}], folder)
    >>> sorted(path.name for path in Path(folder).iterdir())
    ['results.csv', 'summary.json', 'summary.md']
    """
    folder = Path(folder)
    _check_rows(rows, folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = result_columns(rows)
    cells = ({column: as_text(row.get(column)) for column in columns} for row in rows)
    summary = summarise(rows)
    numbers = json.dumps(summary.to_dict(), indent=2, allow_nan=False)
    atomic_write(folder / "results.csv", csv_text(cells, columns))
    atomic_write(folder / "summary.json", numbers + "\n")
    atomic_write(folder / "summary.md", summary.markdown())
    return summary


def read_results(path):
    """The rows of a results.csv.

    Arguments
    ---------
    path : str or Path
        A file that `write_results` wrote.

    Returns
    -------
    list of dict
        As they were given to `write_results`: numbers as float, empty cells as None,
        the permutation as a tuple.

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
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a results.csv ({error})") from None
    whole = all(None not in row and None not in row.values() for row in rows)
    if not rows or not whole or "ID" not in rows[0]:
        raise UserError(
            f"{path}: expected rows of equal length with a column ID, as the "
            "evaluation writes them. Run the evaluation again."
        )
    return [{key: _value(key, cell) for key, cell in row.items()} for row in rows]


def _summarise_rate(rows, column):
    """The summary of a rate: its mean is all errors over all words, in percent.

    The mean of the utterances' own rates would give a short one the weight of a long.
    """
    alone = summarise_values([row.get(column) for row in rows])
    pairs = [[row.get(key) for key in RATES[column]] for row in rows]
    errors, words = np.array([p for p in pairs if None not in p], float).reshape(-1, 2).T
    if words.sum() == 0:
        return alone
    mean = float(100 * errors.sum() / words.sum())
    if len(words) < 2:
        return replace(alone, mean=mean)
    low, high = _bootstrap_interval(100 * errors, words)
    return replace(alone, mean=mean, low=low, high=high)


def _bootstrap_interval(values, weights=None):
    """Percentile bootstrap interval of the mean, or of the ratio of two sums."""
    rng = np.random.default_rng([BOOTSTRAP_SEED, len(values)])
    weights = np.ones(len(values)) if weights is None else weights
    draws = (rng.integers(len(values), size=len(values)) for _ in range(RESAMPLES))
    sums = np.array([(values[draw].sum(), weights[draw].sum()) for draw in draws])
    means = sums[:, 0] / np.maximum(sums[:, 1], 1e-300)
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _check_rows(rows, folder):
    """Refuse rows that cannot be told apart."""
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
    """Whether a key is the metric of one source, as `sdr_i_2`."""
    name, _, number = key.rpartition("_")
    return name in PER_SOURCE and number.isdigit()


def _is_of_input(key):
    """Whether a key is the metric of what was given, as `raw_si_snr`."""
    return key.startswith(tuple(f"{name}_" for name in INPUTS))


def _is_number(value):
    """Whether a value is a number, numpy's included, but not a truth value."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def as_text(value, places=6) -> str:
    """A value as it stands in the CSV file, where numbers keep six decimals."""
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return " ".join(str(part) for part in value)
    if isinstance(value, (float, np.floating)):
        return f"{value:.{places}f}" if np.isfinite(value) else ""
    return str(value)


def _value(key, cell):
    """A cell of the CSV file as the value it was."""
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


def decimals(value) -> str:
    """Two decimals, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def _aligned(cells, widths):
    """One line of the terminal table: names to the left, numbers to the right."""
    first = cells[0].ljust(widths[0])
    rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]
    return "   ".join([first, *rest])
