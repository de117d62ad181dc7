"""What was run, and what came out: heading, settings, results, learning curves."""

from __future__ import annotations

import html

from unified_se_ss.evaluation.curves import curves_png
from unified_se_ss.evaluation.report.markup import image, setting_text
from unified_se_ss.evaluation.results import COVERAGE, RESAMPLES, decimals

#: Settings shown at the top, in this order; the others are folded away.
HEADER_KEYS = (
    "recipe",
    "model",
    "manifest",
    "rule",
    "granularity",
    "parameters",
    "commit",
    "date",
    "device",
    "precision",
    "hours",
)


def header(title, configuration, notes):
    """Title, what was run, notes."""
    known = [key for key in HEADER_KEYS if configuration.get(key) not in (None, "")]
    facts = "".join(
        f"<div><dt>{key}</dt><dd>{setting_text(key, configuration[key])}</dd></div>"
        for key in known
    )
    paragraphs = "".join(f"<p>{html.escape(str(note))}</p>" for note in notes)
    return f"<h1>{html.escape(title)}</h1>\n<dl>{facts}</dl>\n{paragraphs}"


def settings(configuration):
    """All other settings, folded away."""
    others = [key for key in configuration if key not in HEADER_KEYS]
    if not others:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{html.escape(str(key))}</th>'
        f"<td>{setting_text(key, configuration[key])}</td>"
        "</tr>"
        for key in others
    )
    return (
        f'<h2 id="settings">Settings</h2>\n<details><summary>{len(others)} settings</summary>'
        f'<table class="settings">{lines}</table></details>'
    )


def results(summary):
    """The results table."""
    lines = []
    for _, heading, unit, metric in summary.headlines():
        interval = "–"
        if metric.low is not None:
            interval = f"{metric.low:.2f} … {metric.high:.2f}"
        cells = [f"<b>{decimals(metric.mean)}</b> {html.escape(unit)}", interval]
        cells += [decimals(metric.median), decimals(metric.standard_deviation)]
        cells += [str(metric.count), str(metric.empty)]
        name = f'<th scope="row">{html.escape(heading)}</th>'
        lines.append(f"<tr>{name}{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    interval = f"{100 * COVERAGE:.0f} % interval"
    names = ["", "mean", interval, "median", "std. dev.", "utterances", "empty"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        '<h2 id="results">Results</h2>\n<div class="wide"><table class="results">'
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>\n"
        f'<p class="small">{summary.utterances} utterances. The i marks the '
        "improvement over the unprocessed mixture. Interval of the mean: bootstrap "
        f"over the utterances, {RESAMPLES} resamples. Empty: there is no value, "
        "such as where the target is silent.</p>"
    )


def curves(log_rows):
    """The learning curves."""
    if not log_rows:
        return ""
    picture = image(curves_png(log_rows), "Learning curves")
    return f'<h2 id="curves">Learning curves</h2>\n{picture}'
