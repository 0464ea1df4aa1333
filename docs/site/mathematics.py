"""Equations as MathML, made while the site is built: they need no script and no font."""

import html
import re

from latex2mathml.converter import convert  # pyright: ignore[reportMissingImports]

# What `pymdownx.arithmatex` writes with `generic: true`.
EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?:\(|\[)(?P<latex>.*?)\\(?:\)|\])</(?P=tag)>',
    re.DOTALL,
)


def rendered(page: str) -> str:
    """A page's HTML with its equations in MathML."""

    def replaced(match: re.Match[str]) -> str:
        display = "block" if match["tag"] == "div" else "inline"
        return convert(html.unescape(match["latex"]).strip(), display=display)

    return EQUATION.sub(replaced, page)
