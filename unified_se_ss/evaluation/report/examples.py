"""Examples to listen to and to look at, within a budget of bytes.

Axes: T samples, F frequencies, L frames.
"""

from __future__ import annotations

import base64
import html

import numpy as np

from unified_se_ss.evaluation.report.markup import is_finite, ranking
from unified_se_ss.evaluation.report.spectrogram import (
    DYNAMIC_RANGE,
    spectrogram_db,
    spectrogram_png,
)
from unified_se_ss.evaluation.results import HEADLINES
from unified_se_ss.evaluation.save_audio import PEAK, flac_bytes

#: How many examples a report shows: the worst, and others at random.
WORST = 10
OTHERS = 5
EXAMPLES_SEED = 2302
#: Players hold at most this many seconds, and at least these before any is left out.
LONGEST_EXCERPT = 60.0
SHORTEST_EXCERPT = 2.0
#: Signals of one source, named s1_estimate and so on, share a column.
SOURCE_SIGNALS = ("_estimate", "_reference")
#: Largest picture in base64: 320 by 128 points of 64 colours, incompressible.
PICTURE_BYTES = 42_000
#: Bytes kept free for the text around the players of an example, and of the section.
MARKUP_BYTES = 1500
OPENING_BYTES = 2000


def choose_examples(rows, worst=WORST, others=OTHERS):
    """IDs of utterances worth a look: the worst, and some of the others at random.

    Arguments
    ---------
    rows : list of dict
        One per utterance, as given to `write_results`.
    worst, others : int
        How many of each, at most (default 10 and 5).

    Returns
    -------
    list of str
        Worst first by SI-SNRi; utterances without a value are never chosen. The same
        rows give the same choice.

    Example
    -------
    >>> choose_examples([{"ID": str(i), "si_snr_i": i} for i in range(100)], 3, 2)
    ['0', '1', '2', '14', '61']
    """
    order = ranking(rows)
    rest = np.arange(worst, max(worst, len(order)))
    rng = np.random.default_rng([EXAMPLES_SEED, len(order)])
    drawn = rng.choice(rest, size=min(others, len(rest)), replace=False)
    return order[:worst] + [order[place] for place in sorted(drawn)]


def examples_within(examples, rows, budget):
    """The section of the examples, worst first, and the IDs that fit into the budget.

    Long utterances are cut to excerpts before any is left out.
    """
    if not examples:
        return "", []
    order = ranking(rows)
    place = {name: i for i, name in enumerate(order, start=1)}
    examples = sorted(examples, key=lambda e: place.get(str(e["id"]), len(order) + 1))
    longest = excerpt_seconds(examples, budget - OPENING_BYTES)
    parts, shown, left = [], [], budget - OPENING_BYTES
    for example in examples:
        name = str(example["id"])
        rank = _rank(place[name], len(order)) if name in place else ""
        part = _example(example, rank, len(shown), longest)
        if len(part.encode()) + 1 > left:
            continue
        left -= len(part.encode()) + 1
        parts.append(part)
        shown.append(name)
    return "\n".join([_opening(len(examples) - len(shown)), *parts]), shown


def excerpt_seconds(examples, budget):
    """How long an excerpt may be so that all examples fit into the budget.

    Arguments
    ---------
    examples : list of dict
        As for `write_report`.
    budget : int
        Bytes for all of them.

    Returns
    -------
    float
        Seconds, from 2 to 60.
    """
    fixed, rates, seconds = 0, [], []
    for example in examples:
        rate = int(example["sample_rate"])
        signals = _cut(_below_clipping(example["signals"]), LONGEST_EXCERPT, rate)
        fixed += MARKUP_BYTES + len(signals) * PICTURE_BYTES
        for signal in signals.values():
            seconds.append(max(signal.shape[-1], 1) / rate)
            rates.append(4 / 3 * len(flac_bytes(signal, rate)) / seconds[-1])
    rates, seconds = np.array(rates), np.array(seconds)
    fits, too_long = SHORTEST_EXCERPT, LONGEST_EXCERPT
    for _ in range(20):  # bisection: bytes grow with the length of the excerpts
        middle = (fits + too_long) / 2
        # An excerpt may need a little more per second than the whole.
        size = fixed + 1.1 * float(rates @ np.minimum(seconds, middle))
        fits, too_long = (middle, too_long) if size <= budget else (fits, middle)
    return fits


