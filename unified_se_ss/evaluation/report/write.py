"""All sections, in one file."""

from __future__ import annotations

import html
from pathlib import Path

from unified_se_ss.evaluation.report.examples import examples_within
from unified_se_ss.evaluation.report.overview import curves, header, results, settings
from unified_se_ss.evaluation.report.page import PAGE
from unified_se_ss.evaluation.report.spread import distribution
from unified_se_ss.evaluation.report.table import utterances
from unified_se_ss.files import write_whole

#: The file stays below this, in bytes; examples that do not fit are left out.
SIZE_LIMIT = 15_000_000


def write_report(folder, title, summary, rows, log_rows, examples, configuration, notes):
    """Write report.html: what was run, what came out, and how it sounds.

    Arguments
    ---------
    folder : str or Path
        The file goes here; an earlier report.html is replaced.
    title : str
        Heading.
    summary : Summary
        As `write_results` returns it.
    rows : list of dict
        One per utterance, as given to `write_results`.
    log_rows : list of dict
        One per epoch, as for `plot_curves`; may be empty.
    examples : list of dict
        Keys: `id`; `signals`, a dict of arrays [T] by name, as `level_signals` gives
        them; `sample_rate` in Hz; `metrics`, a dict of numbers. Shown worst first by
        SI-SNRi, as many as fit into 15 MB.
    configuration : dict
        What was run. recipe, rule, granularity, parameters, commit, date, device,
        precision and hours stand at the top; all other keys are folded away.
    notes : list of str
        Paragraphs under the heading.

    Returns
    -------
    Path
        The file.

    Example
    -------
    >>> import tempfile
    >>> from unified_se_ss.evaluation.results import summarise
    >>> rows = [{"ID": "a", "si_snr_i": 9.0}, {"ID": "b", "si_snr_i": 11.0}]
    >>> folder = tempfile.mkdtemp()
    >>> write_report(folder, "Demo", summarise(rows), rows, [], [], {}, []).name
    'report.html'
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = [
        header(title, configuration, notes),
        results(summary),
        distribution(rows),
        curves(log_rows),
    ]
    folded = settings(configuration)
    everything = utterances(rows, [str(example["id"]) for example in examples])
    used = sum(len(part.encode()) for part in [*before, folded, everything, PAGE])
    parts, shown = examples_within(examples, rows, SIZE_LIMIT - used)
    body = "\n".join([*before, parts, utterances(rows, shown), folded])
    head, tail = PAGE.split("@BODY@")
    page = head.replace("@TITLE@", html.escape(title)) + body + tail
    return write_whole(folder / "report.html", page)
