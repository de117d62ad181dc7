"""Metrics of single utterances: SI-SNR, SNR, SDR, SIR, SAR, PESQ, STOI, ESTOI and DNSMOS.

In float64 and without gradients; the losses of the training are in `unified_se_ss.losses`.
The perceptual metrics come from packages that are extras; each is an entry of `PERCEPTUAL`.
Where one has no value, the cell is empty and the row's column `why_empty` says why.

Axes: T samples, J sources, N estimates, S reference signals.
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.linalg

from unified_se_ss.errors import UserError

#: Ratios end here: -80 dB, SpeechBrain's EPS, and what a silent estimate gets.
FLOOR = 1e-8
FLOOR_DB = -80.0
#: Share of the estimate's energy that float64 cannot tell from zero (caps at 157 dB).
ROUNDING = np.finfo(np.float64).eps
#: Taps of the filters that BSS Eval allows.
FILTER_LENGTH = 512
#: Samples by which an estimate may be ahead of its references, for SIR and SAR.
LEAD = 32
#: Relative loads of the diagonal, tried in turn, that make normal equations definite.
_LOADS = (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10)


class Column(NamedTuple):
    """A column of results.csv: its key there, and what tables and plots call it.

    Of a rate in percent of words, `errors` is the column that counts the errors: the mean is
    all errors over all words.
    """

    key: str
    heading: str
    unit: str = ""
    lower_is_better: bool = False
    errors: str | None = None

    @property
    def label(self) -> str:
        return f"{self.heading} ({self.unit})" if self.unit else self.heading


def with_improvement(key, heading, unit="") -> tuple[Column, Column]:
    """The columns of a metric and of its improvement over the input, `..._i`."""
    plain, _, of = heading.partition(" ")
    improved = f"{plain}i {of}".rstrip()
    return Column(key, heading, unit), Column(f"{key}_i", improved, unit)


# ------------------------------------------------------------------ ratios


def si_snr(estimate, target) -> float:
    """Scale-invariant signal-to-noise ratio in dB, -80 (a silent estimate's) to 157.

    10 log10(‖projection on the target‖² / ‖rest‖²) of zero-mean signals [T]; independent of
    the scale of either, unlike SpeechBrain's `cal_si_snr`; nan if the target is constant.
    Source: Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019.

    Example
    -------
    >>> target = np.array([1.0, -1.0, 1.0, -1.0])
    >>> noise = np.array([1.0, 1.0, -1.0, -1.0])
    >>> round(si_snr(3 * target + 0.3 * noise, target), 6)
    20.0
    """
    estimate, target = same_shape(estimate, target)
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


def snr(estimate, target, zero_mean: bool = False, floor: float = ROUNDING) -> float:
    """Signal-to-noise ratio 10 log10(‖t‖² / ‖e − t‖²) of signals [T]: level and delay count.

    In dB; nan if the target is silent. With `zero_mean` an offset does not count; the value
    ends at the power ratio `floor` on either side.

    Example
    -------
    >>> target = np.array([1.0, -1.0, 1.0, -1.0])
    >>> round(snr(0.9 * target, target), 3), snr(target, 0 * target)
    (20.0, nan)
    """
    if zero_mean:
        estimate, target = estimate - estimate.mean(), target - target.mean()
    energy = float(target @ target)
    if energy == 0:
        return float("nan")
    rest = estimate - target
    noise = float(rest @ rest) + floor * energy
    return float(10 * np.log10(energy / noise + floor))


def sdr(estimate, target, filter_length: int = FILTER_LENGTH):
    """Signal-to-distortion ratio of BSS Eval version 3: a short filter is no distortion.

    The estimate is projected on its target delayed by 0 to filter_length - 1 samples:
    10 log10(‖projection‖² / ‖rest‖²), the filter's tail included. Source: Vincent, Gribonval
    and Févotte, "Performance measurement in blind audio source separation", 2006. Equal to
    `mir_eval.separation.bss_eval_sources`, and many times as fast.

    Arguments
    ---------
    estimate : np.ndarray
        Shape [T], or [N, T] for several estimates of one target.
    target : np.ndarray
        Shape [T].
    filter_length : int
        Taps.

    Returns
    -------
    float or np.ndarray
        In dB, of [N, T] for each; nan if the target is silent, -80 for a silent estimate.
    """
    estimates = np.atleast_2d(np.asarray(estimate, dtype=np.float64))
    _, target = same_shape(estimates[0], target)
    values = np.full(len(estimates), np.nan)
    if np.any(target):
        estimates = _unit_peak(estimates)
        projection = _project(estimates, target[None], filter_length)
        rest = _pad_to(estimates, projection) - projection
        noise = _energy(rest) + ROUNDING * _energy(estimates)
        values = 10 * np.log10(np.maximum(_ratio(_energy(projection), noise), FLOOR))
    return values if np.ndim(estimate) == 2 else float(values[0])


def sir_sar(estimates, references, filter_length: int = FILTER_LENGTH, lead: int = LEAD):
    """Interference and distortion apart: SIR and SAR of BSS Eval version 3.

    An estimate is projected on its target, and on all references. What the others add is
    interference; the rest is distortion: artefacts, and reverberation later than the
    filter. Source: as for `sdr`.

    Arguments
    ---------
    estimates : np.ndarray
        Shape [N, T].
    references : np.ndarray
        Target, then interferers and noise, shape [S, T]; silent ones are left out.
    filter_length : int
        Taps.
    lead : int
        Samples by which estimates are delayed first, since a beamformer may receive an
        interferer earlier than the reference microphone does.

    Returns
    -------
    sir, sar : np.ndarray
        In dB, [N]: target to interference, and both to distortion; -80 where there is
        nothing of the target.

    Example
    -------
    >>> target, other, noise = np.random.default_rng(0).standard_normal((3, 8000))
    >>> estimate = target + 0.1 * other + 0.5 * noise
    >>> sir, sar = sir_sar(estimate[None], np.stack([target, other]), 64)
    >>> bool(abs(sir[0] - 20) < 1), bool(abs(sar[0] - 6) < 1)
    (True, True)
    """
    references = np.asarray(references, dtype=np.float64)
    references = np.concatenate([references[:1], references[1:][references[1:].any(1)]])
    references = np.pad(references, ((0, 0), (0, lead)))
    estimates = np.pad(np.asarray(estimates, dtype=np.float64), ((0, 0), (lead, 0)))
    on_all = _project(estimates, references, filter_length)
    on_target = _project(estimates, references[:1], filter_length)
    rest = _pad_to(estimates, on_all) - on_all
    floor = ROUNDING * _energy(estimates)
    sir = _ratio(_energy(on_target), _energy(on_all - on_target) + floor)
    sar = _ratio(_energy(on_all), _energy(rest) + floor)
    return 10 * np.log10(sir + FLOOR), 10 * np.log10(sar + FLOOR)


def si_snr_table(estimates, targets):
    """SI-SNR [J, J] of every target (rows) and estimate [J, T]; nan: silent target."""
    estimates, targets = same_shape(estimates, targets)
    return np.array([[si_snr(e, target) for e in estimates] for target in targets])


def best_permutation(scores) -> tuple:
    """The order of the estimates with the highest sum of scores; the first of equal ones.

    `estimates[permutation[j]]` belongs to `targets[j]`. Scores are of targets (rows) and
    estimates (columns), [J, J]; nan, of a silent target, counts nothing.

    Example
    -------
    >>> best_permutation([[0.0, 20.0], [20.0, 0.0]])
    (1, 0)
    """
    table = np.nan_to_num(scores, nan=0.0)
    orders = itertools.permutations(range(len(table)))
    return max(orders, key=lambda order: sum(table[j, i] for j, i in enumerate(order)))


def same_shape(estimate, target):
    """Both as float64; ValueError if their shapes differ."""
    estimate = np.asarray(estimate, dtype=np.float64)
    target = np.asarray(target, dtype=np.float64)
    if estimate.shape != target.shape:
        raise ValueError(f"shapes differ: {estimate.shape} and {target.shape}")
    return estimate, target


def check_finite(**signals) -> None:
    """Refuse signals that hold nan or inf: UserError names the first."""
    for name, signal in signals.items():
        if not np.all(np.isfinite(signal)):
            raise UserError(
                f"{name}: holds samples that are nan or infinite. If it is the network's "
                "output, its training has diverged: start again from an earlier "
                "checkpoint or with a lower learning rate."
            )


def none_if_nan(value):
    """A number as float, None in place of nan."""
    return None if np.isnan(value) else float(value)


def mean_or_none(values):
    """Mean of the values that are neither None nor nan; None without any."""
    values = np.array([value for value in values if value is not None], dtype=float)
    values = values[~np.isnan(values)]
    return float(np.mean(values)) if len(values) else None


def _project(estimates, references, taps):
    """Least-squares projections [N, T + taps - 1] on filtered references [S, T]."""
    references = _unit_peak(references)
    samples = references.shape[1] + taps - 1
    n_fft = scipy.fft.next_fast_len(samples, real=True)
    spectra = scipy.fft.rfft(references, n_fft)
    lags = scipy.fft.irfft(spectra[:, None].conj() * spectra, n_fft)  # [S, S, n_fft]
    matrix = np.block([[_toeplitz(row, taps) for row in rows] for rows in lags])
    cross = scipy.fft.rfft(estimates, n_fft)[:, None] * spectra.conj()
    right = scipy.fft.irfft(cross, n_fft)[..., :taps].reshape(len(estimates), -1)
    filters = _solve(matrix, right.T).T.reshape(len(estimates), len(references), taps)
    # The projection itself, not its energy alone: the difference of two energies would
    # lose all digits where the SDR is high.
    sums = (scipy.fft.rfft(filters, n_fft) * spectra).sum(axis=1)
    return scipy.fft.irfft(sums, n_fft)[:, :samples]


def _toeplitz(lags, taps):
    """Correlations [taps, taps] at lags 0, 1, ... downwards and 0, -1, ... to the right."""
    return scipy.linalg.toeplitz(lags[:taps], np.concatenate([lags[:1], lags[:-taps:-1]]))


def _solve(matrix, right):
    """Solve normal equations [M, M] x = [M, N] by Cholesky.

    It is stable where Levinson's recursion loses digits. Where references are so strongly
    band-limited that the matrix is singular to rounding, the smallest load that makes it
    definite is added: the SDR then lies below that of the exact projection by at most
    10 log10(T / (T - taps)). mir_eval's LU, there, moves by up to 0.7 dB when both signals
    are merely scaled.
    """
    diagonal = np.diag_indices_from(matrix)
    plain = matrix[diagonal].copy()
    for load in _LOADS:
        matrix[diagonal] = plain * (1 + load)
        try:
            factor = scipy.linalg.cho_factor(matrix, check_finite=False)
        except np.linalg.LinAlgError:
            continue
        return scipy.linalg.cho_solve(factor, right, check_finite=False)
    return np.linalg.lstsq(matrix, right, rcond=None)[0]


def _energy(signals):
    return np.sum(np.square(signals), axis=-1)


def _ratio(signal, noise):
    """Element by element; 0 where there is neither."""
    return np.divide(signal, noise, out=np.zeros(np.shape(noise)), where=noise != 0)


def _pad_to(signals, longer):
    return np.pad(signals, ((0, 0), (0, longer.shape[1] - signals.shape[1])))


def _is_constant(signal):
    return np.ptp(signal) <= 1e-12 * np.max(np.abs(signal))


def _unit_peak(signals):
    """Signals [..., T] at peak 1, so that no square over- or underflows."""
    peak = np.max(np.abs(signals), axis=-1, keepdims=True)
    return signals / np.where(peak > 0, peak, 1.0)


# ------------------------------------------------------------------ perceptual

#: The column that says why cells of a row are empty.
WHY_EMPTY = "why_empty"
PERCEPTUAL_COLUMNS = (
    *with_improvement("pesq_nb", "PESQ (narrow band)"),
    *with_improvement("pesq_wb", "PESQ (wide band)"),
    *with_improvement("stoi", "STOI", "%"),
    *with_improvement("estoi", "ESTOI", "%"),
    *with_improvement("dnsmos", "DNSMOS"),
)


class NoValue(Exception):
    """A metric has no value for a signal; the message says why."""


@dataclass(frozen=True)
class _Metric:
    """A metric of one estimate against its target.

    Arguments
    ---------
    package : str
        What must be installed.
    score : callable
        Of estimate [T], target [T] and rate in Hz; raises `NoValue`. Neither signal is
        silent; both have the same root mean square.
    columns : dict
        Name of the column by sampling rate in Hz; the key None stands for any rate.
    others : tuple of str
        What the package needs and does not install itself.
    """

    package: str
    score: Callable
    columns: dict
    others: tuple = ()

    def missing(self):
        names = (self.package, *self.others)
        return [name for name in names if importlib.util.find_spec(name) is None]

    def column(self, sample_rate):
        """The column of results.csv, None if the metric is not defined at this rate."""
        return self.columns.get(sample_rate, self.columns.get(None))


def check_metrics(names, sample_rate):
    """Refuse metrics without their package, or not defined at this sampling rate: UserError."""
    missing = [name for name in names if PERCEPTUAL[name].missing()]
    if missing:
        packages = sorted({p for name in missing for p in PERCEPTUAL[name].missing()})
        extra = "dnsmos" if missing == ["dnsmos"] else "metrics"
        raise UserError(
            f"metrics: {', '.join(missing)} needs the package(s) {', '.join(packages)}, "
            f"not installed here; install with pip install 'unified_se_ss[{extra}]', or "
            f"pip install {' '.join(packages)}, or leave {', '.join(missing)} out"
        )
    for name in names:
        if PERCEPTUAL[name].column(sample_rate) is None:
            rates = " or ".join(str(rate) for rate in PERCEPTUAL[name].columns)
            raise UserError(
                f"metrics: {name} is defined at {rates} Hz, but the model works at "
                f"{sample_rate} Hz; leave {name} out"
            )


def perceptual_scores(names, mixture, estimates, targets, sample_rate):
    """Perceptual metrics of one utterance: keys of `PERCEPTUAL`.

    Mixture [T]; estimates and targets in one order, [J, T]. Of each metric its mean over the
    sources, the improvement of that over the mixture (`_i` at the end), and both of each source
    with its number at the end; None where there is no value, and then `why_empty`.
    """
    row, reasons = {}, []
    for name in names:
        column = PERCEPTUAL[name].column(sample_rate)
        pairs = []
        for j, (estimate, target) in enumerate(zip(estimates, targets), start=1):
            try:
                score = perceptual_score(name, estimate, target, sample_rate)
                gain = score - perceptual_score(name, mixture, target, sample_rate)
            except NoValue as reason:
                score = gain = None
                reasons.append(f"{name} of source {j}: {reason}")
            pairs.append({column: score, f"{column}_i": gain})
        for key in (column, f"{column}_i"):
            row[key] = mean_or_none([pair[key] for pair in pairs])
        for j, pair in enumerate(pairs, start=1):
            row.update({f"{key}_{j}": value for key, value in pair.items()})
    if reasons:
        row[WHY_EMPTY] = "; ".join(reasons)
    return row


def empty_scores(names, n_sources, sample_rate, reason):
    """The row of `perceptual_scores` where no metric could be computed."""
    columns = [PERCEPTUAL[name].column(sample_rate) for name in names]
    ends = ["", "_i", *(f"{i}_{j}" for j in range(1, n_sources + 1) for i in ("", "_i"))]
    row = {column + end: None for column in columns for end in ends}
    return {**row, WHY_EMPTY: f"{', '.join(names)}: {reason}"}


def installed_metrics(sample_rate):
    """Keys of `PERCEPTUAL` whose packages are there and that are defined at this rate."""
    return [
        name
        for name, metric in PERCEPTUAL.items()
        if metric.column(sample_rate) is not None and not metric.missing()
    ]


def perceptual_score(name, estimate, target, sample_rate):
    """A metric of one signal [T], first brought to the rms of its target [T]; may raise NoValue."""
    levels = [float(np.sqrt(np.mean(np.square(x)))) for x in (estimate, target)]
    for signal, level in zip(("estimate", "reference"), levels):
        if level < 1e-12:
            raise NoValue(f"the {signal} is silent")
    estimate = estimate * (levels[1] / levels[0])
    return float(PERCEPTUAL[name].score(estimate, target, sample_rate))


def _pesq(estimate, target, sample_rate):
    """Perceptual Evaluation of Speech Quality, as MOS-LQO from 1 to 4.6.

    At 8 kHz ITU-T P.862 with P.862.1 (narrow band), at 16 kHz P.862.2 (wide band); the
    two scales cannot be compared.
    """
    import pesq

    mode = {8000: "nb", 16000: "wb"}[sample_rate]
    try:
        return pesq.pesq(sample_rate, target, estimate, mode)
    except pesq.PesqError as error:
        reason = error.args[0] if error.args else "no value"
        reason = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise NoValue(reason[:1].lower() + reason[1:]) from error
    except ValueError as error:
        raise NoValue(str(error)) from error


def _stoi(estimate, target, sample_rate, extended=False):
    """Short-time objective intelligibility in percent (Taal et al., 2011).

    Extended: Jensen and Taal, 2016.
    """
    from pystoi import stoi

    with warnings.catch_warnings():
        # Instead of a value, it warns and returns 1e-5.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return 100 * stoi(target, estimate, sample_rate, extended=extended)
        except RuntimeWarning as warning:
            raise NoValue("less than 0.4 s of speech") from warning


def _dnsmos(estimate, target, sample_rate):
    """DNSMOS P.835, overall, from 1 to 5 (Reddy et al., 2022); looks at no reference."""
    from speechmos import dnsmos

    loudest = np.max(np.abs(estimate))
    return dnsmos.run(estimate / max(1.0, loudest), sr=sample_rate)["ovrl_mos"]


#: The metrics there are, by the names that the command line knows.
PERCEPTUAL = {
    "pesq": _Metric("pesq", _pesq, {8000: "pesq_nb", 16000: "pesq_wb"}),
    "stoi": _Metric("pystoi", _stoi, {None: "stoi"}),
    "estoi": _Metric("pystoi", partial(_stoi, extended=True), {None: "estoi"}),
    "dnsmos": _Metric("speechmos", _dnsmos, {16000: "dnsmos"}, ("librosa", "onnxruntime")),
}
