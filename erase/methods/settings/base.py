"""Description of a method's settings for the configuration."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from erase.config.schema import Config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
else:
    # `_typeshed` exists only for static type checkers; run-time type checkers use this name.
    DataclassInstance = object


@dataclass(frozen=True)
class MethodFields:
    """Settings of a method, and their checks.

    Attributes:
        settings: dataclass of the method's settings, which are the configuration's field of the
            method's name (`esd.eta`); None if the method has no settings.
        top_level: whether the settings are fields of the configuration itself instead
            (`lower.attn`).
        per_run: paths of settings that may differ between runs trained together; their values are
            not compiled in.
        problems: returns the conflicts between a configuration's fields, one line each.
    """

    settings: type[DataclassInstance] | None
    top_level: bool = False
    per_run: tuple[str, ...] = ()
    problems: Callable[[Config], Iterable[str]] = lambda config: ()

    def in_configurations(self, name: str) -> Sequence[str]:
        """Names of the configuration's fields that hold the settings, if there are any.

        Args:
            name: name of the method.
        """
        if self.settings and self.top_level:
            return [spec.name for spec in fields(self.settings)]
        return [name]
