"""Read a user's folder of pictures with captions, in the layout of LoRA trainers.

Each picture has its caption in a text file of the same stem: `dog.png`, `dog.txt`.
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
from flux_jax.system.files import read_text
from flux_jax.system.pictures import opened_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Most pictures of a folder, characters of a caption, and bytes of its file.
MOST_PICTURES, MOST_CHARACTERS, MOST_BYTES = 10_000, 4_000, 1 << 16


def read(
    folder: Path, height: int, width: int
) -> tuple[UInt8[np.ndarray, "F h w 3"], tuple[str, ...]]:
    """Read all pictures of a folder, sorted by name, and their captions.

    Each picture is scaled to cover height x width and centre-cropped.

    Args:
        folder: folder with pictures (png, jpg, jpeg, webp) and captions (txt).
        height: height in pixels.
        width: width in pixels.

    Raises:
        InputError: the folder does not exist or has no pictures or too many, or pictures are
            unreadable or too large or lack a caption; the message lists all of them, one per line.
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
            f"picture folder {str(folder)!r} has no pictures; put {', '.join(SUFFIXES)} files "
            "there, each with its caption in a .txt file of the same name"
        )
    if len(paths) > MOST_PICTURES:
        raise InputError(
            f"picture folder {str(folder)!r} has {len(paths):,} pictures, over the limit of "
            f"{MOST_PICTURES:,}; keep fewer there"
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
    """Append an `InputError` to the problems and continue."""
    try:
        yield
    except InputError as error:
        problems.append(str(error))


def _picture(path: Path, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Load a picture, upright and covering height x width; transparent parts become white."""
    with opened_picture(path, "repair or remove it") as image:
        if image.mode.startswith("I"):
            # A conversion would clip nearly all of it to white.
            raise ValueError("16-bit grey; save it with 8 bits")
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        fitted = ImageOps.fit(upright.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted)


def _caption(picture: Path) -> str:
    """Read the caption of a picture, joined to one line."""
    path = picture.with_suffix(".txt")
    try:
        caption = " ".join(read_text(path, "shorten it", MOST_BYTES).split())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; write the caption of {picture.name} there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable text ({error}); save it as UTF-8") from error
    if len(caption) > MOST_CHARACTERS:
        raise InputError(
            f"{path} has a caption of {len(caption):,} characters, over the limit of "
            f"{MOST_CHARACTERS:,}; shorten it"
        )
    if not caption:
        raise InputError(f"{path} is empty; write the caption of {picture.name} there")
    return caption
