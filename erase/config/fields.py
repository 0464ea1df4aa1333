"""Build nested frozen dataclasses from dictionaries: defaults, types, ranges, error messages.

The range or choices of a field are in its metadata, where `number` and `choice` put them.
"""

import contextlib
import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from ml_collections import ConfigDict, FieldReference

from flux_jax.errors import nearest

# Largest 32-bit integer, as on devices; random seeds have this limit too.
MAX_INT = 2**31 - 1
# Longer than any tokenizer's limit and any path.
MAX_TEXT_LENGTH = 4000
# Length of a value quoted in a message.
MAX_SHOWN_CHARS = 200


class Default(FieldReference):
    """Default of a field in a configuration that can still be changed.

    Attributes:
        given: whether the field has been set since, even to the same value.
    """

    def __init__(self, value: Any, kind: type):
        super().__init__(value, field_type=kind)
        self.given = False

    def set(self, value: Any, type_safe: bool = True) -> None:
        """Set the field, as assignments and overrides do."""
        super().set(value, type_safe)
        self.given = True


def number(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """Field for a number in a range."""
    return field(default=default, metadata={"least": least, "most": most, "above": above})


def choice(default: str | None, *choices: str) -> Any:
    """Field for one of several words."""
    return field(default=default, metadata={"choices": choices})


def unknown(cls: type, path: str) -> str:
    """Error message for a field that does not exist: its name and the nearest fields."""
    known = list(paths(cls))
    # A field in the wrong section, or without its section.
    last = path.rpartition(".")[2]
    also = [name for name in known if name.rpartition(".")[2] == last]
    return f"{path} is not a field of the configuration; {nearest(path, known, also)}"


def shown(value: Any) -> str:
    """Format a value for a message, truncated if long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # repr refuses integers with thousands of digits and lists nested thousands deep.
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Paths of all fields, including nested ones and their sections, as overrides write them."""
    for name, hint in _hints(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from paths(typing.cast(type, hint), f"{prefix}{name}.")


def lists(cls: type, prefix: str = "") -> Iterator[str]:
    """Paths of the fields that hold several texts."""
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from lists(typing.cast(type, hint), f"{prefix}{name}.")
        elif typing.get_origin(hint) is tuple:
            yield prefix + name


def fill_defaults(cls: type, changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Fill in the defaults of unchanged fields, as nested dictionaries; keep unknown names.

    Unchanged fields become a `Default`. Fields set to None become a typed reference, since
    overrides need the type.
    """
    values = dict(changes)
    for spec in dataclasses.fields(cls):
        hint = _hints(cls)[spec.name]
        if dataclasses.is_dataclass(hint):
            part = changes.get(spec.name, {})
            nested = isinstance(part, Mapping)
            values[spec.name] = fill_defaults(typing.cast(type, hint), part) if nested else part
            continue
        kind = _present(hint)
        kind = typing.get_origin(kind) or kind
        if spec.name not in values:
            # A missing field without a default is reported when the configuration is read.
            value = None if spec.default is dataclasses.MISSING else spec.default
            values[spec.name] = Default(value, kind)
        elif values[spec.name] is None:
            values[spec.name] = FieldReference(None, field_type=kind)
        elif kind is float and type(values[spec.name]) is int:
            # A file may write 5 for 5.0; an integer could not be overridden by a fraction.
            with contextlib.suppress(OverflowError):
                values[spec.name] = float(values[spec.name])
    return values


def merge_fields(values: Mapping[Any, Any], changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Merge changes into values, both nested dictionaries."""
    both = dict(values)
    for name, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(name), Mapping)
        both[name] = merge_fields(both[name], value) if nested else value
    return both


def given_values(config: ConfigDict) -> dict[Any, Any]:
    """Fields that were set in a configuration from `fill_defaults`, as nested dictionaries."""
    fields = dict(config.items(preserve_field_references=True))
    values = {}
    for name, value in config.to_dict().items():
        place = fields[name]
        if isinstance(place, Default) and not place.given:
            continue
        values[name] = given_values(place) if isinstance(place, ConfigDict) else value
    return values


def _present(hint: Any) -> Any:
    """The type in `type | None`."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def build_dataclass(
    cls: type,
    values: Mapping[Any, Any],
    problems: list[str],
    prefix: str = "",
    root: type | None = None,
) -> Any:
    """Build the dataclass `cls` from a dictionary; errors are appended to `problems`.

    Args:
        cls: the dataclass.
        values: values by field, nested like the dataclass.
        problems: one line per error. If it is empty at the end, an instance is returned, else None.
        prefix: prefix of field names in messages.
        root: the outermost dataclass; by default `cls`.
    """
    root = root or cls
    hints = _hints(cls)
    for name in values:
        if name not in hints:
            word = name if isinstance(name, str) and len(name) <= MAX_SHOWN_CHARS else shown(name)
            problems.append(unknown(root, prefix + word))
    ready = {}
    for spec in dataclasses.fields(cls):
        path, hint = prefix + spec.name, hints[spec.name]
        if spec.name not in values:
            if spec.default is dataclasses.MISSING:
                problems.append(f"{path} is missing: give it a value")
        elif dataclasses.is_dataclass(hint) and isinstance(values[spec.name], Mapping):
            part = typing.cast(type, hint)
            ready[spec.name] = build_dataclass(part, values[spec.name], problems, f"{path}.", root)
        else:
            try:
                ready[spec.name] = _checked(hint, values[spec.name])
                _allowed(ready[spec.name], spec.metadata)
            except ValueError as error:
                problems.append(f"{path} = {shown(values[spec.name])} must be {error}")
    return None if problems else cls(**ready)


def _checked(hint: Any, value: Any) -> Any:
    """Convert a value to its field's type.

    Raises:
        ValueError: it has another type; the message completes "must be".
    """
    if value is None and hint is not _present(hint):
        return None
    kind = _present(hint)
    if dataclasses.is_dataclass(kind):
        raise ValueError("a dictionary of fields")
    if kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):
                if math.isfinite(number := float(value)):
                    return number
        raise ValueError("a finite number")
    if kind is int:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INT:
            return value
        raise ValueError(f"a whole number of no more than {MAX_INT}")
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("True or False")
    if kind is str:
        if isinstance(value, str):
            return _writable(value)
        raise ValueError("text in quotes")
    if isinstance(value, list | tuple) and all(isinstance(v, str) and v.strip() for v in value):
        return tuple(_writable(v) for v in value)
    raise ValueError("a tuple of texts, none of them empty, such as ('one', 'two')")


def _writable(text: str) -> str:
    """Return the text if tokenizers and files can represent it.

    Raises:
        ValueError: they cannot; the message completes "must be".
    """
    # Surrogates are halves of characters, which UTF-8 cannot encode.
    if len(text) > MAX_TEXT_LENGTH or re.search("[\0\ud800-\udfff]", text):
        raise ValueError(f"text of at most {MAX_TEXT_LENGTH} whole characters, none of them NUL")
    return text


def _allowed(value: Any, limits: Mapping[str, Any]) -> None:
    """Check a value against its field's range or choices.

    Raises:
        ValueError: it is outside; the message completes "must be".
    """
    if value is None:
        return
    if value not in limits.get("choices", (value,)):
        raise ValueError(" or ".join(limits["choices"]))
    least, most, above = (limits.get(name) for name in ("least", "most", "above"))
    if least is not None and value < least:
        raise ValueError(f"at least {least}")
    if above is not None and value <= above:
        raise ValueError(f"above {above}")
    if most is not None and value > most:
        raise ValueError(f"at most {most}")
