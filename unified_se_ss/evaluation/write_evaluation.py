"""From the rows of an evaluation to its files: results, wavs, and the report.

The one place where an evaluation ends, after training and on the command line alike. A
recipe needs a row per utterance (`evaluate_item`) and a function that gives an
utterance's signals again:

    def signals_of_id(item_id):
        mixture, sources = ...  # [T], [J, T]
        return {"mixture": mixture, "targets": sources, "estimates": separate(mixture)}

    publish("results", "My network", rows, signals_of_id, sample_rate=8000)

What a recipe has more of is more keys of the rows (each is a column of results.csv, in
the report's table, and summarised) and `enhanced` among the signals. One source, as in
pure enhancement, is J = 1; of several microphones, give the one that is listened to.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from unified_se_ss.evaluation.report import choose_examples, write_report
from unified_se_ss.evaluation.results import Summary, write_results
from unified_se_ss.evaluation.save_audio import level_signals, save_waves


class Published(NamedTuple):
    """What an evaluation said, and where it stands."""

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
    log_rows=(),
    configuration=None,
    notes=(),
    keep_waves=0,
    level=level_signals,
    **sections,
):
    """Write results.csv, summary.json, summary.md, wavs/ and report.html.

    Arguments
    ---------
    folder : str or Path
        Where the files go; those of an earlier evaluation are replaced.
    title : str
        Heading of the report.
    rows : list of dict
        One per utterance: `ID` and what `evaluate_item` gives.
    signals_of_id : callable
        Gives the signals of an utterance by its ID: a dict of `mixture` [T],
        `estimates` [J, T], `targets` [J, T], and, where there is one, `enhanced` [T].
        Asked for the ten worst utterances, some random ones, and those kept as wavs.
    sample_rate : int
        In Hz.
    log_rows : list of dict
        One per epoch, for the learning curves; none by default.
    configuration : dict
        What was run, for the report; see `write_report`.
    notes : list of str
        Paragraphs under the report's heading.
    keep_waves : int
        The first so many utterances are kept as wavs (default: none).
    level : callable
        What brings an utterance's signals to comparable levels for wavs and report:
        `level_signals` by default, `level_ears` of `unified_se_ss.evaluation.binaural`
        for signals of two ears.
    sections : dict
        Passed on to `write_report`.

    Returns
    -------
    Published
        Summary, paths of results.csv and report.html, IDs of the kept utterances.

    Raises
    ------
    UserError
        If there are no rows, or a file cannot be written.

    Example
    -------
    >>> import tempfile, numpy as np
    >>> from unified_se_ss.evaluation.metrics import evaluate_item
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
    chosen, examples = choose_examples(rows), []
    row_of = {row["ID"]: row for row in rows}
    for item_id in dict.fromkeys(kept + chosen):
        row = row_of[item_id]
        signals = _in_order(signals_of_id(item_id), row.get("permutation"))
        if item_id in kept:
            place = folder / "wavs"
            save_waves(place, item_id, **signals, sample_rate=sample_rate, level=level)
        if item_id in chosen:
            examples.append(_example(item_id, level(**signals), sample_rate, row))
    report = write_report(
        folder,
        title,
        summary,
        rows,
        log_rows,
        examples,
        configuration or {},
        notes,
        **sections,
    )
    return Published(summary, folder / "results.csv", report, kept)


def _in_order(signals, permutation):
    """The signals as `save_waves` takes them, estimates in the order of the sources."""
    estimates = signals["estimates"]
    if permutation is not None:
        estimates = estimates[list(permutation)]
    return {
        "mixture": signals["mixture"],
        "estimates": estimates,
        "enhanced": signals.get("enhanced"),
        "sources": signals["targets"],
    }


def _example(item_id, signals, sample_rate, row):
    """An utterance as the report shows it."""
    return {
        "id": item_id,
        "signals": signals,
        "sample_rate": sample_rate,
        "metrics": {key: value for key, value in row.items() if isinstance(value, float)},
    }
