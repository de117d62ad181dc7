"""Results of benchmarks as files: JSON of one run, and a page of the latest tables.

RESULTS.md has one section for each kind of machine and in it one for each benchmark,
with the date, commit and versions it was measured with.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.frame import Table
from unified_se_ss.files import atomic_write

HEAD = """# Results

Latest tables by kind of machine, as `python -m benchmarks --record` wrote them. "Speed" is
a multiple of the baseline's, above 1 is faster; "processor" times are the process's own
seconds on the CPU, which other programs on the machine do not lengthen.
"""


def write_json(path: Path, machine: dict, results: dict[str, list[Table]]) -> None:
    """Write machine and tables of a run.

    Arguments
    ---------
    path : pathlib.Path
        Replaced as a whole.
    machine : dict
        As :func:`benchmarks.frame.machine` gives it.
    results : dict
        Tables by benchmark.
    """
    tables = {
        name: [
            {"title": table.title, "note": table.note, "rows": table.rows}
            for table in tables
        ]
        for name, tables in results.items()
    }
    text = json.dumps({"machine": machine, "results": tables}, indent=2, default=str)
    atomic_write(path, text + "\n")


def record(path: Path, machine: dict, results: dict[str, list[Table]]) -> None:
    """Replace what a page says of these benchmarks on this kind of machine.

    Arguments
    ---------
    path : pathlib.Path
        RESULTS.md; made where it is not there.
    machine, results : dict
        As for :func:`write_json`.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else HEAD
    head, kinds = _sections(text, "## ")
    intro, benchmarks = _sections(kinds.get(machine["kind"], ""), "### ")
    for name, tables in results.items():
        body = "\n\n".join(table.as_markdown() for table in tables)
        benchmarks[name] = f"{_measured_with(machine)}\n\n{body}"
    kinds[machine["kind"]] = _joined(intro, dict(sorted(benchmarks.items())), "### ")
    atomic_write(path, _joined(head, kinds, "## ") + "\n")


def _measured_with(machine: dict) -> str:
    """One line on when and with what."""
    versions = machine["versions"]
    told = ", ".join(
        f"{k} {versions[k]}" for k in ("torch", "speechbrain") if k in versions
    )
    threads = machine["threads"]
    return (
        f"{machine['date']}, commit {machine['commit']}, {machine['device']}, "
        f"{threads} thread{'s' * (threads > 1)}, {told}"
    )


def _sections(text: str, mark: str) -> tuple[str, dict[str, str]]:
    """What stands before the first heading of a level, and the text under each."""
    head, *parts = re.split(rf"^{mark}(.*)$", text, flags=re.MULTILINE)
    return head.strip(), dict(zip(parts[::2], (part.strip() for part in parts[1::2])))


def _joined(head: str, sections: dict[str, str], mark: str) -> str:
    """The inverse of :func:`_sections`."""
    parts = [f"{mark}{name}\n\n{body}" for name, body in sections.items()]
    return "\n\n".join(part for part in (head, *parts) if part)
