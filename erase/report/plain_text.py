"""Text of any origin in a card, a table, a page and a figure, where it stays text.

`convert.tables` and `flux_jax.errors` do the same for terminals, and
`erase.evaluation.percent.csv_cell` for tables of comma-separated values.
"""

import json
import re
import shlex
from typing import Any

import jinja2

from flux_jax.errors import printable

# What Markdown gives a meaning to anywhere in a line, with the extensions of GitHub and the hub:
# code, emphasis, links, HTML, entities, tables, formulas and mentions.
_MARKS = re.compile(r"[\\`*_{}\[\]<>#|!~&$@]")
# Addresses that become links.
_LINKS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)


class Markdown(str):
    """Text that is Markdown already."""


def one_line(text: object) -> str:
    """A text in one line, without control characters."""
    return printable(" ".join(str(text).split()))


def markdown(text: object) -> Markdown:
    """A text in one line that Markdown shows as it is, in tables too."""
    if isinstance(text, Markdown):
        return text
    return Markdown(_LINKS.sub(r"\\\g<0>", _MARKS.sub(r"\\\g<0>", one_line(text))))


def code(text: object) -> Markdown:
    """A text as code in a line of Markdown."""
    line = one_line(text)
    # More backticks than the text has in a row; spaces, which are not shown, separate those.
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line[:1] in ("`", "") or line[-1:] == "`" else ""
    return Markdown(f"{fence}{space}{line}{space}{fence}")


def literal(text: object) -> Markdown:
    """A text as a literal of Python and of YAML, in double quotes."""
    # Escapes of other characters than JSON's are the same in both languages.
    return Markdown(printable(json.dumps(text, ensure_ascii=False)))


def shell(text: object) -> Markdown:
    """A text as a word of a shell command."""
    return Markdown(shlex.quote(one_line(text)))


def markdown_environment() -> jinja2.Environment:
    """Templates of Markdown: all values but Markdown are escaped."""
    # Autoescaping is for HTML, and would be shown as it is; the hub shows no scripts in Markdown.
    environment = jinja2.Environment(  # nosec B701
        undefined=jinja2.StrictUndefined,
        finalize=markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"literal": literal, "shell": shell, "code": code, "own": Markdown}
    return environment


def page_environment() -> jinja2.Environment:
    """Templates of HTML: all values are escaped, and have no control characters."""
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_without_controls
    )


def _without_controls(value: Any) -> Any:
    """A value of a page without control characters; HTML that is safe stays."""
    return printable(value) if type(value) is str else value


def label(text: object) -> str:
    """A text in a figure: matplotlib reads formulas between dollars, and hides labels with `_`."""
    line = one_line(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line
