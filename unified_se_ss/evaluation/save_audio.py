"""Separated signals as wav files that can be compared by ear.

Axes: T samples, J sources, E ears.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write

PEAK = 0.99


def save_waves(
    folder,
    item_id,
    mixture,
    estimates,
    enhanced=None,
    sources=None,
    *,
    sample_rate,
    level=None,
):
    """Write all signals of one utterance into a folder of its own.

    The levels are those of `level_signals`: one gain for all, never one per source.
    Signals of two ears, [E, T] instead of [T], become stereo files; their levels are
    those of `unified_se_ss.evaluation.binaural.level_ears`.

    Arguments
    ---------
    folder : str or Path
        The signals go to `folder/item_id/`, which is made.
    item_id : str
        ID of the utterance.
    mixture : np.ndarray
        What the network heard, shape [T].
    estimates : np.ndarray
        Estimated sources, shape [J, T], in the order of the sources.
    enhanced : np.ndarray
        Denoised mixture, shape [T]; optional.
    sources : np.ndarray
        True sources, shape [J, T]; optional.
    sample_rate : int
        In Hz.
    level : callable
        What brings the signals to comparable levels; `level_signals` by default.

    Returns
    -------
    list of Path
        mixture.wav, enhanced.wav, s1_estimate.wav ..., s1_reference.wav ...: 16 bit.

    Raises
    ------
    UserError
        If the ID cannot be the name of a folder, or a signal is not finite.

    Example
    -------
    >>> import tempfile
    >>> folder, estimates = tempfile.mkdtemp(), np.ones((2, 80))
    >>> paths = save_waves(folder, "a", np.ones(80), estimates, sample_rate=8000)
    >>> [path.name for path in paths]
    ['mixture.wav', 's1_estimate.wav', 's2_estimate.wav']
    """
    if item_id in ("", ".", "..") or any(c in item_id for c in "/\\\0"):
        raise UserError(
            f"ID {item_id!r}: cannot be the name of a folder in {folder}; expected an "
            "ID without slashes. Rename it in the manifest."
        )
    signals = (level or level_signals)(mixture, estimates, enhanced, sources)
    for name, signal in signals.items():
        if not np.all(np.isfinite(signal)):
            raise UserError(
                f"ID {item_id!r}: {name} holds samples that are nan or infinite; if "
                "the network gave them, its training has diverged."
            )
    place = Path(folder) / item_id
    place.mkdir(parents=True, exist_ok=True)
    return [
        atomic_write(place / f"{name}.wav", wav_bytes(signal, sample_rate))
        for name, signal in signals.items()
    ]


def level_signals(mixture, estimates, enhanced=None, sources=None):
    """All signals of one utterance at levels that can be compared.

    A network trained by SI-SNR gives signals of any scale and sign. So each estimate
    takes the sign of its correlation with the mixture, and all estimates together one
    gain, by which their sum fits the mixture best in least squares: how loud they are
    to each other is left as the network made it. The enhanced mixture is fitted to the
    mixture likewise. Mixture and references are as they are. If then any signal has a
    peak above 0.99, all are turned down by the same factor.

    Arguments
    ---------
    mixture : np.ndarray
        Shape [T].
    estimates : np.ndarray
        Shape [J, T].
    enhanced : np.ndarray
        Shape [T]; optional.
    sources : np.ndarray
        Shape [J, T]; optional.

    Returns
    -------
    dict
        Arrays [T] in float64 under the names mixture, enhanced, s1_estimate ...,
        s1_reference ...

    Example
    -------
    >>> sources = 0.1 * np.random.default_rng(0).standard_normal((2, 1000))
    >>> signals = level_signals(sources.sum(0), -7 * sources)
    >>> bool(np.allclose(signals["s2_estimate"], sources[1], atol=1e-6))
    True
    """
    mixture = np.asarray(mixture, dtype=np.float64)
    signals = {"mixture": mixture}
    if enhanced is not None:
        signals["enhanced"] = _fit(np.asarray(enhanced)[None], mixture)[0]
    for j, estimate in enumerate(_fit(estimates, mixture), start=1):
        signals[f"s{j}_estimate"] = estimate
    for j, source in enumerate(() if sources is None else sources, start=1):
        signals[f"s{j}_reference"] = np.asarray(source, dtype=np.float64)
    peak = max(np.max(np.abs(signal), initial=0.0) for signal in signals.values())
    guard = PEAK / peak if peak > PEAK else 1.0
    return {name: guard * signal for name, signal in signals.items()}


def wav_bytes(signal, sample_rate):
    """A signal as the bytes of a 16 bit wav file.

    Arguments
    ---------
    signal : np.ndarray
        Shape [T], or [E, T] for a file of several channels, within ±1.
    sample_rate : int
        In Hz.

    Returns
    -------
    bytes

    Example
    -------
    >>> wav_bytes(np.zeros(10), 8000)[:4]
    b'RIFF'
    """
    return _encoded(signal, sample_rate, "WAV")


def flac_bytes(signal, sample_rate):
    """A signal as the bytes of a 16 bit flac file: the samples of the wav, half as large.

    Arguments
    ---------
    signal : np.ndarray
        Shape [T], or [E, T] for a file of several channels, within ±1.
    sample_rate : int
        In Hz.

    Returns
    -------
    bytes

    Example
    -------
    >>> flac_bytes(np.zeros(10), 8000)[:4]
    b'fLaC'
    """
    return _encoded(signal, sample_rate, "FLAC")


def _encoded(signal, sample_rate, container):
    """A signal as a 16 bit file in memory."""
    import soundfile

    buffer = io.BytesIO()
    signal = np.asarray(signal).T  # soundfile has the channels last
    soundfile.write(buffer, signal, sample_rate, subtype="PCM_16", format=container)
    return buffer.getvalue()


def _fit(signals, mixture):
    """Signals [N, T] by sign and one gain such that their sum fits the mixture."""
    signals = np.asarray(signals, dtype=np.float64)
    peak = np.max(np.abs(signals), initial=0.0)
    signals = signals / peak if peak > 0 else signals
    signals = np.where(signals @ mixture < 0, -1.0, 1.0)[:, None] * signals
    total = signals.sum(axis=0)
    energy = total @ total
    return signals * ((total @ mixture) / energy) if energy > 0 else signals
