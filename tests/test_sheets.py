"""Sheets of captioned pictures: pixels keep their values, captions fit."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from erase.evaluation import sheets
from erase.evaluation.sheets import LINES, Group, captioned, wrapped

FONT = sheets.font_of(13)


def drawn(seed: int, count: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # Dark, so that no pixel is white like the page.
    return rng.integers(0, 128, (count, height, width, 3), np.uint8)


def white(sheet: np.ndarray) -> np.ndarray:
    return (sheet == 255).all(axis=-1)


@pytest.mark.parametrize(
    ("height", "width", "times"), [(16, 16, 8), (64, 96, 2), (128, 128, 1), (256, 512, 1)]
)
def test_pictures_stand_in_rows_and_columns(height: int, width: int, times: int):
    sides = {"base": drawn(0, 2, height, width), "erased": drawn(1, 2, height, width)}
    one = {"base": drawn(2, 1, height, width), "erased": drawn(3, 1, height, width)}
    prompts = ("a photo of a cat", "a cat in a garden")
    groups = [Group("“cat”", prompts, sides), Group("others", ("a dog",), one)]
    sheet = captioned(groups)
    # Rows and columns of pixels without any of the page belong to pictures.
    kept = []
    for group in groups:
        for pictures in group.rows.values():
            wanted = pictures.repeat(times, 1).repeat(times, 2)
            for column, picture in enumerate(wanted):
                corners = np.argwhere((sheet == picture[0, 0]).all(axis=-1)).tolist()
                shape = picture.shape[:2]
                places = [
                    (y, x)
                    for y, x in corners
                    if np.array_equal(sheet[y : y + shape[0], x : x + shape[1]], picture)
                ]
                assert len(places) == 1
                kept.append((column, *places[0]))
    assert [column for column, *_ in kept] == [0, 1, 0, 1, 0, 0]
    downs = [down for _, down, _ in kept]
    assert downs[0] == downs[1] < downs[2] == downs[3] < downs[4] < downs[5]
    across = {column: {x for c, _, x in kept if c == column} for column in (0, 1)}
    assert len(across[0]) == len(across[1]) == 1


def test_captions_stand_where_they_belong():
    pictures = drawn(0, 3, 128, 128)
    prompts = ("a photo of a cat", "", "a cat")
    sheet = captioned([Group("title", prompts, {"base": pictures, "erased": pictures})])
    ink = ~white(sheet)
    left, gap = 8 * 13, 4
    first, second = 2 * gap, 2 * gap + 128 + gap
    # At the left of both rows, and nowhere else in that column.
    rows = np.flatnonzero(ink[:, :left].any(axis=1))
    assert set(rows) <= {*range(first, first + 40), *range(second, second + 40)}
    assert ink[first : first + 40, :left].any()
    assert ink[second : second + 40, :left].any()
    assert not ink[:, left - gap : left].any()
    # Below each prompt's own column.
    below = ink[second + 128 + 1 :]
    columns = [below[:, left + c * 132 : left + c * 132 + 128] for c in range(3)]
    assert [bool(each.any()) for each in columns] == [True, False, True]
    assert columns[0].sum() > 2 * columns[2].sum()


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a soccer ball on a table",
        "a cat " * 2000,
        "x" * 10_000,
        "word " * 3 + "y" * 200,
        "\ud800 and \x1b[31m\n\nред 日本",
        "",
    ],
)
def test_captions_have_room(text: str):
    lines = wrapped(text, 128, FONT)
    assert 1 <= len(lines) <= LINES
    assert all(FONT.getlength(line) <= 128 for line in lines)
    whole = " ".join(text.split())
    shown = "".join(lines).replace(" ", "")
    if lines[-1].endswith(sheets.CUT):
        assert len(lines) == LINES
        assert whole.replace(" ", "").startswith(shown[:-1])
    elif whole.isprintable():
        assert shown == whole.replace(" ", "")
    # Every character can be drawn.
    ImageDraw.Draw(Image.new("RGB", (8, 8))).text((0, 0), "\n".join(lines), font=FONT)


def test_short_captions_are_whole():
    assert wrapped("a cat", 128, FONT) == ["a cat"]
    assert wrapped("a photo of a soccer ball", 128, FONT) == ["a photo of a soccer", "ball"]
