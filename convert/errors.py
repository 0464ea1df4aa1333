"""The one error that a user's input can cause, and how a command ends on it."""

import functools
import sys
from collections.abc import Callable


class InputError(ValueError):
    """What the user gave cannot be used.

    The message names the field or file, the value, and the mend.
    """


def exits_cleanly(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command: an `InputError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def guarded(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return guarded
