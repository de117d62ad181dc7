"""The report of a run: one HTML file that needs nothing else, not even a network.

Everything that comes from a file or from the user passes `html.escape`.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path

import numpy as np
import scipy.signal

from unified_se_ss.evaluation.curves import curves_png, png_bytes
from unified_se_ss.evaluation.results import (
    COVERAGE,
    HEADLINES,
    PER_SOURCE,
    RESAMPLES,
    result_columns,
)
from unified_se_ss.evaluation.waves import PEAK, wav_bytes
from unified_se_ss.files import write_whole

#: The file stays below this, in bytes; examples that do not fit are left out.
SIZE_LIMIT = 15_000_000
#: Longest table of utterances; results.csv holds all of them.
TABLE_ROWS = 5000
#: Colours of a spectrogram span this much below the loudest point of the item, in dB.
DYNAMIC_RANGE = 70.0
#: Signals of one source, named s1_estimate and so on, share a column.
SOURCE_SIGNALS = ("_estimate", "_reference")
#: Settings shown at the top, in this order; the others are folded away.
HEADER_KEYS = (
    "recipe",
    "rule",
    "granularity",
    "parameters",
    "commit",
    "date",
    "device",
    "precision",
    "hours",
)
#: Utterances are judged good or bad by this metric.
RANKED_BY = "si_snr_i"


def write_report(folder, title, summary, rows, log_rows, examples, configuration, notes):
    """Write report.html: what was run, what came out, and how it sounds.

    Arguments
    ---------
    folder : str or Path
        The file goes here; an earlier report.html is replaced.
    title : str
        Heading.
    summary : Summary
        As `write_results` returns it.
    rows : list of dict
        One per utterance, as given to `write_results`.
    log_rows : list of dict
        One per epoch, as for `plot_curves`; may be empty.
    examples : list of dict
        Keys: `id`; `signals`, a dict of arrays [T] by name, as `level_signals` gives
        them; `sample_rate` in Hz; `metrics`, a dict of numbers. Shown worst first by
        SI-SNRi, as many as fit into 15 MB.
    configuration : dict
        What was run. recipe, rule, granularity, parameters, commit, date, device,
        precision and hours stand at the top; all other keys are folded away.
    notes : list of str
        Paragraphs under the heading.

    Returns
    -------
    Path
        The file.

    Example
    -------
    >>> import tempfile
    >>> from unified_se_ss.evaluation.results import summarise
    >>> rows = [{"ID": "a", "si_snr_i": 9.0}, {"ID": "b", "si_snr_i": 11.0}]
    >>> folder = tempfile.mkdtemp()
    >>> write_report(folder, "Demo", summarise(rows), rows, [], [], {}, []).name
    'report.html'
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = [
        _header(title, configuration, notes),
        _results(summary),
        _distribution(rows),
        _curves(log_rows),
    ]
    settings = _settings(configuration)
    everything = _utterances(rows, [str(example["id"]) for example in examples])
    used = sum(len(part.encode()) for part in [*before, settings, everything, PAGE])
    parts, shown = _examples(examples, rows, SIZE_LIMIT - used)
    body = "\n".join([*before, parts, _utterances(rows, shown), settings])
    head, tail = PAGE.split("@BODY@")
    page = head.replace("@TITLE@", html.escape(title)) + body + tail
    return write_whole(folder / "report.html", page)


def choose_examples(rows, count=6):
    """IDs of utterances worth a look: half of them the worst, then up to the best.

    Arguments
    ---------
    rows : list of dict
        One per utterance, as given to `write_results`.
    count : int
        How many at most.

    Returns
    -------
    list of str
        Worst first by SI-SNRi; utterances without a value are never chosen.

    Example
    -------
    >>> choose_examples([{"ID": str(i), "si_snr_i": i} for i in range(100)], 5)
    ['0', '1', '2', '50', '99']
    """
    order = _ranking(rows)
    if len(order) <= count:
        return order
    worst = (count + 1) // 2
    rest = np.linspace(worst - 1, len(order) - 1, count - worst + 1)[1:]
    return order[:worst] + [order[round(place)] for place in rest]


