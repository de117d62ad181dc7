"""Interaural time and level differences of separated sources, and their errors.

*ITD*: where the GCC-PHAT (Knapp and Carter, 1976) of the two ears, over the whole signal and
the frequencies of `BAND`, is largest within ±1 ms; interpolated to 1/16 of a sample by
windowed sincs, and from there by a parabola. In µs, positive where the left ear is first.

*ILD*: 10 log10 of the ratio of the ears' energies, of the whole signal and in octaves
(`BANDS`), positive where the left ear is louder.

ΔITD and ΔILD are the absolute differences between an estimate and its target. Sources of
which an ear is silent, in the target or the estimate, are counted, not averaged.

`protocol="speechbrain"` gives what SpeechBrain's recipe BinauralWSJ0Mix reports, to compare
with its table: ITD in whole samples (125 µs at 8 kHz), at any lag, of all frequencies, where
the correlation's *magnitude* is largest; and of every metric the smaller one of two orders
of the sources, the given and the reversed, whatever the order of the SNR is.

Axes: J sources, E ears (left, right), T samples.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.fft

from unified_se_ss.evaluation.metrics import (
    check_finite,
    mean_or_none,
    none_if_nan,
    same_shape,
)

BAND = (100.0, 3600.0)
"""Hz between which phases count for the ITD: what all rates from 8 kHz upwards have."""
BANDS = ((250, 500), (500, 1000), (1000, 2000), (2000, 4000), (4000, 8000))
"""Octaves of the ILD in Hz, lower edge included; those above Nyquist are left out."""
MAX_LAG = 1e-3
"""Seconds; no head is so wide that its ITD were larger."""
LARGE_ITD_ERROR = 50.0
"""µs; the share of sources whose ΔITD is above it is reported. It is about 5° in front."""
SILENT = 1e-3
"""An ear, or a band of it, counts as silent 60 dB below (rms) the loudest ear of its set,
or the ear's whole."""

FADE = 0.05
"""Seconds over which signals fade in and out before they are transformed. A signal that is
cut off in the middle of a word breaks off at the same instant in both ears: without fades
that break, an ITD of 0, decides wherever the voice itself has little energy (measured:
errors up to 200 µs)."""
OVERSAMPLING = 16
GUARD = 32  # samples on either side that the windowed sinc of the interpolation needs
KAISER_BETA = 9.0
PHASELESS = 1e-10  # bins below this share of the largest cross-spectrum have no phase
PROTOCOLS = ("default", "speechbrain")


def interaural_errors(
    estimates, targets, sample_rate: int, permutation, protocol: str = "default"
) -> dict:
    """ΔITD and ΔILD of an utterance's sources.

    Arguments
    ---------
    estimates : np.ndarray
        Estimated sources in any order, [J, E, T].
    targets : np.ndarray
        True sources, [J, E, T].
    sample_rate : int
        In Hz.
    permutation : sequence of int
        `estimates[permutation[j]]` belongs to `targets[j]`.
    protocol : str
        `default`, or `speechbrain`, which ignores the permutation and gives `delta_itd`
        and `delta_ild` alone.

    Returns
    -------
    dict
        `delta_itd` in µs, `delta_ild` in dB and `delta_ild_{low}_{high}` in dB per band:
        means over the measured sources, None without any; the same of each source with its
        number at the end; `itd_{j}` and `ild_{j}` of the target, `itd_estimate_{j}` and
        `ild_estimate_{j}`; and `cues_{j}`: `measured`, `silent` or `monaural`.

    Raises
    ------
    UserError
        If a signal is not finite.
    """
    estimates, targets = same_shape(estimates, targets)
    if targets.ndim != 3 or targets.shape[1] != 2:
        raise ValueError(f"signals of shape [J, 2, T] expected: {targets.shape}")
    check_finite(targets=targets, estimates=estimates)
    if protocol == "speechbrain":
        return _speechbrain_errors(estimates, targets, sample_rate)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: one of {PROTOCOLS} was expected")
    estimates = estimates[list(permutation)]
    states = _states(estimates, targets)
    measured = np.array([state == "measured" for state in states])
    signals = np.stack([estimates, targets])  # 2, J, E, T
    times, levels = interaural_cues(signals, sample_rate)
    deltas = {"delta_itd": _difference(times, measured)}
    for name, values in levels.items():
        deltas[f"delta_{name}"] = _difference(values, measured)
    row = {name: mean_or_none(values) for name, values in deltas.items()}
    for j, state in enumerate(states):
        for name, values in deltas.items():
            row[f"{name}_{j + 1}"] = none_if_nan(values[j])
        for signal, name in ((1, ""), (0, "_estimate")):
            for cue, values in (("itd", times), ("ild", levels["ild"])):
                value = none_if_nan(values[signal, j]) if measured[j] else None
                row[f"{cue}{name}_{j + 1}"] = value
        row[f"cues_{j + 1}"] = state
    return row


