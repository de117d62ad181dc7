"""Microphone arrays, beamformers and head-related impulse responses (PyTorch and NumPy).

Directions follow the one convention of `unified_se_ss.spatial.geometry`.
"""

from unified_se_ss.spatial.beamformers import (
    BEAMFORMERS,
    MVDR,
    RTFMVDR,
    Beamformer,
    DelayAndSum,
    MultichannelWiener,
    SoudenMVDR,
    Superdirective,
    noise_context,
)
from unified_se_ss.spatial.dsp import convolve_rir, gcc_phat
from unified_se_ss.spatial.frontend import BeamformerFrontend
from unified_se_ss.spatial.geometry import (
    bin_frequencies,
    circle_array,
    far_field_steering,
    from_vector,
    glasses_array,
    line_array,
    near_field_steering,
    phone_array,
    to_vector,
)
from unified_se_ss.spatial.hrtf import (
    HRIRSet,
    head_shadow,
    spherical_head,
    spherical_head_hrirs,
    woodworth_itd,
)

__all__ = [
    "BEAMFORMERS",
    "MVDR",
    "RTFMVDR",
    "Beamformer",
    "BeamformerFrontend",
    "DelayAndSum",
    "HRIRSet",
    "MultichannelWiener",
    "SoudenMVDR",
    "Superdirective",
    "bin_frequencies",
    "circle_array",
    "convolve_rir",
    "far_field_steering",
    "from_vector",
    "gcc_phat",
    "glasses_array",
    "head_shadow",
    "line_array",
    "near_field_steering",
    "noise_context",
    "phone_array",
    "spherical_head",
    "spherical_head_hrirs",
    "to_vector",
    "woodworth_itd",
]
