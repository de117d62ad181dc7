"""Evaluate any separation on any mixtures: the network here, the scoring in processes.

The network, a function, runs in this process, one utterance at a time; scoring, which
takes longer with the perceptual metrics, runs in processes of one thread each. They are
spawned, so a script must call this under `if __name__ == "__main__":`.

Axes: T samples, J sources.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from unified_se_ss.data.cache import count_cores
from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.audio_examples import level_signals
from unified_se_ss.evaluation.metrics import best_permutation, empty_scores, si_snr_table
from unified_se_ss.evaluation.rows import score_separation
from unified_se_ss.evaluation.wer import recognition_scores
from unified_se_ss.progress import progress_bar

#: Said of perceptual metrics whose package brought its process down.
DIED = "the process that computed it died; the package cannot take this utterance"


class Utterance(NamedTuple):
    """A mixture [T] and its sources [J, T], arrays of float32; what else is known of it.

    All of it goes to the function that scores.
    """

    id: str
    mixture: np.ndarray
    sources: np.ndarray | None
    known: dict | None = None


def evaluate(
    utterances,
    separate,
    sample_rate,
    metrics=(),
    jobs=None,
    transcribe=None,
    transcripts=None,
    progress=False,
    score=score_separation,
):
    """Separate utterances and score what comes out; a row for each, in their order.

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
        Keys of `PERCEPTUAL`, to be passed through `check_metrics` first.
    jobs : int
        Processes that score (default: one per core that this process may use).
    transcribe : callable
        Takes a list of signals [T] and returns a list of texts, for the WER.
    transcripts : dict
        What the J sources say, by ID; needed by `transcribe`.
    progress : bool
        Show a progress bar.
    score : callable
        As for `Scorers`.

    Raises
    ------
    UserError
        If an utterance cannot be read or an output is not finite: names the utterance.

    Example
    -------
    >>> sources = np.random.default_rng(0).standard_normal((2, 8000))
    >>> utterances = [Utterance(name, sources.sum(0), sources) for name in "ab"]
    >>> separate = lambda mixture: {"estimates": np.stack([mixture, mixture])}
    >>> rows = evaluate(utterances, separate, 8000, jobs=1)
    >>> [(row["ID"], round(row["si_snr_i"], 6)) for row in rows]
    [('a', 0.0), ('b', 0.0)]
    """
    rows = []
    with Scorers(tuple(metrics), sample_rate, jobs, score) as scorers:
        total = len(utterances) if hasattr(utterances, "__len__") else None
        bar = progress_bar(None, "Evaluating", total, "utterance", disable=not progress)
        for utterance in utterances:
            signals = _signals(utterance, separate)
            words = {}
            if transcribe is not None:
                words = _recognised(transcribe, signals, transcripts[utterance.id])
            scorers.add(utterance.id, signals, words)
            rows += scorers.done()
            bar.update()
        rows += scorers.rest()
        bar.close()
    return rows


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
        A row maker of `unified_se_ss.evaluation.rows`, or another function of a module,
        as other processes are to find it.
    """

    def __init__(self, metrics, sample_rate, jobs=None, score=score_separation):
        self.metrics, self.sample_rate, self.score = metrics, sample_rate, score
        self.jobs = jobs or count_cores()
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
        task = (self.score, item_id, signals, self.metrics, self.sample_rate)
        try:
            return self._pool.submit(*task)
        except BrokenProcessPool as error:  # noticed before what broke it is asked for
            failed = Future()
            failed.set_exception(error)
            return failed

    def _restart(self):
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


def _succeeded(future):
    return future.done() and not future.cancelled() and future.exception() is None


@contextmanager
def one_thread_each():
    """Processes started meanwhile use one thread each for linear algebra."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)


def _signals(utterance, separate):
    try:
        output = separate(utterance.mixture)
    except UserError as error:
        raise UserError(f"{utterance.id}: {error}") from error
    signals = {"mixture": utterance.mixture, "targets": utterance.sources}
    signals = {**signals, **(utterance.known or {}), **output}
    return {key: value for key, value in signals.items() if value is not None}


def _recognised(transcribe, signals, transcripts):
    """Columns of the word error rate; signals at levels as in the wavs."""
    estimates, targets = signals["estimates"], signals["targets"]
    order = list(best_permutation(si_snr_table(estimates, targets)))
    levelled = level_signals(signals["mixture"], estimates[order], sources=targets)
    names = [name for name in levelled if name != "mixture"]
    texts = transcribe([levelled[name] for name in names])
    n_sources = len(targets)
    return recognition_scores(texts[:n_sources], texts[n_sources:], transcripts)
