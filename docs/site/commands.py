"""The page of commands, from the definitions that `--help` shows."""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from erase.cli import commands

ROOT = Path(__file__).parents[2]
HEAD = """# Commands

Every command is `erase-anything COMMAND ...`; `erase-anything help COMMAND` prints this text.
The same commands run without being installed as `python -m MODULE ...`.
This page is generated from the commands' own flags.

"""


def docstring(module: str) -> str:
    """A module's docstring, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8"))) or ""


def read_flags(modules: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Flags of commands' modules, from a process that imports no more than they do.

    Raises:
        RuntimeError: a command's module cannot be run.
    """
    done = subprocess.run(
        [sys.executable, "-m", "docs.site.flags", *dict.fromkeys(modules)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-400:])
    return dict(json.loads(line) for line in done.stdout.splitlines())


def cell(text: str) -> str:
    """A text for a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(flags: Sequence[dict[str, Any]]) -> str:
    """Flags as a table in Markdown."""
    rows = ["| flag | values | default | |", "| --- | --- | --- | --- |"]
    for flag in flags:
        default = "" if flag["default"] in (None, "") else f"`{cell(flag['default'])}`"
        name = f"`{cell(flag['name'])}`"
        rows.append(f"| {name} | {cell(flag['values'])} | {default} | {cell(flag['help'])} |")
    return "\n".join(rows)


def section(name: str, module: str, flags: Sequence[dict[str, Any]]) -> str:
    """A command's section: what it does, an example and its flags."""
    given = commands.GIVEN.get(name, ())
    if given:
        # The name stands for another command with some flags.
        other = next(each for each, home in commands.COMMANDS.items() if home == module)
        about = (
            f"{commands.ABOUT[name]}.\n\nThe same as `{other} {' '.join(given)}`; see its flags."
        )
        return f"## {name}\n\n    erase-anything {name} --config FILE\n\n{about}\n"
    usage = f"`erase-anything {name}`, or `python -m {module}`."
    return f"## {name}\n\n{usage}\n\n{docstring(module)}\n\n{table(flags)}\n"


def page() -> str:
    """The whole page."""
    flags = read_flags(commands.COMMANDS.values())
    sections = [section(name, home, flags[home]) for name, home in commands.COMMANDS.items()]
    return HEAD + "\n".join(sections)
