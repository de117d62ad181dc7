"""Separated signals to listen to: wav files at comparable levels, players, spectrograms.

Axes: T samples, J sources, E ears, F frequencies, L frames.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write

PEAK = 0.99
#: Examples of a report: the worst, and others at random.
WORST = 10
OTHERS = 5
EXAMPLES_SEED = 2302
#: Longest excerpts in seconds that players hold; the first with which all examples fit.
EXCERPTS = (60.0, 40.0, 25.0, 15.0, 10.0, 6.0, 4.0, 2.0)
#: Spectrograms span this much below the loudest point of the example, in dB.
DYNAMIC_RANGE = 70.0
#: Steps of the colour scale: about 1 dB each, which keeps the file small.
COLOURS = 64
#: Frames and frequencies of a picture, at most.
COLUMNS = 320
ROWS = 128
#: A player without its sound: 320 by 128 points of 64 colours, incompressible, in base64.
PLAYER_BYTES = 43_000

# ------------------------------------------------------------------ levels


def level_signals(mixture, estimates, enhanced=None, sources=None) -> dict:
    """Bring all signals of an utterance to levels that can be compared.

    A network trained by SI-SNR gives signals of any scale and sign. So each estimate takes the
    sign of its correlation with the mixture, and all estimates together one gain, by which
    their sum fits the mixture best in least squares; the enhanced mixture is fitted likewise.
    If then any signal has a peak above 0.99, all are turned down by the same factor.

    Arguments
    ---------
    mixture, enhanced : np.ndarray
        Shape [T].
    estimates, sources : np.ndarray
        Shape [J, T].

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
    if enhanced is not None:
        enhanced = _fit(np.asarray(enhanced)[None], mixture)[0]
    return level_ears(mixture, _fit(estimates, mixture), enhanced, sources)


