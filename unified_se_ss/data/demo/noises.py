"""Noises of the demo, made from random numbers: [T] samples of no particular level.

Levels are given by mixing (see `mixing.py`). Every noise is float64 and a function of its
generator alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.fft import next_fast_len


def _coloured(rng: np.random.Generator, n_samples: int, sample_rate: int) -> np.ndarray:
    """Stationary noise whose power falls with frequency as f^-slope.

    The slope is drawn from 0 (white) to 2 (brown); below 50 Hz the power falls away, as
    in most recordings.
    """
    slope = rng.uniform(0.0, 2.0)
    return _shaped(rng, n_samples, sample_rate, lambda hertz: hertz ** (-slope / 2))


def _hum(rng: np.random.Generator, n_samples: int, sample_rate: int) -> np.ndarray:
    """Hum of a machine: a slightly unsteady tone of 45 to 130 Hz with its harmonics.

    Harmonics fall by 3 to 9 dB per octave and by chance; a faint coloured noise lies
    30 to 15 dB below.
    """
    pitch = rng.uniform(45.0, 130.0)
    # A walk of the pitch by about half a percent per second.
    steps = rng.normal(scale=0.005 / np.sqrt(sample_rate), size=n_samples)
    phase = 2 * np.pi * pitch / sample_rate * np.cumsum(1.0 + np.cumsum(steps))
    orders = np.arange(1, int(0.45 * sample_rate / pitch))
    decay = rng.uniform(3.0, 9.0) / 6.02
    gains = orders**-decay * 10 ** (rng.normal(scale=6.0, size=len(orders)) / 20)
    starts = np.exp(2j * np.pi * rng.uniform(size=len(orders)))
    # Each harmonic is the one before times the first: faster than as many sines.
    first = np.exp(1j * phase)
    harmonic = np.ones_like(first)
    tone = np.zeros(n_samples)
    for amplitude in gains * starts:
        harmonic *= first
        tone += amplitude.real * harmonic.imag + amplitude.imag * harmonic.real
    floor = _coloured(rng, n_samples, sample_rate)
    floor *= 10 ** (rng.uniform(-30.0, -15.0) / 20) / _rms(floor)
    return tone / _rms(tone) + floor


def _modulated(rng: np.random.Generator, n_samples: int, sample_rate: int) -> np.ndarray:
    """A band of noise whose level swells and fades, as wind and traffic do.

    The band is centred between 200 Hz and a quarter of the sample rate and 1 to 3
    octaves wide; its amplitude follows a random curve of 0.5 to 6 Hz over 10 to 25 dB.
    """
    centre = np.exp(rng.uniform(np.log(200.0), np.log(sample_rate / 4)))
    octaves = rng.uniform(1.0, 3.0)
    band = _shaped(
        rng,
        n_samples,
        sample_rate,
        lambda hertz: np.exp(-0.5 * (np.log2(hertz / centre) / (octaves / 2)) ** 2),
    )
    fastest = rng.uniform(0.5, 6.0)
    curve = _shaped(rng, n_samples, sample_rate, lambda hertz: hertz <= fastest, 0.0)
    swing = rng.uniform(10.0, 25.0)
    # Two standard deviations either way span the swing.
    decibels = swing / 4 * curve / _rms(curve)
    return band * 10 ** (decibels / 20)


def babble(
    rng: np.random.Generator, voices: Sequence[np.ndarray], n_samples: int
) -> np.ndarray:
    """Many people at once: the sum of several voices, [T_voice] each, within 6 dB.

    Each voice starts anywhere in its speech and goes round when it ends.
    """
    noise = np.zeros(n_samples)
    for voice in voices:
        start = rng.integers(len(voice))
        gain = 10 ** (rng.uniform(-3.0, 3.0) / 20) / _rms(voice)
        indices = np.arange(start, start + n_samples)
        noise += gain * np.take(voice, indices, mode="wrap")
    return noise


MADE_NOISES = {"coloured": _coloured, "hum": _hum, "modulated": _modulated}


def _shaped(rng, n_samples, sample_rate, magnitude, lowest=50.0) -> np.ndarray:
    """White noise with the spectrum `magnitude(hertz)`, fading below `lowest` Hz."""
    # Half a second more, cut off, so that the end does not flow into the start.
    padded = next_fast_len(n_samples + sample_rate // 2, real=True)
    spectrum = np.fft.rfft(rng.normal(size=padded))
    hertz = np.fft.rfftfreq(padded, 1 / sample_rate)
    hertz[0] = hertz[1]
    gains = magnitude(hertz)
    if lowest:
        gains = gains * np.minimum(1.0, (hertz / lowest) ** 2)
    spectrum *= gains
    spectrum[0] = 0.0
    return np.fft.irfft(spectrum, padded)[:n_samples]


def _rms(signal: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(signal, dtype=np.float64)))) or 1.0
