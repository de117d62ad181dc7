"""Networks, plain torch.

Axes: B batch, T samples, N basis functions, L frames, K chunk length, S chunks,
J sources, C channels, F bins, E ears, G networks side by side.
"""

from unified_se_ss.networks.autoencoder import Decoder, Encoder
from unified_se_ss.networks.binaural import BinauralNetwork, BinauralStream
from unified_se_ss.networks.conv_tasnet import TemporalConvNet
from unified_se_ss.networks.dual_path import DualPath
from unified_se_ss.networks.gsenet import GSENet, GSENetStream
from unified_se_ss.networks.masking import Enhanced, MaskingFront
from unified_se_ss.networks.recurrent import Recurrent
from unified_se_ss.networks.transformer import Transformer
from unified_se_ss.networks.unified import UnifiedNetwork, UnifiedOutput
