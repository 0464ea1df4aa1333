"""Graceful stop on SIGTERM, which schedulers send, and on Ctrl-C.

The current iteration is finished and saved, and the command ends with exit code 75: the same
command resumes the run. A second signal ends the process immediately; the run then resumes from
the last checkpoint. Signals within a second count as one: `timeout` sends its signal to the command
and to its process group.
"""

import contextlib
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from flux_jax.errors import PreemptedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which signals count as one.
TOGETHER = 1.0
# Seconds after which a signal is sent again that came where Python ignores errors.
AGAIN = 0.02
# Modules whose functions run when an object is freed.
WEAK = ("weakref", "_weakrefset")
# A run cannot resume before its first checkpoint.
GOES_ON = "the same command resumes from what was saved, or starts anew if nothing was"
# Of commands that save nothing.
ANEW = "nothing was saved; the same command starts anew"


@dataclass
class Stop:
    """State of a requested stop.

    Attributes:
        asked: name of the signal, or None.
        deferring: whether the running code checks `asked` itself, when it can stop.
        unit: what the running code finishes before it stops.
        goes_on: what the same command does after it was stopped at once.
        collecting: whether garbage is collected, where Python ignores errors.
        again: sends a signal once more that came where Python ignores errors.
        resent: how many were sent again.
    """

    asked: str | None = None
    deferring: bool = False
    unit: str = "iteration"
    goes_on: str = GOES_ON
    collecting: bool = False
    again: threading.Timer | None = None
    resent: int = 0

    @contextlib.contextmanager
    def deferred(self, unit: str = "iteration") -> Iterator[None]:
        """Defer signals within this context: they are only recorded.

        Args:
            unit: what is finished before the run stops.

        Raises:
            PreemptedError: a signal came earlier, and a library suppressed its error.
        """
        if self.asked:
            raise PreemptedError(f"{self.asked}: stopped; {self.goes_on}")
        self.deferring, self.unit = True, unit
        try:
            yield
        finally:
            self.deferring = False

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handle the first signal; `_end_at_the_second` handles later ones.

        Raises:
            PreemptedError: signals are not deferred, so there is nothing to save.
        """
        if self.asked:
            return
        if not self.deferring and (self.collecting or _ignores_errors(frame)):
            self.again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
            self.resent += 1
            self.again.start()
            return
        self.asked = signal.Signals(number).name
        if self.deferring:
            _say(
                f"{self.asked}: the run stops after this {self.unit}; a second signal ends it now\n"
            )
        else:
            raise PreemptedError(f"{self.asked}: stopped; {self.goes_on}")


def _ignores_errors(frame: FrameType | None) -> bool:
    """Whether Python prints errors of this frame and goes on, as where garbage is collected."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if frame.f_code in callbacks or frame.f_code.co_name == "__del__" or name in WEAK:
            return True
        frame = frame.f_back
    return False


# The state of the context that handles signals, or None.
_listening: list[Stop] = []


@contextlib.contextmanager
def finishing(unit: str) -> Iterator[None]:
    """Finish and save a unit of work before a signal stops the command.

    Within `deferred`, whose code stops by itself, and without `listening`, nothing is changed.

    Args:
        unit: what is finished, for messages.

    Raises:
        PreemptedError: a signal came.
    """
    # Commands listen from their start, before they import libraries.
    from erase.runtime import processes

    stop = _listening[-1] if _listening else None
    if stop is None or stop.deferring:
        yield
        return
    with stop.deferred(unit):
        yield
    if processes.any_of(stop.asked is not None):
        raise PreemptedError(
            f"{stop.asked or 'another process'}: stopped and saved; run the same command to resume"
        )


def saves_nothing() -> None:
    """Make the messages of a stop say so; for the rest of the command."""
    if _listening:
        _listening[-1].goes_on = ANEW


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Handle signals within this context; only in the main thread, as Python requires.

    Within another such context, that one's state is used. Also decorates a function.

    Yields:
        State of a requested stop.

    Raises:
        PreemptedError: also in place of other errors that come after a signal: they may be what a
            library made of the stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stop()
        return
    if _listening:
        yield _listening[-1]
        return
    stop = Stop()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handlers = {number: signal.signal(number, stop.note) for number in SIGNALS}
    # Python's handlers wait until a call into a library returns; this thread does not.
    waker = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_end_at_the_second, args=(reader,), daemon=True)
    thread.start()
    _listening.append(stop)

    def collects(phase: str, info: dict[str, int]) -> None:
        del info
        stop.collecting = phase == "start"

    gc.callbacks.append(collects)
    try:
        yield stop
    except PreemptedError:
        raise
    except Exception as error:
        if not stop.asked:
            raise
        raise PreemptedError(f"{stop.asked}: stopped; {stop.goes_on}") from error
    finally:
        gc.callbacks.remove(collects)
        # Nobody would handle it any more.
        if stop.again is not None:
            stop.again.cancel()
            stop.again.join()
        _listening.remove(stop)
        signal.set_wakeup_fd(waker)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()
        thread.join()
        reader.close()


def _end_at_the_second(reader: socket.socket) -> None:
    first, same = None, 0
    while received := reader.recv(1):
        if received[0] not in SIGNALS:
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif _listening and _listening[-1].resent > same:
            # It is the first one still, however long garbage collection took.
            first, same = now, same + 1
        if now - first > TOGETHER:
            goes_on = _listening[-1].goes_on if _listening else GOES_ON
            _say(f"a second signal: ended immediately; {goes_on}\n")
            os._exit(128 + received[0])


def _say(message: str) -> None:
    """Write to stderr. Unlike print, it is safe to call while a print is interrupted."""
    os.write(2, message.encode())
