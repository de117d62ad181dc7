"""Long signals in pieces that a recogniser can hear, cut where nobody speaks.

Axes: T samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

FRAME_SECONDS = 0.02
PAUSE_SECONDS = 0.3  # over which a place must be quiet


class PauseCutter:
    """Cuts a signal that comes in blocks into segments without overlap.

    No segment is longer than a limit. Where one has to end is the quietest 0.3 s of the
    second half of what may be in it. Never more than a segment and a block are held.

    Arguments
    ---------
    longest : int
        Samples of a segment.
    sample_rate : int
        Hz.

    Example
    -------
    >>> signal = np.r_[np.ones(700), np.zeros(100), np.ones(500)].astype(np.float32)
    >>> cutter = PauseCutter(1000, 200)
    >>> [len(segment) for segment in (*cutter.add(signal), *cutter.rest())]
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
        """What is left at the end of the signal, if anything is."""
        if len(self._held):
            yield self._held
        self._held = self._held[:0]

    def _end(self, signal: np.ndarray) -> int:
        """The sample before which to cut, in the second half of a signal."""
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
