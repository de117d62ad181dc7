"""Microphone arrays, beamformers and head-related impulse responses (PyTorch and NumPy).

Directions follow the one convention of `unified_se_ss.spatial.geometry`.
"""

from unified_se_ss.spatial.beamformers import BEAMFORMERS
from unified_se_ss.spatial.dsp import convolve_rir, gcc_phat
from unified_se_ss.spatial.frontend import BeamformerFrontend
from unified_se_ss.spatial.geometry import (
    circle_array,
    glasses_array,
    line_array,
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
