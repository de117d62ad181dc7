"""Where the talkers are heard after separation: cues by angle, and a view from above."""

from __future__ import annotations

import html

from unified_se_ss.evaluation.angle_report import (
    GROUPINGS,
    MEASURES,
    by_angle,
    by_angle_png,
    top_view_png,
)
from unified_se_ss.evaluation.interaural import BAND, LARGE_ITD_ERROR, summarise_interaural
from unified_se_ss.evaluation.report.markup import image
from unified_se_ss.evaluation.results import decimals


def interaural(rows, protocol: str = "default") -> str:
    """The section on interaural cues.

    Arguments
    ---------
    rows : list of dict
        As `evaluate_ears` of `unified_se_ss.evaluation.binaural` gives them.
    protocol : str
        How ΔITD and ΔILD were measured.

    Returns
    -------
    str
        HTML, for `findings` of `write_report`.

    Example
    -------
    >>> row = {"ID": "a", "delta_itd_1": 3.0, "snr_i_1": 9.0, "cues_1": "measured"}
    >>> "1 source measured" in interaural([row])
    True
    """
    parts = ['<h2 id="interaural">Where the talkers are heard</h2>']
    parts.append(f'<p class="small">{html.escape(_method(protocol))}</p>')
    parts.append(f"<p>{html.escape(in_words(rows))}</p>")
    view = top_view_png(rows)
    if view is not None:
        parts.append(image(view, "Directions before and after separation, from above"))
    table = by_angle(rows)
    if table:
        parts.append("<h3>By angle</h3>")
        parts.append(image(by_angle_png(table), "SNRi, ΔITD and ΔILD by angle"))
        parts.append(_table(table))
    return "\n".join(parts)


def in_words(rows) -> str:
    """What the test set's interaural errors are, in sentences.

    Example
    -------
    >>> in_words([{"ID": "a", "delta_itd_1": 3.0, "delta_ild_1": 0.5, "cues_1": "measured"}])
    '1 source measured, 0 silent, 0 one-eared. ΔITD: mean 3.00, median 3.00 µs, above 50 µs \
in 0 %. ΔILD: mean 0.50, median 0.50 dB.'
    """
    found = summarise_interaural(rows)
    if "measured" not in found:
        return (
            f"ΔITD: mean {decimals(found['delta_itd_mean'])} µs. "
            f"ΔILD: mean {decimals(found['delta_ild_mean'])} dB."
        )
    plural = "" if found["measured"] == 1 else "s"
    large = found["delta_itd_large"]
    share = "–" if large is None else f"{100 * large:.0f} %"
    return (
        f"{found['measured']} source{plural} measured, {found['silent']} silent, "
        f"{found['monaural']} one-eared. ΔITD: mean {decimals(found['delta_itd_mean'])}, "
        f"median {decimals(found['delta_itd_median'])} µs, above {LARGE_ITD_ERROR:g} µs in "
        f"{share}. ΔILD: mean {decimals(found['delta_ild_mean'])}, median "
        f"{decimals(found['delta_ild_median'])} dB."
    )


def _method(protocol) -> str:
    """How the cues were measured."""
    if protocol == "speechbrain":
        return (
            "Measured as SpeechBrain's recipe does: ITD in whole samples at any lag, and "
            "the order of the sources chosen anew for each metric."
        )
    return (
        "ΔITD and ΔILD: how far time and level differences between the ears of an estimate "
        "are from those of its reference, in the order of the best SNR. ITD by GCC-PHAT "
        f"from {BAND[0]:g} to {BAND[1]:g} Hz within ±1 ms. Silent and one-eared sources "
        "are counted, not averaged."
    )


def _table(table) -> str:
    """The same as numbers, folded away."""
    known, lines = dict(GROUPINGS), []
    for row in table:
        cells = [f"{row['low']:g} … {row['high']:g}°", str(row["sources"])]
        for key, _, unit in MEASURES:
            cells.append(f"<b>{decimals(row[key])}</b> {unit}")
            low, high = row[f"{key}_low"], row[f"{key}_high"]
            cells.append("–" if low is None else f"{low:.2f} … {high:.2f}")
        cells = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{known[row["by"]]}</th>{cells}</tr>')
    names = ["", "from … to", "sources"]
    for _, heading, _ in MEASURES:
        names += [heading, "95 % interval"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        "<details><summary>The same in numbers</summary>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )
