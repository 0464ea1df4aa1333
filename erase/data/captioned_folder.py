"""Pictures with captions that the user gives as a folder, laid out as for LoRA trainers.

Beside every picture stands a text file of the same stem with its caption: `dog.png`, `dog.txt`.
Axis letters: F pictures, h w picture sides.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from flux_jax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# What Pillow raises for broken files, from their headers to their last pixel.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read(
    folder: Path, height: int, width: int
) -> tuple[UInt8[np.ndarray, "F h w 3"], tuple[str, ...]]:
    """All pictures of a folder, sorted by name, and their captions.

    A picture is scaled until it covers height x width and cropped at its centre.

    Args:
        folder: where the pictures (png, jpg, jpeg, webp) and their captions (txt) are.
        height: pixels.
        width: pixels.

    Raises:
        InputError: there is no such folder, or no picture in it, or some pictures cannot be read
            or lack a caption; the message names all of them, a line each.
    """
    if not os.path.isdir(folder):
        wrong = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise InputError(f"picture folder {str(folder)!r} {wrong}; check the path")
    paths = sorted(
        (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES),
        key=lambda path: path.name,
    )
    if not paths:
        raise InputError(
            f"picture folder {str(folder)!r} holds no pictures; put {', '.join(SUFFIXES)} files "
            "there, each with its caption in a .txt file of the same name"
        )
    pictures, captions, problems = [], [], []
    for path in paths:
        with _noted(problems):
            pictures.append(_picture(path, height, width))
        with _noted(problems):
            captions.append(_caption(path))
    if problems:
        raise InputError("\n       ".join(problems))
    return np.stack(pictures), tuple(captions)


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Adds an `InputError` to the problems and goes on."""
    try:
        yield
    except InputError as error:
        problems.append(str(error))


def _picture(path: Path, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture the right way up, covering height x width; what is transparent becomes white."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                # Converting it would make nearly all of it white.
                raise ValueError("16 bits of grey; save it with 8")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            fitted = ImageOps.fit(upright.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    except UNREADABLE as error:
        raise InputError(
            f"{path} is not a readable picture ({error}); repair or remove it"
        ) from error
    return np.asarray(fitted)


def _caption(picture: Path) -> str:
    """The caption beside a picture, on one line."""
    path = picture.with_suffix(".txt")
    try:
        # Some editors begin a UTF-8 file with a byte order mark.
        caption = " ".join(path.read_text("utf-8-sig").split())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; write the caption of {picture.name} there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable text ({error}); save it as UTF-8") from error
    if not caption:
        raise InputError(f"{path} is empty; write the caption of {picture.name} there")
    return caption
