"""Sheets of pictures with captions: rows are sides, columns are prompts.

Axis letters: K columns, h w picture sides, H W sheet sides.
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
# Smallest side of a picture on the sheet, in pixels; smaller pictures are enlarged by repetition.
SMALLEST = 128
# Font size: smallest, in pixels, and as a share of a picture's width.
LETTERS, LETTER = 13, 1 / 24
# Most lines of a caption; longer ones are truncated.
LINES = 4
# Most characters of a caption.
LONGEST = 1000
CUT = "…"


@dataclass(frozen=True)
class Group:
    """Pictures of the same prompts, one row per side.

    Attributes:
        title: subject of the prompts.
        prompts: prompts of the K columns.
        rows: pictures [K, h, w, 3] by the name of their side.
    """

    title: str
    prompts: Sequence[str]
    rows: Mapping[str, UInt8[np.ndarray, "K h w 3"]]


def captioned(groups: Sequence[Group]) -> UInt8[np.ndarray, "H W 3"]:
    """Render groups below each other.

    The title and side of a row are at its left, the prompt of a column below the group's rows.
    Pixel values do not change; pixels of small pictures become squares.

    Args:
        groups: groups of pictures of one size.
    """
    height, width = next(iter(groups[0].rows.values())).shape[1:3]
    times = math.ceil(SMALLEST / min(height, width))
    height, width = times * height, times * width
    size = max(LETTERS, round(LETTER * width))
    font = font_of(size)
    gap, line = max(2, size // 3), round(1.25 * size)
    left = 8 * size
    columns = max(len(group.prompts) for group in groups)
    captions = [[wrapped(prompt, width, font) for prompt in each.prompts] for each in groups]
    # Height of each group: its rows, and the captions below them.
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
    """Wrap a text into up to `LINES` lines of `width` pixels; truncated text ends with "…"."""
    words = printable(" ".join(text[:LONGEST].split())).split()
    lines, cut = [""], len(text) > LONGEST
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        # A word that is too long for one line continues on the next.
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


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Load the font of matplotlib, which covers more scripts than Pillow's default font."""
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)