def summarise_interaural(rows) -> dict:
    """A test set's interaural errors, over all its measured sources, from its rows.

    Returns
    -------
    dict
        `delta_itd_mean`, `delta_itd_median` (µs), `delta_itd_large` (share above 50 µs),
        `delta_ild_mean`, `delta_ild_median` (dB), the same per band; `measured`, `silent`,
        `monaural`: numbers of sources. Of `protocol="speechbrain"`, `delta_itd_mean` and
        `delta_ild_mean` alone: means over the utterances.

    Example
    -------
    >>> rows = [{"delta_itd_1": 10.0, "cues_1": "measured"}, {"cues_1": "silent"}]
    >>> summary = summarise_interaural(rows)
    >>> summary["delta_itd_mean"], summary["measured"], summary["silent"]
    (10.0, 1, 1)
    """
    rows = list(rows)
    if not any("cues_1" in row for row in rows):
        return {
            f"{name}_mean": mean_or_none(_column(rows, name))
            for name in ("delta_itd", "delta_ild")
        }
    sources = range(1, 1 + max(_sources(row) for row in rows))
    names = ["delta_itd", "delta_ild"]
    names += [f"delta_{_band_name(band)}" for band in BANDS]
    summary = {}
    for name in names:
        values = np.concatenate([_column(rows, f"{name}_{j}") for j in sources])
        if name not in ("delta_itd", "delta_ild") and not len(values):
            continue
        summary[f"{name}_mean"] = mean_or_none(values)
        summary[f"{name}_median"] = float(np.median(values)) if len(values) else None
        if name == "delta_itd":
            summary["delta_itd_large"] = mean_or_none(values > LARGE_ITD_ERROR)
    states = [row.get(f"cues_{j}") for row in rows for j in sources]
    for state in ("measured", "silent", "monaural"):
        summary[state] = states.count(state)
    return summary


def _states(estimates, targets):
    """Of each source: measured, silent or monaural; first its target decides."""
    states = []
    ears = zip(_heard_ears(targets), _heard_ears(estimates))
    for of_target, of_estimate in ears:
        audible = of_target if of_target < 2 else of_estimate
        states.append(("silent", "monaural", "measured")[audible])
    return states


def _heard_ears(signals):
    """Number of ears of each source that are not silent, [J], of signals [J, E, T]."""
    peak = np.abs(signals).max(initial=0.0)
    if peak == 0:
        return np.zeros(len(signals), dtype=int)
    energies = _energies(signals / peak)
    return (energies > SILENT**2 * energies.max()).sum(axis=-1)


