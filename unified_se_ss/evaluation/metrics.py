"""How good is a separation: SI-SNR and SDR of one utterance, in float64.

This is the judge's side: numpy only, one utterance at a time, no gradient. The losses
of the training live in `unified_se_ss.losses`.

Axes: T samples, J sources.
"""

from __future__ import annotations

import itertools

import numpy as np
import scipy.fft
import scipy.linalg

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.item_stats import conditions

#: The ratio below which a value means nothing; SpeechBrain's EPS. It is -80 dB, and
#: what a silent estimate gets.
FLOOR = 1e-8
FLOOR_DB = -80.0
#: Share of the estimate's energy that float64 cannot tell from zero (caps at 157 dB).
ROUNDING = np.finfo(np.float64).eps


def si_snr(estimate, target):
    """Scale-invariant signal-to-noise ratio of an estimate.

    Both signals are made zero-mean, then the estimate is split into its projection on
    the target and a rest: 10 log10(‖projection‖² / ‖rest‖²). Source: Le Roux et al.,
    "SDR - half-baked or well done?", ICASSP 2019, as in SpeechBrain's `cal_si_snr`,
    but without its dependence on the level: the result does not change at all with the
    scale of either signal. Values end at -80 dB (SpeechBrain's EPS; also the value of
    a silent estimate) and at 157 dB (rounding).

    Arguments
    ---------
    estimate : np.ndarray
        Estimated signal, shape [T].
    target : np.ndarray
        True signal, shape [T].

    Returns
    -------
    float
        SI-SNR in dB; nan if the target is silent (constant).

    Example
    -------
    >>> target = np.array([1.0, -1.0, 1.0, -1.0])
    >>> noise = np.array([1.0, 1.0, -1.0, -1.0])
    >>> round(si_snr(3 * target + 0.3 * noise, target), 6)
    20.0
    >>> si_snr(target, np.zeros(4))
    nan
    """
    estimate, target = _same_shape(estimate, target)
    if _is_constant(target):
        return float("nan")
    if _is_constant(estimate):
        return FLOOR_DB
    estimate = _unit_peak(estimate - estimate.mean())
    target = _unit_peak(target - target.mean())
    projection = (estimate @ target) / (target @ target) * target
    rest = estimate - projection
    noise = rest @ rest + ROUNDING * (estimate @ estimate)
    return float(10 * np.log10((projection @ projection) / noise + FLOOR))


def sdr(estimate, target, filter_length=512):
    """Signal-to-distortion ratio of BSS Eval version 3.

    The estimate is projected on the delayed copies of its target (0 to
    filter_length - 1 samples), so a short filter is not counted as distortion:
    10 log10(‖projection‖² / ‖estimate - projection‖²), the tail of the filter
    (T + filter_length - 1 samples) included. Source: Vincent, Gribonval and Févotte,
    "Performance measurement in blind audio source separation", 2006. Equal to
    `mir_eval.separation.bss_eval_sources(..., compute_permutation=False)`, which
    computes SIR and SAR too and therefore takes many times as long.

    Arguments
    ---------
    estimate : np.ndarray
        Estimated signal, shape [T].
    target : np.ndarray
        True signal, shape [T].
    filter_length : int
        Number of taps of the allowed filter, in samples.

    Returns
    -------
    float
        SDR in dB; nan if the target is silent (all zeros), -80 for a silent estimate.

    Example
    -------
    >>> target = np.random.default_rng(0).standard_normal(4000)
    >>> filtered = 0.5 * np.concatenate([np.zeros(3), target[:-3]])
    >>> sdr(filtered, target) > 30  # a delay and a gain are allowed
    True
    """
    estimate, target = _same_shape(estimate, target)
    return float(_sdr_of_many(estimate[None], target, filter_length)[0])


def best_permutation(estimates, targets):
    """Which estimate belongs to which target, by the mean SI-SNR over all J! orders.

    Silent targets have no say. Among equals the first order wins.

    Arguments
    ---------
    estimates : np.ndarray
        Estimated sources, shape [J, T].
    targets : np.ndarray
        True sources, shape [J, T].

    Returns
    -------
    tuple
        `permutation`, J integers: `estimates[permutation[j]]` belongs to `targets[j]`.

    Example
    -------
    >>> targets = np.random.default_rng(0).standard_normal((3, 100))
    >>> best_permutation(targets[[2, 0, 1]], targets)
    (1, 2, 0)
    """
    return best_order(_si_snr_table(*_same_shape(estimates, targets)))


