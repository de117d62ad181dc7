"""Examples with players and spectrograms, within a budget of bytes."""

from __future__ import annotations

import base64
import html

import numpy as np
import scipy.signal

from unified_se_ss.evaluation.curves import png_bytes
from unified_se_ss.evaluation.report.markup import image, is_finite, ranking
from unified_se_ss.evaluation.results import HEADLINES
from unified_se_ss.evaluation.waves import PEAK, wav_bytes

#: Colours of a spectrogram span this much below the loudest point of the item, in dB.
DYNAMIC_RANGE = 70.0
#: Signals of one source, named s1_estimate and so on, share a column.
SOURCE_SIGNALS = ("_estimate", "_reference")


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
    order = ranking(rows)
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


def examples_within(examples, rows, budget):
    """The examples that fit into the budget in bytes, worst first, and their IDs."""
    order = ranking(rows)
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
        f"<figure><figcaption>{caption}</figcaption>{image(picture, name)}"
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
        if is_finite(metrics.get(key))
    )
