"""One row of results.csv per test item, for every kind of model.

Row makers have one signature, ``(item_id, signals, metrics, sample_rate) -> row``, as
`unified_se_ss.evaluation.evaluate.Scorers` takes them: `item_id` is the row's `ID`,
`signals` a dict, `metrics` keys of `PERCEPTUAL`, `sample_rate` in Hz. A value that does not
exist, such as that of a silent target, is None; a network's output that is not finite
raises a UserError that names the item. Beside each row maker stand the columns of its
headline metrics; a new metric is a new `Column` and a new key of the row.

Axes: T samples, J sources, E ears (left, right), S interfering signals, L frames.
"""

from __future__ import annotations

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.interaural import BANDS, interaural_errors
from unified_se_ss.evaluation.metrics import (
    FLOOR,
    PERCEPTUAL,
    PERCEPTUAL_COLUMNS,
    WHY_EMPTY,
    Column,
    NoValue,
    best_permutation,
    check_finite,
    mean_or_none,
    none_if_nan,
    perceptual_score,
    perceptual_scores,
    same_shape,
    sdr,
    si_snr,
    si_snr_table,
    sir_sar,
    snr,
    with_improvement,
)
from unified_se_ss.evaluation.wer import WER_COLUMNS, text_scores

#: Columns that say what was given, not what came out.
CONDITIONS = (
    Column("input_sir", "input SIR", "dB"),
    Column("input_snr", "input SNR", "dB"),
    Column("angle", "smallest angle between talkers", "°"),
    Column("overlap", "overlap", "%"),
    Column("duration", "duration", "s"),
    Column("reverberation", "reverberation time", "s"),
)
#: A source is active in frames of this many seconds ...
FRAME_SECONDS = 0.032
#: ... whose energy is at least this share (-40 dB) of that of its loudest frame.
ACTIVITY = 1e-4
#: From this input SNR on, in dB, the noise is rounding.
NOISE_FREE = 60.0

# ------------------------------------------------------------------ separation

SEPARATION_COLUMNS = (
    *with_improvement("si_snr", "SI-SNR", "dB"),
    *with_improvement("sdr", "SDR", "dB"),
)
ENHANCED_COLUMNS = with_improvement("se_si_snr", "SI-SNR of the enhanced mixture", "dB")


def score_separation(item_id, signals, metrics, sample_rate) -> dict:
    """The row of a separated utterance: `evaluate_item`, `perceptual_scores`, `why_empty`.

    Signals are arguments of `evaluate_item`: `mixture`, `estimates`, `targets`, and, where they
    are known, `enhanced` and `clean_mixture`.

    Example
    -------
    >>> sources = np.random.default_rng(0).standard_normal((2, 8000))
    >>> signals = {"mixture": sources.sum(0), "estimates": sources, "targets": sources}
    >>> score_separation("a", signals, (), 8000)["permutation"]
    (0, 1)
    """
    try:
        row = {"ID": item_id, **evaluate_item(**signals, sample_rate=sample_rate)}
    except UserError as error:
        raise UserError(f"{item_id}: {error}") from None
    if metrics:
        estimates = np.asarray(signals["estimates"])[list(row["permutation"])]
        given = (signals["mixture"], estimates, signals["targets"], sample_rate)
        row.update(perceptual_scores(metrics, *given))
    silent = [f"source {j}" for j, s in enumerate(signals["targets"], 1) if not np.any(s)]
    if silent and WHY_EMPTY not in row:
        row[WHY_EMPTY] = f"the reference of {', '.join(silent)} is silent"
    return row


