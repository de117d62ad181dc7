"""Evaluate any separation on any mixtures: the network here, the scoring in processes.

The network runs in this process, one utterance at a time, on whatever device it is;
scoring, which takes longer with the perceptual metrics, runs in processes of one thread
each. What separates is a function, so nothing here knows a network.

For a recipe of its own: a function from mixture to `estimates` (and `enhanced`), and
`Utterance`s; `publish` makes files of the rows. Processes are spawned, so a script must
call this under `if __name__ == "__main__":`.

Axes: T samples, J sources.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.metrics import best_permutation, evaluate_item
from unified_se_ss.evaluation.perceptual import (
    WHY_EMPTY,
    empty_scores,
    perceptual_scores,
)
from unified_se_ss.evaluation.recognition import recognition_scores
from unified_se_ss.evaluation.save_audio import level_signals

#: Said of perceptual metrics whose package brought its process down.
DIED = "the process that computed it died; the package cannot take this utterance"


class Utterance(NamedTuple):
    """What is to be separated: id, mixture [T], sources [J, T], arrays of float32."""

    id: str
    mixture: np.ndarray
    sources: np.ndarray


def evaluate(
    utterances,
    separate,
    sample_rate,
    metrics=(),
    jobs=None,
    transcribe=None,
    transcripts=None,
    progress=False,
):
    """Separate utterances and score what comes out.

    Arguments
    ---------
    utterances : iterable of Utterance
        Their IDs must differ. Read one at a time, when it is their turn.
    separate : callable
        Takes a mixture [T] and returns a dict: `estimates` [J, T], in any order, and,
        where there is one, `enhanced` [T].
    sample_rate : int
        In Hz.
    metrics : sequence of str
        Keys of `PERCEPTUAL`, such as `pesq`, beside SI-SNR(i) and SDR(i). To be passed
        through `check_metrics` first.
    jobs : int
        Processes that score (default: one per core that this process may use).
    transcribe : callable
        Takes a list of signals [T] and returns a list of texts, for the WER; optional.
    transcripts : dict
        What the J sources say, by ID; needed by `transcribe`.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    list of dict
        A row for each utterance, in their order, as `publish` takes them.

    Raises
    ------
    UserError
        If an utterance cannot be read or an output is not finite: names the utterance.

    Example
    -------
    >>> sources = np.random.default_rng(0).standard_normal((2, 8000))
    >>> utterances = [Utterance(name, sources.sum(0), sources) for name in "abc"]
    >>> rows = evaluate(utterances, lambda m: {"estimates": np.stack([m, m])}, 8000)
    >>> [(row["ID"], round(row["si_snr_i"], 6)) for row in rows]
    [('a', 0.0), ('b', 0.0), ('c', 0.0)]
    """
    rows = []
    with Scorers(tuple(metrics), sample_rate, jobs) as scorers:
        bar = _progress_bar(utterances, progress)
        for utterance in utterances:
            signals = {
                "mixture": utterance.mixture,
                "targets": utterance.sources,
                **_separated(separate, utterance),
            }
            words = {}
            if transcribe is not None:
                words = _recognised(transcribe, signals, transcripts[utterance.id])
            scorers.add(utterance.id, signals, words)
            rows += scorers.done()
            bar.update()
        rows += scorers.rest()
        bar.close()
    return rows


def score(item_id, signals, metrics, sample_rate):
    """The row of one utterance: what a process that scores computes."""
    try:
        row = {"ID": item_id, **evaluate_item(**signals, sample_rate=sample_rate)}
    except UserError as error:
        raise UserError(f"{item_id}: {error}") from None
    if metrics:
        estimates = np.asarray(signals["estimates"])[list(row["permutation"])]
        given = (signals["mixture"], estimates, signals["targets"], sample_rate)
        row.update(perceptual_scores(metrics, *given))
    silent = [f"source {j}" for j, s in enumerate(signals["targets"], 1) if not np.any(s)]
    if silent and WHY_EMPTY not in row:
        row[WHY_EMPTY] = f"the reference of {', '.join(silent)} is silent"
    return row


class Scorers:
    """Processes that score; one that dies takes nothing but its utterance with it.

    PESQ's own code can end a process with a memory error (more than 50 utterances in
    one signal do). Then the utterances that were under way are scored again, one at a
    time; the one that brings its process down again is scored without the packages.

    Arguments
    ---------
    metrics : tuple of str
        Keys of `PERCEPTUAL`.
    sample_rate : int
        In Hz.
    jobs : int
        Processes (default: one per core that this process may use).
    score : callable
        Of id, signals, metrics and sample rate to a row; a function of a module, as
        other processes are to find it (default: `score`).
    """

    def __init__(self, metrics, sample_rate, jobs=None, score=score):
        self.metrics, self.sample_rate, self.score = metrics, sample_rate, score
        self.jobs = jobs or available_cores()
        self._waiting = deque()  # (id, signals, further columns, future)
        self._pool = None
        self._environment = one_thread_each()

    def __enter__(self):
        self._environment.__enter__()
        self._pool = self._start()
        return self

    def __exit__(self, *exception):
        self._pool.shutdown(wait=exception[0] is None, cancel_futures=True)
        self._environment.__exit__(*exception)

    def add(self, item_id, signals, columns):
        """Have an utterance scored; `columns` are added to its row."""
        self._waiting.append((item_id, signals, columns, self._submit(item_id, signals)))

    def done(self):
        """Rows of what is done, in order; waits only where too much is under way."""
        rows = []
        while self._waiting and (
            self._waiting[0][-1].done() or len(self._waiting) > 2 * self.jobs + 2
        ):
            rows.append(self._next())
        return rows

    def rest(self):
        """Rows of all that is under way, in order."""
        return [self._next() for _ in range(len(self._waiting))]

    def _next(self):
        """The row of the utterance that has waited longest."""
        item_id, signals, columns, future = self._waiting.popleft()
        try:
            row = future.result()
        except BrokenProcessPool:
            row = self._again(item_id, signals)
        if columns:
            row = {**row, **columns}
        return row

    def _again(self, item_id, signals):
        """Score an utterance on its own; without the packages if that fails too."""
        self._restart()
        try:
            row = self._submit(item_id, signals).result()
        except BrokenProcessPool:
            self._restart()
            row = self.score(item_id, signals, (), self.sample_rate)
            n_sources = len(signals.get("targets", ()))
            row.update(empty_scores(self.metrics, n_sources, self.sample_rate, DIED))
        # What else was under way went down with the first process.
        for place, (other, given, columns, future) in enumerate(self._waiting):
            if not _succeeded(future):
                future = self._submit(other, given)
                self._waiting[place] = (other, given, columns, future)
        return row

    def _submit(self, item_id, signals):
        """Give an utterance to a process."""
        task = (self.score, item_id, signals, self.metrics, self.sample_rate)
        try:
            return self._pool.submit(*task)
        except BrokenProcessPool as error:  # noticed before what broke it is asked for
            return _Failed(error)

    def _restart(self):
        """Other processes in place of those that went down."""
        if sys.version_info < (3, 11):
            # Else the thread that fills the queue's pipe, and who waits for it, may wait
            # for ever (github.com/python/cpython/issues/94777); later Pythons close it.
            self._pool._call_queue._reader.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._start()

    def _start(self):
        """Processes started afresh, not forked: safe beside threads and GPUs."""
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.jobs, mp_context=context)


class _Failed(NamedTuple):
    """A future of what could not even be submitted."""

    error: Exception

    def done(self):
        return True

    def cancelled(self):
        return False

    def exception(self):
        return self.error

    def result(self):
        raise self.error


def _succeeded(future):
    """Whether a future has a result."""
    return future.done() and not future.cancelled() and future.exception() is None


def available_cores():
    """Cores that this process may use."""
    with suppress(AttributeError):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_thread_each():
    """Processes started meanwhile use one thread each for linear algebra."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _separated(separate, utterance):
    """What the network makes of an utterance."""
    try:
        output = separate(utterance.mixture)
    except UserError as error:
        raise UserError(f"{utterance.id}: {error}") from error
    return {key: value for key, value in output.items() if value is not None}


def _recognised(transcribe, signals, transcripts):
    """The columns of the word error rate; signals at levels as in the wavs."""
    estimates, targets = signals["estimates"], signals["targets"]
    order = list(best_permutation(estimates, targets))
    levelled = level_signals(signals["mixture"], estimates[order], sources=targets)
    names = [name for name in levelled if name != "mixture"]
    texts = transcribe([levelled[name] for name in names])
    n_sources = len(targets)
    return recognition_scores(texts[:n_sources], texts[n_sources:], transcripts)


def _progress_bar(utterances, show):
    """A bar over the utterances."""
    from unified_se_ss.progress import progress_bar

    total = len(utterances) if hasattr(utterances, "__len__") else None
    return progress_bar(
        description="Evaluating", total=total, unit="utterance", disable=not show
    )
