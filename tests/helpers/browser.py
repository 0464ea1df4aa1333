"""A real Chromium for tests of pages: the system's own, which nothing downloads."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# In milliseconds, for a machine that is busy with other tests.
PATIENCE = 180_000


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser object; a test that cannot have it fails in a line."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(
            "Chromium is missing: apt-get install --yes --no-install-recommends chromium",
            pytrace=False,
        )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("Playwright is missing: pip install --editable '.[test]'", pytrace=False)
    with sync_playwright() as playwright:
        # The sandbox does not start as root, as in containers; the pages are this project's.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"], timeout=PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium for the tests of a file."""
    with chromium() as launched:
        yield launched


def violations(page: Any) -> list[str]:
    """What axe-core finds, by rule and element."""
    from axe_playwright_python.sync_playwright import Axe

    response = Axe().run(page).response
    return [
        f"{rule['id']}: {node['html'][:120]}"
        for rule in response["violations"]
        for node in rule["nodes"]
    ]