def _opening(left_out):
    """What is said before the examples."""
    text = (
        "The worst by SI-SNRi, worst first, then some of the others at random. "
        "Within an example, all players share one gain and all spectrograms one colour "
        "scale. Starting one player stops the others of its example and goes on at the "
        "same place."
    )
    if left_out:
        text += f" Left out to keep this file small: {left_out}."
    scale = (
        f'<p class="small scale"><span>−{DYNAMIC_RANGE:.0f} dB</span>'
        '<span class="colours"></span>'
        "<span>0 dB: the loudest point of the example</span></p>"
    )
    return f'<h2 id="examples">Examples</h2>\n<p class="small">{text}</p>\n{scale}'


def _example(example, rank, number, longest):
    """One example: metrics, then a column each for the mixture and every source."""
    rate = int(example["sample_rate"])
    whole = _below_clipping(example["signals"])
    signals = _cut(whole, longest, rate)
    levels = {key: spectrogram_db(signal, rate) for key, signal in signals.items()}
    top = max((level.max() for level in levels.values()), default=0.0)
    columns = {}
    for key, signal in signals.items():
        picture = spectrogram_png(levels[key], top)
        source = key.partition("_")[0] if key.endswith(SOURCE_SIGNALS) else ""
        columns.setdefault(source, []).append(_player(key, picture, signal, rate))
    cards = "".join(f"<div>{''.join(column)}</div>" for column in columns.values())
    name = html.escape(str(example["id"]))
    return (
        f'<section class="example" id="example-{number}"><h3>{name} '
        f'<span class="rank">{rank}{_excerpt(whole, signals, rate)}</span></h3>'
        f"<p>{_metrics(example.get('metrics') or {})}</p>"
        f'<div class="cards">{cards}</div></section>'
    )


def _player(name, picture, signal, sample_rate):
    """Spectrogram and player of one signal."""
    caption = html.escape(name.replace("_", " "))
    sound = base64.b64encode(flac_bytes(signal, sample_rate)).decode()
    image = base64.b64encode(picture).decode()
    return (
        f'<figure><figcaption>{caption}</figcaption><div class="spectrogram">'
        f'<img alt="Spectrogram, {caption}" src="data:image/png;base64,{image}">'
        f'<i class="cursor"></i><span class="top">{sample_rate / 2000:g} kHz</span>'
        f'<span class="end">{signal.shape[-1] / sample_rate:.1f} s</span></div>'
        f'<audio controls aria-label="{caption}" '
        f'src="data:audio/flac;base64,{sound}"></audio></figure>'
    )


def _below_clipping(signals):
    """The signals turned down by one gain if any would clip."""
    signals = {str(k): np.asarray(s, dtype=np.float64) for k, s in signals.items()}
    peak = max((np.max(np.abs(s), initial=0.0) for s in signals.values()), default=0.0)
    guard = PEAK / peak if peak > PEAK else 1.0
    return {key: guard * signal for key, signal in signals.items()}


def _cut(signals, seconds, sample_rate):
    """The beginnings of the signals."""
    samples = max(1, int(seconds * sample_rate))
    return {key: signal[..., :samples] for key, signal in signals.items()}


def _excerpt(whole, signals, sample_rate):
    """How much of the utterance is shown, in words; nothing if all of it is."""
    full, shown = (
        max((signal.shape[-1] for signal in s.values()), default=0)
        for s in (whole, signals)
    )
    if shown == full:
        return ""
    return f" · the first {shown / sample_rate:.1f} of {full / sample_rate:.1f} s"


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
        f"{heading} <b>{metrics[key]:.1f}</b> {unit}".rstrip()
        for key, (heading, unit) in known.items()
        if is_finite(metrics.get(key))
    )
