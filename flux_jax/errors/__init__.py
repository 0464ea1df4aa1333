"""The project's exceptions, and the exit codes of its commands.

| exit code | meaning |
| --- | --- |
| 0 | success |
| 1 | the run failed (`RunError`; or an error of the system, such as a full disk) |
| 2 | invalid input (`InputError`) |
| 75 | interrupted from outside, everything is saved: the same command resumes (`PreemptedError`) |
| 141 | nobody reads the output any more, as after `| head -1`; nothing is printed |
"""

import contextlib
import difflib
import functools
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from flux_jax.errors.libraries import bounded_messages
from flux_jax.errors.messages import (
    LONGEST,
    MESSAGE,
    bounded,
    file_since,
    fitted,
    note,
    printable,
    saved_count,
    saved_error,
    say,
    shortened,
)

__all__ = [
    "LONGEST",
    "EraseError",
    "InputError",
    "PreemptedError",
    "RunError",
    "counted",
    "exits_cleanly",
    "fitted",
    "names_file",
    "nearest",
    "note",
    "printable",
    "say",
    "shortened",
]

# Characters of the line that names the file of libraries' messages.
LONGEST_FILE = 120
# Exit code of a command whose output nobody reads: that of programs that SIGPIPE ends.
UNREAD = 141

P = ParamSpec("P")
R = TypeVar("R")


def counted(number: int, what: str) -> str:
    """Number and noun, for instance "1 layer" or "2 layers"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


class EraseError(Exception):
    """Base class of the project's errors; the message says what to do.

    Converted to text, its lines are `fitted`, however long the paths in them are.

    Attributes:
        exit_code: exit code of a command that ends with this error.
    """

    exit_code = 1

    @property
    def whole(self) -> str:
        """The message with lines of any length."""
        return super().__str__()

    def __str__(self) -> str:
        """The message."""
        return fitted(self.whole)


class InputError(EraseError, ValueError):
    """Invalid input from the user.

    The message names the field or file, the value, and the fix.
    """

    exit_code = 2


class RunError(EraseError, RuntimeError):
    """The input is valid, but the run could not continue; saved files remain usable."""


class PreemptedError(EraseError):
    """The system asked the run to stop (SIGTERM, SIGINT); its state has been saved."""

    # EX_TEMPFAIL of sysexits.h: try again.
    exit_code = 75


# Similarity of a misspelt name to one that is suggested for it, from 0 to 1.
CLOSE = 0.65


def nearest(name: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """Suggests a fix for a misspelt name: the closest known names, or all if none is close.

    Of over 40 names, the first ten stand for all.

    Args:
        name: the misspelt name.
        known: the valid names.
        also: valid names to suggest in any case, however they are spelt.
    """
    names = list(known)
    near = list(dict.fromkeys([*difflib.get_close_matches(name, names, cutoff=CLOSE), *also]))
    if near:
        return f"did you mean {' or '.join(near)}?"
    if len(names) > 40:
        return f"choose from {', '.join(names[:10])} and {len(names) - 10} more"
    return f"choose from {', '.join(names)}"


@contextlib.contextmanager
def names_file(path: Path | str) -> Iterator[None]:
    """Adds a file's name to errors of the system that have none, such as that of a full disk.

    Raises:
        OSError: within this context.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def exits_cleanly(main: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command: an error is printed in a few lines on stderr and sets the exit code.

    Errors that no part of the program expects pass; if they end the process, it prints a line too,
    and saves the traceback in a file that the line names.
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        count = saved_count()
        try:
            with bounded_messages(), _flushes_stdout():
                return main(*args, **kwargs)
        except (EraseError, OSError) as error:
            if isinstance(error, BrokenPipeError) and _is_unread():
                _close_unwritable()
                sys.exit(UNREAD)
            _close_unwritable()
            _print(f"error: {error.whole if isinstance(error, EraseError) else error}", count)
            sys.exit(error.exit_code if isinstance(error, EraseError) else 1)
        except KeyboardInterrupt:
            # Training handles signals itself and saves first (`erase.runtime.signals`).
            print("error: stopped by Ctrl-C", file=sys.stderr)
            sys.exit(1)
        except Exception:
            sys.excepthook = _print_unexpected
            raise

    return guarded


def _print(message: str, count: int) -> None:
    """Prints a message on stderr, and the file of libraries' messages.

    Args:
        message: it may have names from files of unknown origin.
        count: number of texts in the file that have nothing to do with the error.
    """
    message = bounded(message, MESSAGE - LONGEST_FILE - 1)
    file = file_since(count)
    if file and str(file) not in message:
        message += f"\nmessages of libraries: {printable(str(file))}"[:LONGEST_FILE]
    # The exit code says the same where nobody reads it.
    with contextlib.suppress(BrokenPipeError):
        print(message, file=sys.stderr)


def _print_unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints an error that ends the process in one line."""
    del trace
    file = saved_error(error)
    # Libraries' messages may have hundreds of lines.
    first = str(error).strip().split("\n")[0]
    what = shortened(": ".join(filter(None, (kind.__name__, first))), 240)
    _print(
        f"error: {what}; the program does not expect this; traceback: {file or 'not saved'}",
        saved_count(),
    )


@contextlib.contextmanager
def _flushes_stdout() -> Iterator[None]:
    """Writes out what a command printed at its end, also where it exits early, as after help."""
    try:
        yield
    except SystemExit:
        with names_file("stdout"):
            sys.stdout.flush()
        raise
    with names_file("stdout"):
        sys.stdout.flush()


def _is_unread() -> bool:
    """Whether stdout or stderr is a pipe whose reader has gone."""
    streams = select.poll()
    for stream in (sys.stdout, sys.stderr):
        # It may have no file.
        with contextlib.suppress(OSError, ValueError):
            streams.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in streams.poll(0))


def _close_unwritable() -> None:
    """Closes stdout and stderr if they cannot be written: Python would report it a second time."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            # Until the process ends.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
