"""Opens files of unknown origin: regular files only, and no more bytes than a limit.

A named pipe would block the program for ever, and reading a device may change it.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from flux_jax.errors import InputError

# Most bytes of a file that is read at once.
MOST_BYTES = 16 << 20
# Kinds of files that are not regular, by the function that tells them.
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading; symbolic links are followed.

    Raises:
        OSError: it is missing, not a regular file, or cannot be opened.
    """
    try:
        # Before opening, which changes some devices.
        _check(path, os.stat(path).st_mode)
        # Another file may be there by now: opening a named pipe must not block.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have this name", ascii(str(path))) from error
    file = os.fdopen(descriptor, "rb")
    try:
        _check(path, os.fstat(descriptor).st_mode)
    except OSError:
        file.close()
        raise
    return file


def _check(path: Path, mode: int) -> None:
    """Raises `OSError` for anything but a regular file."""
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))


def read_bytes(path: Path, mend: str = "check the path", most: int = MOST_BYTES) -> bytes:
    """Reads a whole file.

    Args:
        path: the file.
        mend: advice in the message.
        most: limit on its bytes.

    Raises:
        InputError: it is larger than the limit.
        OSError: it is missing, not a regular file, or cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path} has more than {most:,} bytes, the limit for such a file; {mend}")
    return content


def read_text(path: Path, mend: str = "check the path", most: int = MOST_BYTES) -> str:
    """Reads a whole text file in UTF-8.

    Raises:
        InputError: it is larger than the limit.
        UnicodeDecodeError: it is not UTF-8.
        OSError: see `read_bytes`.
    """
    # Some editors write a byte order mark at the start of UTF-8 files.
    return read_bytes(path, mend, most).decode("utf-8-sig")


def check_folder(path: str | Path, name: str) -> None:
    """Checks that a folder is there or can be created.

    Args:
        path: the folder.
        name: its field, for the message.

    Raises:
        InputError: the name is empty, or something else has it or that of a folder above it.
    """
    if not str(path):
        raise InputError(f"{name} = '' is empty; name a folder")
    for each in (Path(path), *Path(path).parents):
        if os.path.lexists(each):
            if not each.is_dir():
                raise InputError(
                    f"{name} = {str(path)!r:.200}: {each} is not a folder; name another"
                )
            return
