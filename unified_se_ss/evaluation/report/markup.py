"""Values as escaped text, pictures as part of the page, and the order of rows."""

from __future__ import annotations

import base64
import html
import json

import numpy as np

#: Utterances are judged good or bad by this metric.
RANKED_BY = "si_snr_i"


def image(png, alternative):
    """An embedded plot; turned to dark colours where the page is dark."""
    data = base64.b64encode(png).decode()
    alternative = html.escape(str(alternative))
    return f'<img class="plot" alt="{alternative}" src="data:image/png;base64,{data}">'


def setting_text(key, value):
    """A setting as escaped text; the number of parameters with its thousands apart."""
    if key == "parameters" and isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (dict, list, tuple)):
        value = json.dumps(value, default=str, ensure_ascii=False)
    return html.escape(str(value))


def is_finite(value):
    """Whether there is a finite number."""
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))


def ranking(rows):
    """IDs from the worst to the best SI-SNRi."""
    there = [row for row in rows if is_finite(row.get(RANKED_BY))]
    return [str(r["ID"]) for r in sorted(there, key=lambda row: row[RANKED_BY])]
