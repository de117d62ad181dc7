"""Signals that ask a run to leave: heard at once, obeyed where nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from contextlib import contextmanager, suppress

import torch

#: What a run leaves with that was asked to: "temporary failure, try again" (sysexits.h).
#: 128 + 15 would be what a run leaves with that died of SIGTERM without saving.
EXIT_CODE = 75
INTERRUPTED = 130

# SIGUSR1 is what schedulers can be told to send some time before the end.
NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
# A key pressed again within this many seconds is the same press, passed on by a launcher.
IMPATIENCE = 1.0
# How long a process that reads data goes on after SIGTERM, for its parent to save.
GRACE = 60


class Stopped(BaseException):
    """A run leaves because a signal asked it to.

    Not an Exception, so that nothing takes it for an error.

    Arguments
    ---------
    number : int
        The signal.
    place : str
        Where the run was, if it was training: its state there has been saved.
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
    """Hears SIGTERM, SIGUSR1 and SIGINT: raises :class:`Stopped`, or keeps it for later.

    There is one of it, as signals come to the process: ``stop_signals``.

    Example
    -------
    >>> signals = StopSignals()
    >>> with signals.heard(), signals.defer():
    ...     os.kill(os.getpid(), signal.SIGUSR1)
    ...     signals.asked
    True
    >>> signals.asked
    False
    """

    def __init__(self):
        self.number = None
        self._put_off = False

    @property
    def asked(self) -> bool:
        """Whether a signal has come and is put off."""
        return self.number is not None

    @contextmanager
    def heard(self):
        """Hear signals in this block; as before after it. Nothing where it is no main thread.

        A signal that was ignored before, as nohup does it, goes on being ignored.
        """
        self.number, self._process, before = None, os.getpid(), {}
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                with suppress(ValueError):  # not the main thread
                    before[number] = signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.number = None

    @contextmanager
    def defer(self):
        """Only note a signal in this block, which asks (``asked``) where it can leave."""
        self._put_off = True
        try:
            yield
        finally:
            self._put_off = False

    def leave_if_asked(self) -> None:
        """Raise :class:`Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    def leave(self, place: str = "") -> None:
        """Raise :class:`Stopped`; if it was another rank that got the signal, too."""
        raise Stopped(self.number or signal.SIGTERM, place)

    def _hear(self, number, _frame):
        """The handler."""
        if os.getpid() != self._process:  # a child that has inherited it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if not self._put_off:
            raise Stopped(number)
        if self.number is None:
            self.number, self._heard_at = number, now
            # Not through a buffer, whose lock the interrupted code may hold.
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving and leaving after this batch\n".encode())
        elif number == signal.SIGINT and now - self._heard_at > IMPATIENCE:
            raise Stopped(number)


stop_signals = StopSignals()


class AsyncScalar:
    """A number on the device, read on the host without waiting for it: two steps late.

    What every rank writes is the same, and so at each step every rank reads the same. A
    number on the CPU is not late.

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
        """Note a scalar of this step."""
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
        """What is known by now; 0 at the beginning."""
        return self._last


def ignore_signals_in_worker(_worker: int) -> None:
    """Have a process that reads data live as long as the training that needs it.

    A signal to all processes of a run must not end those before training has saved. For
    ``worker_init_fn`` of a loader. A second SIGTERM ends it at once, as does its parent's
    end after some seconds.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # not all of them are there on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGTERM, _put_off_the_end)


def _put_off_the_end(number, _frame) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(GRACE)