def evaluate_item(
    mixture, estimates, targets, enhanced=None, clean_mixture=None, sample_rate=None
) -> dict:
    """SI-SNR(i) and SDR(i) of one utterance, in the order of the best mean SI-SNR.

    Arguments
    ---------
    mixture : np.ndarray
        The network's input, shape [T].
    estimates : np.ndarray
        Estimated sources in any order, shape [J, T].
    targets : np.ndarray
        True sources, shape [J, T].
    enhanced : np.ndarray
        Denoised mixture, shape [T]; left out, there are no `se_` metrics.
    clean_mixture : np.ndarray
        True denoised mixture, shape [T]; default: the sum of the targets.
    sample_rate : int
        In Hz; left out, there are no conditions.

    Returns
    -------
    dict
        In dB: `si_snr`, `sdr`, their improvements over the mixture `si_snr_i`, `sdr_i`
        (means over the sources); the same of each source with its number at the end; with
        `enhanced` also `se_si_snr` and `se_si_snr_i`; `permutation`. Conditions:
        `input_snr`, speech to noise in dB; of two sources and more `overlap`, the percentage
        of the frames with speech in which at least two sources are active; `duration` in
        seconds.

    Raises
    ------
    UserError
        If a signal is not finite.

    Example
    -------
    >>> targets = np.random.default_rng(0).standard_normal((2, 2000))
    >>> item = evaluate_item(targets.sum(0), targets[::-1], targets)
    >>> item["permutation"], item["si_snr_i"] > 100
    ((1, 0), True)
    """
    estimates, targets = same_shape(estimates, targets)
    mixture, _ = same_shape(mixture, targets[0])
    check_finite(mixture=mixture, targets=targets, estimates=estimates)
    table = si_snr_table(estimates, targets)
    permutation = best_permutation(table)
    sources = []
    for j, (i, target) in enumerate(zip(permutation, targets)):
        after, before = sdr(np.stack([estimates[i], mixture]), target)
        gain = table[j, i] - si_snr(mixture, target)
        values = {"si_snr": table[j, i], "si_snr_i": gain}
        sources.append({**values, "sdr": after, "sdr_i": after - before})
    row = _over_sources(sources)
    row["permutation"] = permutation
    clean = targets.sum(axis=0) if clean_mixture is None else clean_mixture
    if enhanced is not None:
        check_finite(enhanced=enhanced)
        value = si_snr(enhanced, clean)
        row["se_si_snr"] = none_if_nan(value)
        row["se_si_snr_i"] = none_if_nan(value - si_snr(mixture, clean))
    if sample_rate is not None:
        row.update(_conditions(mixture, targets, sample_rate, clean))
    return row


def _over_sources(sources) -> dict:
    """Means of the sources' values, and each with the source's number at the end."""
    row = {key: mean_or_none([source[key] for source in sources]) for key in sources[0]}
    for j, source in enumerate(sources, start=1):
        row.update({f"{key}_{j}": none_if_nan(value) for key, value in source.items()})
    return row


def _conditions(mixture, targets, sample_rate, clean_mixture=None) -> dict:
    """Input SNR, overlap and duration of mixture [T] and targets [J, T]."""
    clean = targets.sum(axis=0) if clean_mixture is None else clean_mixture
    input_snr = snr(mixture, clean)
    row = {"input_snr": input_snr if input_snr < NOISE_FREE else None}
    if len(targets) > 1:
        row["overlap"] = _overlap(targets, sample_rate)
    row["duration"] = len(mixture) / sample_rate
    return row


def _overlap(targets, sample_rate):
    """Percent of the frames with speech in which two sources or more are active."""
    length = max(1, round(FRAME_SECONDS * sample_rate))
    frames = targets.shape[1] // length
    if frames == 0:
        return None
    cut = targets[:, : frames * length].reshape(len(targets), frames, length)
    energy = np.einsum("jlt,jlt->jl", cut, cut)
    loudest = energy.max(axis=1, keepdims=True)
    active = ((energy >= ACTIVITY * loudest) & (loudest > 0)).sum(axis=0)
    speech = int((active > 0).sum())
    return 100.0 * int((active > 1).sum()) / speech if speech else None


# ------------------------------------------------------------------ binaural

BINAURAL_COLUMNS = (
    *with_improvement("snr", "SNR", "dB"),
    Column("delta_itd", "ΔITD", "µs", True),
    Column("delta_ild", "ΔILD", "dB", True),
    *(
        Column(f"delta_ild_{low}_{high}", f"ΔILD, {low} to {high} Hz", "dB", True)
        for low, high in BANDS
    ),
)
#: Columns of each source that say where it is, not how well it was separated.
PLACES = ("azimuth", "elevation", "min_separation_deg")
PLACES += ("itd", "ild", "itd_estimate", "ild_estimate", "cues")


