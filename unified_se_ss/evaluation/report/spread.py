"""How SI-SNRi is spread over the utterances, and what it depends on."""

from __future__ import annotations

import numpy as np

from unified_se_ss.evaluation.curves import png_bytes
from unified_se_ss.evaluation.report.markup import RANKED_BY, image, is_finite


def distribution(rows):
    """How SI-SNRi is spread, and how it depends on the mixture."""
    there = [row for row in rows if is_finite(row.get(RANKED_BY))]
    if not there:
        return ""
    picture = _distribution_png(there)
    return f"<h2>Utterance by utterance</h2>\n{image(picture, 'Spread of SI-SNRi')}"


def _distribution_png(rows):
    """Histogram of SI-SNRi, and SI-SNR after against before."""
    from matplotlib.figure import Figure

    gains = np.array([row[RANKED_BY] for row in rows], dtype=float)
    after = np.array([row.get("si_snr", np.nan) for row in rows], dtype=float)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    histogram, scatter = figure.subplots(1, 2)
    histogram.hist(gains, bins=min(40, max(8, len(gains) // 5)), color="tab:blue")
    mean = f"mean {gains.mean():.2f} dB"
    histogram.axvline(gains.mean(), color="k", lw=1, label=mean)
    histogram.axvline(0, color="tab:red", lw=1, ls=":", label="mixture")
    histogram.set_xlabel("SI-SNRi (dB)", fontsize=9)
    histogram.set_ylabel("utterances", fontsize=9)
    histogram.legend(fontsize=8, frameon=False)
    before = after - gains
    scatter.plot(before, after, ".", color="tab:blue", ms=5, alpha=0.6)
    if np.isfinite(before).any():
        ends = [np.nanmin(before), np.nanmax(before)]
        scatter.plot(ends, ends, color="tab:red", lw=1, ls=":", label="mixture")
        scatter.legend(fontsize=8, frameon=False)
    scatter.set_xlabel("SI-SNR of the mixture (dB)", fontsize=9)
    scatter.set_ylabel("SI-SNR after (dB)", fontsize=9)
    for axes in (histogram, scatter):
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return png_bytes(figure)
