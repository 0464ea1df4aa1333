"""Reading a parsed `config.json` into a frozen dataclass whose fields carry the file's names."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from convert.errors import InputError

T = TypeVar("T")


def read_fields(cls: type[T], config: Mapping[str, Any], file: str) -> T:
    """Builds the dataclass `cls` from the fields that it shares with `config`.

    Args:
        cls: a dataclass; its defaults stand in for absent fields.
        config: parsed file; fields that `cls` does not know are passed over, lists become tuples.
        file: name of the file, for messages.

    Raises:
        InputError: a field without default is missing.
    """
    known = fields(cls)  # pyright: ignore[reportArgumentType]
    missing = [f.name for f in known if f.default is MISSING and f.name not in config]
    if missing:
        raise InputError(f"{file} lacks {', '.join(missing)}")
    values = {f.name: config[f.name] for f in known if f.name in config}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def require(config: Mapping[str, Any], file: str, **wanted: tuple[Any, ...]) -> None:
    """Refuses settings that the code here does not implement.

    Args:
        config: parsed file.
        file: its name, for messages.
        **wanted: for a field, the values that are implemented; an absent field passes.

    Raises:
        InputError: a field has another value.
    """
    for name, values in wanted.items():
        if name in config and config[name] not in values:
            choices = " or ".join(map(repr, values))
            raise InputError(f"{file}: {name} = {config[name]!r} is not supported, only {choices}")
