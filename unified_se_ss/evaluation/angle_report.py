"""What binaural results depend on the angle by: tables, and pictures.

Rows are those of `unified_se_ss.evaluation.binaural.evaluate_ears`, one per utterance.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from unified_se_ss.evaluation.curves import plain_axes, png_bytes
from unified_se_ss.evaluation.interaural import LARGE_ITD_ERROR, summarise_interaural
from unified_se_ss.evaluation.results import summarise_values
from unified_se_ss.files import atomic_write, csv_text
from unified_se_ss.spatial import woodworth_itd

#: What the sources are put into classes by: column, heading.
GROUPINGS = (
    ("azimuth", "azimuth from the middle"),
    ("min_separation_deg", "angle to the nearest talker"),
)
#: What is said of each class: column, heading, unit.
MEASURES = (
    ("snr_i", "SNRi", "dB"),
    ("delta_itd", "ΔITD", "µs"),
    ("delta_ild", "ΔILD", "dB"),
)
WIDTH = 30.0  # degrees of a class
DRAWN = 300  # sources in a picture, at most
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")


def sources_of(rows) -> list[dict]:
    """All sources of all rows, each with its own columns.

    Example
    -------
    >>> row = {"ID": "a", "snr_i_1": 9.0, "snr_i_2": 7.0, "azimuth_2": 30.0}
    >>> sources_of([row])[1]
    {'ID': 'a', 'source': 2, 'snr_i': 7.0, 'azimuth': 30.0}
    """
    sources = []
    for row in rows:
        numbered = [key.rpartition("_") for key in row]
        of_source = {int(n) for key, _, n in numbered if n.isdigit() and key == "snr_i"}
        for j in sorted(of_source):
            keys = [key for key, _, n in numbered if n == str(j)]
            values = {key: row[f"{key}_{j}"] for key in keys}
            sources.append({"ID": row["ID"], "source": j, **values})
    return sources


def by_angle(rows, width: float = WIDTH) -> list[dict]:
    """SNRi, ΔITD and ΔILD in classes of angles.

    By the talker's azimuth from the middle (0: in front, 90: at an ear, 180: behind), left
    and right together, and by the angle to the nearest other talker.

    Arguments
    ---------
    rows : list of dict
        With the directions of their talkers.
    width : float
        Degrees of a class.

    Returns
    -------
    list of dict
        `by`, `low`, `high` (degrees), `sources` (their number) and, for each of `snr_i`,
        `delta_itd` and `delta_ild`, its mean, the ends of its interval (`_low`, `_high`)
        and how many sources have it (`_count`). Empty where no direction is known.

    Example
    -------
    >>> rows = [{"ID": "a", "snr_i_1": 9.0, "azimuth_1": -40.0, "delta_itd_1": 3.0}]
    >>> found = by_angle(rows)[0]
    >>> found["by"], found["low"], found["snr_i"], found["delta_ild_count"]
    ('azimuth', 30.0, 9.0, 0)
    """
    sources, table = sources_of(rows), []
    for key, _ in GROUPINGS:
        for low in np.arange(0.0, 180.0, width):
            high = min(180.0, low + width)
            inside = [s for s in sources if _within(s.get(key), low, high)]
            if inside:
                row = {"by": key, "low": float(low), "high": high, "sources": len(inside)}
                table.append({**row, **_measured(inside)})
    return table


def write_angles(rows, folder) -> list[Path]:
    """Write interaural.json and, where directions are known, by_angle.csv.

    Arguments
    ---------
    rows : list of dict
        As `evaluate_ears` gives them, with their IDs.
    folder : str or Path
        Earlier files of these names are replaced, each as a whole.

    Returns
    -------
    list of Path
        The files.

    Example
    -------
    >>> import tempfile
    >>> row = {"ID": "a", "snr_i_1": 9.0, "delta_itd_1": 3.0, "cues_1": "measured"}
    >>> [path.name for path in write_angles([row], tempfile.mkdtemp())]
    ['interaural.json']
    """
    folder, table = Path(folder), by_angle(rows)
    numbers = json.dumps(summarise_interaural(rows), indent=2, allow_nan=False)
    written = [atomic_write(folder / "interaural.json", numbers + "\n")]
    if table:
        written.append(atomic_write(folder / "by_angle.csv", by_angle_csv(table)))
    return written


def by_angle_csv(table) -> str:
    """The table of `by_angle` as CSV; what is not known is left empty."""
    return csv_text(
        {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
        for row in table
    )


def by_angle_png(table) -> bytes:
    """SNRi, ΔITD and ΔILD over the angles, with their intervals.

    Arguments
    ---------
    table : list of dict
        As `by_angle` gives it, not empty.

    Returns
    -------
    bytes
        PNG.
    """
    from matplotlib.figure import Figure

    there = [(key, name) for key, name in GROUPINGS if any(r["by"] == key for r in table)]
    figure = Figure(figsize=(10, 2.7 * len(there)), layout="constrained")
    panels = figure.subplots(len(there), len(MEASURES), squeeze=False)
    for line, (key, name) in zip(panels, there):
        classes = [row for row in table if row["by"] == key]
        middles = [(row["low"] + row["high"]) / 2 for row in classes]
        for axes, (measure, heading, unit) in zip(line, MEASURES):
            means = [np.nan if row[measure] is None else row[measure] for row in classes]
            axes.plot(middles, means, "o-", color="tab:blue", ms=4)
            for x, row in zip(middles, classes):
                ends = [row[f"{measure}_low"], row[f"{measure}_high"]]
                if None not in ends:
                    axes.plot([x, x], ends, color="tab:blue", lw=2, alpha=0.5)
            axes.set_xlabel(f"{name} (°)", fontsize=9)
            axes.set_ylabel(f"{heading} ({unit})", fontsize=9)
            if measure != "snr_i":
                axes.set_ylim(bottom=0)
            plain_axes(axes)
    return png_bytes(figure)


def perceived_azimuth(itd, azimuth=None) -> np.ndarray:
    """The azimuth at which an ITD is heard by a sphere of average size.

    Woodworth's formula, turned round. An ITD alone cannot tell front from back: the half
    is that of the azimuth if one is given, else the front. Beyond the largest ITD of the
    sphere: at the ear.

    Arguments
    ---------
    itd : float or np.ndarray
        µs, [...], positive where the left ear hears first.
    azimuth : float or np.ndarray
        True azimuth in degrees, [...]; optional.

    Returns
    -------
    np.ndarray
        Degrees, + = left, [...].

    Example
    -------
    >>> perceived_azimuth(1e6 * woodworth_itd([-30, 80, 150]), [-30, 80, 150]).round(3).tolist()
    [-30.0, 80.0, 150.0]
    """
    angles = np.linspace(-90, 90, 721)
    lateral = np.interp(itd, 1e6 * woodworth_itd(angles), angles)
    if azimuth is None:
        return lateral
    behind = np.abs(azimuth) > 90
    return np.where(behind, np.where(np.less(azimuth, 0), -180, 180) - lateral, lateral)


def top_view_png(rows) -> bytes | None:
    """Where talkers are heard before and after separation, seen from above; and their cues.

    Arguments
    ---------
    rows : list of dict
        As `evaluate_ears` gives them; the first 300 measured sources are drawn.

    Returns
    -------
    bytes or None
        PNG; None where no source was measured.
    """
    from matplotlib.figure import Figure

    sources = [s for s in sources_of(rows) if s.get("itd_estimate") is not None][:DRAWN]
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
    known = [source.get("azimuth") for source in sources]
    for source, azimuth in zip(sources, known):
        both = [source["itd"], source["itd_estimate"]]
        angles = np.radians(perceived_azimuth(np.array(both), azimuth))
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
        f"From above, nose up. Grey: heard in the reference; green: in the estimate\n"
        f"(red: ΔITD above {LARGE_ITD_ERROR:g} µs); blue ticks: true azimuths",
        fontsize=9,
    )


def _draw_against(axes, sources, cue, label) -> None:
    """A cue of the estimates over that of the references."""
    for j in sorted({source["source"] for source in sources}):
        pairs = [(s[cue], s[f"{cue}_estimate"]) for s in sources if s["source"] == j]
        colour = _COLOURS[(j - 1) % len(_COLOURS)]
        axes.plot(*zip(*pairs), ".", ms=5, alpha=0.5, color=colour, label=f"talker {j}")
    ends = [np.min(axes.get_xlim()), np.max(axes.get_xlim())]
    axes.plot(ends, ends, color="0.5", lw=1, ls=":")
    axes.set_xlabel(f"{label} of the reference", fontsize=9)
    axes.set_ylabel("of the estimate", fontsize=9)
    axes.legend(fontsize=7, framealpha=0.8, edgecolor="none")
    plain_axes(axes)


def _within(angle, low, high) -> bool:
    """Whether an angle is within [low, high), left and right alike; 180 is in the last."""
    if angle is None:
        return False
    angle = abs(angle)
    return low <= angle < high or (high >= 180.0 and angle >= 180.0)


def _measured(sources) -> dict:
    """Mean, interval and count of each measure over sources."""
    row = {}
    for key, _, _ in MEASURES:
        found = summarise_values([source.get(key) for source in sources])
        row[key], row[f"{key}_count"] = found.mean, found.count
        row[f"{key}_low"], row[f"{key}_high"] = found.low, found.high
    return row
