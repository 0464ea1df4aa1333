"""Says where a module is that has moved, to whoever imports or runs it by its former name."""

import importlib.abc
import sys
from collections.abc import Mapping


class _Finder(importlib.abc.MetaPathFinder):
    """Asked last, for modules that are nowhere."""

    def __init__(self, moved: Mapping[str, str]):
        self.moved = moved

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Finds nothing, and says what to import instead.

        Raises:
            ModuleNotFoundError: the module has moved.
        """
        if fullname in self.moved:
            former = fullname.removesuffix(".__main__")
            raise ModuleNotFoundError(f"{former} is {self.moved[fullname]} now", name=fullname)


def announce(package: str, moved: Mapping[str, str]) -> None:
    """Has former names answered with the present ones.

    Args:
        package: in which the modules were.
        moved: their present names, or commands, by the former names within the package.
    """
    sys.meta_path.append(_Finder({f"{package}.{name}": now for name, now in moved.items()}))
