"""What mkdocs calls while it builds the site: pages and pictures made here, links and equations."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Linters need not have the packages of the extra `docs`.
from mkdocs.config.defaults import MkDocsConfig  # pyright: ignore[reportMissingImports]
from mkdocs.exceptions import PluginError  # pyright: ignore[reportMissingImports]
from mkdocs.structure.files import File, Files  # pyright: ignore[reportMissingImports]
from mkdocs.structure.pages import Page  # pyright: ignore[reportMissingImports]

from docs.site import (
    commands,
    configuration,
    links,
    mathematics,
    notebook,
    pictures,
    python,
)

ROOT = Path(__file__).parents[2]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Stop before anything is made where a program is missing.

    Raises:
        PluginError: it is.
    """
    if needed := pictures.missing():
        raise PluginError(needed)
    return config


def generated() -> Iterator[tuple[str, str]]:
    """Place and text of the pages that are made from code and from files at the root."""
    yield "reference/commands.md", commands.page()
    yield "reference/configuration.md", configuration.page()
    yield from python.pages().items()
    results = (ROOT / "RESULTS.md").read_text("utf-8")
    yield "results.md", links.relocated(results, ".", "results.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that no file of docs/ holds."""
    made = dict(generated())
    made[notebook.PAGE], drawn = notebook.page()
    for place, content in drawn.items():
        files.append(File.generated(config, place, content=content))
    written = ((file.src_uri, file.content_string) for file in files.documentation_pages())
    made |= links.source_pages([*written, *made.items()])
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    for path in links.images(made.items()):
        place = f"{links.SOURCE}/{path}"
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    for name, file in pictures.pictures().items():
        files.append(File.generated(config, f"pictures/{name}", abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Turn links to files of the repository into links to pages.

    Raises:
        PluginError: there is no such file.
    """
    del kwargs
    try:
        return links.resolved(markdown, page.file.src_uri)
    except FileNotFoundError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def on_page_content(html: str, **kwargs: Any) -> str:
    """Render equations."""
    del kwargs
    return mathematics.rendered(html)