def score_binaural(item_id, signals, metrics, sample_rate, protocol="default") -> dict:
    """The row of a separated binaural utterance, in the order of the best SNR.

    SNR, not SI-SNR, is the headline: it counts each ear's level.

    Arguments
    ---------
    item_id, metrics, sample_rate
        As for every row maker; no perceptual metric is defined for two ears.
    signals : dict
        `mixture` [E, T]; `estimates` in any order and `targets`, [J, E, T]; optionally
        `directions`, azimuth and elevation of each source in degrees, [J, 2], nan where
        they are not known.
    protocol : str
        Of `interaural_errors`.

    Returns
    -------
    dict
        `ID`; `snr`, `si_snr` and their improvements over the mixture `snr_i`, `si_snr_i`
        in dB: means over ears and sources, and of each source with its number at the end;
        `permutation`; what `interaural_errors` gives; `azimuth_{j}`, `elevation_{j}`,
        `min_separation_deg_{j}` (to the nearest other talker) and `angle`, the least of
        these; and conditions of the mean of both ears. A silent ear is left out of its mean.
    """
    if metrics:
        raise ValueError(f"there is no {metrics[0]} of two ears")
    estimates, targets = same_shape(signals["estimates"], signals["targets"])
    mixture, _ = same_shape(signals["mixture"], targets[0])
    check_finite(mixture=mixture, targets=targets, estimates=estimates)
    table = np.array([[_ears(_ear_snr, e, t) for e in estimates] for t in targets])
    order = best_permutation(table)
    sources = []
    for j, (i, target) in enumerate(zip(order, targets)):
        after = {"snr": table[j, i], "si_snr": _ears(si_snr, estimates[i], target)}
        source = {}
        for key, metric in (("snr", _ear_snr), ("si_snr", si_snr)):
            source[key] = after[key]
            source[f"{key}_i"] = after[key] - _ears(metric, mixture, target)
        sources.append(source)
    row = {"ID": item_id, **_over_sources(sources), "permutation": order}
    row.update(interaural_errors(estimates, targets, sample_rate, order, protocol))
    directions = signals.get("directions")
    if directions is not None and np.isfinite(directions).all():
        row.update(_places(directions))
    row.update(_conditions(mixture.mean(0), targets.mean(1), sample_rate))
    return row


def _ear_snr(estimate, target):
    """As in `unified_se_ss.losses.snr`."""
    return snr(estimate, target, zero_mean=True, floor=FLOOR)


def _ears(metric, estimate, target) -> float:
    """Mean over the ears in which the target is not silent; nan if it is in both."""
    value = mean_or_none([metric(*ears) for ears in zip(estimate, target)])
    return np.nan if value is None else value


def _places(directions) -> dict:
    from unified_se_ss.spatial.geometry import angle_between, to_vector  # bring torch

    vectors = to_vector(*np.asarray(directions, dtype=np.float64).T)
    separation = angle_between(vectors[:, None], vectors)
    np.fill_diagonal(separation, np.nan)
    row = {}
    for j, (azimuth, elevation) in enumerate(directions, 1):
        row[f"azimuth_{j}"], row[f"elevation_{j}"] = float(azimuth), float(elevation)
        if len(directions) > 1:
            row[f"min_separation_deg_{j}"] = float(np.nanmin(separation[j - 1]))
    if len(directions) > 1:
        row["angle"] = float(np.nanmin(separation))
    return row


# ------------------------------------------------------------------ guided enhancement

#: The signals that are scored, and their headings: both inputs, then the output.
SYSTEMS = {
    "raw": "reference microphone",
    "beamformed": "beamformer",
    "enhanced": "enhanced",
}
INPUTS = ("raw", "beamformed")
GUIDED_COLUMNS = (
    *with_improvement("sir", "SIR", "dB"),
    *with_improvement("sar", "SAR", "dB"),
)


