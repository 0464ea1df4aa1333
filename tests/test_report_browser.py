"""The report in a real Chromium: narrow and wide, light and dark, accessible, without scripts."""

from pathlib import Path
from typing import Any

import pytest
from helpers.browser import PATIENCE, violations
from helpers.report_run import write_run

from erase.report import report
from erase.runtime.files import write

pytestmark = [pytest.mark.slow, pytest.mark.browser]

HEADINGS = [
    "Results",
    "Pictures before and after",
    "Attention to “cat”",
    "Attacks",
    "Training",
    "Other concepts",
    "Words",
    "Command and settings",
]
OVERFLOWING = """() => [...document.querySelectorAll("main *")]
    .filter(e => !e.closest(".scroll table") && e.getBoundingClientRect().right > innerWidth)
    .map(e => e.outerHTML.slice(0, 80))"""

TEXT_HEIGHTS = """selector => [...document.querySelectorAll(selector)].map(e => {
    const range = document.createRange();
    range.selectNodeContents(e);
    return range.getBoundingClientRect().height;
})"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every part, as full as reports become, and long words."""
    folder = tmp_path_factory.mktemp("run")
    write_run(
        folder,
        examples=8,
        side=(64, 64),
        others=[f"concept {'x' * (index % 30)} {index}" for index in range(40)],
        families=["misspelt", "affixes", "repeated", "synonyms", "shuffled"],
        metrics=["esd", "attn", "rsc", "lora", "lower_gradient", "upper_gradient"],
    )
    words = {"concept": "cat", "sentences": ["a cat " + "y" * 120] * 5, "source": "a model"}
    write(folder / "sentences.json", str(words).replace("'", '"'))
    return report.write(folder)


def opened(browser: Any, file: Path, width: int = 1600, **options: Any) -> tuple[Any, list[str]]:
    """The page in a tab of its own, and the addresses that it asked for."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    context.set_default_timeout(PATIENCE)
    requests: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    page = context.new_page()
    page.goto(file.as_uri())
    return page, requests


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_the_report_works_at_every_width_and_in_every_scheme(
    browser: Any, page_file: Path, width: int, scheme: str
):
    page, _ = opened(browser, page_file, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(OVERFLOWING) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(251, 250, 248)", "dark": "rgb(20, 23, 28)"}[scheme]
    # Text of charts shrinks with them.
    heights = page.evaluate(TEXT_HEIGHTS, "svg text")
    assert len(heights) > 6 * 4
    assert min(heights) >= 10
    # Narrow columns break between words alone: headings of rows stay in a line.
    assert max(page.evaluate(TEXT_HEIGHTS, "th")) < 30
    assert violations(page) == []
    page.context.close()


def test_the_report_needs_no_script_and_asks_for_nothing_else(browser: Any, page_file: Path):
    page, requests = opened(browser, page_file, java_script_enabled=False)
    assert [each for each in requests if not each.startswith("data:")] == [page_file.as_uri()]
    assert page.locator("h2").all_inner_texts() == HEADINGS
    for part in (".card", ".examples img", ".maps img", ".charts svg", ".others li", "table"):
        places = page.locator(part).all()
        assert places, part
        assert all(place.is_visible() for place in places), part
    assert page.evaluate(
        "[...document.images].every(picture => picture.complete && picture.naturalWidth > 0)"
    )
    # The configuration opens without a script too.
    assert not page.locator("details pre").is_visible()
    page.locator("summary").click()
    assert '"rank": 8' in page.locator("details pre").inner_text()
    page.context.close()


def test_every_picture_has_a_text_that_says_what_is_seen(browser: Any, page_file: Path):
    page, _ = opened(browser, page_file)
    pictures = page.locator("img").evaluate_all("all => all.map(e => e.alt)")
    assert len(pictures) == 3 * 8 * 2 + 4 * 4
    assert pictures[0] == "“a <Acc_e> & more”, drawn before erasing; the judge detects “cat”"
    assert pictures[1] == "“a <Acc_e> & more”, drawn after erasing; the judge does not detect “cat”"
    maps = [text for text in pictures if text.startswith("Attention to “cat” ")]
    assert len(maps) == 8
    assert all(text.endswith(" % on average") for text in maps)
    charts = page.locator("svg[role=img]").evaluate_all(
        "all => all.map(e => e.getAttribute('aria-label'))"
    )
    assert len(charts) == 6
    assert charts[0] == (
        "Line chart: esd over iterations 0 to 49; its moving average begins at 0.75 and ends at "
        "0.0202."
    )
    page.context.close()


def test_axe_finds_what_is_wrong(browser: Any, page_file: Path, tmp_path: Path):
    text = page_file.read_text().replace("--soft: #596273", "--soft: #c0c0c0")
    broken = tmp_path / "broken.html"
    write(broken, text.replace(' alt="Attention', ' title="Attention', 1).replace('lang="en"', ""))
    page, _ = opened(browser, broken, color_scheme="light")
    rules = {line.partition(":")[0] for line in violations(page)}
    assert {"color-contrast", "html-has-lang"} <= rules
    page.context.close()
