"""Where sounds come from and what ears and microphones make of it (numpy and torch).

The convention of directions is stated in `unified_se_ss.spatial.directions`.
"""

from unified_se_ss.spatial.directions import (
    from_interaural_polar,
    from_vector,
    lateral_angle,
    to_vector,
)
from unified_se_ss.spatial.head import Head, binaural
from unified_se_ss.spatial.spherical_head import (
    head_shadow,
    spherical_head,
    spherical_heads,
    woodworth_itd,
)

__all__ = [
    "Head",
    "binaural",
    "from_interaural_polar",
    "from_vector",
    "head_shadow",
    "lateral_angle",
    "spherical_head",
    "spherical_heads",
    "to_vector",
    "woodworth_itd",
]
