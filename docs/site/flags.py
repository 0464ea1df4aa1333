"""Print the flags of commands as JSON: `python -m docs.site.flags MODULE ...`.

Each command's module runs up to the point where it would read its arguments, so that flags,
defaults and help texts are those that `--help` shows. It does so in a forked process of its own,
since absl's flags are global.
"""

import argparse
import importlib
import json
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app
from absl import flags as absl_flags


class Done(BaseException):
    """Ends the command once its flags are declared; no command catches it."""


def main(modules: Sequence[str]) -> None:
    """Print one line of JSON for each module: its name, and a dictionary for each flag."""
    # What most commands import, once for all of their processes.
    importlib.import_module("erase.cli.flags")
    importlib.import_module("convert.arguments")
    for module in modules:
        if process := os.fork():
            if os.waitpid(process, 0)[1]:
                raise SystemExit(f"{module}: its flags cannot be read")
        else:
            print(json.dumps([module, read(module)]), flush=True)
            os._exit(0)


def read(module: str) -> list[dict[str, Any]]:
    """Flags of a command's module, which runs in this process.

    Raises:
        RuntimeError: it reads none.
    """
    found: list[dict[str, Any]] = []

    def from_absl(*args: Any, **kwargs: Any) -> None:
        del args, kwargs
        found.extend(of_absl(absl_flags.FLAGS))
        raise Done

    def from_argparse(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        found.extend(of_argparse(parser))
        raise Done

    app.run = from_absl
    setattr(argparse.ArgumentParser, "parse_args", from_argparse)  # noqa: B010
    sys.argv[1:] = []
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Done:
        return found
    raise RuntimeError(f"{module} reads no flags")


def of_absl(values: absl_flags.FlagValues) -> Iterator[dict[str, Any]]:
    """Flags of a command that absl reads, by name."""
    for flag in sorted(values.get_key_flags_for_module(sys.argv[0]), key=lambda each: each.name):
        choices = getattr(flag.parser, "enum_values", None)
        kind = "" if flag.boolean else flag.parser.syntactic_help or ""
        yield {
            "name": f"--{'[no]' if flag.boolean else ''}{flag.name}",
            "values": " or ".join(choices) if choices else kind,
            "default": flag.default_as_str.strip("'") if flag.default_as_str else None,
            "help": flag.help,
        }


def of_argparse(parser: argparse.ArgumentParser) -> Iterator[dict[str, Any]]:
    """Arguments of a command that argparse reads, in their order."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        yield {
            "name": f"{name} {action.metavar}"
            if action.option_strings and action.metavar
            else name,
            "values": " or ".join(map(str, action.choices)) if action.choices else "",
            "default": None if action.default in (None, False) else str(action.default),
            "help": action.help or "",
        }


if __name__ == "__main__":
    main(sys.argv[1:])
