"""The questionnaire in a real Chromium, from its file: keys, reload, export, phones, no network."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import PATIENCE, violations
from test_survey import METHODS, draw

from erase.survey import result
from erase.survey.answers import join

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder."""
    folder = tmp_path_factory.mktemp("study")
    result.make({method: draw(folder, method) for method in METHODS}, "cat", 0, folder / "study")
    return folder / "study"


def opened(browser: Any, study: Path, rater: int = 1, **options: Any) -> Any:
    """The questionnaire of a rater, begun, in a context of its own."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto((study / "study.html").as_uri())
    begin(page, rater)
    return page


def begin(page: Any, rater: int) -> None:
    page.get_by_label("Your number").fill(str(rater))
    page.get_by_role("button", name="Begin").click()
    page.locator("#prompt:focus").wait_for()


def screens(page: Any) -> Iterator[None]:
    """Go through all screens, from the first."""
    while page.get_by_role("button", name="Back").is_enabled():
        page.get_by_role("button", name="Back").click()
    yield
    while page.get_by_role("button", name="Next").is_enabled():
        page.get_by_role("button", name="Next").click()
        yield


def answer(page: Any) -> None:
    """Answer a screen by keys: a check as it asks, all else by its row."""
    rows = page.locator(".scale").count()
    check = page.get_by_text("Please choose").all_inner_texts()
    for row in range(rows):
        page.keyboard.press(check[0][-2] if check else str(1 + row % 5))


def exported(page: Any, name: str) -> Path:
    with page.expect_download() as saving:
        page.get_by_role("button", name=name).click()
    target = Path(saving.value.path())
    named = target.with_name(saving.value.suggested_filename)
    target.rename(named)
    return named


def test_by_keys_to_the_export(browser: Any, study: Path, tmp_path: Path):
    page = opened(browser, study, 7, accept_downloads=True)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for _ in screens(page):
        answer(page)
    assert "All is answered" in page.locator("#said").inner_text()
    key = json.loads((study / "key.json").read_text())
    ends = {}
    for kind in ("JSON", "CSV"):
        file = exported(page, f"Export {kind}")
        assert file.name == f"answers-7.{kind.lower()}"
        folder = tmp_path / kind
        folder.mkdir()
        file.rename(folder / file.name)
        ends[kind] = join(folder, key)
    assert ends["JSON"].complete == {7: 1.0}
    assert ends["JSON"].left_out == {}
    assert sorted(map(str, ends["JSON"].ratings)) == sorted(map(str, ends["CSV"].ratings))
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)


def test_answers_survive_a_reload(browser: Any, study: Path):
    page = opened(browser, study, 3)
    answer(page)
    marked = page.locator(":checked").count()
    prompt = page.locator("#prompt").inner_text()
    page.reload()
    begin(page, 3)
    # At the first screen that is not answered.
    assert "Screen 2 of" in page.locator("#count").inner_text()
    page.keyboard.press("Alt+ArrowLeft")
    page.get_by_text("Screen 1 of").wait_for()
    assert page.locator("#prompt").inner_text() == prompt
    assert page.locator(":checked").count() == marked > 0
    page.reload()
    begin(page, 4)
    assert "0 answered" in page.locator("#count").inner_text()


def test_damaged_answers_in_the_browser_begin_anew(browser: Any, study: Path):
    page = opened(browser, study, 5)
    answer(page)
    page.evaluate("for (const key of Object.keys(localStorage)) localStorage[key] = '5'")
    page.reload()
    begin(page, 5)
    assert "0 answered" in page.locator("#count").inner_text()
    answer(page)
    page.reload()
    begin(page, 5)
    assert "Screen 2 of" in page.locator("#count").inner_text()


def test_raters_see_their_own_orders(browser: Any, study: Path):
    def order(rater: int) -> list[str]:
        page = opened(browser, study, rater)
        return [page.locator(".pictures").first.inner_html() for _ in screens(page)]

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_and_accessible(browser: Any, study: Path, scheme: str):
    size = {"width": 400, "height": 800}
    page = opened(browser, study, viewport=size, color_scheme=scheme)
    for _ in screens(page):
        answer(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert violations(page) == []


def test_a_number_is_needed(browser: Any, study: Path):
    page = browser.new_page()
    page.goto((study / "study.html").as_uri())
    for typed in ("0", "1e3", "2.7", "1000001"):
        page.get_by_label("Your number").fill(typed)
        page.get_by_role("button", name="Begin").click()
        assert "whole number from 1 to 1,000,000" in page.locator("#said").inner_text()
