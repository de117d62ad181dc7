"""Former place of what `unified_se_ss.data.corpora` holds."""

from unified_se_ss.data.corpora import BadItem, collect_errors, raise_for  # noqa: F401
from unified_se_ss.data.corpora import collected_errors as gathered  # noqa: F401
