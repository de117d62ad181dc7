"""Losses; every one of them ignores padding.

Axes: B batch, J sources, T samples, N basis functions, L frames.
"""

from unified_se_ss.losses.interaural import CueLosses, interaural_cue_losses
from unified_se_ss.losses.snr import (
    permutation_invariant_si_snr,
    permutation_invariant_snr,
    reorder_sources,
    si_snr,
    snr,
)
from unified_se_ss.losses.spectral import (
    REPRESENTATION_LOSSES,
    STFT_LOSSES,
    magnitude_loss,
    representation_loss,
    stft_loss,
)

__all__ = [
    "REPRESENTATION_LOSSES",
    "STFT_LOSSES",
    "CueLosses",
    "interaural_cue_losses",
    "magnitude_loss",
    "permutation_invariant_si_snr",
    "permutation_invariant_snr",
    "reorder_sources",
    "representation_loss",
    "si_snr",
    "snr",
    "stft_loss",
]
