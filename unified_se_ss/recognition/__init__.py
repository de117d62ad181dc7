"""Recognition of speech, built of SpeechBrain's parts: tokens, network, losses, search."""

from unified_se_ss.recognition.losses import attention_losses, ctc_losses
from unified_se_ss.recognition.network import Recognised, RecognitionNetwork, Subsampling
from unified_se_ss.recognition.tokens import Tokens

__all__ = [
    "Recognised",
    "RecognitionNetwork",
    "Subsampling",
    "Tokens",
    "attention_losses",
    "ctc_losses",
]
