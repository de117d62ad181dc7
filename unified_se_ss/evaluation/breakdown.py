"""Results by condition: noise, overlap and duration, angle, and beamformer.

Axes: J sources.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.evaluation import plots
from unified_se_ss.evaluation.interaural import BAND, LARGE_ITD_ERROR, summarise_interaural
from unified_se_ss.evaluation.metrics import Column
from unified_se_ss.evaluation.results import INTERVAL, KNOWN, is_finite, summarise_values
from unified_se_ss.evaluation.rows import CONDITIONS, SYSTEMS
from unified_se_ss.files import atomic_write, csv_text
from unified_se_ss.spatial import woodworth_itd

#: Utterances are ranked by this metric.
RANKED_BY = "si_snr_i"
#: What varies by no more than this, in its unit, is the same but for rounding.
CONSTANT = 1e-3


class _Class(NamedTuple):
    """Rows of about one condition: its ends, their number, summaries of some columns."""

    low: float
    high: float
    count: int
    metrics: dict

    @classmethod
    def of(cls, low, high, rows, keys):
        metrics = {key: summarise_values([row.get(key) for row in rows]) for key in keys}
        return cls(float(low), float(high), len(rows), metrics)


def _equal_classes(rows, condition, keys, count, least) -> list[_Class]:
    """Up to `count` classes of a condition, of about equally many rows, at least `least`.

    Equal conditions are in one class. Empty if the condition does not vary, or too few rows
    have a finite value of it.
    """
    known = sorted(
        (row for row in rows if is_finite(row.get(condition))), key=lambda r: r[condition]
    )
    values = plots.column_of(known, condition)
    count = min(count, len(known) // least)
    if count < 2 or np.ptp(values) <= CONSTANT:
        return []
    cuts = values[np.arange(1, count) * len(known) // count]
    starts = np.unique(np.searchsorted(values, cuts))
    edges = [0, *starts[starts > 0], len(known)]
    return [
        _Class.of(values[start], values[end - 1], known[start:end], keys)
        for start, end in zip(edges, edges[1:])
    ]


def _class_table(classes_of, measures, counted) -> plots.Table:
    """Means with intervals; `classes_of` holds classes by the column of their condition."""
    head = ["", "from … to"]
    for measure in measures:
        head += [measure.heading, INTERVAL]
    lines = []
    for column, classes in classes_of.items():
        for part in classes:
            ends = f"{round(part.low, 1):g} … {round(part.high, 1):g} {column.unit}"
            line = [column.heading, ends]
            for key, _, unit, *_ in measures:
                found = part.metrics[key]
                line.append((plots.decimals(found.mean), unit))
                line.append(plots.interval_text(found.low, found.high))
            lines.append([*line, str(part.count)])
    return plots.Table([*head, counted], lines, "The same in numbers")


def _class_parts(heading, found, measures, counted, rows=()) -> list:
    """Heading, picture and table of what was found by condition; nothing without any."""
    if not found:
        return []
    figure, grid = plots.panels(len(found), len(measures), width=10 / len(measures))
    for line, (column, classes) in zip(grid, found.items()):
        for axes, measure in zip(line, measures):
            values = plots.column_of(rows, measure.key)
            axes.plot(
                plots.column_of(rows, column.key), values, ".", color="0.5", alpha=0.35
            )
            _draw_means(axes, classes, measure.key, "tab:blue")
            axes.axhline(0, color="tab:red", lw=1, ls=":")
            plots.style_axes(axes, column.label, measure.label)
    picture = plots.Picture(plots.png_bytes(figure), heading)
    return [plots.Text(heading, "h3"), picture, _class_table(found, measures, counted)]


def _draw_means(axes, classes, key, colour, label=None, style="-") -> None:
    """Means of a column at the middles of classes, and their intervals."""
    middles = [(part.low + part.high) / 2 for part in classes]
    found = [vars(part.metrics[key]) for part in classes]
    means, low, high = (plots.column_of(found, end) for end in ("mean", "low", "high"))
    axes.plot(middles, means, style, color=colour, marker="o", ms=4, label=label)
    axes.vlines(middles, low, high, color=colour, lw=2, alpha=0.3)


# ------------------------------------------------------------------ SI-SNRi

#: What SI-SNRi is broken down by.
BROKEN_DOWN_BY = (Column("input_si_snr", "SI-SNR of the mixture", "dB"), *CONDITIONS)


def _with_input(rows):
    """Rows with an SI-SNRi, and the SI-SNR of their mixtures."""
    there = [row for row in rows if is_finite(row.get(RANKED_BY))]
    before = plots.column_of(there, "si_snr") - plots.column_of(there, RANKED_BY)
    return [{**row, "input_si_snr": x} for row, x in zip(there, before.tolist())]


def _breakdown(rows) -> dict:
    """SI-SNRi, in up to five classes of each condition that varies."""
    found = {
        column: _equal_classes(rows, column.key, [RANKED_BY], count=5, least=5)
        for column in BROKEN_DOWN_BY
    }
    return {column: classes for column, classes in found.items() if classes}


def spread_section(rows) -> plots.Section | None:
    """The report's section on the spread of SI-SNRi; None without any."""
    rows = _with_input(rows)
    if not rows:
        return None
    measures = [KNOWN[RANKED_BY]]
    parts = _class_parts("By condition", _breakdown(rows), measures, "utterances", rows)
    spread = plots.Picture(_spread_png(rows), "Spread of SI-SNRi")
    return plots.Section("utterances", "Utterance by utterance", [spread, *parts])


