"""Check the links of the built site: `python -m docs.site.check_links build/site`.

Every relative link must lead to a file of the site, every anchor to an element, and nothing that a
page loads (scripts, styles, pictures, fonts) may come from another host. Links to other hosts are
counted and not fetched, so that the check needs no network.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes with a link, by their elements.
LINKS = {"a": "href", "area": "href"}
# Attributes with what a browser loads to show the page.
LOADED = {"img": "src", "script": "src", "source": "src", "link": "href", "iframe": "src"}
# Kinds of <link> that load nothing.
UNLOADED = {"canonical", "next", "prev", "alternate"}
# At most this many problems are printed.
SHOWN = 20


@dataclass
class Links(HTMLParser):
    """What a page links to, what it loads, and which anchors it has."""

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take an element's links and anchors."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if LINKS.get(tag) in values:
            self.links.append(values[LINKS[tag]])
        if LOADED.get(tag) in values and values.get("rel") not in UNLOADED:
            self.loaded.append(values[LOADED[tag]])


def read(file: Path) -> Links:
    """Parse a page."""
    found = Links()
    found.feed(file.read_text("utf-8"))
    return found


def problems(site: Path) -> Iterator[str]:
    """What is wrong with the links of a site, one line each."""
    pages = {file.resolve(): read(file) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        name = file.relative_to(site.resolve())
        for link in page.loaded:
            if urlsplit(link).netloc:
                yield f"{name}: loads {link} from another host"
        for link in dict.fromkeys((*page.links, *page.loaded)):
            parts = urlsplit(link)
            # The page of errors is served from anywhere, so that its links are absolute.
            if parts.scheme or parts.netloc or link.startswith("/"):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name}: {link} leads to no file"
            elif parts.fragment and target in pages:
                anchor = unquote(parts.fragment)
                # Highlighted lines and the top of a page need no element.
                if anchor not in pages[target].anchors and not anchor.startswith("__"):
                    yield f"{name}: {link} leads to no anchor"
    for file in sorted(site.rglob("*.css")):
        if hosts := re.findall(r"url\(['\"]?(https?:[^)'\"]+)", file.read_text("utf-8")):
            yield f"{file.relative_to(site)}: loads {hosts[0]} from another host"


def main(folder: str) -> None:
    """Print what is wrong, and exit with 1 if anything is."""
    site = Path(folder)
    if not (site / "index.html").is_file():
        raise SystemExit(f"{site} is missing: build it with `make docs`")
    found = list(problems(site))
    pages = len(list(site.rglob("*.html")))
    for line in found[:SHOWN]:
        print(line, file=sys.stderr)
    print(f"{pages} pages: {len(found)} broken links; links to other hosts are not fetched")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main(sys.argv[1])
