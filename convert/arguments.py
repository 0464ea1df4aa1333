"""Argument parser of the commands with positional arguments: help texts and one-line errors."""

import argparse
import itertools
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from flux_jax.errors import InputError, nearest


def check_exists(name: str, path: Path) -> None:
    """Checks that a path given as an argument exists.

    Args:
        name: the argument's name in the help text.
        path: its value.

    Raises:
        InputError: it does not exist.
    """
    # Unlike `Path.exists`, this does not raise for names that no file can have.
    if not os.path.exists(path):
        raise InputError(f"{name} = {str(path)!r} does not exist; check the path")


class Parser(argparse.ArgumentParser):
    """`argparse` with a module's docstring as help text, and errors of one line."""

    def __init__(self, name: str, doc: str | None):
        """Creates a parser without arguments.

        Args:
            name: the command, "erase-anything new", or the module that is one.
            doc: the module's docstring.
        """
        super().__init__(
            prog=name if " " in name else f"python -m {name}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride] (overloaded there)
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parses arguments, by default those of the command line.

        Raises:
            InputError: they are invalid.
        """
        given = sys.argv[1:] if args is None else list(args)
        # Before argparse: for a misspelt flag it would report that the correct one is missing.
        for argument in itertools.takewhile(lambda each: each != "--", given):
            name, known = argument.partition("=")[0], self._option_string_actions
            if name.startswith("--") and name not in known:
                flags = [flag for flag in known if flag.startswith("--")]
                raise InputError(f"{name} is not a flag; {nearest(name, flags)}")
        return super().parse_args(given, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = nearest(str(value), map(str, action.choices))
            raise InputError(f"{action.dest} = {value!r} is unknown; {hint}")

    def error(self, message: str) -> NoReturn:
        """Reports an invalid argument.

        Raises:
            InputError: always.
        """
        if absent := re.fullmatch(r"argument (--\w+): expected .* argument", message):
            message = f"{absent[1]} has no value: give one after it"
        raise InputError(f"{message}; see --help")
