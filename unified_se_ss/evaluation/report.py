"""From the rows of an evaluation to its files: results, wavs, and a report in HTML.

Evaluations end here, after training and on the command line alike. A recipe needs a row per
utterance (see `unified_se_ss.evaluation.rows`) and a function that gives an utterance's
signals again:

    def signals_of_id(item_id):
        mixture, sources = ...  # [T], [J, T]
        return {"mixture": mixture, "targets": sources, "estimates": separate(mixture)}

    publish("results", "My network", rows, signals_of_id, sample_rate=8000)

Each further key of the rows is a column of results.csv, in the report's table, and
summarised. One source, as in pure enhancement, is J = 1.

The report is one file that needs nothing else, not even a network; its text is in
report.html.jinja, which escapes all that comes from files and from the user.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from unified_se_ss.evaluation import audio_examples, plots
from unified_se_ss.evaluation.audio_examples import level_signals, save_waves
from unified_se_ss.evaluation.breakdown import RANKED_BY, spread_section
from unified_se_ss.evaluation.gradient_report import gradients_section
from unified_se_ss.evaluation.results import (
    KNOWN,
    RESAMPLES,
    Summary,
    is_finite,
    result_columns,
    write_results,
)
from unified_se_ss.evaluation.rows import CONDITIONS, PER_SOURCE
from unified_se_ss.files import atomic_write

#: The report stays below this, in bytes: long examples are cut, then left out.
SIZE_LIMIT = 15_000_000
#: Bytes kept free for the text before the examples.
OPENING_BYTES = 4000
#: Longest table of utterances; results.csv holds all of them.
TABLE_ROWS = 5000
#: Settings shown at the top, in this order; the others are folded away.
HEADER_KEYS = (
    *("recipe", "model", "manifest", "rule", "granularity", "parameters"),
    *("commit", "date", "device", "precision", "hours"),
)


class _Published(NamedTuple):
    """The summary of an evaluation, its files, and the IDs of the utterances kept as wavs."""

    summary: Summary
    results: Path
    report: Path
    waves: list


def publish(
    folder,
    title,
    rows,
    signals_of_id,
    sample_rate,
    keep_waves=0,
    level=level_signals,
    **contents,
) -> _Published:
    """Write results.csv, summary.json, summary.md, wavs/ and report.html.

    Arguments
    ---------
    folder : str or Path
        Where the files go; those of an earlier evaluation are replaced.
    title : str
        Heading of the report.
    rows : list of dict
        One per utterance, with an `ID`.
    signals_of_id : callable
        Gives the signals of an utterance by its ID: a dict of `mixture` [T],
        `estimates` [J, T], `targets` [J, T], and, where there is one, `enhanced` [T].
        Asked for the ten worst utterances, some random ones, and those kept as wavs.
    sample_rate : int
        In Hz.
    keep_waves : int
        The first so many utterances are kept as wavs.
    level : callable
        `level_signals`, `level_ears` or `level_guided` of `audio_examples`.
    **contents
        More of the report: `configuration`, a dict of what was run (`HEADER_KEYS` at the
        top, others folded away); `notes`, paragraphs under the heading; `findings`, sections
        after the results, or functions that make them of the rows; `log_rows`, a dict an
        epoch for the learning curves; `gradient_rows` of a `GradientLog`.

    Returns
    -------
    _Published

    Raises
    ------
    UserError
        If there are no rows, or a file cannot be written.

    Example
    -------
    >>> import tempfile, numpy as np
    >>> from unified_se_ss.evaluation.rows import evaluate_item
    >>> sources = np.random.default_rng(0).standard_normal((2, 4000))
    >>> signals = {"mixture": sources.sum(0), "targets": sources, "estimates": sources}
    >>> rows = [{"ID": "a", **evaluate_item(**signals, sample_rate=8000)}]
    >>> folder = tempfile.mkdtemp()
    >>> _ = publish(folder, "Oracle", rows, lambda item_id: signals, 8000, keep_waves=1)
    >>> sorted(path.name for path in Path(folder).iterdir())
    ['report.html', 'results.csv', 'summary.json', 'summary.md', 'wavs']
    """
    folder = Path(folder)
    summary = write_results(rows, folder)
    kept = [row["ID"] for row in rows[:keep_waves]]
    chosen, examples = audio_examples.choose_examples(_ranking(rows)), []
    row_of = {row["ID"]: row for row in rows}
    for item_id in dict.fromkeys(kept + chosen):
        row = row_of[item_id]
        signals = _in_order(signals_of_id(item_id), row.get("permutation"))
        if item_id in kept:
            place = folder / "wavs"
            save_waves(place, item_id, **signals, sample_rate=sample_rate, level=level)
        if item_id in chosen:
            example = {"id": item_id, "signals": level(**signals), "metrics": row}
            examples.append({**example, "sample_rate": sample_rate})
    report = _write_report(folder, title, summary, rows, examples, **contents)
    return _Published(summary, folder / "results.csv", report, kept)


def _in_order(signals, permutation):
    estimates = signals["estimates"]
    if permutation is not None:
        estimates = estimates[list(permutation)]
    return {
        "mixture": signals["mixture"],
        "estimates": estimates,
        "enhanced": signals.get("enhanced"),
        "sources": signals["targets"],
    }


def _write_report(
    folder,
    title,
    summary,
    rows,
    examples,
    configuration=None,
    notes=(),
    findings=(),
    log_rows=(),
    gradient_rows=(),
) -> Path:
    """Write report.html: what was run, what came out, and how it sounds.

    Examples are dicts of `id`, `signals` as `level` gives them, `sample_rate`, and `metrics`,
    the row; shown worst first by SI-SNRi. What does not fit into 15 MB is cut to excerpts,
    then left out.
    """
    configuration = configuration or {}
    rule = configuration.get("rule", ""), configuration.get("granularity", "parameter")
    sections = [
        _results_section(summary),
        *(part(rows) if callable(part) else part for part in findings),
        spread_section(rows),
        _curves_section(log_rows),
        gradients_section(gradient_rows, *rule),
    ]
    known = [key for key in HEADER_KEYS if configuration.get(key) not in (None, "")]
    others = [
        [str(k), _setting(k, v)] for k, v in configuration.items() if k not in HEADER_KEYS
    ]
    page = {
        "title": title,
        "facts": {key: _setting(key, configuration[key]) for key in known},
        "notes": [str(note) for note in notes],
        "sections": [section for section in sections if section],
        "dynamic_range": f"{audio_examples.DYNAMIC_RANGE:.0f}",
        "settings": plots.Table([], others, f"{len(others)} settings", "settings"),
        "table": _utterances(rows),
        "examples": [],
        # As large as it can get: with a link to each example.
        "places": {str(example["id"]): 0 for example in examples},
    }
    template = _template().make_module(page)
    left = SIZE_LIMIT - len(str(template).encode()) - OPENING_BYTES
    page["examples"] = shown = audio_examples.fit_examples(
        _described(examples, rows), left, template.example
    )
    page["left_out"] = len(examples) - len(shown)
    page["places"] = {example["id"]: number for number, example in enumerate(shown)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return atomic_write(folder / "report.html", _template().render(page))


@cache
def _template():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("report.html.jinja")


def _setting(key, value) -> str:
    """A setting as text; the number of parameters with its thousands apart."""
    if key == "parameters" and isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)


def _results_section(summary) -> plots.Section:
    table = summary.rows()
    note = (
        f"{summary.utterances} utterances. The i marks the improvement over the unprocessed "
        f"mixture. Interval of the mean: bootstrap over the utterances, {RESAMPLES} "
        "resamples. Empty: there is no value, such as where the target is silent."
    )
    return plots.Section(
        "results", "Results", [table._replace(head=["", *table.head[1:]]), note]
    )


def _curves_section(log_rows) -> plots.Section | None:
    if not log_rows:
        return None
    picture = plots.Picture(plots.curves_png(log_rows), "Learning curves")
    return plots.Section("curves", "Learning curves", [picture])


# ------------------------------------------------------------------ utterance by utterance


def _ranking(rows) -> list[str]:
    """IDs from the worst to the best SI-SNRi; utterances without a value are left out."""
    there = [row for row in rows if is_finite(row.get(RANKED_BY))]
    return [str(row["ID"]) for row in sorted(there, key=lambda row: row[RANKED_BY])]


def _utterances(rows) -> dict:
    """The sortable table of all utterances, worst first."""
    sources = tuple(f"{name}_" for name in PER_SOURCE)
    columns = [
        column
        for column in result_columns(rows)
        if not (column.startswith(sources) and column.rpartition("_")[2].isdigit())
    ]
    rank = {name: place for place, name in enumerate(_ranking(rows))}
    ordered = sorted(rows, key=lambda row: rank.get(str(row["ID"]), len(rows)))
    headings = {key: column.heading for key, column in KNOWN.items()}
    headings.update(se_si_snr="enhanced SI-SNR", se_si_snr_i="enhanced SI-SNRi")
    headings.update((column.key, column.label) for column in CONDITIONS)
    return {
        "columns": columns,
        "head": [headings.get(column, column) for column in columns],
        "rows": [
            [plots.as_text(row.get(c), 2) for c in columns] for row in ordered[:TABLE_ROWS]
        ],
        "total": len(rows),
    }


def _described(examples, rows) -> list[dict]:
    """The examples, worst first, with their places and metrics in words."""
    order = _ranking(rows)
    place = {name: number for number, name in enumerate(order, start=1)}
    described = []
    for example in examples:
        name, metrics = str(example["id"]), example.get("metrics") or {}
        values = [
            (column.heading, f"{metrics[key]:.1f}", column.unit)
            for key, column in KNOWN.items()
            if is_finite(metrics.get(key))
        ]
        there = name in place
        rank = f"number {place[name]} of {len(order)} from the worst" if there else ""
        described.append({**example, "id": name, "rank": rank, "metrics": values})
    return sorted(described, key=lambda e: place.get(e["id"], len(order) + 1))