def evaluate_item(
    mixture, estimates, targets, enhanced=None, clean_mixture=None, sample_rate=None
):
    """All metrics of one utterance, the estimates brought into the best order.

    Arguments
    ---------
    mixture : np.ndarray
        What the network heard, shape [T].
    estimates : np.ndarray
        Estimated sources in any order, shape [J, T].
    targets : np.ndarray
        True sources, shape [J, T].
    enhanced : np.ndarray
        Denoised mixture, shape [T]; left out, there are no `se_` metrics.
    clean_mixture : np.ndarray
        True denoised mixture, shape [T]; default: the sum of the targets.
    sample_rate : int
        In Hz; left out, there are no columns of `conditions`.

    Returns
    -------
    dict
        In dB: `si_snr`, `sdr` (means over the sources), `si_snr_i`, `sdr_i` (their
        improvements over the mixture), the same of each target with its number at the
        end (`si_snr_1`, `si_snr_i_1` ...), with `enhanced` also `se_si_snr` (against
        the clean mixture) and `se_si_snr_i` (improvement over the noisy mixture);
        `permutation`, as of `best_permutation`; and with `sample_rate` what
        `conditions` gives. None where the target is silent; a mean is taken over the
        sources that have a value.

    Raises
    ------
    UserError
        If the network's output is not finite.

    Example
    -------
    >>> targets = np.random.default_rng(0).standard_normal((2, 2000))
    >>> item = evaluate_item(targets.sum(0), targets[::-1], targets)
    >>> item["permutation"], item["si_snr_i"] > 100
    ((1, 0), True)
    """
    estimates, targets = _same_shape(estimates, targets)
    mixture, _ = _same_shape(mixture, targets[0])
    _check_finite(mixture, "mixture")
    _check_finite(targets, "targets")
    _check_finite(estimates, "estimates")
    table = _si_snr_table(estimates, targets)
    permutation = best_order(table)
    sources = [
        _evaluate_source(mixture, estimates[i], target, table[j, i])
        for j, (i, target) in enumerate(zip(permutation, targets))
    ]
    row = {name: _mean([source[name] for source in sources]) for name in sources[0]}
    if enhanced is not None:
        clean = targets.sum(axis=0) if clean_mixture is None else clean_mixture
        row.update(_evaluate_enhanced(mixture, enhanced, clean))
    for j, source in enumerate(sources, start=1):
        row.update({f"{name}_{j}": value for name, value in source.items()})
    row["permutation"] = permutation
    if sample_rate is not None:
        row.update(conditions(mixture, targets, sample_rate, clean_mixture))
    return row


def _si_snr_table(estimates, targets):
    """SI-SNR [J, J] of every target (rows) and every estimate; nan: silent target."""
    return np.array([[si_snr(e, target) for e in estimates] for target in targets])


def best_order(table):
    """The order of the estimates of the highest sum; the first among equals.

    Of a table [J, J] of targets (rows) and estimates; silent targets, nan, have no say.
    """
    table = np.nan_to_num(table, nan=0.0)
    orders = itertools.permutations(range(len(table)))
    return max(orders, key=lambda order: sum(table[j, i] for j, i in enumerate(order)))


def _evaluate_source(mixture, estimate, target, si_snr_estimate):
    """SI-SNR(i) and SDR(i) of one source."""
    sdr_estimate, sdr_mixture = _sdr_of_many(np.stack([estimate, mixture]), target)
    values = {
        "si_snr": si_snr_estimate,
        "si_snr_i": si_snr_estimate - si_snr(mixture, target),
        "sdr": sdr_estimate,
        "sdr_i": sdr_estimate - sdr_mixture,
    }
    return {name: none_if_nan(value) for name, value in values.items()}


