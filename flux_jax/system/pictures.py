"""Opens pictures of unknown origin: PNG, JPEG or WebP by their content, within limits.

Pillow chooses among all of its formats by the content, whatever the file's name is. Some of these
start other programs, such as an interpreter of PostScript.
Axis letters: h w picture sides.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from flux_jax.errors import InputError
from flux_jax.system.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")
# Width times height: more than cameras of 48 megapixels take.
MOST_PIXELS = 50_000_000


@contextlib.contextmanager
def opened_picture(path: Path, mend: str) -> Iterator["Image.Image"]:
    """Opens a picture, whose pixels can be read until the context ends.

    Args:
        path: the file.
        mend: advice in the message.

    Raises:
        InputError: it is missing, not a regular file, of another format, too large or damaged, also
            where the context raises an error of Pillow's.
    """
    from PIL import Image

    try:
        with open_regular(path) as file, warnings.catch_warnings():
            # About sizes, which are checked here, and about metadata, which are not used.
            warnings.simplefilter("ignore")
            try:
                picture = Image.open(file, formats=FORMATS)
            except Image.UnidentifiedImageError:
                raise InputError(
                    f"{path} is not a readable picture (neither PNG, JPEG nor WebP); {mend}"
                ) from None
            with picture:
                if (pixels := picture.width * picture.height) > MOST_PIXELS:
                    raise InputError(
                        f"{path} is not a readable picture ({picture.width} x {picture.height} = "
                        f"{pixels:,} pixels, over the limit of {MOST_PIXELS:,}); scale it down"
                    )
                yield picture
    except InputError:
        raise
    # Pillow raises errors of many kinds for damaged files, from header to last pixel.
    except Exception as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} is not a readable picture ({problem}); {mend}") from error


def read_picture(path: Path, mend: str) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture's colours.

    Args:
        path: the file.
        mend: advice in the message.

    Raises:
        InputError: see `opened_picture`.
    """
    with opened_picture(path, mend) as picture:
        return np.asarray(picture.convert("RGB"))
