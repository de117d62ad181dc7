"""Speech enhancement and separation (or recognition) in one network, without the fight.

The library behind the recipes of this project. Each subpackage is a room that can be
used on its own: :mod:`~unified_se_ss.gradients` (two-task gradients, knows nothing of
speech), :mod:`~unified_se_ss.networks`, :mod:`~unified_se_ss.losses`,
:mod:`~unified_se_ss.data` and :mod:`~unified_se_ss.evaluation`.
"""

__version__ = "0.1.0"
