"""Signals: a run ends at a safe point, or at once when told twice."""

import os
import signal
import threading

import pytest

from utils.system import process
from utils.system.process import SafeStop


@pytest.mark.parametrize("number", SafeStop.signals)
def test_the_first_signal_waits_for_the_safe_point(number):
    with SafeStop() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            stop.check()


def test_a_second_signal_does_not_wait(capfd):
    with pytest.raises(KeyboardInterrupt), SafeStop():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was swallowed")
    assert capfd.readouterr().err.count("once more stops at once") == 1


def test_handlers_are_as_before():
    before = [signal.getsignal(number) for number in SafeStop.signals]
    with pytest.raises(ValueError, match="ours"), SafeStop():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise ValueError("ours")
    assert [signal.getsignal(number) for number in SafeStop.signals] == before


def test_a_data_worker_that_the_signal_ended_is_no_error():
    dead = RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 1")
    with pytest.raises(RuntimeError, match="pid 7"), SafeStop():
        raise dead
    with pytest.raises(KeyboardInterrupt), SafeStop():
        os.kill(os.getpid(), signal.SIGTERM)
        raise dead
    with pytest.raises(RuntimeError, match="something else"), SafeStop():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("something else")


def test_another_thread_leaves_signals_alone():
    seen, before = [], signal.getsignal(signal.SIGINT)

    def work():
        with SafeStop() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.asked))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


@pytest.mark.parametrize(("free", "expected"), [(None, 4), (10**9, 4), (64_000, 0), (8_000_000, 3), (0, 0)])
def test_workers_fit_into_shared_memory(free, expected, monkeypatch, capsys):
    monkeypatch.setattr(process, "shared_memory", lambda: free)
    assert process.fitting_workers(4, 10**6, prefix="train") == expected
    assert ("train: " in capsys.readouterr().out) == (expected < 4)
    assert process.fitting_workers(0, 10**6) == 0


def test_missing_shared_memory_is_none_at_all(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(process.sys, "platform", "linux")
    monkeypatch.setattr(process.os, "statvfs", missing)
    assert process.shared_memory() == 0
    monkeypatch.setattr(process.sys, "platform", "darwin")
    assert process.shared_memory() is None
