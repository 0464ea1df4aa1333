"""All commands under one name: `erase-anything train ...` runs `python -m erase.train ...`."""

import ast
import importlib.metadata
import importlib.util
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flux_jax.errors import InputError, exits_cleanly, nearest, note, say

COMMANDS: Mapping[str, str] = {
    "new": "erase.cli.new",
    "train": "erase.train",
    "plan": "erase.train",
    "evaluate": "erase.cli.evaluate",
    "sample": "erase.cli.sample",
    "attack": "erase.cli.attack",
    "calibrate": "erase.cli.calibrate",
    "compose": "erase.cli.compose",
    "figure": "erase.cli.figure",
    "compare": "erase.cli.compare",
    "report": "erase.cli.report",
    "card": "erase.cli.card",
    "play": "erase.cli.play",
    "study": "erase.cli.study",
    "axes": "erase.cli.axes",
    "benchmark": "erase.cli.benchmark",
    "table": "erase.cli.table",
    "wordnet": "erase.cli.wordnet",
    "convert pipeline": "convert.pipeline",
    "convert adapter": "convert.lora",
    "convert merge": "convert.merge",
    "convert inspect": "convert.inspect",
}
# Former names still work, and print a note with the present name.
FORMER: Mapping[str, str] = {
    "convert-adapter": "convert adapter",
    "merge": "convert merge",
    "inspect": "convert inspect",
}
# Flags that a command implies, and its line in the list of commands.
GIVEN: Mapping[str, Sequence[str]] = {"plan": ("--plan",)}
ABOUT = {"plan": "Print the memory and time that a run needs, without reading weights"}
HELP = ("-h", "-help", "--help", "--helpfull", "help")
DISTRIBUTION = "erase-anything-jax"


@exits_cleanly
def dispatch() -> None:
    """Run the command that the first argument names, with the remaining arguments.

    Raises:
        InputError: there is no such command.
    """
    words = sys.argv[1:]
    if words[:1] == ["help"] and words[1:]:
        words = [*words[1:], "--help"]
    if not words or words[0] in HELP:
        say(usage())
        return
    if words[0] == "--version":
        say(version())
        return
    if words[0] == "convert" and words[1:] and not without_help(words[1:]):
        say(usage("convert "))
        return
    name, rest = named(words)
    # As with `python -m`: a configuration imports others beside it, such as `configs`.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    sys.argv[1:] = [*GIVEN.get(name, ()), *rest]
    # As `python -m` does, so that flags and help are those of the command's module.
    runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True)


def without_help(words: Sequence[str]) -> list[str]:
    """Remove the words that ask for help."""
    return [word for word in words if word not in HELP]


def named(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split words into the command that they begin with, and the words after it.

    Raises:
        InputError: there is no such command.
    """
    first, rest = words[0], list(words[1:])
    if first in FORMER:
        note(f"{first} is `{FORMER[first]}` now")
        return FORMER[first], rest
    if first == "convert":
        kinds = [each.partition(" ")[2] for each in COMMANDS if each.startswith("convert ")]
        if not rest:
            raise InputError(
                f"convert needs the name of a conversion; choose from {', '.join(kinds)}"
            )
        name = f"convert {rest[0]}"
        if name in COMMANDS:
            return name, rest[1:]
        if os.path.exists(rest[0]):
            # Former usage, when there was only one kind of conversion.
            note("convert SRC DST is `convert pipeline SRC DST` now")
            return "convert pipeline", rest
        raise InputError(f"convert = {rest[0][:60]!r} is unknown; {nearest(rest[0], kinds)}")
    if first.startswith("-"):
        raise InputError(f"{first[:60]} is not a flag; {nearest(first, ('--help', '--version'))}")
    if first not in COMMANDS:
        raise InputError(f"command = {first[:60]!r} is unknown; {nearest(first, COMMANDS)}")
    return first, rest


def version() -> str:
    """Return the installed version; "unknown" where the code was only copied."""
    try:
        return f"erase-anything {importlib.metadata.version(DISTRIBUTION)}"
    except importlib.metadata.PackageNotFoundError:
        return "erase-anything, version unknown: the package is not installed"


def usage(prefix: str = "") -> str:
    """List all commands whose names begin with the prefix, one per line."""
    width = max(map(len, COMMANDS))
    lines = [
        f"    {name:{width}}  {ABOUT.get(name) or _first_line(module)}"
        for name, module in COMMANDS.items()
        if name.startswith(prefix)
    ]
    return "\n".join(
        [
            f"erase-anything {prefix}COMMAND ...",
            "",
            *lines,
            "",
            "erase-anything help COMMAND shows a command's flags, --version the version.",
        ]
    )


def _first_line(module: str) -> str:
    """First line of a module's docstring, without the import, which would take seconds."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    return doc.partition("\n")[0].partition(":")[0].rstrip(".")
