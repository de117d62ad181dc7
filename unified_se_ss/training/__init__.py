"""What every train.py shares: options, the run's folder, loaders, the Brain, the log."""

from unified_se_ss.training.checks import (
    check_choices,
    check_ranges,
    check_rule,
    check_segment,
)
from unified_se_ss.training.description import count_parameters, describe
from unified_se_ss.training.gather import gather, on_main, rank_and_size
from unified_se_ss.training.loaders import make_loader, make_loaders
from unified_se_ss.training.loading import load_hparams
from unified_se_ss.training.log import TrainLog, describe_rule, log_gradients
from unified_se_ss.training.options import Options, parse_options
from unified_se_ss.training.recipe_brain import RecipeBrain
from unified_se_ss.training.results import Stopwatch, report
from unified_se_ss.training.run import run, train_and_test
from unified_se_ss.training.run_folder import (
    begin,
    check_testable,
    commit,
    environment,
    keep_freed_memory,
)

__all__ = [
    "Options",
    "RecipeBrain",
    "Stopwatch",
    "TrainLog",
    "begin",
    "check_choices",
    "check_ranges",
    "check_rule",
    "check_segment",
    "check_testable",
    "commit",
    "count_parameters",
    "describe",
    "describe_rule",
    "environment",
    "gather",
    "keep_freed_memory",
    "load_hparams",
    "log_gradients",
    "make_loader",
    "make_loaders",
    "on_main",
    "parse_options",
    "rank_and_size",
    "report",
    "run",
    "train_and_test",
]