def _evaluate_enhanced(mixture, enhanced, clean_mixture):
    """SI-SNR(i) of the denoised mixture."""
    _check_finite(enhanced, "enhanced")
    value = si_snr(enhanced, clean_mixture)
    gain = value - si_snr(mixture, clean_mixture)
    return {"se_si_snr": none_if_nan(value), "se_si_snr_i": none_if_nan(gain)}


def _sdr_of_many(estimates, target, filter_length=512):
    """SDRs [N] of several estimates [N, T] of one target [T], in dB."""
    if not np.any(target):
        return np.full(len(estimates), np.nan)
    samples = target.shape[-1]
    tail = samples + filter_length - 1
    n_fft = scipy.fft.next_fast_len(tail, real=True)
    target = _unit_peak(target)
    estimates = np.stack([_unit_peak(estimate) for estimate in estimates])
    spectrum = scipy.fft.rfft(target, n_fft)
    spectra = scipy.fft.rfft(estimates, n_fft)
    autocorrelation = scipy.fft.irfft(np.abs(spectrum) ** 2, n_fft)[:filter_length]
    correlations = scipy.fft.irfft(np.conj(spectrum) * spectra, n_fft)
    filters = _solve_normal_equations(autocorrelation, correlations[:, :filter_length])
    # The projection is computed, not its energy alone: the difference of two energies
    # would lose all digits where the SDR is high.
    projection = scipy.fft.irfft(scipy.fft.rfft(filters, n_fft) * spectrum, n_fft)
    projection = projection[:, :tail]
    rest = -projection
    rest[:, :samples] += estimates
    signal = np.sum(projection**2, axis=-1)
    noise = np.sum(rest**2, axis=-1) + ROUNDING * np.sum(estimates**2, axis=-1)
    silent = noise == 0
    ratio = np.where(silent, FLOOR, signal / np.where(silent, 1.0, noise))
    return 10 * np.log10(np.maximum(ratio, FLOOR))


def _solve_normal_equations(autocorrelation, correlations):
    """Filters [N, taps] of the least-squares projection.

    The Toeplitz matrix is positive definite, so Cholesky is stable where Levinson's
    recursion loses digits. Only where a target is so strongly band-limited, without
    even the noise of 16-bit samples, that its matrix is singular to rounding, the
    smallest of a few diagonal loads that makes it definite is added. Directions that
    hold nothing but rounding errors are then no longer used to explain the estimate:
    the SDR lies below that of the exact projection (QR of the delayed copies) by at
    most what so many free taps take of any noise, 10 log10(T / (T - taps)). mir_eval's
    LU, there, moves by up to 0.7 dB when both signals are merely scaled.
    """
    matrix = scipy.linalg.toeplitz(autocorrelation)
    for load in (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10):
        matrix[np.diag_indices_from(matrix)] = autocorrelation[0] * (1 + load)
        try:
            factor = scipy.linalg.cho_factor(matrix, check_finite=False)
        except np.linalg.LinAlgError:
            continue
        return scipy.linalg.cho_solve(factor, correlations.T, check_finite=False).T
    return np.linalg.lstsq(matrix, correlations.T, rcond=None)[0].T


def _same_shape(estimate, target):
    """Both as float64, refused if their shapes differ."""
    estimate = np.asarray(estimate, dtype=np.float64)
    target = np.asarray(target, dtype=np.float64)
    if estimate.shape != target.shape:
        raise ValueError(f"shapes differ: {estimate.shape} and {target.shape}")
    return estimate, target


def _check_finite(signal, name):
    """Refuse a signal that holds nan or inf."""
    if not np.all(np.isfinite(signal)):
        raise UserError(
            f"{name}: holds samples that are nan or infinite, finite ones were "
            "expected. If it is the network's output, its training has diverged: "
            "start again from an earlier checkpoint or with a lower learning rate."
        )


def _is_constant(signal):
    """Whether a signal is silent once its mean is taken off."""
    return np.ptp(signal) <= 1e-12 * np.max(np.abs(signal))


def _unit_peak(signal):
    """The signal at peak 1, so that no square over- or underflows."""
    peak = np.max(np.abs(signal))
    return signal / peak if peak > 0 else signal


def none_if_nan(value):
    """A number, or None where there is none."""
    return None if np.isnan(value) else float(value)


def _mean(values):
    """Mean of the values that are there, None if there are none."""
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None
