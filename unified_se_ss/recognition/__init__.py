"""Recognition of speech, built of SpeechBrain's parts: tokens, network, losses, search."""

from unified_se_ss.recognition.network import (
    Recognised,
    RecognitionNetwork,
    Subsampling,
    attention_losses,
    ctc_losses,
)
from unified_se_ss.recognition.search import BeamSearch, greedy_words
from unified_se_ss.recognition.tokens import Tokens

__all__ = [
    "BeamSearch",
    "Recognised",
    "RecognitionNetwork",
    "Subsampling",
    "Tokens",
    "attention_losses",
    "ctc_losses",
    "greedy_words",
]
