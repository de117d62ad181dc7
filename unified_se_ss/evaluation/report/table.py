"""The sortable table of all utterances."""

from __future__ import annotations

import html

from unified_se_ss.evaluation.item_stats import CONDITIONS
from unified_se_ss.evaluation.report.markup import ranking
from unified_se_ss.evaluation.results import HEADLINES, PER_SOURCE, as_text, result_columns

#: Longest table of utterances; results.csv holds all of them.
TABLE_ROWS = 5000


def utterances(rows, shown):
    """The sortable table of all utterances, worst first."""
    if not rows:
        return ""
    sources = tuple(f"{name}_" for name in PER_SOURCE)
    columns = [
        c
        for c in result_columns(rows)
        if not (c.startswith(sources) and c.rpartition("_")[2].isdigit())
    ]
    rank = {name: i for i, name in enumerate(ranking(rows))}
    ordered = sorted(rows, key=lambda row: rank.get(str(row["ID"]), len(rows)))
    places = {name: number for number, name in enumerate(shown)}
    lines = [_utterance(row, columns, places) for row in ordered[:TABLE_ROWS]]
    known = {key: heading for key, heading, _ in HEADLINES}
    known.update(se_si_snr="enhanced SI-SNR", se_si_snr_i="enhanced SI-SNRi")
    known.update((key, f"{heading} ({unit})") for key, heading, unit in CONDITIONS)
    head = "".join(_heading(known.get(column, column)) for column in columns)
    text = "A heading sorts by its column. Each source on its own is in results.csv."
    if len(rows) > TABLE_ROWS:
        text = f"The worst {TABLE_ROWS} of {len(rows)}; all are in results.csv. " + text
    return (
        f'<h2 id="table">All utterances</h2>\n<p class="small">{text}</p>\n'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="table">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _heading(text):
    """A heading that can be clicked, or reached by keyboard."""
    return f'<th scope="col"><button type="button">{html.escape(text)}</button></th>'


def _utterance(row, columns, places):
    """One line of the table of utterances."""
    cells = []
    for column in columns:
        value = row.get(column)
        text = html.escape(as_text(value, 2))
        if column == "ID" and str(value) in places:
            text = f'<a href="#example-{places[str(value)]}">{text}</a>'
        cells.append(f"<td>{text}</td>")
    return f"<tr>{''.join(cells)}</tr>"
