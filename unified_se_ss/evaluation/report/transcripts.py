"""What was said and what was recognised, line under line."""

from __future__ import annotations

import html

from unified_se_ss.evaluation.recognition import NORMALISATION

#: Utterances that are shown: those with the most errors.
SHOWN = 10
#: What is shown of each, if it is there: column of results.csv and its heading.
LINES = (
    ("transcript", "said"),
    ("recognised", "recognised"),
    ("recognised_noisy", "without the front"),
    ("recognised_untrained", "before training"),
)


def transcripts(rows):
    """The section on the texts of a recogniser.

    Arguments
    ---------
    rows : list of dict
        With `ID`, `transcript`, `recognised`, `word_errors`, and any further of `LINES`.

    Returns
    -------
    str
        HTML.

    Example
    -------
    >>> row = {"ID": "a", "transcript": "a <b>", "recognised": "a", "word_errors": 1}
    >>> "a &lt;b&gt;" in transcripts([row])
    True
    """
    worst = sorted(rows, key=lambda row: -row["word_errors"])[:SHOWN]
    lines = [line for row in worst for line in _lines(row)]
    return (
        '<h2 id="transcripts">Said and recognised</h2>'
        f'<p class="small">The {len(worst)} utterances with the most word errors; '
        f"all are in results.csv. Words are compared after: {NORMALISATION}.</p>"
        f'<div class="wide"><table><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _lines(row):
    """The lines of one utterance."""
    there = [(key, heading) for key, heading in LINES if key in row]
    for number, (key, heading) in enumerate(there):
        name = (
            f'<th scope="row">{html.escape(row["ID"])}</th>' if not number else "<td></td>"
        )
        text = html.escape(row[key] or "(nothing)")
        yield f'<tr>{name}<td>{heading}</td><td style="text-align: left">{text}</td></tr>'
