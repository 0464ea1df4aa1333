"""The page of configuration fields, from the dataclasses that read them."""

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from docs.site.commands import cell
from erase.methods import METHODS
from erase.methods.settings import FIELDS
from erase.runs import PER_RUN_FIELDS, PRESETS, RunConfig

HEAD = """# Configuration

A configuration file is Python with a function `get_config`. It names what differs from the
defaults:

```python
from erase.runs import configure


def get_config():
    return configure(
        concept="guitar",
        model={"path": "models/emoji-flux"},
        lower={"attn": 5.0},
    )
```

On the command line a field is `--config.FIELD=VALUE`, a part's field `--config.PART.FIELD=VALUE`.
[How a configuration is completed](../configuring.md) says which value counts where several are
given. This page is generated from the dataclasses that check the values.

"""


def documented(cls: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each field, by name."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        doc = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, attributes = doc.partition("Attributes:\n")
        # A field's text goes on in lines that are indented further.
        entries = re.findall(r"^(\w+): (.+(?:\n +.+)*)", textwrap.dedent(attributes), re.MULTILINE)
        found |= {name: " ".join(text.split()) for name, text in entries}
    return found


def kind(hint: Any) -> str:
    """A type as a reader writes it."""
    if isinstance(hint, types.UnionType):
        return " or ".join(kind(part) for part in typing.get_args(hint))
    if hint is type(None):
        return "None"
    if typing.get_origin(hint) is tuple:
        return "texts"
    words = {str: "text", int: "whole number", float: "number", bool: "True or False"}
    return words[hint]


def values(hint: Any, limits: Any) -> str:
    """What a field takes: its choices, or its type and range."""
    if choices := limits.get("choices"):
        optional = " or None" if type(None) in typing.get_args(hint) else ""
        return " or ".join(f"`{each}`" for each in choices if each is not None) + optional
    words = {"least": "at least {:g}", "above": "above {:g}", "most": "at most {:g}"}
    bounds = [words[name].format(limits[name]) for name in words if limits.get(name) is not None]
    return ", ".join([kind(hint), *bounds])


def rows(cls: type, prefix: str) -> Iterator[str]:
    """A row for each field that is no part."""
    hints, about = typing.get_type_hints(cls), documented(cls)
    for spec in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[spec.name]):
            continue
        required = spec.default is dataclasses.MISSING
        default = "required" if required else f"`{cell(repr(spec.default))}`"
        taken = cell(values(hints[spec.name], spec.metadata))
        path = f"{prefix}{spec.name}"
        yield f"| `{path}` | {taken} | {default} | {cell(about[spec.name])} |"


def parts(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """A dataclass and those of its fields that are dataclasses, with their paths."""
    yield prefix, cls
    hints = typing.get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[spec.name]):
            yield from parts(hints[spec.name], f"{prefix}{spec.name}.")


def section(prefix: str, cls: type) -> str:
    """A table of a part's fields."""
    title = prefix.rstrip(".") or "Fields of a run"
    doc = (
        ""
        if cls is RunConfig
        else inspect.cleandoc(cls.__doc__ or "").partition("Attributes:")[0].strip()
    )
    head = "| field | values | default | |\n| --- | --- | --- | --- |"
    about = [f"{doc}\n"] if doc else []
    return "\n".join([f"## {title}\n", *about, head, *rows(cls, prefix), ""])


def page() -> str:
    """The whole page."""
    sections = [section(prefix, cls) for prefix, cls in parts(RunConfig)]
    own = (path for fields in FIELDS.values() for path in fields.per_run)
    alone = ", ".join(f"`{name}`" for name in (*PER_RUN_FIELDS, *own))
    methods = "\n".join(f"| `{name}` | {each.title} |" for name, each in METHODS.items())
    tail = f"""## Runs that train together

`each` holds a dictionary for every run, by its name. Runs that train together share one compiled
program, so they may differ in these fields only: {alone}.

## Presets

`configure("NAME", ...)` or `--config FILE:NAME` starts from a preset:
{", ".join(f"`{name}`" for name in PRESETS)}. `by_method` holds fields for a single method.

## Methods

| `method` | |
| --- | --- |
{methods}
"""
    return HEAD + "\n".join(sections) + "\n" + tail
