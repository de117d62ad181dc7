"""From the rows of the test set to the files of the run's folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from unified_se_ss.evaluation.gradient_report import GradientLog
from unified_se_ss.evaluation.write_evaluation import publish
from unified_se_ss.training.description import count_parameters
from unified_se_ss.training.log import TrainLog, describe_rule
from unified_se_ss.training.run_folder import commit


def report(brain, rows: list[dict], signals_of_id, hours: float, **sections) -> None:
    """Write results, wavs and report of the evaluated network; print where they are.

    Arguments
    ---------
    brain : RecipeBrain
        Its ``hparams`` say where and how much: ``output_folder``, ``save_waves``.
    rows : list of dict
        What each test utterance got, as ``evaluate_item`` gives it, with its ``ID``.
    signals_of_id : callable
        Returns the signals of an utterance by its ID: a dict of mixture [T],
        estimates [J, T], targets [J, T], and, where there is one, enhanced [T].
    hours : float
        What the run took.
    sections : dict
        More for the report; passed on to ``evaluation.publish``.
    """
    hparams = vars(brain.hparams)
    folder = Path(hparams["output_folder"])
    left_out = []
    if brain.n_skipped:
        left_out.append(
            f"{brain.n_skipped} of {brain.skipped.n_items} test items could not be used and "
            f"are not in these results; {brain.skipped.path.name} names them."
        )
    published = publish(
        folder,
        hparams["experiment_name"],
        rows,
        signals_of_id,
        hparams["sample_rate"],
        log_rows=TrainLog(folder).rows,
        configuration=_configuration(brain, hparams, hours),
        notes=[
            f"Measured on the test set with {_weights(brain)}.",
            *left_out,
        ],
        keep_waves=hparams["save_waves"],
        gradient_rows=GradientLog(folder).rows,
        **sections,
    )
    picture = folder / "gradients.png"
    drawn = picture if picture.is_file() else "not drawn: no two gradients to compare"
    waves = f"{folder / 'wavs'}{'/' if published.waves else ' (save_waves is 0)'}"
    print(f"\n{published.summary.table()}\n")
    print(*left_out, sep="\n", end="\n\n" if left_out else "")
    print(f"results       {published.results}")
    print(f"curves        {folder / 'curves.png'}")
    print(f"gradients     {drawn}")
    print(f"separated     {waves}")
    print(f"report        {published.report}")


def _weights(brain) -> str:
    """Which weights were tested, in words."""
    count = brain.option("average_checkpoints", 1)
    best = brain.checkpointer.find_checkpoints(
        max_key=brain.best, max_num_checkpoints=count
    )
    if count == 1 or len(best) < 2:
        return "the checkpoint best in validation"
    return f"the mean weights of the {len(best)} checkpoints best in validation"


def _configuration(brain, hparams: dict, hours: float) -> dict:
    """What was run: every plain key of the YAML, and the circumstances."""
    plain = {k: v for k, v in hparams.items() if isinstance(v, (str, int, float, list))}
    if "rule" in plain:
        plain["rule"] = describe_rule(hparams)
    return {
        **plain,
        "recipe": Path(sys.argv[0]).name,
        "parameters": f"{count_parameters(brain.modules):,}",
        "commit": commit() or "unknown",
        "device": str(brain.device),
        "precision": brain.precision,
        "hours": round(hours, 2),
    }


class Stopwatch:
    """Hours since it was made.

    Example
    -------
    >>> 0 <= Stopwatch().hours < 1
    True
    """

    def __init__(self):
        self._start = time.perf_counter()

    @property
    def hours(self) -> float:
        """Hours so far."""
        return (time.perf_counter() - self._start) / 3600
