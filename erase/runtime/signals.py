"""What a run does when the system asks it to stop: SIGTERM, as schedulers send, and Ctrl-C.

The iteration that is being computed is finished and saved, and the command ends with exit code 75:
the same command goes on. A second signal ends the process at once; the last checkpoint serves then.
Signals within a second count as one: `timeout` sends its signal to the command and to its group.
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
# Before the first checkpoint there is nothing to go on from.
GOES_ON = "the same command goes on from the last checkpoint, or begins again where there is none"


@dataclass
class Stop:
    """Whether a stop was asked for.

    Attributes:
        asked: the signal's name.
        deferring: whether whoever computes looks at `asked` himself, at a moment that suits.
    """

    asked: str | None = None
    deferring: bool = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal is noted and nothing else.

        Raises:
            PreemptedError: one came before, and a library has swallowed the error.
        """
        if self.asked:
            raise PreemptedError(f"{self.asked}: stopped; {GOES_ON}")
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Takes the first signal; another one is `_end_at_the_second`'s.

        Raises:
            PreemptedError: nothing is computed that would have to be saved.
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
    """Listens for signals as long as the context lasts; in the main thread only, as Python wants.

    Yields:
        Whether a stop was asked for.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handlers = {number: signal.signal(number, stop.note) for number in SIGNALS}
    # Python's handlers wait for a call into a library to return; this thread does not.
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
            _say(f"a second signal: ended at once; {GOES_ON}\n")
            os._exit(128 + received[0])


def _say(message: str) -> None:
    """Writes to stderr; unlike print, it may interrupt one."""
    os.write(2, message.encode())