def _spread_png(rows) -> bytes:
    """Histogram of SI-SNRi, and SI-SNR after against before."""
    gains = plots.column_of(rows, RANKED_BY)
    figure, [[histogram, scatter]] = plots.panels(1, 2, height=3.2)
    histogram.hist(gains, bins=min(40, max(8, len(gains) // 5)), color="tab:blue", ec="w")
    histogram.yaxis.get_major_locator().set_params(integer=True)
    mean = f"mean {gains.mean():.2f} dB"
    histogram.axvline(gains.mean(), color="k", lw=1, label=mean)
    histogram.axvline(0, color="tab:red", lw=1, ls=":", label="mixture")
    before, after = plots.column_of(rows, "input_si_snr"), plots.column_of(rows, "si_snr")
    scatter.plot(before, after, ".", color="tab:blue", ms=5, alpha=0.6)
    scatter.axline((0, 0), slope=1, color="tab:red", lw=1, ls=":", label="mixture")
    plots.style_axes(histogram, "SI-SNRi (dB)", "utterances")
    plots.style_axes(scatter, "SI-SNR of the mixture (dB)", "SI-SNR after (dB)")
    return plots.png_bytes(figure)


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
    | mvdr | SNR (dB) | 0.00 | 6.00 | 9.00 |
    """
    head = ["guide", "metric", *SYSTEMS.values()]
    return plots.markdown_table(head, _guided_lines(rows), words=(0, 1)) + "\n"


def guided_section(rows) -> plots.Section:
    """The report's section on reference microphone, beamformer and enhancement."""
    parts = [
        plots.Table(["beamformer", "", *SYSTEMS.values()], _guided_lines(rows)),
        "Means over the items, against the speech without its room. SIR: speech to what "
        "is left of interferer and noise; SAR: both to what the system itself added, and "
        "to late reverberation (BSS Eval, filters of 512 taps).",
    ]
    if picture := _guided_png(rows):
        parts.append(plots.Picture(picture, "Results by SIR and by angle"))
    heading = "Reference microphone, beamformer and enhancement"
    return plots.Section("guided", heading, parts)


def _guides(rows):
    names = dict.fromkeys(row.get("guide", "") for row in rows)
    return {name: [row for row in rows if row.get("guide", "") == name] for name in names}


def _of_system(system, key):
    return key if system == "enhanced" else f"{system}_{key}"


def _guided_lines(rows):
    """Beamformer, metric, and the mean of each system."""
    lines = []
    for guide, own in _guides(rows).items():
        for column in GUIDED_METRICS:
            if all(row.get(column.key) is None for row in own):
                continue
            line = [guide, column.label]
            for system in SYSTEMS:
                values = [row.get(_of_system(system, column.key)) for row in own]
                line.append(plots.decimals(summarise_values(values).mean))
            lines.append(line)
    return lines


def _by_condition(rows, condition, metric="si_snr") -> list[_Class]:
    """A metric of all systems in up to four classes of a condition."""
    there = [row for row in rows if row.get(metric) is not None]
    keys = [_of_system(system, metric) for system in SYSTEMS]
    return _equal_classes(there, condition, keys, count=4, least=3)


def _guided_png(rows) -> bytes | None:
    """SI-SDR and PESQ of all systems by SIR and by angle; None where nothing varies."""
    drawn = [KNOWN["pesq_wb"]] if any("pesq_wb" in row for row in rows) else []
    drawn = [GUIDED_METRICS[0], *drawn]
    figure, grid = plots.panels(len(drawn), len(GUIDED_CONDITIONS), height=3)
    for line, column in zip(grid, drawn):
        for axes, condition in zip(line, GUIDED_CONDITIONS):
            _draw_guides(axes, rows, condition.key, column.key)
            plots.style_axes(axes, condition.label, column.label, legend=None)
    legend: dict = {}
    for axes in grid.flat:
        handles, names = axes.get_legend_handles_labels()
        legend |= zip(names, handles)
    if not legend:
        return None
    place = {"loc": "outside upper center", "ncols": 3}
    figure.legend(legend.values(), legend.keys(), **place, fontsize=8)
    return plots.png_bytes(figure)


def _draw_guides(axes, rows, condition, metric) -> None:
    """A line for each beamformer and system; the microphone is the same for all."""
    for number, (guide, own) in enumerate(_guides(rows).items()):
        classes = _by_condition(own, condition, metric)
        style = ("-", "--", ":", "-.")[number % 4]
        for system in list(SYSTEMS)[number > 0 :] if classes else ():
            label = SYSTEMS[system] + f", {guide}" * (system != "raw")
            key, colour = _of_system(system, metric), _SYSTEM_COLOURS[system]
            _draw_means(axes, classes, key, colour, label, style)


# ------------------------------------------------------------------ binaural

#: What the sources are put into classes by.
GROUPINGS = (
    Column("azimuth", "azimuth from the middle", "°"),
    Column("min_separation_deg", "angle to the nearest talker", "°"),
)
#: What is measured in each class.
MEASURES = tuple(KNOWN[key] for key in ("snr_i", "delta_itd", "delta_ild"))
WIDTH = 30.0  # degrees of a class
DRAWN = 300  # sources in a picture, at most


def _sources_of(rows) -> list[dict]:
    """All sources of all rows, each with its own columns: `snr_i_2` becomes `snr_i`."""
    sources = []
    for row in rows:
        j = 1
        while f"snr_i_{j}" in row:
            own = {k.removesuffix(f"_{j}"): row[k] for k in row if k.endswith(f"_{j}")}
            sources.append({**own, "ID": row["ID"], "source": j})
            j += 1
    return sources


def _by_angle(rows) -> dict:
    """SNRi, ΔITD and ΔILD in classes of angles, by column of GROUPINGS.

    By the talker's azimuth from the middle (0: in front, 90: at an ear, 180: behind), left
    and right together, and by the angle to the nearest other talker. Empty where no direction
    is known.
    """
    sources, keys, found = _sources_of(rows), [column.key for column in MEASURES], {}
    for column in GROUPINGS:
        angles = np.minimum(
            np.abs(plots.column_of(sources, column.key)), np.nextafter(180, 0)
        )
        for low in np.arange(0.0, 180.0, WIDTH):
            high = low + WIDTH
            inside = [s for s, angle in zip(sources, angles) if low <= angle < high]
            if inside:
                found.setdefault(column, []).append(_Class.of(low, high, inside, keys))
    return found


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
    table = []
    for column, classes in _by_angle(rows).items():
        for low, high, count, metrics in classes:
            row = {"by": column.key, "low": low, "high": high, "sources": count}
            for key, found in metrics.items():
                row |= {key: found.mean, f"{key}_count": found.count}
                row |= {f"{key}_low": found.low, f"{key}_high": found.high}
            table.append({name: plots.as_text(cell) for name, cell in row.items()})
    if table:
        written.append(atomic_write(folder / "by_angle.csv", csv_text(table)))
    return written


def interaural_section(rows, protocol: str = "default") -> plots.Section:
    """The report's section on where the talkers are perceived after separation.

    Arguments
    ---------
    rows : list of dict
        As `score_binaural` gives them.
    protocol : str
        How ΔITD and ΔILD were measured.
    """
    summary = [
        [key, str(value) if isinstance(value, int) else plots.decimals(value)]
        for key, value in summarise_interaural(rows).items()
    ]
    parts = [_METHODS[protocol], plots.Table(["interaural.json (µs, dB)", ""], summary)]
    if view := _top_view_png(rows):
        alt = "Directions before and after separation, from above"
        parts.append(plots.Picture(view, alt))
    parts += _class_parts("By angle", _by_angle(rows), MEASURES, "sources")
    return plots.Section("interaural", "Where the talkers are heard", parts)


_METHODS = {
    "speechbrain": "Measured as SpeechBrain's recipe does: ITD in whole samples at any lag, "
    "and the order of the sources chosen anew for each metric.",
    "default": "ΔITD and ΔILD: how far time and level differences between the ears of an "
    "estimate are from those of its reference, in the order of the best SNR. ITD by "
    f"GCC-PHAT from {BAND[0]:g} to {BAND[1]:g} Hz within ±1 ms. Silent and one-eared "
    "sources are counted, not averaged.",
}


def _perceived_azimuth(itd, azimuth=0.0) -> np.ndarray:
    """The azimuth (degrees, + = left) at which a sphere of average size has an ITD (µs).

    Woodworth's formula, turned round. An ITD alone cannot tell front from back: the half is
    that of the true azimuth, the front where that is nan. Beyond the largest ITD of the
    sphere: at the ear.

    Example
    -------
    >>> _perceived_azimuth(1e6 * woodworth_itd([-30, 80, 150]), [-30, 80, 150]).round(3).tolist()
    [-30.0, 80.0, 150.0]
    """
    angles = np.linspace(-90, 90, 721)
    lateral = np.interp(itd, 1e6 * woodworth_itd(angles), angles)
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
        for j in sorted({source["source"] for source in sources}):
            own = [source for source in sources if source["source"] == j]
            pairs = [plots.column_of(own, key) for key in (cue, f"{cue}_estimate")]
            axes.plot(*pairs, ".", ms=5, alpha=0.5, color=f"C{j - 1}", label=f"talker {j}")
        axes.axline((0, 0), slope=1, color="0.5", lw=1, ls=":")
        label = f"{cue.upper()} ({unit}) of the reference"
        plots.style_axes(axes, label, "of the estimate", legend=7)
    return plots.png_bytes(figure)


def _draw_top_view(axes, sources) -> None:
    """References on the outer circle, estimates on the inner one, joined."""
    axes.set_theta_zero_location("N")  # the nose points up, + is left
    around = np.arange(0, 360, 45)  # a polar axis has no negative angles
    signed = np.where(around > 180, around - 360, around)
    axes.set_xticks(np.radians(around), [f"{angle}°" for angle in signed])
    azimuths = plots.column_of(sources, "azimuth")
    times = np.stack([plots.column_of(sources, key) for key in ("itd", "itd_estimate")])
    angles = np.radians(_perceived_azimuth(times, azimuths))
    wrong = np.abs(times[0] - times[1]) > LARGE_ITD_ERROR
    for colour, chosen in (("tab:green", ~wrong), ("tab:red", wrong)):
        axes.plot(angles[:, chosen], [1.0, 0.8], "o-", color=colour, ms=4, lw=1, alpha=0.6)
    axes.plot(np.radians(azimuths), np.full(len(sources), 1.08), ".", color="tab:blue")
    axes.set_ylim(0, 1.12)
    axes.set_yticks([])
    axes.grid(alpha=0.3)
    axes.set_title(
        "From above, nose up. Outside: reference; inside: estimate; red: ΔITD\n"
        f"above {LARGE_ITD_ERROR:g} µs; blue: true azimuths",
        fontsize=9,
    )
