"""Effects of signals: during a computation, outside of one, and a second time."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from erase.runtime.signals import TOGETHER, listening, saves_nothing
from flux_jax.errors import PreemptedError


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_where_nothing_is_computed_a_signal_ends(number: signal.Signals):
    before = signal.getsignal(number)

    def work() -> None:
        with listening():
            os.kill(os.getpid(), number)
            time.sleep(5)

    with pytest.raises(PreemptedError, match=f"^{number.name}: stopped; .*or starts anew"):
        work()
    assert signal.getsignal(number) is before


def test_a_stopped_plan_speaks_of_no_saved_work():
    def work() -> None:
        with listening():
            saves_nothing()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(PreemptedError) as stopped:
        work()
    assert str(stopped.value) == (
        "SIGTERM: stopped; nothing was saved; the same command starts anew"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_computed_is_finished(number: signal.Signals, capfd):
    with listening() as stop, stop.deferred():
        assert stop.asked is None
        os.kill(os.getpid(), number)
        time.sleep(0.1)
        assert stop.asked == number.name
    assert f"{number.name}: the run stops after this iteration" in capfd.readouterr().err


def test_an_error_that_a_library_swallowed_is_raised_before_work_begins():
    with listening() as stop, contextlib.suppress(PreemptedError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    with pytest.raises(PreemptedError, match="SIGTERM: stopped"), stop.deferred():
        pytest.fail("work has begun")


@pytest.mark.parametrize("seconds", [0.01, TOGETHER + 0.1])
def test_a_signal_where_python_ignores_errors_comes_again(
    recwarn: pytest.WarningsRecorder, seconds: float
):
    """JAX collects garbage in a callback, where Python prints errors and goes on.

    However long that takes, the signal that is sent again is no second one.
    """
    went_on = []

    def collects(phase: str, info: dict[str, int]) -> None:
        del info
        if phase == "start" and not went_on:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(seconds)
            went_on.append(True)

    @listening()
    def work() -> None:
        gc.collect()
        assert went_on
        time.sleep(5)

    gc.callbacks.append(collects)
    try:
        with pytest.raises(PreemptedError, match="SIGTERM: stopped"):
            work()
    finally:
        gc.callbacks.remove(collects)
    assert not [warning for warning in recwarn if "PreemptedError" in str(warning.message)]


def test_what_a_library_makes_of_a_signal_is_a_stop():
    """An import that a signal interrupts, say, ends in an error of its own."""

    @listening()
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except PreemptedError as error:
            raise ImportError("cannot import name") from error

    with pytest.raises(PreemptedError, match=r"SIGTERM: stopped; .*or starts anew"):
        work()


def test_errors_without_a_signal_are_themselves():
    with pytest.raises(ImportError, match=r"^cannot"), listening():
        raise ImportError("cannot import name")


def test_other_threads_listen_to_nothing():
    heard = []

    def listen() -> None:
        with listening() as stop:
            heard.append(stop.asked)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [None]


def test_a_second_signal_ends_at_once():
    """Even while Python waits for a call into a library."""
    code = """
import time
from erase.runtime.signals import listening
with listening() as stop, stop.deferred():
    print("ready", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    began = time.monotonic()
    # Two at once count as one.
    child.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    time.sleep(TOGETHER)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=20)
    assert child.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 20
    assert "a second signal: ended immediately" in said
