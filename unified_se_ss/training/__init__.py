"""Everything around a recipe's network: options, the run's folder, the Brain, the log."""

from unified_se_ss.training.brain import percent
from unified_se_ss.training.distributed import on_main, rank_and_size
from unified_se_ss.training.hparams import (
    check_choices,
    check_rule,
    check_segment,
    load_hparams,
    manifest_folder,
    pick,
)
from unified_se_ss.training.loaders import make_loader, make_loaders, prepare_dynamic_mixing
from unified_se_ss.training.log import TrainLog, describe_rule
from unified_se_ss.training.options import Options, parse_options
from unified_se_ss.training.recipe_brain import RecipeBrain, item_arrays
from unified_se_ss.training.run import run, train_and_test, train_recipe