def level_ears(mixture, estimates, enhanced=None, sources=None) -> dict:
    """Keep the levels of an utterance's signals; if one clips, one gain for all.

    For signals of two ears, [E, T] in place of [T]: a gain for each ear, or for each signal,
    would change where a talker is perceived. Arguments and result are those of
    `level_signals`.

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
    return _below_clipping(signals)


def level_guided(mixture, estimates, enhanced=None, sources=None) -> dict:
    """As `level_ears`, of a guided enhancement: raw, beamformed, enhanced, target.

    `estimates` is the beamformer's output, `sources` the target, both [1, T].

    Example
    -------
    >>> signal = np.ones(3)
    >>> list(level_guided(signal, signal[None], signal, signal[None]))
    ['raw', 'beamformed', 'enhanced', 'target']
    """
    signals = {"raw": mixture, "beamformed": estimates[0], "enhanced": enhanced}
    return _below_clipping({**signals, "target": sources[0]})


def _below_clipping(signals) -> dict:
    """Signals by name in float64, turned down by one gain if any has a peak above 0.99."""
    signals = {str(k): np.asarray(x, dtype=np.float64) for k, x in signals.items()}
    peak = max((np.max(np.abs(x), initial=0.0) for x in signals.values()), default=0.0)
    gain = PEAK / peak if peak > PEAK else 1.0
    return {name: gain * signal for name, signal in signals.items()}


def _fit(signals, mixture):
    """Signals [N, T] by sign and one gain such that their sum fits the mixture."""
    signals = np.asarray(signals, dtype=np.float64)
    peak = np.max(np.abs(signals), initial=0.0)
    signals = signals / peak if peak > 0 else signals
    signals = np.where(signals @ mixture < 0, -1.0, 1.0)[:, None] * signals
    total = signals.sum(axis=0)
    energy = total @ total
    return signals * ((total @ mixture) / energy) if energy > 0 else signals


# ------------------------------------------------------------------ files


def save_waves(
    folder,
    item_id,
    mixture,
    estimates,
    enhanced=None,
    sources=None,
    *,
    sample_rate,
    level=level_signals,
) -> list[Path]:
    """Write all signals of one utterance as 16-bit wav files into `folder/item_id/`.

    Signals are those that `level` takes, one of `level_signals`, `level_ears` and
    `level_guided`; the files, which are returned, are named as in what it gives.

    Raises
    ------
    UserError
        If the ID cannot be the name of a folder, or a signal is not finite.
    """
    if item_id in ("", ".", "..") or any(c in item_id for c in "/\\\0"):
        raise UserError(
            f"ID {item_id!r}: cannot be the name of a folder in {folder}; expected an "
            "ID without slashes. Rename it in the manifest."
        )
    signals = level(mixture, estimates, enhanced, sources)
    for name, signal in signals.items():
        if not np.all(np.isfinite(signal)):
            raise UserError(
                f"ID {item_id!r}: {name} holds samples that are nan or infinite; if "
                "the network gave them, its training has diverged."
            )
    place = Path(folder) / item_id
    place.mkdir(parents=True, exist_ok=True)
    return [
        atomic_write(place / f"{name}.wav", _sound_bytes(signal, sample_rate))
        for name, signal in signals.items()
    ]


def _sound_bytes(signal, sample_rate, container="WAV") -> bytes:
    """A signal [T] or [E, T] within ±1 as a 16-bit file; FLAC is half as large as WAV."""
    import soundfile

    buffer = io.BytesIO()
    signal = np.asarray(signal).T  # soundfile has the channels last
    soundfile.write(buffer, signal, sample_rate, subtype="PCM_16", format=container)
    return buffer.getvalue()


# ------------------------------------------------------------------ examples of a report


def choose_examples(ranking, worst=WORST, others=OTHERS) -> list[str]:
    """The worst utterances, and some of the others at random; the same each time.

    Arguments
    ---------
    ranking : list of str
        IDs from the worst to the best.
    worst, others : int
        How many of each, at most.

    Example
    -------
    >>> choose_examples([str(i) for i in range(100)], 3, 2)
    ['0', '1', '2', '14', '61']
    """
    rest = np.arange(worst, max(worst, len(ranking)))
    rng = np.random.default_rng([EXAMPLES_SEED, len(ranking)])
    drawn = rng.choice(rest, size=min(others, len(rest)), replace=False)
    return ranking[:worst] + [ranking[place] for place in sorted(drawn)]


def fit_examples(examples, budget, render) -> list[dict]:
    """The examples as the report's template shows them, so many as fit into the budget.

    Long utterances are cut to excerpts before any is left out.

    Arguments
    ---------
    examples : list of dict
        As for `_write_report`, the most important first; further keys are kept.
    budget : int
        Bytes for all of them.
    render : callable
        HTML of an example and its number.

    Returns
    -------
    list of dict
        With `columns`, a list of players for the mixture and for each source: `name`,
        `png`, `flac`, `top` (kHz), `end` (s); and `excerpt`, how much of the
        utterance is shown, in words, if not all.
    """
    longest, shown = _excerpt_seconds(examples, budget), []
    for example in examples:
        part = {**example, **_players(example, longest)}
        size = len(render(part, len(shown)).encode()) + 1
        if size <= budget:
            budget -= size
            shown.append(part)
    return shown


def _excerpt_seconds(examples, budget) -> float:
    """The longest of `EXCERPTS` with which all examples fit into so many bytes."""
    sounds = []  # seconds, bytes in base64
    for example in examples:
        rate = int(example["sample_rate"])
        for signal in _cut(_below_clipping(example["signals"]), EXCERPTS[0], rate).values():
            size = 4 / 3 * len(_sound_bytes(signal, rate, "FLAC"))
            sounds.append((max(signal.shape[-1], 1) / rate, size))
    for longest in EXCERPTS:
        # An excerpt may need a little more per second than the whole.
        sizes = [1.1 * size * min(1, longest / seconds) for seconds, size in sounds]
        if sum(sizes) + PLAYER_BYTES * len(sounds) <= budget:
            break
    return longest


def _players(example, longest) -> dict:
    """Players in columns, and how much of the utterance they hold, in words."""
    rate = int(example["sample_rate"])
    whole = _below_clipping(example["signals"])
    signals = _cut(whole, longest, rate)
    levels = {key: _spectrogram_db(signal, rate) for key, signal in signals.items()}
    top = max((level.max() for level in levels.values()), default=0.0)
    columns = {}
    for key, signal in signals.items():
        source, _, kind = key.rpartition("_")
        column = source if kind in ("estimate", "reference") else ""
        player = {
            "name": key.replace("_", " "),
            "png": _spectrogram_png(levels[key], top),
            "flac": _sound_bytes(signal, rate, "FLAC"),
            "top": f"{rate / 2000:g} kHz",
            "end": f"{signal.shape[-1] / rate:.1f} s",
        }
        columns.setdefault(column, []).append(player)
    full, shown = (
        max((x.shape[-1] for x in s.values()), default=0) / rate for s in (whole, signals)
    )
    excerpt = f" · the first {shown:.1f} of {full:.1f} s" if shown < full else ""
    return {"columns": list(columns.values()), "excerpt": excerpt}


def _cut(signals, seconds, sample_rate):
    samples = max(1, int(seconds * sample_rate))
    return {key: signal[..., :samples] for key, signal in signals.items()}


# ------------------------------------------------------------------ spectrograms


def _spectrogram_db(signal, sample_rate):
    """Level of a signal over time and frequency.

    Hann windows of 32 ms, hop 8 ms; 0 dB is a full-scale sine.

    Arguments
    ---------
    signal : np.ndarray
        Shape [T], or [E, T]: the mean power of both ears.
    sample_rate : int
        In Hz.

    Returns
    -------
    np.ndarray
        Shape [F, L] in dB, F frequencies from 0 to half the rate.
    """
    import scipy.signal  # takes a second, which processes that only score can save

    size = max(16, round(0.032 * sample_rate))
    signal = np.atleast_2d(signal)
    signal = np.pad(signal, ((0, 0), (0, max(0, size - signal.shape[1]))))
    hop = max(1, size // 4)
    _, _, spectrum = scipy.signal.stft(
        signal, nperseg=size, noverlap=size - hop, boundary=None, padded=False
    )
    magnitude = np.sqrt(np.square(np.abs(spectrum)).mean(axis=0))
    return 20 * np.log10(2 * magnitude + 1e-10)


def _spectrogram_png(level, top) -> bytes:
    """A spectrogram [F, L] in dB as a PNG of at most 320 by 128 points.

    Where a point stands for several frames or frequencies, it shows the loudest. `top` is the
    level of the brightest colour; the darkest is 70 dB below.
    """
    from matplotlib import colormaps
    from PIL import Image

    level = _loudest_of(_loudest_of(level, ROWS, axis=0), COLUMNS, axis=1)
    share = np.clip((level - top) / DYNAMIC_RANGE + 1, 0, 1)
    codes = np.rint(share * (COLOURS - 1)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(codes[::-1])).convert("P")
    colours = colormaps["magma"](np.linspace(0, 1, COLOURS))[:, :3]
    image.putpalette(np.rint(255 * colours).astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _loudest_of(level, size, axis):
    """The maxima of equal pieces of an axis, so that it has at most `size` points."""
    length = level.shape[axis]
    if length <= size:
        return level
    return np.maximum.reduceat(level, np.arange(size) * length // size, axis=axis)
