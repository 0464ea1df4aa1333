"""Messages of other libraries while a command runs: one short line each, without tracebacks.

Logged messages and warnings are shortened; what does not fit is in the file of long messages, with
the tracebacks that libraries print. An error that matters reaches the command, which reports it.
"""

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from flux_jax.errors.messages import LIBRARY, lines_of, printable, saved, saved_error, shortened


@contextlib.contextmanager
def bounded_messages() -> Iterator[None]:
    """Bounds what libraries print, within this context."""
    make, show = logging.getLogRecordFactory(), warnings.formatwarning
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    handlers = [*logging.root.handlers, *([logging.lastResort] if logging.lastResort else [])]

    def record(*args: Any, **settings: Any) -> logging.LogRecord:
        return _bounded_record(make(*args, **settings))

    logging.setLogRecordFactory(record)
    warnings.formatwarning = _warning
    sys.excepthook, threading.excepthook, sys.unraisablehook = _error, _error_of_thread, _ignored
    for handler in handlers:
        handler.addFilter(_has_no_traceback)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
        warnings.formatwarning = show
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        for handler in handlers:
            handler.removeFilter(_has_no_traceback)


def _bounded_record(record: logging.LogRecord) -> logging.LogRecord:
    """Shortens a logged message of a warning or an error, and removes its traceback."""
    if record.levelno < logging.WARNING:
        return record
    try:
        message = record.getMessage()
    # A message that does not fit its arguments must not end the command.
    except Exception:
        message = str(record.msg)
    record.traced = bool(record.exc_info and record.exc_info[1])
    if record.exc_info and record.exc_info[1]:
        saved_error(record.exc_info[1], message)
    record.msg, record.args = _line(message), ()
    record.exc_info = record.exc_text = record.stack_info = None
    return record


def _has_no_traceback(record: logging.LogRecord) -> bool:
    """Whether a record came without one. With one, its error reaches the command as well."""
    return not getattr(record, "traced", False)


def _warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    return _line(f"{category.__name__}: {message}") + "\n"


def _line(message: str) -> str:
    """A message in one short line; if that loses text, the whole is saved."""
    lines = [" ".join(line.split()) for line in lines_of(message) if line.strip()]
    line = printable(lines[0] if lines else "")
    if len(lines) > 1 or len(line) > LIBRARY:
        saved(message)
    return shortened(line, LIBRARY)


def _error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Saves an error that a library reports outside of Python's calls."""
    del kind, trace
    saved_error(error)


def _ignored(arguments: "sys.UnraisableHookArgs") -> None:
    """Saves an error that Python cannot raise, as in a callback of a thread written in C++."""
    if arguments.exc_value is not None:
        saved_error(arguments.exc_value)


def _error_of_thread(arguments: threading.ExceptHookArgs) -> None:
    """Reports that a library's thread ended with an error."""
    error = arguments.exc_value
    if error is None or isinstance(error, SystemExit):
        return
    file = saved_error(error)
    name = arguments.thread.name if arguments.thread else "?"
    line = _line(f"thread {name} ended: {type(error).__name__}: {error}")
    print(f"note: {line}" + (f"; traceback: {file}" if file else ""), file=sys.stderr)
