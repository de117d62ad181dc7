"""Two gradients for the parameters that two tasks share, and one update from them.

A *main* task m (separation, recognition) and an *auxiliary* task a (enhancement) share
parameters. Their gradients are taken apart, summed over micro-batches and ranks, and
then made into one by a rule. Knows torch and nothing of speech.
"""

from unified_se_ss.gradients.layout import GRANULARITIES
from unified_se_ss.gradients.monitor import ConflictMonitor, NonFiniteMonitor
from unified_se_ss.gradients.rules import RULES, Rule, find_rule
from unified_se_ss.gradients.two_task import (
    AUX_SCALES,
    CombinedGradients,
    TaskLoss,
    TwoTaskGradients,
    TwoTaskLosses,
)
