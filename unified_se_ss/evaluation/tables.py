"""Columns and tables as text, and the parts of a report."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Column(NamedTuple):
    """A column of results.csv: its key there, and what tables and plots call it.

    Of a rate in percent of words, `errors` is the column that counts the errors: the mean is
    all errors over all words.
    """

    key: str
    heading: str
    unit: str = ""
    lower_is_better: bool = False
    errors: str | None = None

    @property
    def label(self) -> str:
        return f"{self.heading} ({self.unit})" if self.unit else self.heading


def with_improvement(key, heading, unit="") -> tuple[Column, Column]:
    """The columns of a metric and of its improvement over the input, `..._i`."""
    plain, _, of = heading.partition(" ")
    improved = f"{plain}i {of}".rstrip()
    return Column(key, heading, unit), Column(f"{key}_i", improved, unit)


def decimals(value, sign="") -> str:
    """Two decimals, or a dash for None."""
    return "–" if value is None else f"{value:{sign}.2f}"


def interval_text(low, high, sign="") -> str:
    """Both ends of an interval with two decimals, or a dash for None."""
    return "–" if low is None else f"{low:{sign}.2f} … {high:{sign}.2f}"


def as_text(value, places=6) -> str:
    """A value as a cell of a CSV file: numbers with fixed decimals, None empty."""
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return " ".join(str(part) for part in value)
    if isinstance(value, (float, np.floating)):
        return f"{value:.{places}f}" if np.isfinite(value) else ""
    return str(value)


def aligned_table(head, rows, words=(0,)) -> str:
    """A table for the terminal, with a rule under its head.

    Columns of numbers `words` are aligned to the left, the others to the right.

    Example
    -------
    >>> print(aligned_table(["metric", "mean"], [["SDR", "12.00 dB"]]))
    metric       mean
    -----------------
    SDR      12.00 dB
    """
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    words = {number % len(head) for number in words}
    lines = [
        "   ".join(
            cell.ljust(width) if number in words else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in (head, *rows)
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def markdown_table(head, rows, words=(0,)) -> str:
    """A table in Markdown; arguments as for `aligned_table`."""
    words = {number % len(head) for number in words}
    rule = ["---" if number in words else "--:" for number in range(len(head))]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])
    )


class Picture(NamedTuple):
    """A plot in a report: PNG, and what it shows in words."""

    png: bytes
    alt: str


class Table(NamedTuple):
    """A table in a report; the first cell names the row, a pair is set bold, then plain.

    Folded under some words if these are given; `kind` is the class of its style.
    """

    head: list
    rows: list
    folded: str = ""
    kind: str = ""


class Text(NamedTuple):
    """A paragraph in a report, or with the tag `h3` a heading within a section."""

    text: str
    tag: str = "p"


class Section(NamedTuple):
    """A section of a report: anchor, heading, and parts; a str is a note in small letters."""

    id: str
    heading: str
    parts: list