def interaural_cues(signals, sample_rate):
    """ITDs [...] in µs, and ILDs in dB by name, of left and right ears [..., E, T].

    Names are `ild` and, of the octaves below Nyquist, `ild_{low}_{high}`. nan where the ears
    share no frequency, or one of them is silent.

    Example
    -------
    >>> ears = np.random.default_rng(0).standard_normal((2, 8000))
    >>> ears[1] = 0.1 * np.roll(ears[0], 3)  # the right ear is 3 samples later
    >>> times, levels = interaural_cues(ears, 8000)
    >>> float(times.round(1)), float(levels["ild"].round(6))
    (375.0, 20.0)
    """
    signals = _unit_peaks(signals)
    spectra = _spectra(signals, sample_rate)
    energies = _energies(signals)
    levels = {"ild": _decibel(energies)}
    for band in BANDS:
        if band[1] <= sample_rate / 2:
            audible = _band_energies(spectra, sample_rate, band)
            empty = np.any(audible <= SILENT**2 * energies, axis=-1)
            levels[_band_name(band)] = np.where(empty, np.nan, _decibel(audible))
    return _phat_itd(spectra, sample_rate), levels


def _spectra(signals, sample_rate):
    """Spectra [..., E, F] of the faded signals; n_fft is even, and no lag wraps around."""
    samples = signals.shape[-1]
    least = samples + _whole_lags(sample_rate) + GUARD + 1
    n_fft = 2 * scipy.fft.next_fast_len(-(-least // 2), real=True)
    return scipy.fft.rfft(signals * _fades(samples, sample_rate), n_fft)


def _fades(samples, sample_rate):
    """Window [T] that fades in and out, over a quarter of a short signal at most."""
    length = min(round(FADE * sample_rate), samples // 4)
    rise = np.sin(np.pi / 2 * (np.arange(length) + 0.5) / max(1, length)) ** 2
    return np.concatenate([rise, np.ones(samples - 2 * length), rise[::-1]])


def _whole_lags(sample_rate):
    return int(np.ceil(MAX_LAG * sample_rate))


def _phat_itd(spectra, sample_rate):
    """ITDs in µs, [...], of spectra [..., E, F] of an even n_fft; nan without phase."""
    # Here, as it brings torch, which processes that score others do without.
    from unified_se_ss.spatial.dsp import phat_correlation

    bins = spectra.shape[-1]
    n_fft = 2 * (bins - 1)
    low, high = _band_bins(bins, sample_rate, BAND)
    left, right = spectra[..., 0, low:high], spectra[..., 1, low:high]
    cross = np.conj(left) * right
    in_band = np.zeros((*cross.shape[:-1], bins), dtype=np.complex128)
    in_band[..., low:high] = cross
    correlation = phat_correlation(in_band, PHASELESS, n_fft)
    reach = _whole_lags(sample_rate) + GUARD
    lags = np.concatenate(
        [correlation[..., n_fft - reach :], correlation[..., : reach + 1]], axis=-1
    )
    steps = _largest(lags @ _interpolation(sample_rate))
    microseconds = 1e6 * steps / (OVERSAMPLING * sample_rate)
    return np.where(np.any(cross, axis=-1), microseconds, np.nan)


@functools.lru_cache(maxsize=8)
def _interpolation(sample_rate):
    """From whole lags to those between by windowed sincs, [lags, finer lags]."""
    from unified_se_ss.spatial.dsp import windowed_sinc

    reach = _whole_lags(sample_rate) + GUARD
    fine = _fine_lags(sample_rate) + 1  # one more on either side, for the parabola
    distance = np.arange(-fine, fine + 1) / OVERSAMPLING
    distance = distance - np.arange(-reach, reach + 1)[:, None]
    return windowed_sinc(distance, GUARD, KAISER_BETA)


def _fine_lags(sample_rate):
    return int(MAX_LAG * sample_rate * OVERSAMPLING + 1e-9)


def _largest(correlation):
    """Lag of the largest value of [..., lags], from the middle, refined by a parabola."""
    best = 1 + np.argmax(correlation[..., 1:-1], axis=-1)[..., None]
    before, at, after = (
        np.take_along_axis(correlation, best + step, axis=-1)[..., 0] for step in (-1, 0, 1)
    )
    curvature = before - 2 * at + after
    # At the end of the range the largest value need not be a maximum: no parabola there.
    peak = (at >= before) & (at >= after) & (curvature < 0)
    shift = np.where(peak, 0.5 * (before - after) / np.where(peak, curvature, 1.0), 0.0)
    return best[..., 0] - correlation.shape[-1] // 2 + shift


def _energies(signals):
    return np.einsum("...t,...t->...", signals, signals)


def _band_energies(spectra, sample_rate, band):
    """Energies within a band, [..., E], of spectra [..., E, F] of an even n_fft."""
    bins = spectra.shape[-1]
    low, high = _band_bins(bins, sample_rate, band)
    part = spectra[..., low:high]
    return (_energies(part.real) + _energies(part.imag)) / (bins - 1)


def _band_bins(bins, sample_rate, band):
    """The bins [low, high) of a band, its lower edge included."""
    per_bin = sample_rate / 2 / (bins - 1)
    return tuple(min(bins, int(np.ceil(edge / per_bin - 1e-9))) for edge in band)


def _decibel(energies):
    """ILD in dB, [...], of energies [..., E]; nan where an ear holds nothing."""
    audible = np.all(energies > 0, axis=-1)
    ratio = np.divide(
        energies[..., 0], energies[..., 1], out=np.ones(audible.shape), where=audible
    )
    return np.where(audible, 10 * np.log10(ratio), np.nan)


def _unit_peaks(signals):
    """Float64 signals [..., E, T], each pair of ears at peak 1: no square under- or overflows."""
    signals = np.asarray(signals, dtype=np.float64)
    peaks = np.abs(signals).max(axis=(-2, -1), keepdims=True, initial=0.0)
    return signals / np.where(peaks > 0, peaks, 1.0)


def _difference(values, measured):
    """|estimate - target|, [J], of values [2, J]; nan for sources that are not measured."""
    return np.where(measured, np.abs(values[0] - values[1]), np.nan)


def _band_name(band):
    return f"ild_{band[0]}_{band[1]}"


def _column(rows, name):
    values = [row.get(name) for row in rows]
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _sources(row):
    count = 0
    while f"cues_{count + 1}" in row:
        count += 1
    return count


def _speechbrain_errors(estimates, targets, sample_rate):
    """ΔITD in µs and ΔILD in dB, as SpeechBrain's recipe has them."""
    times = [_whole_sample_itds(signals, sample_rate) for signals in (estimates, targets)]
    levels = []
    for signals in (estimates, targets):
        left, right = np.moveaxis(_energies(signals), -1, 0)
        levels.append(10 * np.log10(left / (right + 1e-8) + 1e-8))
    return {
        "delta_itd": _smaller_of_two_orders(*times),
        "delta_ild": _smaller_of_two_orders(*levels),
    }


def _smaller_of_two_orders(of_estimates, of_targets):
    """Mean absolute difference in the given or the reversed order, the smaller one."""
    orders = of_estimates, of_estimates[::-1]
    return min(float(np.abs(of_targets - values).mean()) for values in orders)


def _whole_sample_itds(signals, sample_rate):
    """ITDs [J] in µs like pyroomacoustics' `tdoa` with its defaults and PHAT.

    A bin without energy makes all values nan there; the first of them, a lag of minus the
    length, is then what its argmax finds, and so here.
    """
    samples = signals.shape[-1]
    n_fft = 2 * samples
    spectra = scipy.fft.rfft(signals.astype(np.float32).astype(np.float64), n_fft)
    with np.errstate(divide="ignore", invalid="ignore"):
        spectra = spectra / np.abs(spectra)
    correlation = scipy.fft.irfft(spectra[:, 0] * np.conj(spectra[:, 1]), n_fft)
    longest = samples + 1
    lags = np.concatenate([correlation[:, -longest:], correlation[:, :longest]], axis=-1)
    return 1e6 * (np.argmax(np.abs(lags), axis=-1) - longest) / sample_rate
