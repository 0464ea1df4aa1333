"""Print the flags of one command as JSON: `python -m docs.site.flags MODULE`.

The command's module runs up to the point where it would read its arguments, so that flags,
defaults and help texts are those that `--help` shows. Each command needs a process of its own,
since absl's flags are global.
"""

import argparse
import json
import runpy
import sys
from collections.abc import Iterator
from typing import Any

from absl import app
from absl import flags as absl_flags


class Done(BaseException):
    """Ends the command once its flags are declared; no command catches it."""


def main(module: str) -> None:
    """Print the flags of a command's module, a dictionary each."""
    read: list[dict[str, Any]] = []

    def from_absl(*args: Any, **kwargs: Any) -> None:
        del args, kwargs
        read.extend(of_absl(absl_flags.FLAGS))
        raise Done

    def from_argparse(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        read.extend(of_argparse(parser))
        raise Done

    app.run = from_absl
    argparse.ArgumentParser.parse_args = from_argparse
    sys.argv[1:] = []
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Done:
        print(json.dumps(read))
        return
    raise SystemExit(f"{module} reads no flags")


def of_absl(values: absl_flags.FlagValues) -> Iterator[dict[str, Any]]:
    """Flags of a command that absl reads, by name."""
    for flag in sorted(values.get_key_flags_for_module(sys.argv[0]), key=lambda each: each.name):
        choices = getattr(flag.parser, "enum_values", None)
        kind = "" if flag.boolean else flag.parser.syntactic_help or ""
        yield {
            "name": f"--{'[no]' if flag.boolean else ''}{flag.name}",
            "values": " or ".join(choices) if choices else kind,
            "default": None if flag.default is None else flag.default_as_str.strip("'"),
            "help": flag.help,
        }


def of_argparse(parser: argparse.ArgumentParser) -> Iterator[dict[str, Any]]:
    """Arguments of a command that argparse reads, in their order."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        yield {
            "name": f"{name} {action.metavar}" if action.option_strings and action.metavar else name,
            "values": " or ".join(map(str, action.choices)) if action.choices else "",
            "default": None if action.default in (None, False) else str(action.default),
            "help": action.help or "",
        }


if __name__ == "__main__":
    main(sys.argv[1])
