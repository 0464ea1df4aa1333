"""What configurations know of a method."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from erase.config.schema import Config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
else:
    # It exists for type checkers alone; those at run time look it up here.
    DataclassInstance = object


@dataclass(frozen=True)
class MethodFields:
    """What configurations know of a method.

    Attributes:
        settings: dataclass of its own settings, the configuration's part of the method's name
            (`esd.eta`); None where there are none.
        top_level: whether those settings are fields of the configuration itself instead
            (`lower.attn`).
        per_run: paths of settings that runs which train at once may differ in; what they say is
            not compiled.
        problems: what is wrong between a configuration's fields, a line each.
    """

    settings: type[DataclassInstance] | None
    top_level: bool = False
    per_run: tuple[str, ...] = ()
    problems: Callable[[Config], Iterable[str]] = lambda config: ()

    def in_configurations(self, name: str) -> Sequence[str]:
        """Fields of the configuration that hold its settings, if it has any.

        Args:
            name: the method's.
        """
        if self.settings and self.top_level:
            return [spec.name for spec in fields(self.settings)]
        return [name]
