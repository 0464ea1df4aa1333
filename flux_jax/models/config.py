"""Reads a parsed `config.json` into a frozen dataclass with the file's field names."""

import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from flux_jax.errors import InputError

T = TypeVar("T")

# Limits of a model's sizes, of its number of layers, of the layers that are traced one by one, and
# of the sizes in a list; several times those of FLUX.1.
MOST_SIZE, MOST_LAYERS, MOST_TRACED, MOST_ENTRIES = 1 << 24, 1 << 8, 1 << 4, 1 << 3


def read_fields(cls: type[T], config: Mapping[str, Any], file: str) -> T:
    """Builds the dataclass `cls` from the fields that it shares with `config`.

    Args:
        cls: a dataclass; its defaults replace absent fields.
        config: parsed file; fields unknown to `cls` are ignored, lists become tuples.
        file: name of the file, for messages.

    Raises:
        InputError: a value is not of its field's type, or a size is below 1 or over a limit.
    """
    kinds = get_type_hints(cls)
    values = {name: config[name] for name in kinds if name in config}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name, value in values.items():
        if not _is(value, kinds[name]):
            kind = getattr(kinds[name], "__name__", str(kinds[name]))
            raise InputError(f"{file}: {name} = {str(value)[:80]!r} must be of type {kind}")
        most = _limit(name)
        sizes = [n for n in (value if isinstance(value, tuple) else (value,)) if type(n) is int]
        if len(sizes) > MOST_ENTRIES:
            raise InputError(
                f"{file}: {name} has {len(sizes)} entries, over the limit of {MOST_ENTRIES}; fetch "
                "the file again"
            )
        if any(size > most for size in sizes):
            raise InputError(
                f"{file}: {name} = {str(value)[:80]} is over the limit of {most:,}; fetch the file "
                "again"
            )
        # Token ids start at 0.
        if type(value) is int and value < 1 and not name.endswith("_id"):
            raise InputError(f"{file}: {name} = {value} must be at least 1")
    return cls(**values)


def _limit(name: str) -> int:
    """The largest size in a field."""
    if name in ("layers_per_block", "blocks"):
        return MOST_TRACED
    return MOST_LAYERS if "layers" in name else MOST_SIZE


def _is(value: Any, kind: Any) -> bool:
    """Whether a value has an annotated type: a plain type, a tuple of one, or a union."""
    if isinstance(kind, types.UnionType):
        return any(_is(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(each, get_args(kind)[0]) for each in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def require(config: Mapping[str, Any], file: str, **wanted: tuple[Any, ...]) -> None:
    """Checks that settings have values that are implemented here.

    Args:
        config: parsed file.
        file: its name, for messages.
        **wanted: the implemented values of each field; an absent field is accepted.

    Raises:
        InputError: a field has another value.
    """
    for name, values in wanted.items():
        if name in config and config[name] not in values:
            choices = " or ".join(map(repr, values))
            raise InputError(f"{file}: {name} = {config[name]!r} is not supported, only {choices}")
