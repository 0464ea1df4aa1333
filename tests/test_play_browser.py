"""The playground in a real Chromium: sliders, divider, keyboard, visitors, strangers' requests."""

import json
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny, warm
from helpers.browser import PATIENCE, violations
from helpers.merging import write_adapter

from erase.play import limit

pytestmark = [pytest.mark.slow, pytest.mark.browser]
PICTURES = '.pictures img[src*="/file="]'


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def address(
    tiny_folder: Path, out: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A playground of the tiny model, served by the command in a process of its own."""
    folder = tmp_path_factory.mktemp("play")
    adapter = write_adapter(folder / "adapter", tiny_folder, scale=0.5)
    judge = tiny.judge(folder / "judge")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    served = warm.Command(
        *("-m", "erase.cli.play", "--model", tiny_folder, "--adapter", adapter),
        *("--judge", judge, "--steps", 3, "--out", out, "--port", port),
    )
    for _ in range(600):
        with socket.socket() as asked:
            if not asked.connect_ex(("127.0.0.1", port)):
                break
        assert served.running(), served.wait().stderr
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    served.send_signal(signal.SIGKILL)
    served.wait()


def opened(browser: Any, address: str, **options: Any) -> Any:
    """The page in a context of its own."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    return page


def status(page: Any, start: str) -> str:
    """Wait for a status that begins so."""
    field = "document.querySelector('#status textarea, #status input')"
    page.wait_for_function(f"start => {field}.value.startsWith(start)", arg=start)
    return page.get_by_label("Status").input_value()


def draw(page: Any, prompt: str, seeds: str = "0") -> list[str]:
    """Draw and return the addresses of the pictures, base and erased for each seed."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Seeds").fill(seeds)
    page.get_by_role("button", name="Draw", exact=True).click()
    count = len(seeds.split())
    assert f"{count} seed" in status(page, "drawn")
    pictures = page.locator(PICTURES)
    page.wait_for_function(
        "n => document.querySelectorAll(\".pictures img[src*='/file=']\").length == n",
        arg=2 * count,
    )
    return [each.get_attribute("src") for each in pictures.all()]


def test_pictures_of_all_seeds_side_by_side(browser: Any, address: str):
    page = opened(browser, address)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.get_by_label("Concept that the judge looks for").fill("cat")
    pictures = draw(page, "a photo of a cat", "0 5")
    assert len(set(pictures)) == 4
    verdict = page.get_by_label("Judge", exact=True).input_value()
    assert verdict.count("found in the base") == 2
    assert all(url.startswith((address, "data:", "blob:")) for url in requests)


def test_a_slider_that_is_let_go_draws(browser: Any, address: str):
    page = opened(browser, address)
    before = draw(page, "a photo of a cat")
    slider = page.get_by_role("slider", name="Strength of adapter")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.wait_for_function(
        f"old => document.querySelectorAll({PICTURES!r})[1]?.getAttribute('src') != old",
        arg=before[1],
    )
    assert float(slider.input_value()) > 1.2


def test_the_divider_moves(browser: Any, address: str):
    page = opened(browser, address)
    draw(page, "a photo of a cat")
    divider = page.locator(".pictures [role=none].outer, .pictures .outer").first
    box = divider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] - 60, middle, steps=5)
    page.mouse.up()
    assert divider.bounding_box()["x"] < box["x"] - 30


def test_by_keyboard_alone(browser: Any, address: str):
    page = opened(browser, address)
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("a cat")
    page.keyboard.press("Enter")
    status(page, "drawn")


def test_two_visitors_have_their_own_pictures(browser: Any, address: str, out: Path):
    pages = [opened(browser, address) for _ in range(2)]
    for page, prompt in zip(pages, ("one cat", "two cats"), strict=True):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_role("button", name="Draw", exact=True).click()
    for page, prompt in zip(pages, ("one cat", "two cats"), strict=True):
        status(page, "drawn")
        page.get_by_role("button", name=re.compile("^Save(?! the)")).click()
        page.get_by_role("button", name="Save the pictures").click()
        saved = status(page, "saved").removeprefix("saved ").split(", ")
        assert f"'--prompt={prompt}'" in page.get_by_label("Command that draws").input_value()
        assert all(Path(file).parent == out and Path(file).is_file() for file in saved)


def test_a_cancelled_drawing_says_so_and_the_next_one_is_drawn(browser: Any, address: str):
    page = opened(browser, address)
    page.get_by_label("number input for Steps").fill("100")
    page.get_by_label("Seeds").fill("0 1 2 3")
    page.get_by_role("button", name="Draw", exact=True).click()
    status(page, "step")
    page.get_by_role("button", name="Cancel").click()
    status(page, "cancelled")
    # No step of the drawing comes after it.
    page.wait_for_timeout(1500)
    assert page.get_by_label("Status").input_value() == "cancelled"
    page.get_by_label("number input for Steps").fill("3")
    draw(page, "a photo of a cat")


def test_strip_and_attention(browser: Any, address: str):
    page = opened(browser, address)
    draw(page, "a photo of a cat")
    page.get_by_role("button", name="Strengths 0 to 1.5").click()
    page.get_by_role("button", name="Draw the first seed").click()
    status(page, "strengths drawn")
    page.get_by_text("strength 1.5").first.wait_for()
    page.get_by_role("button", name="Attention to a word").click()
    page.get_by_label("Word of the prompt").fill("cat")
    page.get_by_role("button", name="Show attention").click()
    status(page, "attention")
    page.get_by_text("seed 0, after").first.wait_for()


def test_errors_are_shown_as_text(browser: Any, address: str):
    page = opened(browser, address)
    page.get_by_label("Seeds").fill("<img src=x onerror=alert(1)>")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("write whole numbers").wait_for()
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_and_accessible(browser: Any, address: str, scheme: str):
    page = opened(browser, address, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    draw(page, "a photo of a cat")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert violations(page) == []


def test_large_and_nested_requests_leave_the_server_alive(browser: Any, address: str):
    url = f"{address}/gradio_api/queue/join"
    headers = {"content-type": "application/json"}
    large = urllib.request.Request(url, b"x" * (limit.MOST + 1), headers)
    with pytest.raises((urllib.error.HTTPError, urllib.error.URLError, ConnectionError)) as caught:
        urllib.request.urlopen(large, timeout=30)
    if isinstance(caught.value, urllib.error.HTTPError):
        assert caught.value.code == 413
        caught.value.close()
    nested = json.dumps(
        {"data": json.loads("[" * 60 + "]" * 60), "fn_index": 0, "session_hash": "a"}
    )
    with urllib.request.urlopen(urllib.request.Request(url, nested.encode(), headers)) as answer:
        assert answer.status == 200
    closed = opened(browser, address)
    closed.get_by_role("button", name="Draw", exact=True).click()
    closed.close()
    draw(opened(browser, address), "a photo of a cat")
