"""One message for all that is wrong with a folder of recordings."""

from __future__ import annotations

from unified_se_ss.errors import UserError

SHOWN = 10


def raise_for(problems, key, advice):
    """Raises one error that names the first problems, if there is any.

    Arguments
    ---------
    problems : list of str
        Each names a file and says what is wrong with it; ten are shown.
    key : str
        The option that names the folder.
    advice : str
        What to do.

    Raises
    ------
    UserError
        If there are problems.

    Example
    -------
    >>> raise_for(["a.wav: is empty"], "data_folder", "make it again")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: 1 problem(s) with its recordings:
      a.wav: is empty
    What to do: make it again.
    """
    if not problems:
        return
    lines = [f"{key}: {len(problems)} problem(s) with its recordings:"]
    lines += [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    raise UserError("\n".join([*lines, f"What to do: {advice}."]))
