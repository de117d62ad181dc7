"""Use trained models: load, separate, enhance, recognise, share."""

from unified_se_ss.inference.folders import load_model
from unified_se_ss.inference.models import Model
from unified_se_ss.inference.pipeline import (
    BinauralSeparator,
    GuidedEnhancer,
    Recognizer,
    Separator,
)
