"""The page of a training in a real Chromium: it follows the run, fits phones, is accessible."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import PATIENCE, violations
from test_watch import write_checkpoint, write_metrics, write_sample

from erase.watch import serving

pytestmark = [pytest.mark.slow, pytest.mark.browser]
NAMES = ("cat", "<img src=x onerror=alert(1)>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs that train at once, after 30 of 40 iterations."""
    for number, name in enumerate(NAMES):
        write_metrics(tmp_path / name, range(1, 31), loss=number + 1.0)
        record = {"concept": name, "iterations": 40, "checkpoints": {"adapter": "last"}}
        (tmp_path / name / "config.json").write_text(json.dumps(record))
        for index in (0, 1):
            write_sample(tmp_path / name, 30, index, 255)
    write_checkpoint(tmp_path, 20, loss=0.125, of_interval=True)
    return tmp_path


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    listener = serving.listen(0)
    with serving.served(listener, folder, NAMES):
        yield listener.address


def opened(browser: Any, address: str, **options: Any) -> tuple[Any, list[str]]:
    """The page in a context of its own, and the addresses that it asks for."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page, requests = context.new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.get_by_text("Iteration 30 of 40").wait_for()
    return page, requests


def test_the_page_follows_the_training(browser: Any, address: str, folder: Path):
    page, requests = opened(browser, address)
    assert page.title() == "Erasing “cat”"
    assert "iteration 20, with a mean weighted loss of 0.125" in page.locator("#best").inner_text()
    charts = page.locator("#charts svg")
    assert charts.count() == 2
    label = charts.first.get_attribute("aria-label")
    assert label.startswith("Line chart: esd over iterations 1 to 30;")
    points = page.locator("#charts polyline.raw").first.get_attribute("points").split()
    assert len(points) == 30
    # A loss that falls is drawn from the top left to the bottom right.
    (x0, y0), (x1, y1) = (map(float, points[end].split(",")) for end in (0, -1))
    assert x0 < x1
    assert y0 < y1
    page.wait_for_function(
        "[...document.images].length == 2 && [...document.images].every(i => i.naturalWidth == 4)"
    )
    write_sample(folder / "cat", 36, 0)
    with (folder / "cat" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 37, "esd": 0.5, "seconds": 0.5}\n')
    page.get_by_text("Iteration 37 of 40, 0.5 s each, about 2 s left").wait_for()
    assert page.locator("figcaption").all_inner_texts() == [
        "after 36 iterations", "after 30 iterations"
    ]  # fmt: skip
    assert all(url.startswith((address, "data:")) for url in requests)


def test_a_run_is_chosen_and_its_name_stays_text(browser: Any, address: str):
    page, _ = opened(browser, address)
    page.get_by_label("Run").select_option(NAMES[1])
    page.get_by_role("heading", name=f"Erasing “{NAMES[1]}”").wait_for()
    assert page.locator("img[src=x]").count() == 0
    assert page.locator(".last").first.inner_text().strip() == "0.0667"


def test_the_end_is_told(browser: Any, folder: Path):
    listener = serving.listen(0)
    with serving.served(listener, folder, NAMES):
        page, _ = opened(browser, listener.address)
        assert "Training is done" not in page.locator("#status").inner_text()
        write_metrics(folder / NAMES[0], range(1, 41), loss=1e-3)
        page.get_by_text("Iteration 40 of 40. Training is done; its evaluation").wait_for()
        # The smallest value is not cut off at the page's edge.
        assert page.locator("#charts text").all_text_contents().count("2.5e-5") == 1
    page.get_by_text("The command has ended").wait_for()
    assert page.locator("#charts svg").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_and_accessible(browser: Any, address: str, scheme: str):
    page, _ = opened(browser, address, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page.locator("img").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert violations(page) == []
