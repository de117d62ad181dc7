"""All sections, in one file."""

from __future__ import annotations

import html
import re
from pathlib import Path

from unified_se_ss.evaluation.report.examples import examples_within
from unified_se_ss.evaluation.report.gradients import gradients
from unified_se_ss.evaluation.report.overview import curves, header, results, settings
from unified_se_ss.evaluation.report.page import PAGE
from unified_se_ss.evaluation.report.spread import distribution
from unified_se_ss.evaluation.report.table import utterances
from unified_se_ss.files import atomic_write

#: The file stays below this, in bytes: long examples are cut, then left out.
SIZE_LIMIT = 15_000_000
#: Bytes kept free for the links to the sections.
CONTENTS_BYTES = 2000


def write_report(
    folder,
    title,
    summary,
    rows,
    log_rows,
    examples,
    configuration,
    notes,
    gradient_rows=(),
    findings=(),
):
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
        SI-SNRi; what does not fit into 15 MB is cut to excerpts, then left out.
    configuration : dict
        What was run. recipe, rule, granularity, parameters, commit, date, device,
        precision and hours stand at the top; all other keys are folded away.
    notes : list of str
        Paragraphs under the heading.
    gradient_rows : list of dict
        Of two tasks that share parameters, as `read_gradients` returns them.
    findings : list of str or callable
        More sections, as HTML, after the results, or functions that make them of the
        rows; each begins with an `h2` with an `id`.

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
    rule = configuration.get("rule", ""), configuration.get("granularity", "parameter")
    before = [
        results(summary),
        *(part(rows) if callable(part) else part for part in findings),
        distribution(rows),
        curves(log_rows),
        gradients(gradient_rows, *rule),
    ]
    after = settings(configuration)
    # As large as it can get: with a link to each example.
    everything = utterances(rows, [str(example["id"]) for example in examples])
    heading = header(title, configuration, notes)
    fixed = [heading, *before, everything, after, PAGE, " " * CONTENTS_BYTES]
    used = sum(len(part.encode()) + 1 for part in fixed)
    parts, shown = examples_within(examples, rows, SIZE_LIMIT - used)
    sections = [*before, parts, utterances(rows, shown), after]
    body = "\n".join([heading, contents(sections), *filter(None, sections)])
    head, tail = PAGE.split("@BODY@")
    page = head.replace("@TITLE@", html.escape(title)) + body + tail
    return atomic_write(folder / "report.html", page)


def contents(sections):
    """Links to the sections that are there, by their headings."""
    found = re.findall(r'<h2 id="([\w-]+)">([^<]*)</h2>', "".join(sections))
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading in found)
    return f'<nav aria-label="Sections">{links}</nav>'