def score_guided(item_id, signals, metrics, sample_rate) -> dict:
    """The row of an enhancement that a beamformer guides: inputs and output side by side.

    Arguments
    ---------
    item_id, metrics, sample_rate
        As for every row maker.
    signals : dict
        `raw`, `beamformed`, `enhanced`, `target`: arrays [T]; optionally `interference`
        [S, T], interferer and noise at the raw microphone.

    Returns
    -------
    dict
        `si_snr`, `snr`, `sdr`, with interference `sir` and `sar`, and the perceptual
        metrics, each of the enhanced signal under its own name and of both inputs with
        `raw_` and `beamformed_` before it; the enhanced signal's gain over the raw one
        as `si_snr_i` and so on; `duration` in seconds.
    """
    target = np.asarray(signals["target"], dtype=np.float64)
    systems = {name: np.asarray(signals[name], dtype=np.float64) for name in SYSTEMS}
    try:
        check_finite(enhanced=systems["enhanced"])
    except UserError as error:
        raise UserError(f"{item_id}: {error}") from None
    table, reasons = {}, []
    for name, signal in systems.items():
        table[name] = {
            "si_snr": none_if_nan(si_snr(signal, target)),
            "snr": none_if_nan(snr(signal, target)),
            "sdr": none_if_nan(sdr(signal, target)),
        }
        for metric in metrics:
            column = PERCEPTUAL[metric].column(sample_rate)
            try:
                value = perceptual_score(metric, signal, target, sample_rate)
            except NoValue as reason:
                value = None
                reasons.append(f"{metric} of the {SYSTEMS[name]}: {reason}")
            table[name][column] = value
    interference = signals.get("interference")
    if interference is not None and np.any(interference) and np.any(target):
        references = np.concatenate([target[None], interference])
        sirs, sars = sir_sar(np.stack(list(systems.values())), references)
        for name, sir, sar in zip(SYSTEMS, sirs, sars):
            table[name].update(sir=float(sir), sar=float(sar))
    row = {"ID": item_id, **_side_by_side(table), "duration": len(target) / sample_rate}
    return {**row, WHY_EMPTY: "; ".join(reasons)} if reasons else row


def _side_by_side(table) -> dict:
    row = dict(table["enhanced"])
    for key, value in table["enhanced"].items():
        before = table["raw"][key]
        row[f"{key}_i"] = None if None in (value, before) else value - before
    for name in INPUTS:
        row.update({f"{name}_{key}": value for key, value in table[name].items()})
    return row


# ------------------------------------------------------------------ recognition


def score_recognition(item_id, signals, metrics, sample_rate) -> dict:
    """The row of a recognised utterance: `text_scores`, and `score_separation` if enhanced.

    Signals are `transcript`, what was said; `recognised`, a dict of texts by the suffix of their
    columns (such as `""` and `"_noisy"`); and, where it was enhanced and the clean signal is
    known, what `score_separation` takes.

    Example
    -------
    >>> signals = {"transcript": "the cat", "recognised": {"": "a cat"}}
    >>> score_recognition("a", signals, (), 16000)["wer"]
    50.0
    """
    signals = dict(signals)
    texts = text_scores(signals.pop("transcript"), signals.pop("recognised"))
    row = {"ID": item_id, **texts}
    if {"estimates", "targets"} <= signals.keys():
        row.update(score_separation(item_id, signals, metrics, sample_rate))
    return row


# ------------------------------------------------------------------ all columns

#: Headline metrics in the order of every table.
HEADLINES = (
    *BINAURAL_COLUMNS,
    *SEPARATION_COLUMNS,
    *GUIDED_COLUMNS,
    *PERCEPTUAL_COLUMNS,
    *WER_COLUMNS,
    *ENHANCED_COLUMNS,
)
#: Numbers of words and of errors in them, of which the rates are made.
COUNTS = ("words", *(column.errors for column in WER_COLUMNS))
#: What is measured of each source too, with its number at the end.
PER_SOURCE = (
    *(column.key for column in HEADLINES if column not in ENHANCED_COLUMNS),
    *COUNTS,
    *PLACES,
)
