"""Results by condition: noise, overlap and duration, angle, and beamformer.

Axes: J sources.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from unified_se_ss.evaluation.interaural import BAND, LARGE_ITD_ERROR, summarise_interaural
from unified_se_ss.evaluation.metrics import Column
from unified_se_ss.evaluation.plots import (
    Picture,
    Section,
    Table,
    Text,
    column_of,
    decimals,
    interval_text,
    markdown_table,
    panels,
    png_bytes,
    style_axes,
)
from unified_se_ss.evaluation.results import INTERVAL, KNOWN, is_finite, summarise_values
from unified_se_ss.evaluation.rows import CONDITIONS, SYSTEMS
from unified_se_ss.files import atomic_write, csv_text
from unified_se_ss.spatial import woodworth_itd

#: Utterances are ranked by this metric.
RANKED_BY = "si_snr_i"
#: What varies by no more than this, in its unit, is the same but for rounding.
CONSTANT = 1e-3


def _classes_by(rows, value, count, least):
    """(lowest, highest, rows) of up to `count` classes of a condition, from the lowest.

    Of about equally many rows, at least `least` each; equal conditions are in one class. Empty
    if the condition does not vary, or too few rows have a finite value of it.
    """
    known = sorted((row for row in rows if is_finite(value(row))), key=value)
    values = np.array([value(row) for row in known], dtype=float)
    count = min(count, len(known) // least)
    if count < 2 or np.ptp(values) <= CONSTANT:
        return []
    cuts = values[np.arange(1, count) * len(known) // count]
    starts = np.unique(np.searchsorted(values, cuts))
    edges = [0, *starts[starts > 0], len(known)]
    return [
        (float(values[start]), float(values[end - 1]), known[start:end])
        for start, end in zip(edges, edges[1:])
    ]


# ------------------------------------------------------------------ SI-SNRi

#: What SI-SNRi is broken down by.
BROKEN_DOWN_BY = (Column("input_si_snr", "SI-SNR of the mixture", "dB"), *CONDITIONS)


def _breakdown(rows) -> dict:
    """SI-SNRi in up to five classes of about equally many utterances, by condition.

    Returns
    -------
    dict
        By key of `BROKEN_DOWN_BY`: a list of (low, high, `_MetricSummary`).
    """
    rows = sorted(_ranked(rows), key=lambda row: row[RANKED_BY])
    found = {}
    for column in BROKEN_DOWN_BY:
        value = partial(_condition, key=column.key)
        parts = _classes_by(rows, value, count=5, least=5)
        if parts:
            found[column.key] = [
                (low, high, summarise_values([row[RANKED_BY] for row in part]))
                for low, high, part in parts
            ]
    return found


def spread_section(rows) -> Section | None:
    """The report's section on the spread of SI-SNRi; None without any."""
    rows = _ranked(rows)
    if not rows:
        return None
    parts = [Picture(_spread_png(rows), "Spread of SI-SNRi")]
    if found := _breakdown(rows):
        head = ["", "from … to", "mean SI-SNRi", INTERVAL, "utterances"]
        lines = [
            [
                column.heading,
                f"{low:.1f} … {high:.1f} {column.unit}",
                (decimals(metric.mean), "dB"),
                interval_text(metric.low, metric.high),
                str(metric.count),
            ]
            for column in BROKEN_DOWN_BY
            for low, high, metric in found.get(column.key, ())
        ]
        parts.append(Text("By condition", "h3"))
        parts.append(Picture(_breakdown_png(rows, found), "SI-SNRi by condition"))
        parts.append(Table(head, lines, "The same in numbers"))
    return Section("utterances", "Utterance by utterance", parts)


def _ranked(rows):
    return [row for row in rows if is_finite(row.get(RANKED_BY))]


def _condition(row, key):
    if key == "input_si_snr":
        after, gain = row.get("si_snr"), row.get("si_snr_i")
        return after - gain if is_finite(after) and is_finite(gain) else None
    return row.get(key)


