"""A sheet of pictures with captions: rows are sides, columns are prompts.

Axis letters: K columns, h w picture sides, H W the sheet's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from flux_jax.errors import printable

INK, SOFT, PAPER = "#1f2430", "#5b6472", "#ffffff"
# Pixels that a picture's side has on the sheet at least: smaller ones are repeated so often.
SMALLEST = 128
# Of the letters, in pixels: at least, and as a share of a picture's width.
LETTERS, LETTER = 13, 1 / 24
# Of a caption; what is longer is cut.
LINES = 4
# Letters that could be in them.
LONGEST = 1000
CUT = "…"


@dataclass(frozen=True)
class Group:
    """Pictures of the same prompts, a row for each side.

    Attributes:
        title: what the prompts are about.
        prompts: of the columns, K.
        rows: pictures [K, h, w, 3] by the name of their side.
    """

    title: str
    prompts: Sequence[str]
    rows: Mapping[str, UInt8[np.ndarray, "K h w 3"]]


def captioned(groups: Sequence[Group]) -> UInt8[np.ndarray, "H W 3"]:
    """Draws groups below each other.

    What a row shows stands at its left, what a column was asked for below the group's rows. Pixels
    of pictures keep their values; those of small pictures become squares of pixels.

    Args:
        groups: of pictures of one size.
    """
    height, width = next(iter(groups[0].rows.values())).shape[1:3]
    times = math.ceil(SMALLEST / min(height, width))
    height, width = times * height, times * width
    size = max(LETTERS, round(LETTER * width))
    font = _font(size)
    gap, line = max(2, size // 3), round(1.25 * size)
    left = 8 * size
    columns = max(len(group.prompts) for group in groups)
    captions = [[wrapped(prompt, width, font) for prompt in each.prompts] for each in groups]
    # Of the rows, and of the captions below them.
    heights = [
        len(group.rows) * (height + gap) + line * max(map(len, texts)) + 4 * gap
        for group, texts in zip(groups, captions, strict=True)
    ]
    whole = left + columns * (width + gap) + gap
    page = Image.new("RGB", (whole, sum(heights)), PAPER)
    pen = ImageDraw.Draw(page)

    def write(place: tuple[int, int], lines: Sequence[str], colour: str) -> None:
        for number, text in enumerate(lines):
            pen.text((place[0], place[1] + number * line), text, colour, font)

    top = 2 * gap
    for group, texts, caption_height in zip(groups, captions, heights, strict=True):
        down = top
        for side, pictures in group.rows.items():
            title = wrapped(group.title, left - 2 * gap, font)
            write((gap, down), title, SOFT)
            write((gap, down + line * len(title)), wrapped(side, left - 2 * gap, font), INK)
            for column, picture in enumerate(pictures):
                large = picture.repeat(times, axis=0).repeat(times, axis=1)
                page.paste(Image.fromarray(large), (left + column * (width + gap), down))
            down += height + gap
        for column, text in enumerate(texts):
            write((left + column * (width + gap), down), text, SOFT)
        top += caption_height
    return np.asarray(page)


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """A text in up to `LINES` lines of so many pixels; "…" ends what is cut."""
    words = printable(" ".join(text[:LONGEST].split())).split()
    lines, cut = [""], len(text) > LONGEST
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        # A word that has no room in a line of its own goes on in the next.
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > LINES or cut:
        lines = lines[:LINES]
        while lines[-1] and font.getlength(lines[-1] + CUT) > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] = lines[-1].rstrip() + CUT
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib, and has more of the world's letters than Pillow's own."""
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)
