"""What went into a guided enhancement and what came out, side by side."""

from __future__ import annotations

import html

from unified_se_ss.evaluation.curves import png_bytes
from unified_se_ss.evaluation.guided_enhancement import (
    BROKEN_DOWN_BY,
    HEADINGS,
    METRICS,
    SYSTEMS,
    by_condition,
    table_lines,
)
from unified_se_ss.evaluation.report.markup import image

COLOURS = {"raw": "tab:gray", "beamformed": "tab:orange", "enhanced": "tab:blue"}
#: What the picture shows: key of the metric, the better known first.
DRAWN = ("si_snr", "pesq_wb")


def guided(rows):
    """The section on reference microphone, beamformer and enhancement.

    Arguments
    ---------
    rows : list of dict
        As `score_guided` of `unified_se_ss.evaluation.guided_enhancement` gives them, with a
        `guide` each.

    Returns
    -------
    str
        HTML.

    Example
    -------
    >>> row = {"guide": "mvdr", "raw_snr": 0.0, "beamformed_snr": 6.0, "snr": 9.0}
    >>> "<b>9.00</b>" in guided([row])
    True
    """
    head = ["beamformer", "", *(HEADINGS[name] for name in SYSTEMS)]
    cells = "".join(f'<th scope="col">{name}</th>' for name in head)
    lines = []
    for guide, heading, values in table_lines(rows):
        numbers = "".join(
            f"<td>{f'<b>{text}</b>' if is_best else text}</td>" for text, is_best in values
        )
        name = f'<th scope="row">{html.escape(guide)}</th><td>{heading}</td>'
        lines.append(f"<tr>{name}{numbers}</tr>")
    parts = [
        '<h2 id="guided">Reference microphone, beamformer and enhancement</h2>',
        f'<div class="wide"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>",
        '<p class="small">Means over the items, against the speech without its room. SIR: '
        "speech to what is left of interferer and noise; SAR: both to what the system "
        "itself added, and to late reverberation (BSS Eval, filters of 512 taps).</p>",
    ]
    picture = conditions_png(rows)
    if picture is not None:
        parts.append(image(picture, "Results by SIR and by angle"))
    return "\n".join(parts)


def conditions_png(rows):
    """Metrics of all systems by SIR and by angle; None where nothing varies.

    Arguments
    ---------
    rows : list of dict
        As for `guided`.

    Returns
    -------
    bytes or None
        A PNG.
    """
    from matplotlib.figure import Figure

    guides = list(dict.fromkeys(row.get("guide", "") for row in rows))
    found = {
        (metric, key, guide): by_condition(
            [row for row in rows if row.get("guide", "") == guide], key, metric
        )
        for metric in DRAWN
        for key, _, _ in BROKEN_DOWN_BY
        for guide in guides
    }
    metrics = [
        m for m in DRAWN if any(c for (metric, *_), c in found.items() if metric == m)
    ]
    if not metrics:
        return None
    size = (5 * len(BROKEN_DOWN_BY), 3 * len(metrics))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(metrics), len(BROKEN_DOWN_BY), squeeze=False)
    known = {key: f"{name} ({unit})" if unit else name for key, name, unit in METRICS}
    for line, metric in zip(panels, metrics):
        for axes, (key, heading, unit) in zip(line, BROKEN_DOWN_BY):
            _draw(axes, found[metric, key, guides[0]], ("raw",), guides[0], "-")
            for guide, style in zip(guides, ("-", "--", ":", "-.") * len(guides)):
                _draw(axes, found[metric, key, guide], SYSTEMS[1:], guide, style)
            axes.set_xlabel(f"{heading} ({unit})", fontsize=9)
            axes.set_ylabel(known[metric], fontsize=9)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8)
    return png_bytes(figure)


def _draw(axes, classes, systems, guide, style):
    """Some systems with one guide; the reference microphone is the same for all."""
    centres = [(low + high) / 2 for low, high, _ in classes]
    for name in systems if classes else ():
        label = HEADINGS[name] if name == "raw" else f"{HEADINGS[name]}, {guide}"
        values = [means[name] for _, _, means in classes]
        axes.plot(
            centres, values, style, color=COLOURS[name], marker="o", ms=3, label=label
        )
