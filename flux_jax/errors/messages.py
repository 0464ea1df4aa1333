"""Messages on a terminal: without control characters, and of bounded length.

What does not fit is written to a file in the folder for temporary files, one for each process.
"""

import functools
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

# The longest line that a command prints, and the longest message after "error: ".
LINE = 400
LONGEST = LINE - len("error: ")
# The longest message of several lines, with the line that names the file of the rest.
MESSAGE = 600
# The longest message of a library.
LIBRARY = 200
# Lengths that words are shortened to, in this order, until the line fits.
WORDS = (160, 120, 80, 60, 40)
# The long parts of a line: paths and names first, then paths that contain spaces.
_LONG = (re.compile(r"\S+"), re.compile(r"\S*/[^:;\n]*/\S*"))
# Texts that this process saved, by their number of characters.
_saved: list[int] = []
# Zero-width non-joiner and joiner, which Persian and Indian scripts and emoji need.
JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """Escapes characters that a terminal would interpret or cannot display, except newlines."""
    return "".join(
        letter
        if letter.isprintable() or letter == "\n" or letter in JOINERS
        else ascii(letter)[1:-1]
        for letter in text
    )


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
    return "\n".join(shortened(_with_short_words(line, most), most) for line in lines_of(message))


def lines_of(message: str) -> list[str]:
    """The lines of a message."""
    return message.split("\n")


def _with_short_words(line: str, most: int) -> str:
    for long in _LONG:
        for letters in WORDS:
            if len(line) <= most:
                return line
            line = long.sub(lambda match, letters=letters: shortened(match[0], letters), line)
        # Bounds the time that the next pattern takes.
        line = shortened(line, 10 * most)
    return line


def bounded(message: str, most: int = MESSAGE) -> str:
    """Shortens a message to what a terminal shows; if text is lost, it ends with the file's name.

    Args:
        message: its lines.
        most: characters of the result.
    """
    message = printable(message)
    lines = [_with_short_words(line, LINE) for line in lines_of(message)]
    shown = [shortened(line, LINE) for line in lines]
    if shown == lines and len("\n".join(shown)) <= most:
        return "\n".join(shown)
    file = saved(message)
    last = f"the whole message: {file}" if file else "the rest is not shown"
    left, first = most - len(last) - 1, []
    for line in shown:
        if first and len(line) >= left:
            break
        first.append(shortened(line, max(left - 1, 80)))
        left -= len(first[-1]) + 1
    return "\n".join([*first, last])


def say(text: object, file: Any = None) -> None:
    """Prints text as it is, whatever characters it has.

    Args:
        text: printed with its lines.
        file: a text stream; stdout by default.
    """
    print(printable(str(text)), file=file)


@functools.cache
def note(line: str) -> None:
    """Prints a note on stderr, once for each text."""
    say(f"note: {fitted(printable(line))}", sys.stderr)


def saved(text: str) -> Path | None:
    """Appends a text to the process's file of long messages.

    Returns:
        The file; None if it cannot be written.
    """
    try:
        file = _file()
        with file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(f"{printable(text)}\n")
    # A message matters more than its rest.
    except OSError:
        return None
    _saved.append(len(text))
    return file


def saved_count() -> int:
    """The number of texts that this process saved."""
    return len(_saved)


def file_since(count: int) -> Path | None:
    """The file of saved texts; None if there are not more than so many."""
    return _file() if saved_count() > count else None


def saved_error(error: BaseException, said: str = "") -> Path | None:
    """Appends an error with its traceback to the process's file of long messages.

    Args:
        error: the error.
        said: a line before it.
    """
    return saved(said + "\n" + "".join(traceback.format_exception(error)))


@functools.cache
def _file() -> Path:
    handle, name = tempfile.mkstemp(".log", "erase-anything-")
    os.close(handle)
    return Path(name)
