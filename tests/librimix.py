"""Tiny LibriMix trees for tests: coloured noise that stands in for voices."""

import numpy as np
import scipy.signal

from unified_se_ss.data import audio


def voice(rng, samples, pole):
    """Noise of one colour, switched on and off like syllables, in 16 bit steps."""
    signal = scipy.signal.lfilter([1.0], [1.0, -pole], rng.standard_normal(samples))
    envelope = 0.6 + 0.4 * np.sin(np.arange(samples) / 400 + rng.uniform(0, 6))
    return quantised(0.15 * envelope * signal / np.abs(signal).max())


def quantised(signal):
    """What a 16-bit file keeps."""
    return np.round(signal * 32768) / 32768


def make_tree(folder, n_speakers=2, counts=(6, 3, 3), samples=4000, sample_rate=8000):
    """A folder of LibriMix's shape; returns what to give as data_folder."""
    root = folder / f"Libri{n_speakers}Mix"
    place = root / f"wav{sample_rate // 1000}k" / "min"
    for number, subset in enumerate(("train-360", "dev", "test")):
        for index in range(counts[number]):
            rng = np.random.default_rng([number, index])
            length = samples + 160 * index  # uneven on purpose
            poles = np.linspace(0.9, -0.9, n_speakers)
            signals = {f"s{j + 1}": voice(rng, length, p) for j, p in enumerate(poles)}
            signals["noise"] = quantised(0.02 * rng.standard_normal(length))
            signals["mix_clean"] = sum(signals[f"s{j + 1}"] for j in range(n_speakers))
            signals["mix_both"] = signals["mix_clean"] + signals["noise"]
            for stem, signal in signals.items():
                audio.write(
                    place / subset / stem / f"{subset}-{index}.wav", signal, sample_rate
                )
    return root
