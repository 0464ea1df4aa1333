"""Render a figure: pictures in rows and columns with headings, captions, frames and dashed lines.

Axis letters: h w picture sides, H W sides of the figure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from erase.evaluation.sheets import INK, LETTER, LETTERS, PAPER, SMALLEST, SOFT, font_of, wrapped
from erase.figures.layouts import Cell, Layout

LINE = "#1d4ed8"
# Width of a frame and of a dashed line, as a share of a picture's width; and a dash's length.
FRAME, DASH = 1 / 32, 1 / 12

Pictures = Mapping[Cell, UInt8[np.ndarray, "h w 3"]]


@dataclass(frozen=True)
class Grid:
    """Where everything is, in pixels.

    Attributes:
        times: factor by which pictures are enlarged.
        height: of a picture.
        width: of a picture.
        font: of all texts.
        line: height of a line of text.
        gap: between pictures.
        left: of the first picture.
        tops: of the rows' pictures.
        size: height and width of the figure.
    """

    times: int
    height: int
    width: int
    font: ImageFont.FreeTypeFont
    line: int
    gap: int
    left: int
    tops: Sequence[int]
    size: tuple[int, int]

    @classmethod
    def of(cls, layout: Layout, shape: tuple[int, int]) -> "Grid":
        """Place a layout whose pictures have a height and width."""
        times = math.ceil(SMALLEST / min(shape))
        height, width = times * shape[0], times * shape[1]
        letters = max(LETTERS, round(LETTER * width))
        font, line, gap = font_of(letters), round(1.25 * letters), max(6, letters // 2)
        down = 2 * gap + line * _most(layout.headings, width, font)
        tops = []
        for _, cells in layout.rows:
            tops.append(down)
            down += height + 2 * gap
            down += line * _most([cell.caption for cell in cells if cell], width, font)
        left = 9 * letters
        columns = max(len(cells) for _, cells in layout.rows)
        size = down, left + columns * (width + gap) + gap
        return cls(times, height, width, font, line, gap, left, tops, size)

    def column(self, number: int) -> int:
        """Return the left end of a column."""
        return self.left + number * (self.width + self.gap)


def _most(texts: Sequence[str], width: int, font: ImageFont.FreeTypeFont) -> int:
    """Lines of the longest text; none if all are empty."""
    return max((len(wrapped(text, width, font)) for text in texts if text), default=0)


def render(layout: Layout, pictures: Pictures) -> UInt8[np.ndarray, "H W 3"]:
    """Render a layout with its pictures, which all have one size.

    Pixel values do not change; pixels of small pictures become squares.
    """
    grid = Grid.of(layout, next(iter(pictures.values())).shape[:2])
    high, wide = grid.size
    page = Image.new("RGB", (wide, high), PAPER)
    pen = ImageDraw.Draw(page)

    def write(left: int, top: int, text: str, width: int, colour: str) -> None:
        for number, part in enumerate(wrapped(text, width, grid.font)):
            pen.text((left, top + number * grid.line), part, colour, grid.font)

    for number, heading in enumerate(layout.headings):
        write(grid.column(number), grid.gap, heading, grid.width, INK)
    for top, (title, cells) in zip(grid.tops, layout.rows, strict=True):
        write(grid.gap, top, title, grid.left - 2 * grid.gap, INK)
        for number, cell in enumerate(cells):
            if cell is None:
                continue
            left = grid.column(number)
            large = pictures[cell].repeat(grid.times, axis=0).repeat(grid.times, axis=1)
            page.paste(Image.fromarray(large), (left, top))
            if cell.frame:
                # Around the picture, of which it hides nothing.
                thick = min(grid.gap // 2, max(2, round(FRAME * grid.width)))
                box = (left - thick, top - thick, left + grid.width, top + grid.height)
                end = (box[2] + thick - 1, box[3] + thick - 1)
                pen.rectangle((*box[:2], *end), outline=cell.frame, width=thick)
            write(left, top + grid.height + grid.gap // 2, cell.caption, grid.width, SOFT)
    _lines(pen, grid, layout)
    return np.asarray(page)


def _lines(pen: ImageDraw.ImageDraw, grid: Grid, layout: Layout) -> None:
    """Draw the dashed lines between rows and between columns."""
    high, wide = grid.size
    dash = round(DASH * grid.width)
    if layout.line_below is not None:
        y = grid.tops[layout.line_below] - grid.gap
        for x in range(grid.gap, wide - grid.gap, 2 * dash):
            pen.line((x, y, x + dash, y), LINE, 2)
    if layout.line_right is not None:
        x = grid.column(layout.line_right) - grid.gap // 2
        for y in range(grid.gap, high - grid.gap, 2 * dash):
            pen.line((x, y, x, y + dash), LINE, 2)
