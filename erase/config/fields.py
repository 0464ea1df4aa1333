"""Nested frozen dataclasses from dictionaries: defaults, types, ranges, and what errors say.

A dataclass's field may carry what it takes in its metadata: `number` and `choice` put it there.
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

# Devices have no whole numbers beyond this; random seeds are such numbers too.
MAX_INT = 2**31 - 1
# More than any tokenizer's limit leaves room for, and than any path has.
MAX_TEXT_LENGTH = 4000
# Of a value that a message quotes.
MAX_SHOWN_CHARS = 200


class Default(FieldReference):
    """A field's default in a configuration that is open to changes.

    Attributes:
        given: whether somebody has set the field since, be it to the same value.
    """

    def __init__(self, value: Any, kind: type):
        super().__init__(value, field_type=kind)
        self.given = False

    def set(self, value: Any, type_safe: bool = True) -> None:
        """Sets the field, as assignments and overrides do."""
        super().set(value, type_safe)
        self.given = True


def number(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """A field for a number that lies in a range."""
    return field(default=default, metadata={"least": least, "most": most, "above": above})


def choice(default: str | None, *choices: str) -> Any:
    """A field for one of several words."""
    return field(default=default, metadata={"choices": choices})


def unknown(cls: type, path: str) -> str:
    """What to say of a field that does not exist: its name and the nearest ones."""
    known = list(paths(cls))
    # A field under the wrong part, or without one.
    last = path.rpartition(".")[2]
    also = [name for name in known if name.rpartition(".")[2] == last]
    return f"{path} is not a field of the configuration; {nearest(path, known, also)}"


def shown(value: Any) -> str:
    """A value as messages show it, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python writes neither numbers of thousands of digits nor lists in thousands of lists.
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Names of all fields, parts included, as overrides write them."""
    for name, hint in _hints(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from paths(typing.cast(type, hint), f"{prefix}{name}.")


def lists(cls: type, prefix: str = "") -> Iterator[str]:
    """Names of the fields that hold several texts."""
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from lists(typing.cast(type, hint), f"{prefix}{name}.")
        elif typing.get_origin(hint) is tuple:
            yield prefix + name


def fill_defaults(cls: type, changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Defaults under changes, as nested dictionaries; unknown names are kept for later.

    What nobody changes is a `Default`; what is set to None a reference that knows its type, which
    overrides need.
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
            # A field without a default is told of where it is still missing when it is read.
            value = None if spec.default is dataclasses.MISSING else spec.default
            values[spec.name] = Default(value, kind)
        elif values[spec.name] is None:
            values[spec.name] = FieldReference(None, field_type=kind)
        elif kind is float and type(values[spec.name]) is int:
            # In a file 5 stands for 5.0; left an integer, no fraction could override it.
            with contextlib.suppress(OverflowError):
                values[spec.name] = float(values[spec.name])
    return values


def merge_fields(values: Mapping[Any, Any], changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Changes on top of values, both nested dictionaries."""
    both = dict(values)
    for name, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(name), Mapping)
        both[name] = merge_fields(both[name], value) if nested else value
    return both


def given_values(config: ConfigDict) -> dict[Any, Any]:
    """What somebody has set in what `fill_defaults` made, as nested dictionaries."""
    fields = dict(config.items(preserve_field_references=True))
    values = {}
    for name, value in config.to_dict().items():
        place = fields[name]
        if isinstance(place, Default) and not place.given:
            continue
        values[name] = given_values(place) if isinstance(place, ConfigDict) else value
    return values


def _present(hint: Any) -> Any:
    """The type in "type | None"."""
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
    """The dataclass `cls` from a dictionary; what is wrong is added to `problems`.

    Args:
        cls: which.
        values: by field, nested as the dataclass is.
        problems: a line each; whoever adds none gets an instance, else None.
        prefix: what stands before a field's name in messages.
        root: the dataclass that the whole is of; by default `cls`.
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
    """The value in the type that its field has; a ValueError says what it must be."""
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
    """The text, where tokenizers and files can take it; a ValueError says what it must be."""
    # Surrogates are halves of characters, which UTF-8 does not write.
    if len(text) > MAX_TEXT_LENGTH or re.search("[\0\ud800-\udfff]", text):
        raise ValueError(f"text of at most {MAX_TEXT_LENGTH} whole characters, none of them NUL")
    return text


def _allowed(value: Any, limits: Mapping[str, Any]) -> None:
    """A ValueError says which values the field takes."""
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
