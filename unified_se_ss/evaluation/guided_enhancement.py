"""How good is a guided enhancement: what went in and what came out, side by side.

A *guided* network hears a raw microphone and a beamformer's output; both and the
enhanced signal are measured alike, against the same target. In the rows of results.csv
the enhanced signal's metrics have their usual names, those of what went in stand beside
them as `raw_...` and `beamformed_...`; `guide` names the beamformer.

Axes: T samples, S reference signals, N estimates.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.linalg

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.metrics import ROUNDING, none_if_nan, sdr, si_snr
from unified_se_ss.evaluation.perceptual import (
    PERCEPTUAL,
    WHY_EMPTY,
    NoValue,
    perceptual_score,
)
from unified_se_ss.evaluation.results import INPUTS, summarise_values
from unified_se_ss.evaluation.save_audio import PEAK

#: What is measured, in the order of every table: name in the rows, heading.
SYSTEMS = ("raw", "beamformed", "enhanced")
HEADINGS = {
    "raw": "reference microphone",
    "beamformed": "beamformer",
    "enhanced": "enhanced",
}
#: The metrics of the table: key, heading, unit.
METRICS = (
    ("si_snr", "SI-SDR", "dB"),
    ("snr", "SNR", "dB"),
    ("sdr", "SDR", "dB"),
    ("sir", "SIR", "dB"),
    ("sar", "SAR", "dB"),
    ("pesq_wb", "PESQ (wide band)", ""),
    ("pesq_nb", "PESQ (narrow band)", ""),
    ("stoi", "STOI", "%"),
    ("estoi", "ESTOI", "%"),
    ("dnsmos", "DNSMOS", ""),
)
#: What the results are broken down by: key, heading, unit.
BROKEN_DOWN_BY = (
    ("input_sir", "SIR at the reference microphone", "dB"),
    ("angle", "angle between target and interferer", "°"),
)
#: Taps of the filters that are allowed to target and interference.
FILTER_LENGTH = 512
#: So many samples may an estimate be ahead of its references.
LEAD = 32
#: Classes of each condition, of at least so many items.
CLASSES = 4
LEAST_IN_CLASS = 3


# ------------------------------------------------------------------ one item


def score_guided(item_id, signals, metrics, sample_rate):
    """The row of one item: all metrics of what went in and of what came out.

    Made to be given to `Scorers`.

    Arguments
    ---------
    item_id : str
        Stands in the row as ID.
    signals : dict
        `raw`, `beamformed`, `enhanced`, `target`: arrays [T]; optionally `interference`
        [S, T], the interferer and the noise as the raw microphone hears them.
    metrics : sequence of str
        Keys of `PERCEPTUAL`.
    sample_rate : int
        In Hz.

    Returns
    -------
    dict
        `si_snr`, `snr`, `sdr`, with interference `sir` and `sar`, and the perceptual
        metrics, each of the enhanced signal under its own name and of both inputs with
        `raw_` and `beamformed_` before it; the enhanced signal's gain over the raw one
        as `si_snr_i` and so on; `duration` in seconds. None where there is no value.

    Raises
    ------
    UserError
        If the network's output is not finite.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> target, noise = rng.standard_normal((2, 8000))
    >>> signals = {"target": target, "raw": target + noise,
    ...     "beamformed": target + 0.5 * noise, "enhanced": target + 0.1 * noise}
    >>> row = score_guided("a", signals, (), 16000)
    >>> [round(row[key]) for key in ("raw_snr", "beamformed_snr", "snr")]
    [0, 6, 20]
    """
    target = np.asarray(signals["target"], dtype=np.float64)
    found = {name: np.asarray(signals[name], dtype=np.float64) for name in SYSTEMS}
    if not np.isfinite(found["enhanced"]).all():
        raise UserError(
            f"{item_id}: the enhanced signal holds samples that are nan or infinite; the "
            "training has diverged: start again from an earlier checkpoint or with a "
            "lower learning rate"
        )
    table, reasons = {name: {} for name in SYSTEMS}, []
    for name, signal in found.items():
        scores = table[name]
        scores["si_snr"] = none_if_nan(si_snr(signal, target))
        scores["snr"] = snr(signal, target)
        scores["sdr"] = none_if_nan(sdr(signal, target))
        for metric in metrics:
            column = PERCEPTUAL[metric].column(sample_rate)
            try:
                scores[column] = perceptual_score(metric, signal, target, sample_rate)
            except NoValue as reason:
                scores[column] = None
                reasons.append(f"{metric} of the {HEADINGS[name]}: {reason}")
    interference = signals.get("interference")
    if interference is not None and np.any(interference) and np.any(target):
        references = np.concatenate([target[None], interference])
        sirs, sars = bss_eval(np.stack(list(found.values())), references)
        for name, sir, sar in zip(SYSTEMS, sirs, sars):
            table[name].update(sir=float(sir), sar=float(sar))
    row = {"ID": item_id, **_as_columns(table), "duration": len(target) / sample_rate}
    return {**row, WHY_EMPTY: "; ".join(reasons)} if reasons else row


def _as_columns(table):
    """Scores by system as the columns of a row."""
    row = dict(table["enhanced"])
    for key, value in table["enhanced"].items():
        before = table["raw"][key]
        known = value is not None and before is not None
        row[f"{key}_i"] = value - before if known else None
    for name in INPUTS:
        row.update({f"{name}_{key}": value for key, value in table[name].items()})
    return row


def snr(estimate, target):
    """Signal-to-noise ratio as it is: level and delay count.

    Arguments
    ---------
    estimate, target : np.ndarray
        Shape [T].

    Returns
    -------
    float or None
        dB; None if the target is silent.

    Example
    -------
    >>> round(snr(np.array([1.1, -1.1]), np.array([1.0, -1.0])), 6)
    20.0
    """
    energy = float(target @ target)
    if energy == 0:
        return None
    rest = estimate - target
    return float(10 * np.log10(energy / (float(rest @ rest) + ROUNDING * energy)))


def bss_eval(estimates, references, filter_length=FILTER_LENGTH, lead=LEAD):
    """Interference and distortion apart: SIR and SAR of BSS Eval version 3.

    An estimate is projected on the first reference, the target, and on all of them,
    through filters of so many taps. What the other references add is interference, what
    is left is distortion: here artefacts, and reverberation later than the filter.
    Source: Vincent, Gribonval and Févotte, "Performance measurement in blind audio
    source separation", 2006.

    Arguments
    ---------
    estimates : np.ndarray
        Shape [N, T].
    references : np.ndarray
        Target, then interferers and noise, shape [S, T]; silent ones are left out.
    filter_length : int
        Taps (default 512: 32 ms at 16 kHz).
    lead : int
        Estimates are delayed by so many samples first (default 32), for a beamformer
        may hear an interferer earlier than the reference microphone does.

    Returns
    -------
    sir, sar : np.ndarray
        dB, [N]: target to interference, and both to distortion. -80 where there is
        nothing of the target.

    Example
    -------
    >>> target, other, noise = np.random.default_rng(0).standard_normal((3, 8000))
    >>> estimate = target + 0.1 * other + 0.5 * noise
    >>> sir, sar = bss_eval(estimate[None], np.stack([target, other]), 64)
    >>> bool(abs(sir[0] - 20) < 1), bool(abs(sar[0] - 6) < 1)
    (True, True)
    """
    references = np.asarray(references, dtype=np.float64)
    references = np.concatenate([references[:1], references[1:][references[1:].any(1)]])
    references = references / np.abs(references).max(axis=1, keepdims=True)
    estimates = np.pad(np.asarray(estimates, dtype=np.float64), ((0, 0), (lead, 0)))
    references = np.pad(references, ((0, 0), (0, lead)))
    whole = _projected(estimates, references, filter_length)
    target = _projected(estimates, references[:1], filter_length)
    padded = np.pad(estimates, ((0, 0), (0, whole.shape[1] - estimates.shape[1])))
    floor = ROUNDING * _energy(padded)
    sir = _ratio(_energy(target), _energy(whole - target) + floor)
    sar = _ratio(_energy(whole), _energy(padded - whole) + floor)
    return sir, sar


def _projected(estimates, references, taps):
    """Estimates [N, T] as sums of filtered references [S, T]: [N, T + taps - 1]."""
    samples = references.shape[1] + taps - 1
    n_fft = scipy.fft.next_fast_len(samples, real=True)
    spectra = scipy.fft.rfft(references, n_fft)
    products = spectra[:, None].conj() * spectra[None]
    lags = scipy.fft.irfft(products, n_fft)  # [S, S, n_fft], lag 0 first
    matrix = np.block(
        [
            [scipy.linalg.toeplitz(row[:taps], _behind(row, taps)) for row in rows]
            for rows in lags
        ]
    )
    heard = scipy.fft.rfft(estimates, n_fft)
    correlations = scipy.fft.irfft(heard[:, None] * spectra[None].conj(), n_fft)
    right = correlations[..., :taps].reshape(len(estimates), -1)
    filters = _solved(matrix, right.T).T.reshape(len(estimates), len(references), taps)
    sums = (scipy.fft.rfft(filters, n_fft) * spectra).sum(axis=1)
    return scipy.fft.irfft(sums, n_fft)[:, :samples]


def _behind(lags, taps):
    """Correlations at lags 0, -1, ... of those at 0, 1, ..., -1."""
    return np.concatenate([lags[:1], lags[:-taps:-1]])


def _solved(matrix, right):
    """The normal equations solved, loaded by as little as makes them definite."""
    diagonal = np.diag_indices_from(matrix)
    plain = matrix[diagonal].copy()
    for load in (0.0, 1e-14, 1e-12, 1e-10):
        matrix[diagonal] = plain * (1 + load)
        try:
            factor = scipy.linalg.cho_factor(matrix, check_finite=False)
        except np.linalg.LinAlgError:
            continue
        return scipy.linalg.cho_solve(factor, right, check_finite=False)
    return np.linalg.lstsq(matrix, right, rcond=None)[0]


def _energy(signals):
    return np.einsum("nt,nt->n", signals, signals)


def _ratio(signal, noise):
    """In dB; -80 where there is neither."""
    silent = noise == 0
    return 10 * np.log10(np.where(silent, 0.0, signal / np.where(silent, 1, noise)) + 1e-8)


# ------------------------------------------------------------------ all items


def guided_table(rows):
    """Means of every metric by guide and system, with confidence intervals.

    Arguments
    ---------
    rows : list of dict
        As `score_guided` gives them, with a `guide` each.

    Returns
    -------
    dict
        By guide, in order of appearance: a dict by metric's key, in the order of
        `METRICS`: a dict of a `MetricSummary` by system.

    Example
    -------
    >>> row = {"guide": "mvdr", "raw_snr": 0.0, "beamformed_snr": 6.0, "snr": 9.0}
    >>> guided_table([row])["mvdr"]["snr"]["beamformed"].mean
    6.0
    """
    found = {}
    for guide in dict.fromkeys(row.get("guide", "") for row in rows):
        own = [row for row in rows if row.get("guide", "") == guide]
        found[guide] = {
            key: {
                name: summarise_values([row.get(column(name, key)) for row in own])
                for name in SYSTEMS
            }
            for key, _, _ in METRICS
            if any(row.get(key) is not None for row in own)
        }
    return found


def column(system, key):
    """The column of a system's metric.

    Example
    -------
    >>> column("raw", "snr"), column("enhanced", "snr")
    ('raw_snr', 'snr')
    """
    return key if system == "enhanced" else f"{system}_{key}"


def guided_markdown(rows):
    """The table of `guided_table` in Markdown: one line for each guide and metric.

    Arguments
    ---------
    rows : list of dict
        As for `guided_table`.

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
    names = ["guide", "metric", *(HEADINGS[name] for name in SYSTEMS)]
    lines = ["| " + " | ".join(names) + " |", "|---|---|--:|--:|--:|"]
    for guide, heading, cells in table_lines(rows):
        lines.append("| " + " | ".join([guide, heading, *map(_marked, cells)]) + " |")
    return "\n".join(lines) + "\n"


