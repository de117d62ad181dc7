"""Signals that ask a run to leave: obeyed where nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from contextlib import contextmanager, suppress

import torch

#: Of a run that was asked to leave: "temporary failure, try again" (sysexits.h). One that
#: died of SIGTERM without saving has 128 + 15.
EXIT_CODE = 75
INTERRUPTED = 130

# Schedulers can send SIGUSR1 some time before the end.
NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
# Seconds within which a second Ctrl-C is the same one, passed on by a launcher.
IMPATIENCE = 1.0
# Seconds that a process that reads data goes on after SIGTERM, for its parent to save.
GRACE = 60


class Stopped(BaseException):
    """Raised where a run leaves because a signal asked it to; not an Exception.

    Arguments
    ---------
    number : int
        The signal.
    place : str
        Place in the training at which the state was saved.
    """

    def __init__(self, number: int, place: str = ""):
        super().__init__(number, place)
        self.number, self.place = number, place

    @property
    def code(self) -> int:
        """The exit code."""
        return INTERRUPTED if self.number == signal.SIGINT else EXIT_CODE

    def __str__(self):
        name = signal.Signals(self.number).name
        done = f"saved at {self.place}" if self.place else "stopped"
        return f"{name}: {done}; the same command goes on from there"


class StopSignals:
    """Handler of SIGTERM, SIGUSR1 and SIGINT: raises :class:`Stopped` at once, or later.

    There is one of it, as signals come to the process: ``stop_signals``.

    Example
    -------
    >>> signals = StopSignals()
    >>> with signals.installed(), signals.defer():
    ...     os.kill(os.getpid(), signal.SIGUSR1)
    ...     signals.asked
    True
    >>> signals.asked
    False
    """

    def __init__(self):
        self.number = None
        self.asked = False  #: A signal has come and is deferred.
        self._deferred = False

    @contextmanager
    def installed(self):
        """Handle signals in this block, if this is the main thread.

        A signal that was ignored before, as nohup does it, goes on being ignored.
        """
        self.number, self.asked, self._process, before = None, False, os.getpid(), {}
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                with suppress(ValueError):  # not the main thread
                    before[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.number, self.asked = None, False

    @contextmanager
    def defer(self):
        """Only remember a signal in this block, which asks (``asked``) where it can leave."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def leave_if_asked(self) -> None:
        """Raise :class:`Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    def leave(self, place: str = "") -> None:
        """Raise :class:`Stopped`; if it was another rank that got the signal, too."""
        raise Stopped(self.number or signal.SIGTERM, place)

    def _handle(self, number, _frame):
        if os.getpid() != self._process:  # a child that has inherited it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if not self._deferred:
            raise Stopped(number)
        if self.number is None:
            self.number, self.asked, self._first_at = number, True, now
            # Not through a buffer, whose lock the interrupted code may hold.
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving and leaving after this batch\n".encode())
        elif number == signal.SIGINT and now - self._first_at > IMPATIENCE:
            raise Stopped(number)


stop_signals = StopSignals()


class AsyncScalar:
    """A number on the device, read on the host without waiting for it: two steps late.

    Every rank must write the same; then at each step every rank reads the same. A number
    on the CPU is not late.

    Example
    -------
    >>> number = AsyncScalar()
    >>> number.write(torch.tensor(2.0))
    >>> number.read(), AsyncScalar().read()
    (2.0, 0.0)
    """

    def __init__(self, late: int = 2):
        self._late = late
        self._free, self._written = [], deque()
        self._last = 0.0

    def write(self, number: torch.Tensor) -> None:
        """Copy a scalar of this step to the host."""
        if number.device.type == "cpu":
            self._last = float(number)
            return
        if not self._free:
            self._free.append((torch.zeros((), pin_memory=True), torch.cuda.Event()))
        host, event = self._free.pop()
        host.copy_(number, non_blocking=True)
        event.record()
        self._written.append((host, event))
        if len(self._written) > self._late:
            host, event = self._written.popleft()
            event.synchronize()  # done by now, unless the host is far ahead of the device
            self._last = float(host)
            self._free.append((host, event))

    def read(self) -> float:
        """The newest number that is there; 0 at the beginning."""
        return self._last


def ignore_signals_in_worker(_worker: int) -> None:
    """Keep a process that reads data alive until training has saved.

    For ``worker_init_fn`` of a loader. A second SIGTERM ends it at once, as does its
    parent's end after some seconds.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # not all of them are there on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGTERM, _end_later)


def _end_later(number, _frame) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(GRACE)
