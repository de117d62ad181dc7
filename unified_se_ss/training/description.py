"""What --describe prints."""

from __future__ import annotations

import torch


def describe(modules: dict, facts: dict, depth: int = 2) -> str:
    """Modules with their parameter counts, and facts about the whole.

    Arguments
    ---------
    modules : dict
        ``hparams["modules"]``.
    facts : dict
        What else is worth knowing, such as latency, by name.
    depth : int
        Levels of modules shown.

    Returns
    -------
    str

    Example
    -------
    >>> print(describe({"network": torch.nn.Linear(3, 2)}, {"latency": "none"}))
    module  | type   | parameters
    --------+--------+-----------
    network | Linear |          8
    total   |        |          8
    <BLANKLINE>
    latency: none
    """
    rows = [("module", "type", "parameters")]
    for name, module in modules.items():
        for path, part in module.named_modules():
            level = path.count(".") + 1 if path else 0
            if level < depth:
                label = name + (f".{path}" if path else "")
                rows.append((label, type(part).__name__, f"{count_parameters(part):,}"))
    total = sum(count_parameters(module) for module in modules.values())
    rows.append(("total", "", f"{total:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}} | {b:<{widths[1]}} | {c:>{widths[2]}}" for a, b, c in rows]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join(lines) + "\n\n" + "\n".join(f"{k}: {v}" for k, v in facts.items())


def count_parameters(module: torch.nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
