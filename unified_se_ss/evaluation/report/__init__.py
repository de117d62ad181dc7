"""The report of a run: one HTML file that needs nothing else, not even a network.

Each module makes one section; `write` puts them together. Everything that comes from a
file or from the user passes `html.escape`.
"""

from unified_se_ss.evaluation.report.examples import choose_examples
from unified_se_ss.evaluation.report.spectrogram import spectrogram_db
from unified_se_ss.evaluation.report.write import SIZE_LIMIT, write_report

__all__ = ["SIZE_LIMIT", "choose_examples", "spectrogram_db", "write_report"]
