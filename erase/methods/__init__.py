"""Registry of the erasing methods, by their name in `--config.method`.

A method's module is imported when the method is first used, so names and settings do not need JAX.
"""

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from erase.config.schema import Config
from erase.methods.settings import FIELDS
from erase.methods.settings.base import MethodFields

if TYPE_CHECKING:
    from erase.methods.base import Method


class _Methods(MutableMapping[str, "Method[Any]"]):
    """Methods by name; each is `METHOD` in a module of this package, named after the last dot."""

    def __init__(self, *modules: str):
        self._modules = {module.rpartition(".")[2]: module for module in modules}
        self._methods: dict[str, Method[Any] | None] = dict.fromkeys(self._modules)

    def __getitem__(self, name: str) -> "Method[Any]":
        method = self._methods[name]
        if method is None:
            module = importlib.import_module(f"{__name__}.{self._modules[name]}")
            method = self[name] = module.METHOD
        return method

    def __setitem__(self, name: str, method: "Method[Any]") -> None:
        self._methods[name] = method

    def __delitem__(self, name: str) -> None:
        del self._methods[name]

    def __contains__(self, name: object) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)


METHODS: "MutableMapping[str, Method[Any]]" = _Methods(
    "erase_anything",
    "concept_ablation",
    "esd",
    "uce",
    "mace",
    "eap",
    "meta_unlearning",
    "attention_erasure",
    "later.gem",
    "later.eraseflow",
)


def __getattr__(name: str) -> Any:
    """Resolve `Method` for run-time type checkers, because annotations name it."""
    if name != "Method":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("erase.methods.base").Method


def fields_of(name: str) -> MethodFields:
    """Return a method's fields; imports its module only if the method is not in `FIELDS`."""
    return FIELDS[name] if name in FIELDS else METHODS[name].fields


# Configuration fields that belong to a single method, with the name of that method.
OWNERS: Mapping[str, str] = {
    field: name for name in METHODS for field in fields_of(name).in_configurations(name)
}


def method_of(config: Config) -> "Method[Any]":
    """Return the method of a run."""
    return METHODS[config.method]
