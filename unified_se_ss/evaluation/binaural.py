"""One binaural utterance: how well it is separated, and where its talkers are heard.

SNR, not SI-SNR, is the headline: it holds each ear's level. All metrics of an utterance,
the interaural ones included, use one order of the estimates, that of the best SNR.

Axes: J sources, E ears (left, right), T samples.
"""

from __future__ import annotations

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.interaural import interaural_errors
from unified_se_ss.evaluation.item_stats import conditions
from unified_se_ss.evaluation.metrics import FLOOR, best_order, si_snr
from unified_se_ss.evaluation.save_audio import PEAK
from unified_se_ss.spatial.geometry import angle_between, to_vector


def snr(estimate, target) -> float:
    """Signal-to-noise ratio in dB; a wrong level counts, a constant offset does not.

    10 log10(‖t‖² / ‖e − t‖²) of signals whose means are removed, from -80 dB to 80 dB, as
    in `unified_se_ss.losses.snr`.

    Arguments
    ---------
    estimate : np.ndarray
        [T].
    target : np.ndarray
        [T].

    Returns
    -------
    float
        nan if the target is silent.

    Example
    -------
    >>> target = np.array([1.0, -1.0, 1.0, -1.0])
    >>> round(snr(0.9 * target, target), 3), snr(target, 0 * target)
    (20.0, nan)
    """
    target = target - target.mean()
    energy = float(target @ target)
    if energy == 0:
        return float("nan")
    rest = estimate - estimate.mean() - target
    return float(10 * np.log10(energy / (float(rest @ rest) + FLOOR * energy) + FLOOR))


def evaluate_ears(
    mixture, estimates, targets, sample_rate: int, directions=None, protocol="default"
) -> dict:
    """All metrics of one binaural utterance, in the order of the best SNR.

    Arguments
    ---------
    mixture : np.ndarray
        What both ears heard, [E, T].
    estimates : np.ndarray
        Estimated sources in any order, [J, E, T].
    targets : np.ndarray
        True sources, [J, E, T].
    sample_rate : int
        In Hz.
    directions : np.ndarray
        Azimuth and elevation of each source in degrees, [J, 2]; nan, or None for all,
        where they are not known.
    protocol : str
        Of the interaural errors: `default`, or `speechbrain`, whose definition is that
        of the published table (see `unified_se_ss.evaluation.interaural`).

    Returns
    -------
    dict
        `snr`, `snr_i` (improvement over the mixture), `si_snr`, `si_snr_i`: means over
        ears in dB, and over sources; the same of each source with its number at the end;
        `permutation`; what `interaural_errors` gives; `azimuth_{j}`, `elevation_{j}`,
        `min_separation_deg_{j}` (degrees to the nearest other talker) and `angle`, the least of
        these; and what `conditions` says of the mean of both ears. None where a target
        is silent: an ear of it has no say in its mean.

    Raises
    ------
    UserError
        If a signal is not finite.

    Example
    -------
    >>> targets = np.random.default_rng(0).standard_normal((2, 2, 4000))
    >>> row = evaluate_ears(targets.sum(0), 0.9 * targets[::-1], targets, 8000)
    >>> round(row["snr"], 2), row["permutation"], round(row["delta_itd"], 6)
    (20.0, (1, 0), 0.0)
    """
    mixture, estimates, targets = _checked(mixture, estimates, targets)
    table = _table(snr, estimates, targets)  # [J of estimates, J of targets]
    order = best_order(table.T)
    scores = {
        "snr": [table[i, j] for j, i in enumerate(order)],
        "si_snr": _diagonal(si_snr, estimates[list(order)], targets),
    }
    row, per_source = {}, [{} for _ in targets]
    for name, metric in (("snr", snr), ("si_snr", si_snr)):
        before = _diagonal(metric, [mixture] * len(targets), targets)
        gains = [a - b for a, b in zip(scores[name], before)]
        for key, values in ((name, scores[name]), (f"{name}_i", gains)):
            row[key] = _mean(values)
            for source, value in zip(per_source, values):
                source[key] = None if np.isnan(value) else float(value)
    for j, source in enumerate(per_source, 1):
        row.update({f"{key}_{j}": value for key, value in source.items()})
    row["permutation"] = order
    row.update(interaural_errors(estimates, targets, sample_rate, order, protocol))
    if directions is not None and np.isfinite(directions).all():
        row.update(_places(directions))
    row.update(conditions(mixture.mean(0), targets.mean(1), sample_rate))
    return row