def spectrogram_db(signal, sample_rate):
    """Level of a signal over time and frequency.

    Hann windows of 32 ms, hop 8 ms; 0 dB is a full-scale sine.

    Arguments
    ---------
    signal : np.ndarray
        Shape [T].
    sample_rate : int
        In Hz.

    Returns
    -------
    np.ndarray
        Shape [F, L] in dB, F frequencies from 0 to half the rate, L frames.

    Example
    -------
    >>> sine = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    >>> round(float(spectrogram_db(sine, 8000).max()), 1)
    0.0
    """
    size = max(16, round(0.032 * sample_rate))
    signal = np.pad(signal, (0, max(0, size - len(signal))))
    hop = max(1, size // 4)
    _, _, spectrum = scipy.signal.stft(
        signal, nperseg=size, noverlap=size - hop, boundary=None, padded=False
    )
    return 20 * np.log10(2 * np.abs(spectrum) + 1e-10)


def _header(title, configuration, notes):
    """Title, what was run, notes."""
    known = [key for key in HEADER_KEYS if configuration.get(key) not in (None, "")]
    facts = "".join(
        f"<div><dt>{key}</dt><dd>{_text(key, configuration[key])}</dd></div>"
        for key in known
    )
    paragraphs = "".join(f"<p>{html.escape(str(note))}</p>" for note in notes)
    return f"<h1>{html.escape(title)}</h1>\n<dl>{facts}</dl>\n{paragraphs}"


def _settings(configuration):
    """All other settings, folded away."""
    others = [key for key in configuration if key not in HEADER_KEYS]
    if not others:
        return ""
    lines = "".join(
        f"<tr><th>{html.escape(str(key))}</th><td>{_text(key, configuration[key])}</td>"
        "</tr>"
        for key in others
    )
    return (
        f"<h2>Settings</h2>\n<details><summary>{len(others)} settings</summary>"
        f'<table class="settings">{lines}</table></details>'
    )


def _results(summary):
    """The results table."""
    lines = []
    for _, heading, unit, metric in summary.headlines():
        interval = "–"
        if metric.low is not None:
            interval = f"{metric.low:.2f} … {metric.high:.2f}"
        cells = [f"<b>{_decimals(metric.mean)}</b> {html.escape(unit)}", interval]
        cells += [_decimals(metric.median), _decimals(metric.standard_deviation)]
        cells += [str(metric.count), str(metric.empty)]
        name = f"<th>{html.escape(heading)}</th>"
        lines.append(f"<tr>{name}{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    interval = f"{100 * COVERAGE:.0f} % interval"
    names = ["", "mean", interval, "median", "std. dev.", "utterances", "empty"]
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        f'<h2>Results</h2>\n<table class="results"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>\n"
        f'<p class="small">{summary.utterances} utterances. The i marks the '
        "improvement over the unprocessed mixture. Interval of the mean: bootstrap "
        f"over the utterances, {RESAMPLES} resamples. Empty: the target is silent.</p>"
    )


def _distribution(rows):
    """How SI-SNRi is spread, and how it depends on the mixture."""
    there = [row for row in rows if _is_finite(row.get(RANKED_BY))]
    if not there:
        return ""
    picture = _distribution_png(there)
    return f"<h2>Utterance by utterance</h2>\n{_image(picture, 'Spread of SI-SNRi')}"


def _distribution_png(rows):
    """Histogram of SI-SNRi, and SI-SNR after against before."""
    from matplotlib.figure import Figure

    gains = np.array([row[RANKED_BY] for row in rows], dtype=float)
    after = np.array([row.get("si_snr", np.nan) for row in rows], dtype=float)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    histogram, scatter = figure.subplots(1, 2)
    histogram.hist(gains, bins=min(40, max(8, len(gains) // 5)), color="tab:blue")
    mean = f"mean {gains.mean():.2f} dB"
    histogram.axvline(gains.mean(), color="k", lw=1, label=mean)
    histogram.axvline(0, color="tab:red", lw=1, ls=":", label="mixture")
    histogram.set_xlabel("SI-SNRi (dB)", fontsize=9)
    histogram.set_ylabel("utterances", fontsize=9)
    histogram.legend(fontsize=8, frameon=False)
    before = after - gains
    scatter.plot(before, after, ".", color="tab:blue", ms=5, alpha=0.6)
    if np.isfinite(before).any():
        ends = [np.nanmin(before), np.nanmax(before)]
        scatter.plot(ends, ends, color="tab:red", lw=1, ls=":", label="mixture")
        scatter.legend(fontsize=8, frameon=False)
    scatter.set_xlabel("SI-SNR of the mixture (dB)", fontsize=9)
    scatter.set_ylabel("SI-SNR after (dB)", fontsize=9)
    for axes in (histogram, scatter):
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return png_bytes(figure)


def _curves(log_rows):
    """The learning curves."""
    if not log_rows:
        return ""
    picture = _image(curves_png(log_rows), "Learning curves")
    return f"<h2>Learning curves</h2>\n{picture}"


def _examples(examples, rows, budget):
    """The examples that fit into the budget in bytes, worst first, and their IDs."""
    order = _ranking(rows)
    place = {name: i for i, name in enumerate(order, start=1)}
    examples = sorted(examples, key=lambda e: place.get(str(e["id"]), len(order) + 1))
    parts, shown = [], []
    for example in examples:
        name = str(example["id"])
        rank = _rank(place[name], len(order)) if name in place else ""
        part = _example(example, rank, len(shown))
        # 500 bytes are kept for the sentence that opens the section.
        if len(part.encode()) + 500 > budget:
            continue
        budget -= len(part.encode()) + 1
        parts.append(part)
        shown.append(name)
    if not examples:
        return "", shown
    text = (
        "Worst first. Within an example, all players share one gain and all "
        "spectrograms one colour scale."
    )
    if len(shown) < len(examples):
        text += f" Left out to keep this file small: {len(examples) - len(shown)}."
    opening = f'<h2>Examples</h2>\n<p class="small">{text}</p>'
    return "\n".join([opening, *parts]), shown


def _example(example, rank, number):
    """One example: metrics, then a column each for the mixture and every source."""
    rate = int(example["sample_rate"])
    signals = _below_clipping(example["signals"])
    levels = {key: spectrogram_db(signal, rate) for key, signal in signals.items()}
    top = max((level.max() for level in levels.values()), default=0.0)
    columns = {}
    for key, signal in signals.items():
        picture = _spectrogram_png(levels[key], top, len(signal) / rate, rate)
        source = key.partition("_")[0] if key.endswith(SOURCE_SIGNALS) else ""
        columns.setdefault(source, []).append(_player(key, picture, signal, rate))
    cards = "".join(f"<div>{''.join(column)}</div>" for column in columns.values())
    name = html.escape(str(example["id"]))
    return (
        f'<section class="example" id="example-{number}"><h3>{name} '
        f'<span class="rank">{rank}</span></h3>'
        f"<p>{_metrics(example.get('metrics') or {})}</p>"
        f'<div class="cards">{cards}</div></section>'
    )


def _player(name, picture, signal, sample_rate):
    """Spectrogram and player of one signal."""
    caption = html.escape(name.replace("_", " "))
    sound = base64.b64encode(wav_bytes(signal, sample_rate)).decode()
    return (
        f"<figure><figcaption>{caption}</figcaption>{_image(picture, name)}"
        f'<audio controls src="data:audio/wav;base64,{sound}"></audio></figure>'
    )


def _below_clipping(signals):
    """The signals turned down by one gain if any would clip."""
    signals = {str(k): np.asarray(s, dtype=np.float64) for k, s in signals.items()}
    peak = max((np.max(np.abs(s), initial=0.0) for s in signals.values()), default=0.0)
    guard = PEAK / peak if peak > PEAK else 1.0
    return {key: guard * signal for key, signal in signals.items()}


def _spectrogram_png(level, top, seconds, sample_rate):
    """A spectrogram on the item's colour scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 1.7), layout="constrained")
    axes = figure.subplots()
    axes.imshow(
        level,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=top - DYNAMIC_RANGE,
        vmax=top,
        extent=(0, seconds, 0, sample_rate / 2000),
    )
    axes.set_xlabel("s", fontsize=7)
    axes.set_ylabel("kHz", fontsize=7)
    axes.tick_params(labelsize=7)
    return png_bytes(figure, dpi=100)


def _utterances(rows, shown):
    """The sortable table of all utterances, worst first."""
    if not rows:
        return ""
    sources = tuple(f"{name}_" for name in PER_SOURCE)
    columns = [
        c
        for c in result_columns(rows)
        if not (c.startswith(sources) and c.rpartition("_")[2].isdigit())
    ]
    rank = {name: i for i, name in enumerate(_ranking(rows))}
    ordered = sorted(rows, key=lambda row: rank.get(str(row["ID"]), len(rows)))
    places = {name: number for number, name in enumerate(shown)}
    lines = [_utterance(row, columns, places) for row in ordered[:TABLE_ROWS]]
    known = {key: heading for key, heading, _ in HEADLINES}
    known.update(se_si_snr="enhanced SI-SNR", se_si_snr_i="enhanced SI-SNRi")
    head = "".join(f"<th>{html.escape(known.get(c, c))}</th>" for c in columns)
    text = "Click a heading to sort. Each source on its own is in results.csv."
    if len(rows) > TABLE_ROWS:
        text = f"The worst {TABLE_ROWS} of {len(rows)}; all are in results.csv. " + text
    return (
        f'<h2>All utterances</h2>\n<p class="small">{text}</p>\n'
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _utterance(row, columns, places):
    """One line of the table of utterances."""
    cells = []
    for column in columns:
        value = row.get(column)
        text = html.escape(_plain(value))
        if column == "ID" and str(value) in places:
            text = f'<a href="#example-{places[str(value)]}">{text}</a>'
        cells.append(f"<td>{text}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _ranking(rows):
    """IDs from the worst to the best SI-SNRi."""
    there = [row for row in rows if _is_finite(row.get(RANKED_BY))]
    return [str(r["ID"]) for r in sorted(there, key=lambda row: row[RANKED_BY])]


def _rank(place, total):
    """The place of an utterance, in words."""
    if place == 1:
        return f"worst of {total}"
    if place == total:
        return f"best of {total}"
    return f"number {place} of {total} from the worst"


def _metrics(metrics):
    """The metrics of an example."""
    known = {key: (heading, unit) for key, heading, unit in HEADLINES}
    return " · ".join(
        f"{heading} <b>{metrics[key]:.1f}</b> {unit}"
        for key, (heading, unit) in known.items()
        if _is_finite(metrics.get(key))
    )


def _image(png, alternative):
    """An embedded picture."""
    data = base64.b64encode(png).decode()
    alternative = html.escape(str(alternative))
    return f'<img alt="{alternative}" src="data:image/png;base64,{data}">'


def _text(key, value):
    """A setting as escaped text; the number of parameters with its thousands apart."""
    if key == "parameters" and isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (dict, list, tuple)):
        value = json.dumps(value, default=str, ensure_ascii=False)
    return html.escape(str(value))


def _plain(value):
    """A value of a row as text."""
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return " ".join(str(part) for part in value)
    if isinstance(value, (float, np.floating)):
        return f"{value:.2f}" if np.isfinite(value) else ""
    return str(value)


def _decimals(value):
    """Two decimals, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def _is_finite(value):
    """Whether there is a finite number."""
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))


#: The page; the policy in its head forbids every request, even to this machine.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 70rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 1rem; }
dt { font-size: .75rem; color: #666; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
thead th { font-size: .8rem; color: #555; border-bottom: 1px solid #999; }
tbody th { font-weight: 500; }
.settings th, .settings td { text-align: left; vertical-align: top;
  overflow-wrap: anywhere; font-size: .85rem; }
.small { font-size: .85rem; color: #555; margin: .5rem 0; }
.example { border: 1px solid #ddd; border-radius: 6px; padding: .8rem 1rem;
  margin: 1rem 0; }
.example p { margin: .2rem 0 .6rem; font-size: .9rem; }
.rank { font-weight: 400; color: #666; font-size: .85rem; }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); }
figure { margin: 0 0 .8rem; }
figcaption { font-size: .85rem; font-weight: 600; }
audio { width: 100%; height: 2.2rem; }
.scroll { max-height: 32rem; overflow: auto; border: 1px solid #ddd; }
.sortable { width: 100%; font-size: .85rem; }
.sortable thead th { position: sticky; top: 0; background: #f6f6f6; cursor: pointer; }
.sortable th[aria-sort=ascending]::after { content: " ▲"; }
.sortable th[aria-sort=descending]::after { content: " ▼"; }
</style>
</head>
<body>
@BODY@
<script>
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = row => row.cells[column].textContent;
    const order = (a, b) => {
      if (text(a) === "" || text(b) === "") return (text(a) === "") - (text(b) === "");
      let difference = Number(text(a)) - Number(text(b));
      if (Number.isNaN(difference)) difference = text(a).localeCompare(text(b));
      return up ? difference : -difference;
    };
    body.append(...[...body.rows].sort(order));
  }));
}
</script>
</body>
</html>
"""
