"""The report: one self-contained file that parses and shows the contents of the run's files."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.report_run import share, write_run

from erase.evaluation.percent import percent
from erase.report import charts, colours, pictures, report
from flux_jax.errors import InputError

# Of the page and of what lies on it, in both colour schemes.
ON_LIGHT = {"page": "#fbfaf8", "panel": "#ffffff"}
ON_DARK = {"page": "#14171c", "panel": "#1c2128"}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects texts and addresses; fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with every file that a report reads."""
    write_run(tmp_path)
    return tmp_path


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    page.close()
    assert page.open == []
    return page


def test_report_is_whole_and_needs_no_other_file(run: Path):
    page = read(report.write(run))
    # Fragments are SVG's references within the file.
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "url(http" not in (run / "report.html").read_text()
    # Before and after: three cells, and one example with picture and map.
    assert page.tags.count("img") == 3 * 2 + 4
    assert "script" not in page.tags
    # Charts of the same page share no identifiers.
    marked = re.findall(r' id="([^"]*)"', (run / "report.html").read_text())
    assert len(marked) == len(set(marked)) > 0
    assert "link" not in page.tags


def test_report_says_what_the_files_say(run: Path):
    text = " ".join("".join(read(report.write(run)).text).split())
    for piece in (
        "Erasing “cat”",
        "models/some-flux",
        "12,345 parameters",
        "93.8 %→7.8 %",
        "1.0 to 99.0 %",
        "a <Acc_ir> & more",
        "python -m erase.train --x 'y'",
        '"rank": 8',
        "adapter strength 0.75",
        "dog 3 → 1 of 3",
        "H12.3 %98.7 %",
        "misspeltprompts64 93.8 %46.9 %7.8 % 1.0 to 99.0 %",
        "loss esd",
        "loss (no unit)",
        "iteration",
        "t = 0.9, t = 0.5",
    ):
        assert piece in text, piece
    assert "seconds" not in text


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_read_as_small_text(dark: bool):
    pages = (ON_DARK if dark else ON_LIGHT).values()
    for good in np.linspace(0, 1, 101):
        text = luminance(colours.colour(good, dark))
        for page in map(luminance, pages):
            lighter, darker = max(page, text) + 0.05, min(page, text) + 0.05
            assert lighter / darker >= 4.5
    red, green = (colours.colour(good, dark) for good in (0.0, 1.0))
    assert (red, green) == (("#ff9c91", "#4fd1bd") if dark else ("#b42318", "#0f766e"))
    assert (colours.colour(-1, dark), colours.colour(2, dark)) == (red, green)
    assert len({colours.colour(good, dark) for good in (0, 0.1, 0.4, 0.6, 1)}) == 5


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["Acc_e", "Acc_g", "Acc_ir"])
@pytest.mark.parametrize("found", [0, 64])
def test_colours_follow_the_value_and_not_the_column(run: Path, cell: str, found: int):
    path = run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["cells"] = {cell: {"before": share(found, 64), "after": share(64 - found, 64)}}
    del evaluation["H"], evaluation["concepts"]
    for entry in evaluation["pictures"]:
        entry["found_before"], entry["found_after"] = found > 0, found == 0
    evaluation["pictures"] = [e for e in evaluation["pictures"] if e["cell"] == cell]
    path.write_text(json.dumps(evaluation))
    text = report.write(run).read_text()
    good_before = (found > 0) == (cell == "Acc_ir")
    before, after = (colours.tones(float(good)) for good in (good_before, not good_before))
    # In the cards, and in the table; and the marks of the pictures.
    for side, tones in ((found, before), (64 - found, after)):
        shown = f'tone" style="{tones}">{percent(side / 64)}<'
        assert text.count(shown) == 2
    start = 'class="mark fill" aria-hidden="true" style="'
    marks = [text[m.end() :][:60] for m in re.finditer(start, text)]
    assert [mark[: len(before)] for mark in marks] == [before, after]
    assert [mark.partition(">")[2][0] for mark in marks] == list("✓–" if found else "–✓")


def test_report_of_a_run_without_evaluation_or_judge(run: Path):
    evaluation = json.loads((run / "evaluation.json").read_text())
    del evaluation["cells"], evaluation["H"], evaluation["concepts"], evaluation["attention"]
    (run / "attacks.json").unlink()
    for entry in evaluation["pictures"]:
        entry["found_before"] = entry["found_after"] = None
    evaluation["note"] = "No judge here."
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    page = read(report.write(run))
    assert page.tags.count("img") == 6
    assert "No judge here." in "".join(page.text)
    assert "✓" not in "".join(page.text)
    for name in ("evaluation.json", "metrics.jsonl"):
        (run / name).unlink()
    page = read(report.write(run))
    assert page.tags.count("img") == 0
    assert "Erasing “cat”" in "".join(page.text)


@pytest.mark.slow
def test_the_same_run_gives_the_same_report(run: Path):
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("evaluation.json", "{"),
        ("metrics.jsonl", '{"step": 1}\n{"step'),
        ("attention.npz", "torn"),
        ("pictures/Acc_g-0-after.png", "torn"),
    ],
)
def test_a_missing_or_damaged_file_is_named(run: Path, name: str, content: str | None):
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(InputError, match=name.split("/")[-1]):
        report.write(run)
    assert not (run / "report.html").exists()


def test_overlay_is_brighter_where_attention_is():
    heat = np.zeros((8, 8))
    heat[:, :4] = 1
    picture = np.full((64, 64, 3), 128, np.uint8)
    laid = pictures.overlay(picture, heat, side=80)
    assert laid.shape == (80, 80, 3)
    assert laid[:, :30].mean() > laid[:, 50:].mean() + 100
    assert pictures.overlay(picture[:32], heat[:4], side=80).shape == (40, 80, 3)


def test_smoothing_keeps_constants_and_averages_noise():
    assert np.allclose(charts.smoothed(np.full(100, 3.0)), 3)
    assert np.allclose(charts.smoothed(np.array([1.0])), 1)
    noise = np.random.default_rng(0).normal(size=400)
    assert charts.smoothed(noise).std() < 0.4 * noise.std()
    ramp = np.arange(200.0)
    assert np.allclose(charts.smoothed(ramp)[20:-20], ramp[20:-20])