def _breakdown_png(rows, found) -> bytes:
    """SI-SNRi over each condition: every utterance, and the means of the classes."""
    columns = min(2, len(found))
    figure, grid = panels(-(-len(found) // columns), columns)
    places = grid.flat
    known = {column.key: column.label for column in BROKEN_DOWN_BY}
    for axes, (key, classes) in zip(places, found.items()):
        there = [row for row in rows if is_finite(_condition(row, key))]
        values = [_condition(row, key) for row in there]
        axes.plot(
            values, column_of(there, RANKED_BY), ".", color="tab:blue", ms=5, alpha=0.35
        )
        for low, high, metric in classes:
            style = {"color": "tab:orange", "lw": 2}
            axes.plot([low, high], [metric.mean] * 2, **style)
            if metric.low is not None:
                axes.plot([(low + high) / 2] * 2, [metric.low, metric.high], **style)
        axes.axhline(0, color="tab:red", lw=1, ls=":")
        style_axes(axes, known[key], "SI-SNRi (dB)")
    for axes in places:  # those left over
        axes.set_visible(False)
    return png_bytes(figure)


def _spread_png(rows) -> bytes:
    """Histogram of SI-SNRi, and SI-SNR after against before."""
    gains, after = column_of(rows, RANKED_BY), column_of(rows, "si_snr")
    before = after - gains
    figure, [[histogram, scatter]] = panels(1, 2, height=3.2)
    histogram.hist(gains, bins=min(40, max(8, len(gains) // 5)), color="tab:blue", ec="w")
    histogram.yaxis.get_major_locator().set_params(integer=True)
    mean = f"mean {gains.mean():.2f} dB"
    histogram.axvline(gains.mean(), color="k", lw=1, label=mean)
    histogram.axvline(0, color="tab:red", lw=1, ls=":", label="mixture")
    scatter.plot(before, after, ".", color="tab:blue", ms=5, alpha=0.6)
    if np.isfinite(before).any():
        ends = [np.nanmin(before), np.nanmax(before)]
        scatter.plot(ends, ends, color="tab:red", lw=1, ls=":", label="mixture")
    style_axes(histogram, "SI-SNRi (dB)", "utterances")
    style_axes(scatter, "SI-SNR of the mixture (dB)", "SI-SNR after (dB)")
    return png_bytes(figure)


# ------------------------------------------------------------------ guided enhancement

#: The metrics of the table.
GUIDED_METRICS = (
    Column("si_snr", "SI-SDR", "dB"),
    *(KNOWN[key] for key in ("snr", "sdr", "sir", "sar", "pesq_wb", "pesq_nb")),
    *(KNOWN[key] for key in ("stoi", "estoi", "dnsmos")),
)
#: What the results are broken down by.
GUIDED_CONDITIONS = (
    Column("input_sir", "SIR at the reference microphone", "dB"),
    Column("angle", "angle between target and interferer", "°"),
)
_SYSTEM_COLOURS = {"raw": "tab:gray", "beamformed": "tab:orange", "enhanced": "tab:blue"}


def guided_markdown(rows) -> str:
    """Means of every metric by beamformer and system, as a Markdown table.

    Arguments
    ---------
    rows : list of dict
        As `score_guided` gives them, with a `guide` each: the beamformer.

    Returns
    -------
    str
        Lines, with a line break at the end.

    Example
    -------
    >>> row = {"guide": "mvdr", "raw_snr": 0.0, "beamformed_snr": 6.0, "snr": 9.0}
    >>> print(guided_markdown([row]).splitlines()[-1])
    | mvdr | SNR (dB) | 0.00 | 6.00 | **9.00** |
    """
    lines = [
        [cell if isinstance(cell, str) else f"**{cell[0]}**" for cell in line]
        for line in _guided_lines(rows)
    ]
    head = ["guide", "metric", *SYSTEMS.values()]
    return markdown_table(head, lines, words=(0, 1)) + "\n"


def guided_section(rows) -> Section:
    """The report's section on reference microphone, beamformer and enhancement."""
    parts = [
        Table(["beamformer", "", *SYSTEMS.values()], _guided_lines(rows)),
        "Means over the items, against the speech without its room. SIR: speech to what "
        "is left of interferer and noise; SAR: both to what the system itself added, and "
        "to late reverberation (BSS Eval, filters of 512 taps).",
    ]
    if picture := _guided_png(rows):
        parts.append(Picture(picture, "Results by SIR and by angle"))
    heading = "Reference microphone, beamformer and enhancement"
    return Section("guided", heading, parts)


def _guides(rows):
    names = dict.fromkeys(row.get("guide", "") for row in rows)
    return {name: [row for row in rows if row.get("guide", "") == name] for name in names}


def _of_system(system, key):
    return key if system == "enhanced" else f"{system}_{key}"


def _system_means(rows, key):
    """Means of a metric by system."""
    columns = {name: [row.get(_of_system(name, key)) for row in rows] for name in SYSTEMS}
    return {name: summarise_values(values).mean for name, values in columns.items()}


def _guided_lines(rows):
    """Beamformer, metric, and the mean of each system; the best is a pair, for bold."""
    lines = []
    for guide, own in _guides(rows).items():
        for column in GUIDED_METRICS:
            if all(row.get(column.key) is None for row in own):
                continue
            means = _system_means(own, column.key).values()
            best = max(mean for mean in means if mean is not None)
            cells = [(decimals(m), "") if m == best else decimals(m) for m in means]
            lines.append([guide, column.label, *cells])
    return lines


def _by_condition(rows, key, metric="si_snr"):
    """(lowest, highest, means of a metric by system) in up to four classes of a condition."""
    there = [row for row in rows if row.get(metric) is not None]
    classes = _classes_by(there, lambda row: row.get(key), count=4, least=3)
    return [(low, high, _system_means(part, metric)) for low, high, part in classes]


def _guided_png(rows) -> bytes | None:
    """SI-SDR and PESQ of all systems by SIR and by angle; None where nothing varies."""
    guides = _guides(rows)
    found = {}
    for metric in ("si_snr", "pesq_wb"):
        for column in GUIDED_CONDITIONS:
            by = {
                name: _by_condition(own, column.key, metric) for name, own in guides.items()
            }
            if any(by.values()):
                found.setdefault(metric, {})[column.key] = by
    if not found:
        return None
    figure, grid = panels(len(found), len(GUIDED_CONDITIONS), height=3)
    labels = {column.key: column.label for column in GUIDED_METRICS}
    for line, (metric, by_key) in zip(grid, found.items()):
        for axes, column in zip(line, GUIDED_CONDITIONS):
            _draw_guides(axes, by_key.get(column.key, {}))
            style_axes(axes, column.label, labels[metric], legend=None)
    handles, names = grid[0, 0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize=8)
    return png_bytes(figure)


def _draw_guides(axes, by_guide) -> None:
    """A line for each beamformer and system; the microphone is the same for all."""
    for number, (guide, classes) in enumerate(by_guide.items()):
        centres = [(low + high) / 2 for low, high, _ in classes]
        for name in list(SYSTEMS)[number > 0 :]:
            axes.plot(
                centres,
                [means[name] for _, _, means in classes],
                ("-", "--", ":", "-.")[number % 4] if name != "raw" else "-",
                color=_SYSTEM_COLOURS[name],
                marker="o",
                ms=3,
                label=SYSTEMS[name] if name == "raw" else f"{SYSTEMS[name]}, {guide}",
            )


# ------------------------------------------------------------------ binaural

#: What the sources are put into classes by: column, heading.
GROUPINGS = {
    "azimuth": "azimuth from the middle",
    "min_separation_deg": "angle to the nearest talker",
}
#: What is measured in each class.
MEASURES = tuple(KNOWN[key] for key in ("snr_i", "delta_itd", "delta_ild"))
WIDTH = 30.0  # degrees of a class
DRAWN = 300  # sources in a picture, at most
_TALKER_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")


def _sources_of(rows) -> list[dict]:
    """All sources of all rows, each with its own columns: `snr_i_2` becomes `snr_i`."""
    sources = []
    for row in rows:
        numbered = [key.rpartition("_") for key in row]
        of_source = {int(n) for key, _, n in numbered if n.isdigit() and key == "snr_i"}
        for j in sorted(of_source):
            keys = [key for key, _, n in numbered if n == str(j)]
            values = {key: row[f"{key}_{j}"] for key in keys}
            sources.append({"ID": row["ID"], "source": j, **values})
    return sources


def _by_angle(rows, width: float = WIDTH) -> list[dict]:
    """SNRi, ΔITD and ΔILD in classes of angles; empty where no direction is known.

    By the talker's azimuth from the middle (0: in front, 90: at an ear, 180: behind), left
    and right together, and by the angle to the nearest other talker.

    Returns
    -------
    list of dict
        `by`, `low`, `high` (degrees), `sources` (their number) and, for each of `snr_i`,
        `delta_itd` and `delta_ild`, its mean, the ends of its interval (`_low`, `_high`)
        and how many sources have it (`_count`).
    """
    sources, table = _sources_of(rows), []
    for key in GROUPINGS:
        known = [source for source in sources if source.get(key) is not None]
        angles = np.minimum(np.abs([source[key] for source in known]), np.nextafter(180, 0))
        for low in np.arange(0.0, 180.0, width):
            high = min(180.0, low + width)
            inside = [s for s, angle in zip(known, angles) if low <= angle < high]
            if not inside:
                continue
            row = {"by": key, "low": float(low), "high": high, "sources": len(inside)}
            for measure in (column.key for column in MEASURES):
                found = summarise_values([source.get(measure) for source in inside])
                row[measure], row[f"{measure}_count"] = found.mean, found.count
                row[f"{measure}_low"], row[f"{measure}_high"] = found.low, found.high
            table.append(row)
    return table


def write_angles(rows, folder) -> list[Path]:
    """Write interaural.json and, where directions are known, by_angle.csv.

    Arguments
    ---------
    rows : list of dict
        As `score_binaural` gives them.
    folder : str or Path
        Earlier files of these names are replaced, each as a whole.

    Returns
    -------
    list of Path
        The files.
    """
    folder = Path(folder)
    numbers = json.dumps(summarise_interaural(rows), indent=2, allow_nan=False)
    written = [atomic_write(folder / "interaural.json", numbers + "\n")]
    table = [
        {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
        for row in _by_angle(rows)
    ]
    if table:
        written.append(atomic_write(folder / "by_angle.csv", csv_text(table)))
    return written


def interaural_section(rows, protocol: str = "default") -> Section:
    """The report's section on where the talkers are perceived after separation.

    Arguments
    ---------
    rows : list of dict
        As `score_binaural` gives them.
    protocol : str
        How ΔITD and ΔILD were measured.
    """
    parts = [_METHODS[protocol], Text(_interaural_words(rows))]
    if view := _top_view_png(rows):
        alt = "Directions before and after separation, from above"
        parts.append(Picture(view, alt))
    if table := _by_angle(rows):
        parts.append(Text("By angle", "h3"))
        parts.append(Picture(_by_angle_png(table), "SNRi, ΔITD and ΔILD by angle"))
        parts.append(_by_angle_table(table))
    return Section("interaural", "Where the talkers are heard", parts)


_METHODS = {
    "speechbrain": "Measured as SpeechBrain's recipe does: ITD in whole samples at any lag, "
    "and the order of the sources chosen anew for each metric.",
    "default": "ΔITD and ΔILD: how far time and level differences between the ears of an "
    "estimate are from those of its reference, in the order of the best SNR. ITD by "
    f"GCC-PHAT from {BAND[0]:g} to {BAND[1]:g} Hz within ±1 ms. Silent and one-eared "
    "sources are counted, not averaged.",
}


def _interaural_words(rows) -> str:
    found = summarise_interaural(rows)
    words = {key: decimals(found.get(key)) for key in found if key.startswith("delta_")}
    if "measured" not in found:
        return (
            f"ΔITD: mean {words['delta_itd_mean']} µs. "
            f"ΔILD: mean {words['delta_ild_mean']} dB."
        )
    plural = "" if found["measured"] == 1 else "s"
    large = found["delta_itd_large"]
    share = "–" if large is None else f"{100 * large:.0f} %"
    return (
        f"{found['measured']} source{plural} measured, {found['silent']} silent, "
        f"{found['monaural']} one-eared. ΔITD: mean {words['delta_itd_mean']}, "
        f"median {words['delta_itd_median']} µs, above {LARGE_ITD_ERROR:g} µs in {share}. "
        f"ΔILD: mean {words['delta_ild_mean']}, median {words['delta_ild_median']} dB."
    )


def _by_angle_table(table) -> Table:
    head, lines = ["", "from … to", "sources"], []
    for column in MEASURES:
        head += [column.heading, INTERVAL]
    for row in table:
        cells = [GROUPINGS[row["by"]], f"{row['low']:g} … {row['high']:g}°"]
        cells.append(str(row["sources"]))
        for key, _, unit, *_ in MEASURES:
            cells.append((decimals(row[key]), unit))
            cells.append(interval_text(row[f"{key}_low"], row[f"{key}_high"]))
        lines.append(cells)
    return Table(head, lines, "The same in numbers")


def _by_angle_png(table) -> bytes:
    """SNRi, ΔITD and ΔILD over the angles, with their intervals."""
    there = [key for key in GROUPINGS if any(row["by"] == key for row in table)]
    figure, grid = panels(len(there), len(MEASURES), width=10 / 3)
    for line, key in zip(grid, there):
        classes = [row for row in table if row["by"] == key]
        middles = [(row["low"] + row["high"]) / 2 for row in classes]
        for axes, measure in zip(line, MEASURES):
            axes.plot(
                middles, column_of(classes, measure.key), "o-", color="tab:blue", ms=4
            )
            ends = [column_of(classes, f"{measure.key}_{end}") for end in ("low", "high")]
            axes.vlines(middles, *ends, color="tab:blue", lw=2, alpha=0.5)
            if measure.key != "snr_i":
                axes.set_ylim(bottom=0)
            style_axes(axes, f"{GROUPINGS[key]} (°)", measure.label)
    return png_bytes(figure)


def _perceived_azimuth(itd, azimuth=None) -> np.ndarray:
    """The azimuth (degrees, + = left) at which a sphere of average size has an ITD (µs).

    Woodworth's formula, turned round. An ITD alone cannot tell front from back: the half is
    that of the true azimuth if one is given, else the front. Beyond the largest ITD of the
    sphere: at the ear.

    Example
    -------
    >>> _perceived_azimuth(1e6 * woodworth_itd([-30, 80, 150]), [-30, 80, 150]).round(3).tolist()
    [-30.0, 80.0, 150.0]
    """
    angles = np.linspace(-90, 90, 721)
    lateral = np.interp(itd, 1e6 * woodworth_itd(angles), angles)
    if azimuth is None:
        return lateral
    behind = np.abs(azimuth) > 90
    return np.where(behind, np.where(np.less(azimuth, 0), -180, 180) - lateral, lateral)


def _top_view_png(rows) -> bytes | None:
    """Perceived directions before and after separation, and the cues; None without any."""
    from matplotlib.figure import Figure

    sources = [s for s in _sources_of(rows) if s.get("itd_estimate") is not None][:DRAWN]
    if not sources:
        return None
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1))
    _draw_top_view(figure.add_subplot(grid[:, 0], projection="polar"), sources)
    for place, (cue, unit) in enumerate((("itd", "µs"), ("ild", "dB"))):
        axes = figure.add_subplot(grid[place, 1])
        _draw_against(axes, sources, cue, f"{cue.upper()} ({unit})")
    return png_bytes(figure)


def _draw_top_view(axes, sources) -> None:
    """References on the outer circle, estimates on the inner one, joined."""
    axes.set_theta_zero_location("N")  # the nose points up, + is left
    around = np.arange(0, 360, 45)  # a polar axis has no negative angles
    signed = np.where(around > 180, around - 360, around)
    axes.set_xticks(np.radians(around), [f"{angle}°" for angle in signed])
    for source in sources:
        azimuth = source.get("azimuth")
        both = np.array([source["itd"], source["itd_estimate"]])
        angles = np.radians(_perceived_azimuth(both, azimuth))
        wrong = abs(both[0] - both[1]) > LARGE_ITD_ERROR
        style = {"color": "tab:red" if wrong else "tab:green", "alpha": 0.6}
        axes.plot(angles, [1.0, 0.8], lw=1, **style)
        axes.plot(angles[1:], [0.8], "o", ms=4, **style)
        axes.plot(angles[:1], [1.0], "o", ms=4, color="0.3", alpha=0.6)
        if azimuth is not None:
            axes.plot([np.radians(azimuth)] * 2, [1.06, 1.12], color="tab:blue", lw=1)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([])
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.set_title(
        f"From above, nose up. Grey: in the reference; green: in the estimate\n"
        f"(red: ΔITD above {LARGE_ITD_ERROR:g} µs); blue ticks: true azimuths",
        fontsize=9,
    )


def _draw_against(axes, sources, cue, label) -> None:
    """A cue of the estimates over that of the references."""
    for j in sorted({source["source"] for source in sources}):
        pairs = [(s[cue], s[f"{cue}_estimate"]) for s in sources if s["source"] == j]
        colour = _TALKER_COLOURS[(j - 1) % len(_TALKER_COLOURS)]
        axes.plot(*zip(*pairs), ".", ms=5, alpha=0.5, color=colour, label=f"talker {j}")
    ends = [np.min(axes.get_xlim()), np.max(axes.get_xlim())]
    axes.plot(ends, ends, color="0.5", lw=1, ls=":")
    style_axes(axes, f"{label} of the reference", "of the estimate", legend=7)
