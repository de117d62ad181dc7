"""Beamformers: several microphones' spectra to one.

Every beamformer is a module with two ways of going: `beamformer(mixture, target, noise)`
with one set of weights for the whole item, and `beamformer.recursive(...)` frame by
frame, with a state. See `Beamformer` for what target and noise may be.
"""

from unified_se_ss.spatial.beamformers.adaptive import (
    MVDR,
    RTFMVDR,
    MultichannelWiener,
    SoudenMVDR,
)
from unified_se_ss.spatial.beamformers.base import (
    Beamformer,
    BeamformerState,
    apply_weights,
    noise_context,
)
from unified_se_ss.spatial.beamformers.fixed import DelayAndSum, Superdirective

#: The beamformers by the name that a YAML gives them.
BEAMFORMERS = {
    "delay_and_sum": DelayAndSum,
    "superdirective": Superdirective,
    "mvdr": MVDR,
    "souden_mvdr": SoudenMVDR,
    "rtf_mvdr": RTFMVDR,
    "multichannel_wiener": MultichannelWiener,
}

__all__ = [
    "BEAMFORMERS",
    "MVDR",
    "RTFMVDR",
    "Beamformer",
    "BeamformerState",
    "DelayAndSum",
    "MultichannelWiener",
    "SoudenMVDR",
    "Superdirective",
    "apply_weights",
    "noise_context",
]
