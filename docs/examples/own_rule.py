"""A rule of one's own: import this file, and `rule: soften` works as any other does.

python own_rule.py
"""

import torch

from unified_se_ss.gradients import find_rule
from unified_se_ss.gradients.rules import rule


@rule(strength=0.0)  # the smallest value of the option
def soften(a, b, c, *, strength: float = 0.5):
    """In conflict, take a part of what opposes g_m out of g_a; then g_m + g_a.

    a, b and c are ||g_a||^2, ||g_m||^2 and <g_a, g_m>, one entry per group; what is
    returned are the weights of g_a and g_m. With strength 1 it is `project`.
    """
    return torch.ones_like(a), 1 - strength * c.clamp(max=0) / b


if __name__ == "__main__":
    g_a, g_m = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    for strength in (0.0, 0.5, 1.0):
        chosen = find_rule("soften", {"strength": strength})
        w_a, w_m = chosen(g_a @ g_a, g_m @ g_m, g_a @ g_m)
        print(f"strength {strength}: {(w_a * g_a + w_m * g_m).tolist()}")
