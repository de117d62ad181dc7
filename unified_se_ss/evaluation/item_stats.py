"""Under which conditions an utterance was separated: noise, overlap and duration.

Axes: T samples, J sources, L frames.
"""

from __future__ import annotations

import numpy as np

#: Columns of the results that say what was given, not what came out: key, heading, unit.
CONDITIONS = (
    ("input_sir", "input SIR", "dB"),
    ("input_snr", "input SNR", "dB"),
    ("angle", "smallest angle between talkers", "°"),
    ("overlap", "overlap", "%"),
    ("duration", "duration", "s"),
    ("reverberation", "reverberation time", "s"),
)
#: A source is active in frames of this many seconds ...
FRAME_SECONDS = 0.032
#: ... whose energy is at least this share (-40 dB) of that of its loudest frame.
ACTIVITY = 1e-4
#: A rest of less than this share (-60 dB) of the speech is rounding, not noise.
NOISE_FREE = 1e-6


def conditions(mixture, targets, sample_rate, clean_mixture=None):
    """What made an utterance easy or hard.

    Arguments
    ---------
    mixture : np.ndarray
        What the network heard, shape [T].
    targets : np.ndarray
        True sources, shape [J, T].
    sample_rate : int
        In Hz.
    clean_mixture : np.ndarray
        The mixture without noise, shape [T]; default: the sum of the targets.

    Returns
    -------
    dict
        `input_snr`, speech to noise in dB (None without noise or without speech);
        for two sources and more `overlap`, the share in percent of the frames with
        speech in which at least two sources are active (None without speech);
        `duration` in seconds.

    Example
    -------
    >>> first = np.sin(np.arange(8000.0)) * (np.arange(8000) < 6400)
    >>> second = np.sin(0.5 * np.arange(8000.0)) * (np.arange(8000) >= 3200)
    >>> round(conditions(first + second, np.stack([first, second]), 8000)["overlap"])
    42
    """
    clean = targets.sum(axis=0) if clean_mixture is None else clean_mixture
    row = {"input_snr": _input_snr(mixture, clean)}
    if len(targets) > 1:
        row["overlap"] = _overlap(targets, sample_rate)
    row["duration"] = len(mixture) / sample_rate
    return row


def _input_snr(mixture, clean):
    """Speech to noise in dB; None where either is missing."""
    noise = mixture - clean
    speech_energy, noise_energy = float(clean @ clean), float(noise @ noise)
    if speech_energy == 0 or noise_energy <= NOISE_FREE * speech_energy:
        return None
    return float(10 * np.log10(speech_energy / noise_energy))


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
