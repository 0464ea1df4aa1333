"""Redirects former names of modules and commands: they work, and print their new name once."""

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
    """Finds modules by their former names; the last finder, for modules not found elsewhere."""

    def __init__(self, modules: Mapping[str, str]):
        self.modules = modules

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname not in self.modules:
            return None
        home = self._home(fullname)
        # Reported by `exec_module` and `get_code`: runpy would wrap an error from here.
        there = importlib.util.find_spec(home.partition(".")[0]) is not None
        return ModuleSpec(
            fullname, self, origin=importlib.import_module(home).__file__ if there else None
        )

    def exec_module(self, module: ModuleType) -> None:
        """Gives an imported module the names of the modules that replaced it."""
        former, homes = module.__name__, self.modules[module.__name__].split()
        if module.__spec__ is not None and module.__spec__.origin is None:
            raise ModuleNotFoundError(_absent(former, homes[0]), name=homes[0])
        _tell(former, " and ".join(homes))
        module.__dict__["__getattr__"] = names(former, *homes)

    def get_code(self, fullname: str) -> CodeType | None:
        """The code of the command's new module, for `python -m`."""
        home = self._home(fullname)
        if importlib.util.find_spec(home.partition(".")[0]) is None:
            print(f"error: {_absent(fullname, home)}", file=sys.stderr)
            sys.exit(2)
        _tell(f"python -m {fullname.removesuffix('.__main__')}", f"python -m {home}")
        spec = importlib.util.find_spec(home)
        assert spec is not None
        assert isinstance(spec.loader, importlib.abc.InspectLoader)
        return spec.loader.get_code(home)

    def get_source(self, fullname: str) -> None:
        """Returns None: the source belongs to the new module."""

    def _home(self, fullname: str) -> str:
        return self.modules[fullname].split()[0]


def announce(package: str, modules: Mapping[str, str]) -> None:
    """Redirects the former names of a package's modules.

    Args:
        package: the package that contained them.
        modules: new names by former names within the package; if a module was split, all of its
            new names, separated by spaces.
    """
    sys.meta_path.append(_Moved({f"{package}.{name}": now for name, now in modules.items()}))


def names(former: str, *homes: str) -> Callable[[str], Any]:
    """Makes a module's `__getattr__`, for names that have moved to other modules.

    Args:
        former: the module.
        *homes: the modules that have its names now.
    """

    def find(name: str) -> Any:
        for home in homes if not name.startswith("__") else ():
            module = importlib.import_module(home)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {former!r} has no attribute {name!r}")

    return find


def _absent(former: str, home: str) -> str:
    """Message about a module that is not installed."""
    return (
        f"{former} is {home} now, which is not installed: run it in the folder of a clone of this "
        "repository"
    )


@functools.cache
def _tell(former: str, now: str) -> None:
    """Prints the new name, once."""
    print(f"note: {former} is {now} now", file=sys.stderr)
