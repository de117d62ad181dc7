"""Where sounds come from and what ears and microphones make of it (numpy and torch).

The convention of directions is stated in `unified_se_ss.spatial.directions`.
"""

from unified_se_ss.spatial.arrays import (
    ARRAYS,
    SPEED_OF_SOUND,
    bin_frequencies,
    circle_array,
    far_field_steering,
    glasses_array,
    line_array,
    near_field_steering,
    phone_array,
)
from unified_se_ss.spatial.beamformers import (
    BEAMFORMERS,
    MVDR,
    RTFMVDR,
    Beamformer,
    BeamformerState,
    DelayAndSum,
    MultichannelWiener,
    SoudenMVDR,
    Superdirective,
    noise_context,
)
from unified_se_ss.spatial.covariance import recursive_covariance, spatial_covariance
from unified_se_ss.spatial.directions import (
    from_interaural_polar,
    from_vector,
    lateral_angle,
    to_vector,
)
from unified_se_ss.spatial.frontend import BeamformerFrontend
from unified_se_ss.spatial.gcc_phat import Delay, gcc_phat
from unified_se_ss.spatial.hrtf.hrir import HRIRSet, binaural
from unified_se_ss.spatial.hrtf.sphere import (
    head_shadow,
    spherical_head,
    spherical_head_hrirs,
    woodworth_itd,
)

__all__ = [
    "ARRAYS",
    "BEAMFORMERS",
    "MVDR",
    "RTFMVDR",
    "SPEED_OF_SOUND",
    "Beamformer",
    "BeamformerState",
    "Delay",
    "DelayAndSum",
    "BeamformerFrontend",
    "HRIRSet",
    "MultichannelWiener",
    "SoudenMVDR",
    "Superdirective",
    "bin_frequencies",
    "binaural",
    "circle_array",
    "far_field_steering",
    "from_interaural_polar",
    "from_vector",
    "gcc_phat",
    "glasses_array",
    "head_shadow",
    "lateral_angle",
    "line_array",
    "near_field_steering",
    "noise_context",
    "phone_array",
    "recursive_covariance",
    "spatial_covariance",
    "spherical_head",
    "spherical_head_hrirs",
    "to_vector",
    "woodworth_itd",
]
