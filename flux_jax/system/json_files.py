"""Reads JSON of unknown origin, and checks it against a type.

Besides the syntax, the text has limits: bytes, depth, size of numbers. Keys that occur twice, NaN
and infinities are refused, since programs disagree on what they mean.
"""

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from flux_jax.errors import InputError, shortened
from flux_jax.system.files import MOST_BYTES, read_bytes

T = TypeVar("T")

# Deepest nesting, and largest magnitude of an integer; tokenizers write 10^30 for "no limit".
MOST_DEPTH = 64
MOST_INTEGER = 1 << 128


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Parses JSON.

    Args:
        text: as text, or in UTF-8.
        finite: whether NaN and infinities are refused.

    Raises:
        ValueError: it is not JSON, or is outside of the limits; the message says how.
    """
    try:
        content = json.loads(
            text if isinstance(text, str) else text.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant if finite else float,
        )
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MOST_DEPTH} levels") from error
    _check_limits(content, finite)
    return content


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shortened(ascii(twice))} occurs twice")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _check_limits(content: Any, finite: bool) -> None:
    """Checks depth, numbers and texts, level by level.

    Raises:
        ValueError: a value is outside of the limits.
    """
    level = [content]
    for _ in range(MOST_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                # A lone surrogate, which no file can hold.
                if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                    raise ValueError(f"{shortened(ascii(value))} is not Unicode text")
            elif isinstance(value, float):
                if finite and not math.isfinite(value):
                    raise ValueError("a number is too large")
            elif isinstance(value, int) and abs(value) > MOST_INTEGER:
                raise ValueError(f"an integer is over {MOST_INTEGER}")
        if not inner:
            return
        level = inner
    raise ValueError(f"nested deeper than {MOST_DEPTH} levels")


def read_json(
    path: Path,
    missing: str = "check the path",
    mend: str = "create it again",
    most: int = MOST_BYTES,
) -> Any:
    """Reads a JSON file that contains an object.

    Args:
        path: the file.
        missing: advice in the message if it is missing.
        mend: advice in the message if it is damaged.
        most: limit on its bytes.

    Raises:
        InputError: the file is missing, not a regular file or damaged, or does not contain an
            object.
    """
    try:
        content = parse_json(read_bytes(path, mend, most))
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{path} is missing: {missing}") from error
        raise InputError(f"{path} cannot be read ({error.strerror or error}); {missing}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not JSON ({error}); {mend}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object, but {content!r:.30}; {mend}")
    return content


def read_typed(
    kind: type[T], path: Path, missing: str = "check the path", mend: str = "create it again"
) -> T:
    """Reads a JSON file that contains an object of a type.

    Args:
        kind: a `TypedDict` of `typing_extensions`; keys that it does not declare may be there.
        path: the file.
        missing: advice in the message if it is missing.
        mend: advice in the message if it is damaged.

    Raises:
        InputError: see `read_json`; or a key is missing, or a value is of another type.
    """
    return checked(kind, read_json(path, missing, mend), path, mend)


def checked(
    kind: type[T],
    content: Any,
    where: str | Path,
    mend: str = "create it again",
    *,
    complete: bool = True,
) -> T:
    """Checks parsed JSON against a type, and returns it as it is.

    Args:
        kind: a `TypedDict` of `typing_extensions`, or another type.
        content: the parsed JSON.
        where: its origin, for the message.
        mend: advice in the message.
        complete: whether the required keys must be there; those of inner objects must in any case.

    Raises:
        InputError: a key is missing, or a value is of another type; the message names the first.
    """
    import pydantic

    try:
        _adapter(kind).validate_python(content, strict=True)
    except pydantic.ValidationError as error:
        errors = [
            each
            for each in error.errors(include_url=False)
            if complete or each["type"] != "missing" or len(each["loc"]) > 1
        ]
        if not errors:
            return content
        first = errors[0]
        place = shortened(".".join(map(str, first["loc"])), 120)
        if first["type"] == "missing":
            raise InputError(f"{where}: {place} is missing; {mend}") from None
        problem = first["msg"][:1].lower() + first["msg"][1:]
        value = shortened(ascii(first["input"]), 60)
        raise InputError(
            f"{where}: {f'{place} = ' if place else ''}{value}: {shortened(problem, 120)}; {mend}"
        ) from None
    return content


@functools.cache
def _adapter(kind: Any) -> Any:
    import pydantic

    return pydantic.TypeAdapter(kind)
