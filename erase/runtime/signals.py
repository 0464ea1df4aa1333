"""Graceful stop on SIGTERM, which schedulers send, and on Ctrl-C.

The current iteration is finished and saved, and the command ends with exit code 75: the same
command resumes the run. A second signal ends the process immediately; the run then resumes from
the last checkpoint. Signals within a second count as one: `timeout` sends its signal to the command
and to its process group.
"""

import contextlib
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
# A run cannot resume before its first checkpoint.
GOES_ON = "the same command resumes from the last checkpoint, or starts anew if there is none"


@dataclass
class Stop:
    """State of a requested stop.

    Attributes:
        asked: name of the signal, or None.
        deferring: whether the running code checks `asked` itself, when it can stop.
    """

    asked: str | None = None
    deferring: bool = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals within this context: they are only recorded.

        Raises:
            PreemptedError: a signal came earlier, and a library suppressed its error.
        """
        if self.asked:
            raise PreemptedError(f"{self.asked}: stopped; {GOES_ON}")
        self.deferring = True
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
        self.asked = signal.Signals(number).name
        if self.deferring:
            _say(f"{self.asked}: the run stops after this iteration; a second signal ends it now\n")
        else:
            raise PreemptedError(f"{self.asked}: stopped; {GOES_ON}")


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Handle signals within this context; only in the main thread, as Python requires.

    Yields:
        State of a requested stop.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handlers = {number: signal.signal(number, stop.note) for number in SIGNALS}
    # Python's handlers wait until a call into a library returns; this thread does not.
    waker = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_end_at_the_second, args=(reader,), daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(waker)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()
        thread.join()
        reader.close()


def _end_at_the_second(reader: socket.socket) -> None:
    first = None
    while received := reader.recv(1):
        if received[0] not in SIGNALS:
            continue
        now = time.monotonic()
        first = now if first is None else first
        if now - first > TOGETHER:
            _say(f"a second signal: ended immediately; {GOES_ON}\n")
            os._exit(128 + received[0])


def _say(message: str) -> None:
    """Write to stderr. Unlike print, it is safe to call while a print is interrupted."""
    os.write(2, message.encode())
