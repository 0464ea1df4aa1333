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
import re
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# The longest line that a command prints, and the longest message behind "error: ".
LINE = 400
LONGEST = LINE - len("error: ")
# Letters of a word, tried one after the other, where a line is too long.
WORDS = (160, 120, 80, 60, 40)
# What may be long in a line: paths and names, and last a path with spaces in it.
_LONG = (re.compile(r"\S+"), re.compile(r"\S*/[^:;\n]*/\S*"))


def shortened(text: str, most: int = 80) -> str:
    """The text, or its ends where it is longer than `most` letters."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def fitted(message: str, most: int = LONGEST) -> str:
    """The message with no line over `most` letters: paths and other long words lose their middle.

    Lines that are short enough stay as they are. What is still too long loses its own middle.
    """
    return "\n".join(_line(line, most) for line in message.split("\n"))


def _line(line: str, most: int) -> str:
    for long in _LONG:
        for letters in WORDS:
            if len(line) <= most:
                return line
            line = long.sub(lambda match, letters=letters: shortened(match[0], letters), line)
        # So that what follows takes no time.
        line = shortened(line, 10 * most)
    return shortened(line, most)


def counted(number: int, what: str) -> str:
    """For instance "1 layer" or "2 layers"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


class EraseError(Exception):
    """Any error of this project's own; the message says what to do.

    As text its lines are `fitted`, however long the paths in them.

    Attributes:
        exit_code: of a command that ends on it.
    """

    exit_code = 1

    def __str__(self) -> str:
        """The message."""
        return fitted(super().__str__())


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


def nearest(name: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """The mend of a misspelt name: the known ones nearest to it, or all where none is near.

    Args:
        name: the name.
        known: those that there are.
        also: of them those that may be meant, however they are spelt.
    """
    names = list(known)
    near = list(dict.fromkeys([*difflib.get_close_matches(name, names), *also]))
    return f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names)}"


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey or could not show, but for new lines."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )


@functools.cache
def note(line: str) -> None:
    """Says a line on stderr, once."""
    print(f"note: {fitted(printable(line))}", file=sys.stderr)


def exits_cleanly(main: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command: an error becomes a line on stderr and the exit code of its kind."""

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except (EraseError, OSError) as error:
            # Names from files that others made are in it.
            print(f"error: {fitted(printable(str(error)))}", file=sys.stderr)
            sys.exit(error.exit_code if isinstance(error, EraseError) else 1)
        except KeyboardInterrupt:
            # Training has its own way to stop, which saves (`erase.runtime.signals`).
            print("error: stopped by Ctrl-C", file=sys.stderr)
            sys.exit(1)

    return guarded
