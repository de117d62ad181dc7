"""Evaluation: SDR against mir_eval, and a whole test set scored by processes.

Baseline: `mir_eval.separation.bss_eval_sources(targets, estimates)`, the whole of BSS Eval 3
(it gives SIR and SAR, too, which this project does not need), without its search for the
best order. Items of 10 s at 8 kHz in float32, 2 and 3 sources, one thread; both get the same
arrays, and the largest difference of their SDRs is in the table. `whole item` is everything
that the test set's results hold of an utterance: best order, SI-SNR and SDR of each source and
of the mixture, and the conditions.

The second table is a test set through `evaluate`, which scores in processes: its network
takes no time, so what is counted is the scoring alone and the handing over of the signals.
`at work` is without the seconds in which processes start.

Aim: 6 times mir_eval's speed on one core, at 1e-4 dB.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import scipy.signal
import torch

from benchmarks.frame import Options, Table, alternate, compared, needs
from unified_se_ss.data.cache import count_cores
from unified_se_ss.evaluation.evaluate import (
    Utterance,
    evaluate,
    one_thread_each,
)
from unified_se_ss.evaluation.metrics import sdr
from unified_se_ss.evaluation.rows import evaluate_item

RATE = 8000
SECONDS = 10.0
PROCESSES = (1, 2, 4, 8)
SET = 60  #: Utterances for each process.
AIM_DB = 1e-4


def item(n_sources: int, seconds: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets [J, T] like speech in colour and level, and estimates of about 12 dB."""
    rng = np.random.default_rng([seed, n_sources])
    samples = int(seconds * RATE)
    white = rng.standard_normal((n_sources, samples))
    targets = scipy.signal.lfilter([0.1], [1.0, -0.9], white)
    targets *= 0.5 + 0.5 * np.sin(np.arange(samples) / 900 + np.arange(n_sources)[:, None])
    others = targets.sum(0) - targets
    estimates = targets + 0.2 * others + 0.01 * rng.standard_normal(targets.shape)
    # A short filter, which SDR forgives.
    estimates = scipy.signal.lfilter([0.8, 0.1, -0.05], [1.0], estimates)
    return targets.astype(np.float32), estimates.astype(np.float32)


def sdr_here(targets, estimates) -> np.ndarray:
    """SDR of each source as this project computes it."""
    return np.array([sdr(e, t) for e, t in zip(estimates, targets)])


def sdr_of_mir_eval(targets, estimates) -> np.ndarray:
    """SDR of each source as mir_eval computes it."""
    from mir_eval.separation import bss_eval_sources

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it announces that it will go away
        return bss_eval_sources(targets, estimates, compute_permutation=False)[0]


def one_core(options: Options) -> Table:
    """SDR of one utterance, beside mir_eval's, in a process with one thread."""
    seconds = 0.5 if options.quick else SECONDS
    rows = []
    with one_thread_each():
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            for n_sources in (2, 3):
                rows += pool.submit(sdr_rows, n_sources, seconds, options.repeats).result()
    columns = ["sources", "way", "seconds", "items/s", "speed", "processor speed"]
    return Table(
        f"SDR of an item of {seconds:g} s at 8 kHz, one core",
        [*columns, "largest difference dB"],
        rows,
        f"Aim: speed 6 or more with a difference of at most {AIM_DB:g} dB.",
    )


def sdr_rows(n_sources: int, seconds: float, repeats: int) -> list[dict]:
    """mir_eval, the SDR alone, and all that is scored of an item."""
    targets, estimates = item(n_sources, seconds)
    mixture = targets.sum(0)
    ways = {
        "mir_eval": lambda: sdr_of_mir_eval(targets, estimates),
        "here": lambda: sdr_here(targets, estimates),
        "here, whole item": lambda: evaluate_item(
            mixture, estimates, targets, sample_rate=RATE
        ),
    }
    difference = float(np.abs(ways["here"]() - ways["mir_eval"]()).max())
    timings = alternate(ways, repeats, torch.device("cpu"))
    return [
        {
            "sources": n_sources,
            **row,
            "items/s": 1 / row["seconds"],
            "largest difference dB": difference if row["way"] == "here" else None,
        }
        for row in compared(timings, "mir_eval")
    ]


class Utterances:
    """A test set of one item under many names; notes when it is asked for each.

    Arguments
    ---------
    count : int
    n_sources : int
    seconds : float
    """

    def __init__(self, count: int, n_sources: int, seconds: float):
        self.count = count
        self.targets, self.estimates = item(n_sources, seconds)
        self.asked: list[float] = []

    def __iter__(self):
        for number in range(self.count):
            self.asked.append(time.perf_counter())
            yield Utterance(f"{number:04d}", self.targets.sum(0), self.targets)

    def separate(self, mixture) -> dict:
        """In the place of a network."""
        return {"estimates": self.estimates}


def whole_set(options: Options) -> Table:
    """A test set scored by 1, 2, 4 … processes."""
    rows = []
    cores = count_cores()
    jobs_tried = (1,) if options.quick else [n for n in PROCESSES if n <= max(2, cores)]
    for jobs in jobs_tried:
        count = 4 if options.quick else SET * jobs
        utterances = Utterances(count, 2, 0.5 if options.quick else SECONDS)
        began = time.perf_counter()
        scored = evaluate(utterances, utterances.separate, RATE, jobs=jobs)
        took = time.perf_counter() - began
        assert len(scored) == count
        # From the first that has to wait for one to be scored, on.
        waiting = 2 * jobs + 3
        at_work = None
        if count > 2 * waiting:
            since = utterances.asked[waiting]
            at_work = (count - waiting) / (began + took - since)
        rows.append(
            {
                "processes": jobs,
                "utterances": count,
                "seconds": took,
                "items/s": count / took,
                "items/s at work": at_work,
            }
        )
    return Table(
        "A test set of two sources, scored by processes (SI-SNR, SDR, conditions)",
        ["processes", "utterances", "seconds", "items/s", "items/s at work"],
        rows,
        f"{cores} cores; this process hands the signals over. Wall clock.",
    )


def run(options: Options) -> Iterator[Table]:
    """Both tables."""
    needs("mir_eval", "test")
    yield one_core(options)
    yield whole_set(options)
