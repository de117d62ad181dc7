"""Signals: heard at once, obeyed where nothing is lost."""

import os
import signal

import pytest
import torch

from unified_se_ss.training.signals import (
    AsyncScalar,
    Stopped,
    StopSignals,
    ignore_signals_in_worker,
)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_leaves_with_its_code_and_handlers_are_put_back(name):
    number = getattr(signal, name)
    before, signals = signal.getsignal(number), StopSignals()
    with pytest.raises(Stopped, match=f"{name}: stopped") as left, signals.installed():
        send(number)
    assert left.value.code == (130 if name == "SIGINT" else 75)
    assert signal.getsignal(number) is before


def test_a_signal_is_put_off_and_says_so(capfd):
    signals = StopSignals()
    with signals.installed():
        with signals.defer():
            assert not signals.asked
            send(signal.SIGUSR1)
            send(signal.SIGTERM)  # a launcher's, too
            assert signals.asked
        assert "SIGUSR1: saving" in capfd.readouterr().err
        with pytest.raises(Stopped, match="SIGUSR1: saved at epoch 2"):
            signals.leave("epoch 2")
    signals.leave_if_asked()


def test_impatience_leaves_at_once_but_no_key_that_a_launcher_passes_on(monkeypatch):
    monkeypatch.setattr("unified_se_ss.training.signals.IMPATIENCE", 1e6)
    signals = StopSignals()
    with pytest.raises(Stopped), signals.installed(), signals.defer():
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert signals.asked
        monkeypatch.setattr("unified_se_ss.training.signals.IMPATIENCE", 0.0)
        send(signal.SIGINT)
        pytest.fail("it was not heard")


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopSignals().installed():
            send(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def in_a_child(function):
    """The status that a forked process ends with: negative if by a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_that_inherits_the_handlers_dies_as_if_it_had_none():
    with StopSignals().installed():
        assert in_a_child(lambda: send(signal.SIGTERM)) == -signal.SIGTERM


def test_a_reading_process_outlives_the_first_signals():
    def once():
        ignore_signals_in_worker(0)
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            send(number)

    def twice():
        once()
        send(signal.SIGTERM)

    assert in_a_child(once) == 3
    assert in_a_child(twice) == -signal.SIGTERM


def test_a_number_on_the_cpu_is_not_late():
    number = AsyncScalar()
    assert number.read() == 0
    number.write(torch.tensor(3.0))
    assert number.read() == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_number_on_the_device_is_two_steps_late():
    number, found = AsyncScalar(late=2), []
    for step in range(1, 6):
        number.write(torch.tensor(float(step), device="cuda"))
        found.append(number.read())
    assert found == [0, 0, 1, 2, 3]
