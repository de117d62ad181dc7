"""Use trained models: load, separate, enhance, share.

Axes: B batch, T samples, J sources.
"""

from unified_se_ss.inference.models import Model, load_model
from unified_se_ss.inference.separator import Separator

__all__ = ["Model", "Separator", "load_model"]
