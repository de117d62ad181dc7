"""Networks, plain torch.

Axes: B batch, T samples, N basis functions, L frames, K chunk length, S chunks,
J sources.
"""

from unified_se_ss.networks.autoencoder import Decoder, Encoder
from unified_se_ss.networks.dual_path import DualPath
from unified_se_ss.networks.recurrent import Recurrent
from unified_se_ss.networks.transformer import Transformer
from unified_se_ss.networks.unified import UnifiedNetwork, UnifiedOutput

__all__ = [
    "Decoder",
    "DualPath",
    "Encoder",
    "Recurrent",
    "Transformer",
    "UnifiedNetwork",
    "UnifiedOutput",
]
