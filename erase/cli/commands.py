"""All commands under one name: `erase-anything train ...` is `python -m erase.train ...`."""

import ast
import importlib.util
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

from flux_jax.errors import InputError, exits_cleanly, nearest

COMMANDS: Mapping[str, str] = {
    "new": "erase.cli.new",
    "train": "erase.train",
    "evaluate": "erase.cli.evaluate",
    "sample": "erase.cli.sample",
    "attack": "erase.cli.attack",
    "calibrate": "erase.cli.calibrate",
    "compose": "erase.cli.compose",
    "compare": "erase.cli.compare",
    "report": "erase.cli.report",
    "card": "erase.cli.card",
    "wordnet": "erase.cli.wordnet",
    "convert": "convert.pipeline",
    "convert-adapter": "convert.lora",
    "merge": "convert.merge",
    "inspect": "convert.inspect",
}
HELP = ("-h", "-help", "--help", "help")


@exits_cleanly
def dispatch() -> None:
    """Runs the command that the first argument names, with those after it.

    Raises:
        InputError: there is no such command.
    """
    name, *rest = sys.argv[1:] or ["--help"]
    if name in HELP:
        print(usage())
        return
    if name not in COMMANDS:
        raise InputError(f"command = {name[:60]!r} is unknown; {nearest(name, COMMANDS)}")
    sys.argv[1:] = rest
    # As `python -m` does, so that flags and help are those of the command's own module.
    runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True)


def usage() -> str:
    """What there is, in a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"    {name:{width}}  {_first_line(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        [
            "erase-anything COMMAND ...",
            "",
            *lines,
            "",
            "erase-anything COMMAND --help shows a command's flags.",
        ]
    )


def _first_line(module: str) -> str:
    """Of a module's docstring, without importing it, which would take seconds."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    return doc.partition("\n")[0].partition(":")[0].rstrip(".")
