"""The evaluation room: from separated signals to metrics, tables and a report."""

from unified_se_ss.evaluation.curves import plot_curves, read_log
from unified_se_ss.evaluation.gradient_report import (
    GradientLog,
    plot_conflicts,
    read_gradients,
)
from unified_se_ss.evaluation.metrics import (
    best_permutation,
    evaluate_item,
    sdr,
    si_snr,
)
from unified_se_ss.evaluation.report import choose_examples, write_report
from unified_se_ss.evaluation.results import (
    Summary,
    read_results,
    summarise,
    write_results,
)
from unified_se_ss.evaluation.save_audio import level_signals, save_waves
from unified_se_ss.evaluation.write_evaluation import Published, publish

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
