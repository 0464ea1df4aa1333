"""Links from pages to files of the repository that are no pages of the site.

On a code host `[losses.py](../erase/methods/parts/losses.py)` opens the file. On the site the same
link leads to the module's part of the Python reference, or to a page that shows the file.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from docs.site import python

ROOT = Path(__file__).parents[2]
DOCS = "docs"
SOURCE = "source"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```.*?^```[ ]*$)", re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".json": "json", ".sh": "bash", ".toml": "toml", ".txt": "text"}
# What a folder's page does not list.
HIDDEN = ("", ".j2", ".pyc")
IMAGES = (".png", ".svg", ".jpg")
# Files at the root that are pages of their own.
PAGES = {"RESULTS.md": "results.md", "README.md": "index.md"}


def outside_fences(text: str, change: "re.Pattern[str]", by: object) -> str:
    """Replace a pattern wherever it is not within a fenced block of code."""
    parts = FENCE.split(text)
    return "".join(
        part if number % 2 else change.sub(by, part)  # pyright: ignore[reportCallIssue, reportArgumentType]
        for number, part in enumerate(parts)
    )


def is_external(target: str) -> bool:
    """Whether a link leads to another host, or is no path."""
    return bool(re.match(r"[a-z]+:|//|<", target))


def relocated(text: str, folder: str, page: str) -> str:
    """A Markdown text of some folder as a page elsewhere: its relative links are changed.

    Args:
        text: of a file in `folder`.
        folder: from the repository's root, "." for the root.
        page: where the text goes in the site's sources.
    """

    def replaced(match: re.Match[str]) -> str:
        start, target, anchor, end = match.groups()
        if is_external(target):
            return match[0]
        path = normpath(f"{folder}/{target}")
        home = str(PurePosixPath(DOCS, page).parent)
        return f"{start}{relpath(path, home)}{anchor or ''}{end}"

    return outside_fences(text, LINK, replaced)


def targets(text: str, page: str) -> set[str]:
    """Paths of the repository's files that a page links to and that are not in docs/."""
    home = str(PurePosixPath(DOCS, page).parent)
    found = {
        normpath(f"{home}/{match[2]}")
        for part in FENCE.split(text)[::2]
        for match in LINK.finditer(part)
        if not is_external(match[2])
    }
    return {path for path in found if not path.startswith((f"{DOCS}/", ".."))} | (
        # A folder of docs/ is no page either.
        {path for path in found if (ROOT / path).is_dir()}
    )


def page_of(path: str) -> str:
    """The page of the site that shows a file or folder of the repository.

    Raises:
        FileNotFoundError: there is no such file.
    """
    file = ROOT / path
    if not file.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path in PAGES:
        return PAGES[path]
    module = ".".join(PurePosixPath(path).with_suffix("").parts).removesuffix(".__init__")
    if path.partition("/")[0] in python.PACKAGES and (file.is_dir() or file.suffix == ".py"):
        return f"{python.page_of(module)}#{module}"
    if file.suffix in IMAGES:
        return f"{SOURCE}/{path}"
    return f"{SOURCE}/{path}.md"


def resolved(text: str, page: str) -> str:
    """A page's text with links to files of the repository turned into links to pages."""
    home = str(PurePosixPath(DOCS, page).parent)
    wanted = targets(text, page)

    def replaced(match: re.Match[str]) -> str:
        start, target, anchor, end = match.groups()
        path = normpath(f"{home}/{target}")
        if is_external(target) or path not in wanted:
            return match[0]
        place, _, fragment = page_of(path).partition("#")
        link = relpath(place, str(PurePosixPath(page).parent))
        anchor = anchor or (f"#{fragment}" if fragment else "")
        return f"{start}{link}{anchor}{end}"

    return outside_fences(text, LINK, replaced)


def source_page(path: str) -> str:
    """The page that shows a file, or lists a folder's files."""
    file, page = ROOT / path, f"{SOURCE}/{path}.md"
    if file.is_dir():
        home = f"{DOCS}/{PurePosixPath(page).parent}"
        names = sorted(each.name for each in file.iterdir() if each.suffix not in HIDDEN)
        listed = (f"- [{name}]({relpath(f'{path}/{name}', home)})" for name in names)
        return f"# {path}\n\n" + "\n".join(listed) + "\n"
    text = file.read_text("utf-8")
    if file.suffix == ".md":
        return relocated(text, str(PurePosixPath(path).parent), page)
    return f"# {path}\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n````\n"


def source_pages(pages: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Pages of all files that pages link to, and that these link to in turn.

    Args:
        pages: place and text of each page.
    """
    made: dict[str, str] = {}
    waiting = list(pages)
    while waiting:
        page, text = waiting.pop()
        for path in targets(text, page):
            place = page_of(path).partition("#")[0]
            shown = place.startswith(f"{SOURCE}/") and not place.endswith(IMAGES)
            if shown and place not in made:
                made[place] = source_page(path)
                waiting.append((place, made[place]))
    return made


def images(pages: Iterable[tuple[str, str]]) -> set[str]:
    """Paths of the repository's images that pages show and that are not in docs/."""
    return {path for page, text in pages for path in targets(text, page) if path.endswith(IMAGES)}
