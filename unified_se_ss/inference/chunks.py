"""Long signals in overlapping chunks, and one signal from what a network makes of them.

A network that separates gives its sources in any order and at any level, and in another
order for each chunk. :func:`cut` cuts so that neighbours share speech, :class:`Stitcher`
puts each chunk's sources into the order of those before it and cross-fades,
:class:`LevelFit` finds one gain per source for all chunks.

Axes: T samples, J sources, E ears, F frames and bands of a spectrum.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.errors import UserError

FADE = 0.25  # of the overlap, in its middle: both edges of a chunk lack context
LOUD_DB = 15  # below the chunk's loudest frames a frame counts as a pause
LOUD_SHARE = 0.25  # of an overlap that has to be loud
FAINT = 0.01  # of the speakers' level: overlaps as faint as this are half believed

WINDOW_SECONDS = 0.064  # resolves the harmonics of a voice
BANDS = 40
LOWEST_HZ = 60.0
MEMORY_SECONDS = 60.0  # of a speaker's own speech
TRUSTED_SECONDS = 0.5  # of speech until a speaker's spectrum is half believed
LEVEL_FADES = 0.95  # a chunk
VOICE_DB = 20  # below the loudest frames a frame is no voice
# Mean squared difference of two mean log spectra (natural logarithm) per band: measured
# on six seconds of each of 100 readers of LibriSpeech, 0.4 within a reader and 2.2
# between two; by it alone, 98.9 % of pairs of one sex are told apart, 99.7 % of others.
DIFFERENT_VOICES = 2.0

RIDGE = 1e-3  # of a source's energy; shares the level out where two sources are the same
SILENCE = 1e-20  # mean power (-200 dB of full scale) below which a signal counts as zero

FRAME_SECONDS = 0.02
PAUSE_SECONDS = 0.3  # over which a place must be quiet


# ------------------------------------------------------------------ cutting


class Chunk(NamedTuple):
    """A piece [T] of a signal: its place, and how many of its samples came before already."""

    start: int
    fresh: int
    signal: np.ndarray
    is_last: bool


def cut(blocks: Iterable[np.ndarray], length: int, overlap: int, sample_rate: int):
    """Cut a signal that comes in blocks [T] into overlapping chunks.

    Neighbours overlap by `overlap` samples, and by up to half a chunk where that much
    is needed to reach back across a pause: an order of sources can only be found where
    somebody speaks. Never more than a chunk and a block are held.

    Arguments
    ---------
    length : int
        Samples of a chunk; the last may be shorter, but is longer than the overlap.
    overlap : int
        Samples, at most half of `length`.

    Returns
    -------
    iterator of Chunk
        At least one, of one zero sample if the signal is empty.

    Example
    -------
    >>> signal = np.ones(25, dtype=np.float32)
    >>> [(c.start, len(c.signal), c.fresh) for c in cut([signal], 10, 2, 100)]
    [(0, 10, 0), (8, 10, 2), (16, 9, 2)]
    """
    blocks = iter(blocks)
    start, fresh, held = 0, 0, np.zeros(0, dtype=np.float32)
    while True:
        held, has_more = _filled(held, blocks, length)
        signal = held[:length] if len(held) else np.zeros(1, dtype=np.float32)
        yield Chunk(start, fresh, signal, not has_more)
        if not has_more:
            return
        fresh = context_overlap(signal, overlap, sample_rate)
        held = held[length - fresh :]
        start += length - fresh


def _filled(held, blocks: Iterator[np.ndarray], length: int):
    parts, samples = [held], len(held)
    while samples <= length:
        block = next(blocks, None)
        if block is None:
            break
        parts.append(block)
        samples += len(block)
    return np.concatenate(parts), samples > length


def context_overlap(signal: np.ndarray, overlap: int, sample_rate: int) -> int:
    """Samples by which the next chunk should overlap this one, to share speech with it.

    The least, from `overlap` to half the chunk, of which a quarter of `overlap` is loud:
    within 15 dB of the loudest 20 ms of the chunk (their 95th percentile).
    """
    size = max(sample_rate // 50, 1)
    frames = len(signal) // size
    if frames == 0:
        return overlap
    # The last frame ends with the chunk.
    power = np.square(signal[len(signal) - frames * size :]).reshape(frames, size).mean(1)
    loudest = np.quantile(power, 0.95)
    is_loud = (power > loudest * 10 ** (-LOUD_DB / 10))[::-1]
    loud = np.cumsum(is_loud) * size
    most = len(signal) // 2
    reach = (int(np.searchsorted(loud, LOUD_SHARE * overlap)) + 1) * size
    if reach <= most:
        return max(reach, overlap)
    # Not to be had: all there is, if it is more than the overlap has.
    here, there = (
        loud[min(n // size, frames) - 1] if n >= size else 0 for n in (overlap, most)
    )
    return most if there > here else overlap


class SilenceSplitter:
    """Cuts a signal that comes in blocks into segments without overlap, where it is quiet.

    No segment is longer than `longest` samples. Where one has to end is the quietest 0.3 s
    of the second half of what may be in it. Never more than a segment and a block are held.

    Example
    -------
    >>> signal = np.r_[np.ones(700), np.zeros(100), np.ones(500)].astype(np.float32)
    >>> splitter = SilenceSplitter(1000, sample_rate=200)
    >>> [len(segment) for segment in (*splitter.add(signal), *splitter.rest())]
    [750, 550]
    """

    def __init__(self, longest: int, sample_rate: int):
        self.longest = longest
        self.frame = max(int(FRAME_SECONDS * sample_rate), 1)
        self.pause = max(round(PAUSE_SECONDS * sample_rate / self.frame), 1)
        self._held = np.zeros(0, dtype=np.float32)

    def add(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Take a block [T], give the segments that have ended."""
        self._held = np.concatenate((self._held, block))
        while len(self._held) > self.longest:
            end = self._end(self._held[: self.longest])
            yield self._held[:end]
            self._held = self._held[end:]

    def rest(self) -> Iterator[np.ndarray]:
        """The last segment, if anything is left at the end of the signal."""
        if len(self._held):
            yield self._held
        self._held = self._held[:0]

    def _end(self, signal: np.ndarray) -> int:
        first = len(signal) // 2
        frames = (len(signal) - first) // self.frame
        width = min(self.pause, frames)
        if not width:
            return len(signal)
        second = signal[first : first + frames * self.frame].reshape(frames, self.frame)
        power = np.square(second, dtype=np.float64).mean(1)
        around = np.convolve(power, np.ones(width), "valid")
        # Of a pause that is longer, the middle; sums of the same are not always equal.
        quietest = np.flatnonzero(around <= around.min() * (1 + 1e-9))
        middle = quietest[len(quietest) // 2] + width / 2
        return max(first + int(middle * self.frame), 1)


class ChunkFile:
    """Pairs of a number and a float32 array [J, T] in a file without a name, read in order."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self._shapes: list[tuple] = []
        self._file = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._file is not None:
            self._file.close()

    def append(self, item) -> None:
        start, array = item
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            self._file.write(np.ascontiguousarray(array, dtype=np.float32).data)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written to ({error.strerror or error}); choose a "
                "folder with write permission and enough disk space"
            ) from error
        self._shapes.append((start, array.shape))

    def __iter__(self):
        self._file.seek(0)
        for start, shape in self._shapes:
            data = self._file.read(4 * shape[0] * shape[1])
            yield start, np.frombuffer(data, dtype=np.float32).reshape(shape)


# ------------------------------------------------------------------ order


class SpeakerTracker:
    """Mean log spectrum of each source so far, slowly forgotten.

    A frame speaks for a source if it is loud and that source is the loudest in it, so
    neither pauses nor leakage from the others count.
    """

    def __init__(self, n_sources: int, sample_rate: int):
        self.window = max(int(WINDOW_SECONDS * sample_rate), 2)
        self.hop = self.window // 2
        self.bands = _mel_bands(self.window, sample_rate)
        self.frames_per_second = sample_rate / self.hop
        self.level = 0.0
        self._sums = np.zeros((n_sources, len(self.bands)))
        self._counts = np.zeros(n_sources)

    def add(self, sums: np.ndarray, counts: np.ndarray) -> None:
        """Remember what :meth:`describe` says of a chunk, its sources in the right order."""
        keep = np.exp(-counts / (MEMORY_SECONDS * self.frames_per_second))
        self._sums = keep[:, None] * self._sums + sums
        self._counts = keep * self._counts + counts

    def similarity(self, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Of each source so far and each of a chunk, [J, J], -1 (another speaker) to 1.

        0 where one of the two has not spoken.
        """
        spoken = np.minimum(self._counts[:, None], counts)
        before = self._sums / np.maximum(self._counts, 1e-9)[:, None]
        now = sums / np.maximum(counts, 1e-9)[:, None]
        distance = np.square(before[:, None] - now).mean(-1)
        similarity = (DIFFERENT_VOICES - distance) / (DIFFERENT_VOICES + distance)
        return similarity * spoken / (spoken + TRUSTED_SECONDS * self.frames_per_second)

    def describe(self, signals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums [J, F] and counts [J] of log spectra of the frames that speak for each source.

        Of a chunk [J, T].
        """
        power = self._spectra(signals)  # [J, frames, bands]
        loudness = power.sum(-1)
        if loudness.size:
            # Falls by 0.2 dB a chunk, so that pauses do not bring it down.
            self.level = max(
                LEVEL_FADES * self.level, float(np.quantile(loudness.max(0), 0.95))
            )
        speaks = loudness > max(self.level * 10 ** (-VOICE_DB / 10), 1e-30)
        speaks &= loudness >= loudness.max(0, keepdims=True, initial=0)
        log = np.log(power + 1e-6 * self.level / len(self.bands) + 1e-30)
        log -= log.mean(-1, keepdims=True)
        return np.where(speaks[..., None], log, 0).sum(1), speaks.sum(1).astype(float)

    def unit_power(self) -> float:
        """Sum over the bands of white noise of power 1."""
        return float(np.square(np.hanning(self.window)).sum() * self.bands.sum())

    def _spectra(self, signals) -> np.ndarray:
        """Power in bands, [J, frames, bands]; the end that fills no window is left out."""
        if signals.shape[1] < self.window:
            return np.zeros((len(signals), 0, len(self.bands)))
        frames = np.lib.stride_tricks.sliding_window_view(signals, self.window, axis=1)
        frames = frames[:, :: self.hop] * np.hanning(self.window).astype(np.float32)
        return np.square(np.abs(np.fft.rfft(frames))) @ self.bands.T


def _mel_bands(window: int, sample_rate: int) -> np.ndarray:
    """Triangles from 60 Hz to just below half the rate, [bands, F]; those without a bin are left out."""
    frequency = np.fft.rfftfreq(window, 1 / sample_rate)
    ends = 2595 * np.log10(1 + np.array([LOWEST_HZ, 0.4875 * sample_rate]) / 700)
    edges = 700 * (10 ** (np.linspace(*ends, BANDS + 2) / 2595) - 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (
        (frequency - low) / (centre - low),
        (high - frequency) / (high - centre),
    )
    triangles = np.minimum(rising, falling).clip(0)
    return triangles[triangles.sum(1) > 0]


class Stitcher:
    """Makes one signal per source from the chunks that a network made of a signal.

    Source i of the chunks before continues as source j of a new chunk: where the two
    overlap and one of them is loud there, if they correlate; where both are silent, if
    they sound alike (:class:`SpeakerTracker`). The assignment with the highest sum wins.
    The cross-fade is a quarter of the overlap, in its middle.

    Levels are to be right already: a network's gain belongs to its output, not to the
    speaker that happens to be there. Binaural sources, [J, E, T], are compared by the
    mean of both ears.

    Arguments
    ---------
    n_sources : int
        Sources J.
    overlap : int
        Samples by which neighbours overlap at least.
    sample_rate : int
        Hz.

    Example
    -------
    >>> signals = np.random.default_rng(0).standard_normal((2, 250))
    >>> stitcher = Stitcher(2, overlap=20, sample_rate=100)
    >>> parts = [stitcher.add(0, signals[:, :100], False),
    ...     stitcher.add(80, signals[::-1, 80:180], False),
    ...     stitcher.add(160, signals[:, 160:], True)]
    >>> np.allclose(np.concatenate(parts, 1), signals)
    True
    """

    def __init__(self, n_sources: int, overlap: int, sample_rate: int):
        self.n_sources = n_sources
        self.fade = max(int(FADE * overlap), 1)
        self.held_back = (overlap + self.fade) // 2
        self.speakers = SpeakerTracker(n_sources, sample_rate) if n_sources > 1 else None
        self.orders: list[list[int]] = []
        self._before: np.ndarray | None = None
        self._start = 0

    def add(self, start: int, signals: np.ndarray, is_last: bool) -> np.ndarray:
        """Take the next chunk, sources [J, T] or [J, E, T] in any order; give what is finished.

        Arguments
        ---------
        start : int
            Place of the chunk in the signal; it overlaps the chunk before it.
        """
        if self._before is None:
            self._before = signals[..., :0]
        shared = self._start + self._before.shape[-1] - start
        order = self._order(signals, shared)
        signals = signals[order]
        self.orders.append(order)
        finished = self._joined(signals, shared)
        kept = 0 if is_last else self.held_back
        self._before, self._start = signals, start
        return finished[..., : finished.shape[-1] - kept]

    def _order(self, signals, shared: int) -> list[int]:
        if self.n_sources == 1:
            return [0]
        signals = _over_ears(signals)
        sums, counts = self.speakers.describe(signals)
        order = list(range(self.n_sources))
        if self.orders:
            similarity = self.speakers.similarity(sums, counts)
            order = self._assignment(signals, shared, similarity)
        self.speakers.add(sums[order], counts[order])
        return order

    def _assignment(self, signals, shared: int, similarity) -> list[int]:
        """The order with the highest sum of correlation and similarity."""
        from scipy.optimize import linear_sum_assignment

        before, now = _over_ears(self._before)[:, -shared:], signals[:, :shared]
        power = np.maximum(_power(before)[:, None], _power(now))
        correlation = before.astype(np.float64) @ now.T.astype(np.float64) / shared
        correlation /= np.maximum(power, 1e-30)
        # Spectra add up a window of power, means of samples do not.
        level = self.speakers.level / self.speakers.unit_power()
        belief = power / np.maximum(power + FAINT * level, 1e-30)
        score = belief * correlation + (1 - belief) * similarity
        return linear_sum_assignment(score, maximize=True)[1].tolist()

    def _joined(self, signals, shared: int) -> np.ndarray:
        """The end of the chunk before, faded into this one, and the rest of this one."""
        if self._before.shape[-1] == 0:
            return signals
        held = self.held_back
        before, now = self._before[..., -held:], signals[..., shared - held :]
        rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(self.fade) + 0.5) / self.fade)
        rise = rise.astype(signals.dtype)
        faded = (1 - rise) * before[..., : self.fade] + rise * now[..., : self.fade]
        return np.concatenate((faded, now[..., self.fade :]), axis=-1)


def _over_ears(signals) -> np.ndarray:
    return signals if signals.ndim == 2 else signals.mean(1)


def _power(signals) -> np.ndarray:
    return np.square(signals, dtype=np.float64).mean(-1)


# ------------------------------------------------------------------ level


class LevelFit:
    """Gains that make a network's signals parts of their mixture.

    A network trained by SI-SNR gives signals of any gain and sign. They are properties
    of its weights, so there is one gain per output of the network and file, however many
    chunks it was cut into: levels never jump or drift. The gains g minimise
    ||mixture - sum_j g_j source_j||^2, jointly over the sources and without means:

    - a negative gain turns a flipped signal round again;
    - no source is louder than the mixture (root mean square);
    - sources that are the same signal get equal shares (a ridge of 1e-3);
    - a source that is silent, or the mixture's being so, gives silence.

    Only sums are kept, so the signals may come in pieces.

    Example
    -------
    >>> sources = np.random.default_rng(0).standard_normal((2, 4000))
    >>> fit = LevelFit(2)
    >>> fit.add(np.array([[3.0], [-0.1]]) * sources, sources.sum(0))
    >>> (fit.gains() * [3.0, -0.1]).round(2).tolist()
    [1.0, 1.0]
    """

    def __init__(self, n_sources: int):
        self.n_sources = n_sources
        self._samples = 0
        self._sums = np.zeros(n_sources + 1)
        self._products = np.zeros((n_sources + 1, n_sources + 1))

    def add(self, signals: np.ndarray, mixture: np.ndarray) -> None:
        """Take in a piece: signals [J, T] and their mixture [T]."""
        stacked = np.concatenate((signals, mixture[None])).astype(np.float64)
        self._samples += stacked.shape[1]
        self._sums += stacked.sum(1)
        self._products += stacked @ stacked.T

    def gains(self) -> np.ndarray:
        """Gain of each signal, [J]."""
        from scipy.optimize import lsq_linear

        samples = max(self._samples, 1)
        means = self._sums / samples
        covariance = self._products / samples - np.outer(means, means)
        power = np.diag(covariance)
        gains = np.zeros(self.n_sources)
        sounds = power[:-1] > SILENCE
        if power[-1] <= SILENCE or not sounds.any():
            return gains
        # In units of each signal's own root mean square, so that the ridge has no scale.
        scale = np.sqrt(np.append(power[:-1][sounds], power[-1]))
        keep = np.append(sounds, True)
        normal = covariance[np.ix_(keep, keep)] / np.outer(scale, scale)
        gram = normal[:-1, :-1] + RIDGE * np.eye(sounds.sum())
        root = np.linalg.cholesky(gram).T
        solution = lsq_linear(root, np.linalg.solve(root.T, normal[:-1, -1]), (-1, 1))
        gains[sounds] = solution.x * scale[-1] / scale[:-1]
        return gains
