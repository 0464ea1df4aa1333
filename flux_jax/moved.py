"""Answers former names of modules and commands: they work, and say in a line what they are now."""

import functools
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds modules by their former names; asked last, for what is nowhere else."""

    def __init__(self, modules: Mapping[str, str]):
        self.modules = modules

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname not in self.modules:
            return None
        return ModuleSpec(
            fullname, self, origin=importlib.import_module(self._home(fullname)).__file__
        )

    def exec_module(self, module: ModuleType) -> None:
        """Gives an imported module the names of those that took its place."""
        former, homes = module.__name__, self.modules[module.__name__].split()
        _tell(former, " and ".join(homes))
        module.__dict__["__getattr__"] = names(former, *homes)

    def get_code(self, fullname: str) -> CodeType | None:
        """The command's code, for `python -m`."""
        home = self._home(fullname)
        _tell(f"python -m {fullname.removesuffix('.__main__')}", f"python -m {home}")
        spec = importlib.util.find_spec(home)
        assert spec is not None
        assert isinstance(spec.loader, importlib.abc.InspectLoader)
        return spec.loader.get_code(home)

    def get_source(self, fullname: str) -> None:
        """None: it is where the module is now."""

    def _home(self, fullname: str) -> str:
        return self.modules[fullname].split()[0]


def announce(package: str, modules: Mapping[str, str]) -> None:
    """Has former names of a package's modules answered.

    Args:
        package: in which they were.
        modules: where they are, by their former names within the package; where one has become
            several, all of them with spaces between.
    """
    sys.meta_path.append(_Moved({f"{package}.{name}": now for name, now in modules.items()}))


def names(former: str, *homes: str) -> Callable[[str], Any]:
    """A module's `__getattr__`, for names that have moved to other modules.

    Args:
        former: the module.
        *homes: where its names are now.
    """

    def find(name: str) -> Any:
        for home in homes if not name.startswith("__") else ():
            module = importlib.import_module(home)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {former!r} has no attribute {name!r}")

    return find


@functools.cache
def _tell(former: str, now: str) -> None:
    """Says it once."""
    print(f"note: {former} is {now} now", file=sys.stderr)
