"""Use trained models: load, separate, enhance, share.

Axes: B batch, T samples, J sources.
"""

from unified_se_ss.inference.models import Model, load_model

__all__ = ["Model", "load_model"]
