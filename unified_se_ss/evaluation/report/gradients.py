"""How the two tasks got along: the picture of gradients.csv, and what it says."""

from __future__ import annotations

from unified_se_ss.evaluation.gradient_report import (
    conclusions,
    conflicts_png,
    was_compared,
)
from unified_se_ss.evaluation.report.markup import image


def gradients(rows, rule="", granularity="parameter"):
    """The section on the two tasks' gradients.

    Arguments
    ---------
    rows : list of dict
        As `read_gradients` returns them; without any there is no section.
    rule, granularity : str
        As for `conclusions`.

    Returns
    -------
    str
        HTML.

    Example
    -------
    >>> "a dead one" in gradients([{"epoch": 1, "step": 50, "scope": "all", "compared": 0}])
    True
    """
    if not rows:
        return ""
    heading = '<h2 id="gradients">How the two tasks got along</h2>\n'
    if not was_compared(rows):
        return heading + (
            '<p class="small">There were no two gradients to compare: no auxiliary task, '
            "or a dead one.</p>"
        )
    caption = (
        "Gradients of the auxiliary and the main task in the parameters that both train, "
        "as the rule saw them: red where they oppose each other, blue where they agree. "
        "gradients.csv holds every window and module; docs/gradients.md says what is "
        "measured."
    )
    picture = conflicts_png(rows, rule, granularity)
    words = " ".join(conclusions(rows, rule, granularity))
    return f'{heading}<p class="small">{caption}</p>\n{image(picture, words)}'
