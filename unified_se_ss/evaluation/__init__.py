"""The evaluation room: from separated signals to metrics, tables and a report."""

from unified_se_ss.evaluation.metrics import (
    best_permutation,
    evaluate_item,
    sdr,
    si_snr,
)
from unified_se_ss.evaluation.results import (
    Summary,
    read_results,
    summarise,
    write_results,
)

__all__ = [
    "Summary",
    "best_permutation",
    "evaluate_item",
    "read_results",
    "sdr",
    "si_snr",
    "summarise",
    "write_results",
]
