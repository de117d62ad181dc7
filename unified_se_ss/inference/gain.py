"""How loud signals are: the level that a network hears, and the gains of what it gives.

Axes: T samples, J sources.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

HEARD_LEVEL = 0.05
"""Root mean square of what networks hear; that of LibriMix's mixtures."""

RIDGE = 1e-3
"""Of a source's energy; shares the level out where two sources are the same signal."""

SILENCE = 1e-20
"""Mean power (-200 dB of full scale) below which a signal counts as zero."""


# ------------------------------------------------------------------ what is heard


def gain_to(level: float, blocks: Iterable[np.ndarray]) -> float:
    """Factor that gives a signal, which comes in blocks, a root mean square; 1 for silence.

    Example
    -------
    >>> round(gain_to(0.05, [np.ones(3), -np.ones(2)]), 3), gain_to(0.05, [np.zeros(9)])
    (0.05, 1.0)
    """
    energy = samples = 0
    for block in blocks:
        energy += float(np.square(block, dtype=np.float64).sum())
        samples += block.size
    heard = float(np.sqrt(energy / max(samples, 1)))
    return level / heard if heard > 0 else 1.0


def scaled(gain: float, signal: np.ndarray) -> np.ndarray:
    """Samples, float32, with a gain that float32 may be too small for."""
    return (gain * signal.astype(np.float64)).astype(np.float32)


def heard_level(front) -> float:
    """Root mean square of the signals that a front was trained on.

    Its normalisation holds mean and deviation of each bin's magnitude, whose squares
    add up to the signals' power (Parseval). Without a front, a level that suits: the
    features' normalisation takes it out.

    Arguments
    ---------
    front : MaskingFront or None

    Example
    -------
    >>> import torch
    >>> from unified_se_ss.networks import MaskingFront
    >>> front = MaskingFront(n_fft=64, hop=32, hidden=8, layers=1)
    >>> generator = torch.Generator().manual_seed(0)
    >>> front.fit_normalisation([0.03 * torch.randn(90000, generator=generator)])
    >>> round(heard_level(front), 3)
    0.03
    """
    if front is None:
        return HEARD_LEVEL
    power = (front.mean.double().square() + front.deviation.double().square()).cpu()
    both_halves = power.sum() + power[1:-1].sum()
    window = front.window.double().cpu().square().sum()
    return float((both_halves / (front.n_fft * window)).sqrt())


# ------------------------------------------------------------------ what is given


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
        """Gain of each signal, [J]; see the class for what it is where it is not unique."""
        from scipy.optimize import lsq_linear

        samples = max(self._samples, 1)
        means = self._sums / samples
        covariance = self._products / samples - np.outer(means, means)
        power = np.diag(covariance)
        gains = np.zeros(self.n_sources)
        heard = power[:-1] > SILENCE
        if power[-1] <= SILENCE or not heard.any():
            return gains
        # In units of each signal's own root mean square, so that the ridge has no scale.
        scale = np.sqrt(np.append(power[:-1][heard], power[-1]))
        keep = np.append(heard, True)
        normal = covariance[np.ix_(keep, keep)] / np.outer(scale, scale)
        gram = normal[:-1, :-1] + RIDGE * np.eye(heard.sum())
        root = np.linalg.cholesky(gram).T
        solution = lsq_linear(root, np.linalg.solve(root.T, normal[:-1, -1]), (-1, 1))
        gains[heard] = solution.x * scale[-1] / scale[:-1]
        return gains


def consistent(signals: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """Share out what the signals lack to the mixture, so that they add up to it.

    Arguments
    ---------
    signals : np.ndarray
        [J, T].
    mixture : np.ndarray
        [T].

    Returns
    -------
    np.ndarray
        [J, T]; the sum over J is the mixture.

    Source: Wisdom et al., "Differentiable consistency constraints for improved deep
    speech enhancement", arXiv 1811.08521 (equal shares).

    Example
    -------
    >>> consistent(np.array([[1.0], [2.0]]), np.array([5.0])).tolist()
    [[2.0], [3.0]]
    """
    return signals + (mixture - signals.sum(0)) / len(signals)
