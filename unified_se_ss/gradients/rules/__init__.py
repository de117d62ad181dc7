"""Rules: how two gradients of the same parameters become one.

With two tasks a rule is a closed form of three numbers per group of parameters,

    a = ||g_a||^2,   b = ||g_m||^2,   c = <g_a, g_m>,

for g_a the gradient of the auxiliary and g_m that of the main task. It gives two
weights, and the shared gradient is w_a * g_a + w_m * g_m. A rule is a pure function of
batched tensors, one entry per group; it never waits for the device.

A rule of your own is one more function with `@rule`, in any file of this folder. Keyword-only arguments of the
function are the options of the rule (``rule_options`` in YAML).
"""

from importlib import import_module
from pkgutil import iter_modules

from unified_se_ss.gradients.rules.registry import RULES, Rule, find_rule, rule

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
