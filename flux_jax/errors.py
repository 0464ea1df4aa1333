"""The project's exceptions, and the exit codes of its commands.

| exit code | meaning |
| --- | --- |
| 0 | success |
| 1 | the run failed (`RunError`; or an error of the system, such as a full disk) |
| 2 | invalid input (`InputError`) |
| 75 | interrupted from outside, everything is saved: the same command resumes (`PreemptedError`) |
"""

import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# The longest line that a command prints, and the longest message after "error: ".
LINE = 400
LONGEST = LINE - len("error: ")
# Lengths that words are shortened to, in this order, until the line fits.
WORDS = (160, 120, 80, 60, 40)
# The long parts of a line: paths and names first, then paths that contain spaces.
_LONG = (re.compile(r"\S+"), re.compile(r"\S*/[^:;\n]*/\S*"))


def shortened(text: str, most: int = 80) -> str:
    """Returns the text; if it is longer than `most` characters, only its two ends."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def fitted(message: str, most: int = LONGEST) -> str:
    """Shortens lines over `most` characters: paths and other long words lose their middle.

    Lines that fit are unchanged. If a line is still too long, its own middle is cut out.
    """
    return "\n".join(_line(line, most) for line in message.split("\n"))


def _line(line: str, most: int) -> str:
    for long in _LONG:
        for letters in WORDS:
            if len(line) <= most:
                return line
            line = long.sub(lambda match, letters=letters: shortened(match[0], letters), line)
        # Bounds the time that the next pattern takes.
        line = shortened(line, 10 * most)
    return shortened(line, most)


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

    def __str__(self) -> str:
        """The message."""
        return fitted(super().__str__())


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


def nearest(name: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """Suggests a fix for a misspelt name: the closest known names, or all if none is close.

    Args:
        name: the misspelt name.
        known: the valid names.
        also: valid names to suggest in any case, however they are spelt.
    """
    names = list(known)
    near = list(dict.fromkeys([*difflib.get_close_matches(name, names), *also]))
    return f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names)}"


def printable(text: str) -> str:
    """Escapes characters that a terminal would interpret or cannot display, except newlines."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )


@functools.cache
def note(line: str) -> None:
    """Prints a note on stderr, once for each text."""
    print(f"note: {fitted(printable(line))}", file=sys.stderr)


def exits_cleanly(main: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command: an error is printed as one line on stderr and sets the exit code."""

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except (EraseError, OSError) as error:
            # The message may contain names from files of unknown origin.
            print(f"error: {fitted(printable(str(error)))}", file=sys.stderr)
            sys.exit(error.exit_code if isinstance(error, EraseError) else 1)
        except KeyboardInterrupt:
            # Training handles signals itself and saves first (`erase.runtime.signals`).
            print("error: stopped by Ctrl-C", file=sys.stderr)
            sys.exit(1)

    return guarded
