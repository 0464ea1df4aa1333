"""The errors that are this project's own, and how a command ends on them.

| exit code | what it says |
| --- | --- |
| 0 | done |
| 1 | failed: the run could not go on (`RunError`; or the system's own, such as a full disk) |
| 2 | what was given cannot be used (`InputError`) |
| 75 | stopped from outside, all saved: the same command goes on (`PreemptedError`) |
"""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class EraseError(Exception):
    """Any error of this project's own; the message says what to do.

    Attributes:
        exit_code: of a command that ends on it.
    """

    exit_code = 1


class InputError(EraseError, ValueError):
    """What the user gave cannot be used.

    The message names the field or file, the value, and the mend.
    """

    exit_code = 2


class RunError(EraseError, RuntimeError):
    """What was given can be used, and yet the run could not go on; nothing saved is lost."""


class PreemptedError(EraseError):
    """The system asked the run to stop (SIGTERM, SIGINT); it has saved all that it had."""

    # EX_TEMPFAIL of sysexits.h: try again.
    exit_code = 75


def nearest(given: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """The mend of a misspelt name: the known ones nearest to it, or all where none is near.

    Args:
        given: the name.
        known: those that there are.
        also: of them those that may be meant, however they are spelt.
    """
    names = list(known)
    near = list(dict.fromkeys([*difflib.get_close_matches(given, names), *also]))
    return f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names)}"


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey or could not show, but for new lines."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )


def exits_cleanly(main: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command: an error becomes a line on stderr and the exit code of its kind."""

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except (EraseError, OSError) as error:
            # Names from files that others made are in it.
            print(f"error: {printable(str(error))}", file=sys.stderr)
            sys.exit(error.exit_code if isinstance(error, EraseError) else 1)
        except KeyboardInterrupt:
            # Training has its own way to stop, which saves (`erase.signals`).
            print("error: stopped by Ctrl-C", file=sys.stderr)
            sys.exit(1)

    return guarded
