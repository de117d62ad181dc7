"""PESQ, STOI, ESTOI and DNSMOS, by packages that are extras.

A metric is an entry of `PERCEPTUAL`. Where it has no value, the cell is empty and the
row's column `why_empty` says why.

Axes: T samples, J sources.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.metrics import mean_or_none
from unified_se_ss.evaluation.tables import with_improvement

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
