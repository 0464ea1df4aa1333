"""Prepares pictures for CLIP's image tower, as transformers' image processor on Pillow does.

Axis letters: B pictures, h w picture sides, s side of the tower's pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from flux_jax.errors import InputError
from flux_jax.models.config import read_fields, require

FILE = "preprocessor_config.json"
BICUBIC = 3
# Means and standard deviations of red, green and blue in CLIP's training pictures.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PixelConfig:
    """How pictures are prepared.

    Attributes:
        side: pixels of the shorter side after resizing, and of both sides after cropping.
        image_mean: subtracted from red, green and blue in [0, 1].
        image_std: what they are then divided by.
    """

    side: int
    image_mean: tuple[float, ...] = MEAN
    image_std: tuple[float, ...] = STD

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], side: int, where: str) -> "PixelConfig":
        """Reads a parsed `preprocessor_config.json`.

        Args:
            config: the file's content; may be empty.
            side: height and width of the image tower's pictures, in pixels.
            where: the file, for messages.

        Raises:
            InputError: it prepares pictures in a way that is not implemented, or for another size.
        """
        require(config, where, resample=(BICUBIC,), rescale_factor=(1 / 255,))
        on = ("do_resize", "do_center_crop", "do_normalize", "do_rescale", "do_convert_rgb")
        require(config, where, **dict.fromkeys(on, (True, None)))
        # Older files have a number, newer ones an object.
        both, short = {"height": side, "width": side}, {"shortest_edge": side}
        require(config, where, size=(side, short), crop_size=(side, both))
        read = read_fields(cls, {**config, "side": side}, where)
        for name in ("image_mean", "image_std"):
            if len(getattr(read, name)) != 3 or (name == "image_std" and 0 in read.image_std):
                raise InputError(
                    f"{where}: {name} = {getattr(read, name)} must be three numbers"
                    f"{'' if name == 'image_mean' else ' other than 0'}"
                )
        return read


def prepare(
    pictures: UInt8[np.ndarray, "B h w 3"], config: PixelConfig
) -> Float[np.ndarray, "B s s 3"]:
    """Resizes (bicubic), crops the middle, and normalises.

    Args:
        pictures: in red, green, blue.
        config: sizes and normalisation.
    """
    height, width = pictures.shape[1:3]
    scaled = _scaled(pictures, config.side) if min(height, width) != config.side else pictures
    top, left = ((length - config.side) // 2 for length in scaled.shape[1:3])
    cropped = scaled[:, top : top + config.side, left : left + config.side]
    # In this order and precision, to agree with transformers in the last bit.
    unit = (cropped.astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(each, np.float32) for each in (config.image_mean, config.image_std))
    return (unit - mean) / std


def _scaled(pictures: np.ndarray, side: int) -> np.ndarray:
    """Pictures whose shorter side has a length, and whose longer side keeps the ratio."""
    from PIL import Image

    height, width = pictures.shape[1:3]
    longer = int(side * max(height, width) / min(height, width))
    size = (side, longer) if width <= height else (longer, side)
    return np.stack(
        [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pictures]
    )
