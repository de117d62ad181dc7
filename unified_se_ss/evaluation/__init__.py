"""The evaluation room: from separated signals to metrics, tables and a report."""

from unified_se_ss.evaluation.conflicts import GradientLog, plot_conflicts, read_gradients
from unified_se_ss.evaluation.curves import plot_curves, read_log
from unified_se_ss.evaluation.metrics import (
    best_permutation,
    evaluate_item,
    sdr,
    si_snr,
)
from unified_se_ss.evaluation.publication import Published, publish
from unified_se_ss.evaluation.report import choose_examples, write_report
from unified_se_ss.evaluation.results import (
    Summary,
    read_results,
    summarise,
    write_results,
)
from unified_se_ss.evaluation.waves import level_signals, save_waves

__all__ = [
    "GradientLog",
    "Published",
    "Summary",
    "best_permutation",
    "choose_examples",
    "evaluate_item",
    "level_signals",
    "plot_conflicts",
    "plot_curves",
    "publish",
    "read_gradients",
    "read_log",
    "read_results",
    "save_waves",
    "sdr",
    "si_snr",
    "summarise",
    "write_report",
    "write_results",
]
