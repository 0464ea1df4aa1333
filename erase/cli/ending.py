"""End the process of a command for certain.

Python waits for the threads of libraries before a process ends, and some of them never do: those
that write a checkpoint to a lost disk, or wait for another process of the run.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# Seconds that threads have to end.
SECONDS = 30.0


@contextlib.contextmanager
def ends(
    seconds: float = SECONDS,
    end: Callable[[int], Any] = os._exit,
    main: threading.Thread | None = None,
) -> Iterator[None]:
    """End the process some time after its main thread, with the exit code that this context has.

    Args:
        seconds: time for the threads of libraries.
        end: ends the process.
        main: the main thread, by default that of the process.
    """
    given = main or threading.main_thread()
    code = 0
    try:
        yield
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException:
        code = 1
        raise
    finally:
        threading.Thread(target=_end_later, args=(given, seconds, end, code), daemon=True).start()


def _end_later(
    main: threading.Thread, seconds: float, end: Callable[[int], Any], code: int
) -> None:
    # A program that calls a command in its own process goes on.
    main.join()
    time.sleep(seconds)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    end(code)
