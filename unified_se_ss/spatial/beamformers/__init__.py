"""Beamformers: several microphones' spectra to one.

Axes: B batch, C microphones, F bins, L frames.

Every beamformer is a module with two ways of going: `beamformer(mixture, target, noise)`
with one set of weights for the whole item, and `beamformer.recursive(...)` frame by
frame, with a state. See `Beamformer` for what target and noise may be.
"""

from unified_se_ss.spatial.beamformers.base import (
    Beamformer,
    BeamformerState,
    apply_weights,
    noise_context,
)
from unified_se_ss.spatial.beamformers.delay_and_sum import (
    DelayAndSum,
    delay_and_sum_weights,
)
from unified_se_ss.spatial.beamformers.mvdr import (
    MVDR,
    RTFMVDR,
    SoudenMVDR,
    mvdr_weights,
    relative_transfer_function,
    rtf_weights,
    souden_weights,
)
from unified_se_ss.spatial.beamformers.superdirective import (
    Superdirective,
    superdirective_weights,
)
from unified_se_ss.spatial.beamformers.wiener import MultichannelWiener, wiener_weights

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
    "delay_and_sum_weights",
    "mvdr_weights",
    "noise_context",
    "relative_transfer_function",
    "rtf_weights",
    "souden_weights",
    "superdirective_weights",
    "wiener_weights",
]
