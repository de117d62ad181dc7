"""How SI-SNRi is spread over the utterances, and what it depends on."""

from __future__ import annotations

import numpy as np

from unified_se_ss.evaluation.curves import plain_axes, png_bytes
from unified_se_ss.evaluation.item_stats import CONDITIONS
from unified_se_ss.evaluation.report.markup import RANKED_BY, image, is_finite
from unified_se_ss.evaluation.results import MetricSummary, decimals, summarise_values

#: What SI-SNRi is broken down by: key, heading, unit.
BROKEN_DOWN_BY = (("input_si_snr", "SI-SNR of the mixture", "dB"), *CONDITIONS)
#: At most so many classes, of at least so many utterances each.
CLASSES = 5
LEAST_IN_CLASS = 5
#: What varies by no more than this, in its unit, is the same but for rounding.
CONSTANT = 1e-3


def distribution(rows):
    """The section on the spread of SI-SNRi, and on what it depends."""
    there = [row for row in rows if is_finite(row.get(RANKED_BY))]
    if not there:
        return ""
    parts = [
        '<h2 id="utterances">Utterance by utterance</h2>',
        image(_distribution_png(there), "Spread of SI-SNRi"),
    ]
    found = breakdown(there)
    if found:
        parts.append("<h3>By condition</h3>")
        parts.append(image(_breakdown_png(there, found), "SI-SNRi by condition"))
        parts.append(_breakdown_table(found))
    return "\n".join(parts)


def breakdown(rows):
    """SI-SNRi in classes of about equally many utterances, by each known condition.

    Arguments
    ---------
    rows : list of dict
        One per utterance, as given to `write_results`; conditions that they do not
        have, or that do not vary, are left out.

    Returns
    -------
    dict
        By key of the condition (`input_si_snr`, the SI-SNR of the mixture, and those
        of `conditions`): a list of (low, high, `MetricSummary`), low to high.

    Example
    -------
    >>> rows = [{"duration": float(i), "si_snr_i": 2.0 * i} for i in range(10)]
    >>> [(low, high, c.mean) for low, high, c in breakdown(rows)["duration"]]
    [(0.0, 4.0, 4.0), (5.0, 9.0, 14.0)]
    """
    found = {}
    for key, _, _ in BROKEN_DOWN_BY:
        pairs = _pairs(rows, key)
        if len(pairs) >= 2 * LEAST_IN_CLASS and np.ptp(pairs[:, 0]) > CONSTANT:
            found[key] = _classes(pairs)
    return found


def _pairs(rows, key):
    """Condition and SI-SNRi [N, 2] of the utterances that have both, sorted."""
    pairs = [(_condition(row, key), row.get(RANKED_BY)) for row in rows]
    pairs = [pair for pair in pairs if all(map(is_finite, pair))]
    return np.array(sorted(pairs), dtype=float).reshape(-1, 2)


def _condition(row, key):
    """A condition of an utterance; None where it is not known."""
    if key == "input_si_snr":
        after, gain = row.get("si_snr"), row.get("si_snr_i")
        return after - gain if is_finite(after) and is_finite(gain) else None
    return row.get(key)


def _classes(pairs) -> list[tuple[float, float, MetricSummary]]:
    """Sorted pairs in classes; equal conditions are never torn apart."""
    count = min(CLASSES, len(pairs) // LEAST_IN_CLASS)
    cuts = np.arange(1, count) * len(pairs) // count
    starts = np.searchsorted(pairs[:, 0], pairs[cuts, 0])
    parts = np.split(pairs, np.unique(starts[starts > 0]))
    return [
        (float(part[0, 0]), float(part[-1, 0]), summarise_values(list(part[:, 1])))
        for part in parts
    ]


def _breakdown_table(found):
    """The same as numbers, folded away."""
    lines = []
    for key, heading, unit in BROKEN_DOWN_BY:
        for low, high, metric in found.get(key, ()):
            interval = "–"
            if metric.low is not None:
                interval = f"{metric.low:.2f} … {metric.high:.2f}"
            cells = [f"{low:.1f} … {high:.1f} {unit}", f"<b>{decimals(metric.mean)}</b> dB"]
            cells += [interval, str(metric.count)]
            row = "".join(f"<td>{cell}</td>" for cell in cells)
            lines.append(f'<tr><th scope="row">{heading}</th>{row}</tr>')
    names = ["", "from … to", "mean SI-SNRi", "95 % interval", "utterances"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        "<details><summary>The same in numbers</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        "</details>"
    )


def _breakdown_png(rows, found):
    """SI-SNRi over each condition: every utterance, and the means of the classes."""
    from matplotlib.figure import Figure

    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(5 * columns, 2.7 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    known = {key: (heading, unit) for key, heading, unit in BROKEN_DOWN_BY}
    for axes, (key, classes) in zip(panels, found.items()):
        pairs = _pairs(rows, key)
        axes.plot(*pairs.T, ".", color="tab:blue", ms=5, alpha=0.35)
        for low, high, metric in classes:
            style = {"color": "tab:orange", "lw": 2}
            axes.plot([low, high], [metric.mean] * 2, **style)
            if metric.low is not None:
                axes.plot([(low + high) / 2] * 2, [metric.low, metric.high], **style)
        axes.axhline(0, color="tab:red", lw=1, ls=":")
        heading, unit = known[key]
        axes.set_xlabel(f"{heading} ({unit})", fontsize=9)
        axes.set_ylabel("SI-SNRi (dB)", fontsize=9)
        plain_axes(axes)
    for axes in list(panels):
        axes.set_visible(False)
    return png_bytes(figure)


def _distribution_png(rows):
    """Histogram of SI-SNRi, and SI-SNR after against before."""
    from matplotlib.figure import Figure

    gains = np.array([row[RANKED_BY] for row in rows], dtype=float)
    after = np.array([row.get("si_snr", np.nan) for row in rows], dtype=float)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    histogram, scatter = figure.subplots(1, 2)
    histogram.hist(gains, bins=min(40, max(8, len(gains) // 5)), color="tab:blue", ec="w")
    histogram.yaxis.get_major_locator().set_params(integer=True)
    mean = f"mean {gains.mean():.2f} dB"
    histogram.axvline(gains.mean(), color="k", lw=1, label=mean)
    histogram.axvline(0, color="tab:red", lw=1, ls=":", label="mixture")
    histogram.set_xlabel("SI-SNRi (dB)", fontsize=9)
    histogram.set_ylabel("utterances", fontsize=9)
    histogram.legend(fontsize=8, framealpha=0.8, edgecolor="none")
    before = after - gains
    scatter.plot(before, after, ".", color="tab:blue", ms=5, alpha=0.6)
    if np.isfinite(before).any():
        ends = [np.nanmin(before), np.nanmax(before)]
        scatter.plot(ends, ends, color="tab:red", lw=1, ls=":", label="mixture")
        scatter.legend(fontsize=8, framealpha=0.8, edgecolor="none")
    scatter.set_xlabel("SI-SNR of the mixture (dB)", fontsize=9)
    scatter.set_ylabel("SI-SNR after (dB)", fontsize=9)
    for axes in (histogram, scatter):
        plain_axes(axes)
    return png_bytes(figure)