def table_lines(rows):
    """Guide, heading and, for each system, text and whether it is the best; by metric.

    Example
    -------
    >>> row = {"guide": "mvdr", "raw_snr": 0.0, "beamformed_snr": 6.0, "snr": 9.0}
    >>> table_lines([row])
    [('mvdr', 'SNR (dB)', [('0.00', False), ('6.00', False), ('9.00', True)])]
    """
    known = {key: f"{name} ({unit})" if unit else name for key, name, unit in METRICS}
    lines = []
    for guide, metrics in guided_table(rows).items():
        for key, systems in metrics.items():
            means = [systems[name].mean for name in SYSTEMS]
            best = max((mean for mean in means if mean is not None), default=None)
            cells = [("–" if m is None else f"{m:.2f}", m == best) for m in means]
            lines.append((guide, known[key], cells))
    return lines


def _marked(cell):
    text, is_best = cell
    return f"**{text}**" if is_best else text


def by_condition(rows, key, metric="si_snr"):
    """A metric of each system in classes of a condition, of about equally many items.

    Arguments
    ---------
    rows : list of dict
        Of one guide.
    key : str
        Condition, such as `input_sir` or `angle`; rows without it are left out.
    metric : str
        Key of the metric.

    Returns
    -------
    list
        (lowest, highest, means by system), from the lowest class; empty if the
        condition does not vary, or there are too few items.

    Example
    -------
    >>> rows = [{"angle": a, "raw_snr": 0, "beamformed_snr": 1, "snr": a} for a in range(6)]
    >>> [(low, high, means["enhanced"]) for low, high, means in by_condition(rows, "angle", "snr")]
    [(0, 2, 1.0), (3, 5, 4.0)]
    """
    there = [
        row for row in rows if row.get(key) is not None and row.get(metric) is not None
    ]
    there = sorted(there, key=lambda row: row[key])
    count = min(CLASSES, len(there) // LEAST_IN_CLASS)
    if count < 2 or there[0][key] == there[-1][key]:
        return []
    classes = []
    for part in np.array_split(np.arange(len(there)), count):
        own = [there[i] for i in part]
        means = {
            name: summarise_values([row.get(column(name, metric)) for row in own]).mean
            for name in SYSTEMS
        }
        classes.append((own[0][key], own[-1][key], means))
    return classes


def level_guided(mixture, estimates, enhanced=None, sources=None):
    """Signals of one item as wavs and report show them, at the levels they have.

    Arguments
    ---------
    mixture : np.ndarray
        The raw microphone, [T].
    estimates : np.ndarray
        The beamformer's output, [1, T].
    enhanced : np.ndarray
        [T].
    sources : np.ndarray
        The target, [1, T].

    Returns
    -------
    dict
        Arrays [T] by name: raw, beamformed, enhanced, target; if any has a peak above
        0.99, all are turned down by the same factor.

    Example
    -------
    >>> signal = np.ones(3)
    >>> list(level_guided(signal, signal[None], signal, signal[None]))
    ['raw', 'beamformed', 'enhanced', 'target']
    """
    signals = {"raw": mixture, "beamformed": estimates[0], "enhanced": enhanced}
    signals["target"] = sources[0]
    signals = {name: np.asarray(x, dtype=np.float64) for name, x in signals.items()}
    peak = max(np.max(np.abs(signal), initial=0.0) for signal in signals.values())
    gain = PEAK / peak if peak > PEAK else 1.0
    return {name: gain * signal for name, signal in signals.items()}
