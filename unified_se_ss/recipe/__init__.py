"""What every train.py shares: options, the run's folder, loaders, the Brain, the log."""

from unified_se_ss.recipe.brain import RecipeBrain
from unified_se_ss.recipe.checks import (
    check_choices,
    check_ranges,
    check_rule,
    check_segment,
)
from unified_se_ss.recipe.description import count_parameters, describe
from unified_se_ss.recipe.folder import (
    begin,
    check_testable,
    commit,
    environment,
    keep_freed_memory,
)
from unified_se_ss.recipe.loaders import make_loader, make_loaders
from unified_se_ss.recipe.loading import load_hparams
from unified_se_ss.recipe.log import TrainLog, describe_rule, log_gradients
from unified_se_ss.recipe.options import Options, parse_options
from unified_se_ss.recipe.ranks import gather, on_main, rank_and_size
from unified_se_ss.recipe.results import Stopwatch, report
from unified_se_ss.recipe.start import run, train_and_test

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