def level_ears(mixture, estimates, enhanced=None, sources=None) -> dict:
    """All signals of a binaural utterance as they are; if one clips, one gain for all.

    A gain for each ear, or for each signal, would change where a talker is heard, or how
    loud beside the others. A network trained by SNR needs none: its levels are right.

    Arguments
    ---------
    mixture : np.ndarray
        [E, T].
    estimates : np.ndarray
        In the order of the sources, [J, E, T].
    enhanced : np.ndarray
        Denoised mixture, [E, T]; optional.
    sources : np.ndarray
        True sources, [J, E, T]; optional.

    Returns
    -------
    dict
        Arrays [E, T] under the names mixture, enhanced, s1_estimate ..., s1_reference ...

    Example
    -------
    >>> sources = np.ones((1, 2, 3)) * [[[3.0], [1.0]]]
    >>> level_ears(sources[0], 0.5 * sources)["s1_estimate"][:, 0].round(3).tolist()
    [0.495, 0.165]
    """
    signals = {"mixture": mixture}
    if enhanced is not None:
        signals["enhanced"] = enhanced
    signals.update({f"s{j}_estimate": x for j, x in enumerate(estimates, 1)})
    references = () if sources is None else sources
    signals.update({f"s{j}_reference": x for j, x in enumerate(references, 1)})
    signals = {name: np.asarray(x, dtype=np.float64) for name, x in signals.items()}
    peak = max(np.abs(x).max(initial=0.0) for x in signals.values())
    gain = PEAK / peak if peak > PEAK else 1.0
    return {name: gain * x for name, x in signals.items()}


def angles_between(directions) -> np.ndarray:
    """Degrees on the sphere between all directions.

    Arguments
    ---------
    directions : np.ndarray
        Azimuth and elevation in degrees, [J, 2].

    Returns
    -------
    np.ndarray
        [J, J], from 0 to 180.

    Example
    -------
    >>> angles_between([[-170, 0], [170, 0], [0, 90]]).round().tolist()[0]
    [0.0, 20.0, 90.0]
    """
    vectors = to_vector(*np.asarray(directions, dtype=np.float64).T)
    return angle_between(vectors[:, None], vectors)


def _places(directions) -> dict:
    """Columns that say where the talkers are."""
    apart = angles_between(directions)
    np.fill_diagonal(apart, np.nan)
    row = {}
    for j, (azimuth, elevation) in enumerate(directions, 1):
        row[f"azimuth_{j}"], row[f"elevation_{j}"] = float(azimuth), float(elevation)
        if len(directions) > 1:
            row[f"min_separation_deg_{j}"] = float(np.nanmin(apart[j - 1]))
    if len(directions) > 1:
        row["angle"] = float(np.nanmin(apart))
    return row


def _checked(mixture, estimates, targets):
    """All as float64 of shapes that fit, finite."""
    mixture, estimates, targets = (
        np.asarray(x, dtype=np.float64) for x in (mixture, estimates, targets)
    )
    if estimates.shape != targets.shape or mixture.shape != targets.shape[1:]:
        raise ValueError(
            f"shapes [E, T], [J, E, T] and [J, E, T] expected: {mixture.shape}, "
            f"{estimates.shape}, {targets.shape}"
        )
    for name, signal in (("mixture", mixture), ("estimates", estimates)):
        if not np.isfinite(signal).all():
            raise UserError(
                f"{name}: holds samples that are nan or infinite; if the network gave "
                "them, its training has diverged: start again with a lower learning rate"
            )
    return mixture, estimates, targets


def _table(metric, estimates, targets) -> np.ndarray:
    """A metric of every estimate as every target, mean over ears, [J, J]."""
    return np.array([[_over_ears(metric, e, t) for t in targets] for e in estimates])


def _diagonal(metric, estimates, targets) -> list:
    """A metric of each estimate and its own target, mean over ears."""
    return [_over_ears(metric, e, t) for e, t in zip(estimates, targets)]


def _over_ears(metric, estimate, target) -> float:
    """The mean over the ears in which the target is heard; nan if it is silent."""
    values = [metric(*ears) for ears in zip(estimate, target)]
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else float("nan")


def _mean(values):
    """Mean of the values that are not nan, None if there are none."""
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else None
