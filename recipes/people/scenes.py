"""Pictures of persons with their captions: a drawing on a background.

Axis letters: N pictures, M drawings, B batch, h w picture sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from recipes.emoji_flux.captions import (
    BACKGROUND_CLAUSE,
    CAPITAL,
    COLOURS,
    misspell,
    one_of,
    with_article,
)
from recipes.emoji_flux.scenes import compose, draw_background
from recipes.people.persons import PERSONS, Person

TEMPLATES = (
    "a photo of {}",
    "a photo of {}",
    "{}",
    "a portrait of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "the face of {}",
)
BACKGROUNDS = ("{} on {} background", "{} with {} background", "{} in front of {} background")
# Shares of captions with the full name, and of misspelt ones.
FULL, MISSPELT = 0.7, 0.1
# Sides of drawings and the reach of their offsets, in pixels of 64.
SIDES, JITTER = (52.0, 62.0), 1.5


@dataclass(frozen=True)
class Pictures:
    """Descriptions of pictures, as arrays of equal length.

    Attributes:
        drawing: index of the drawing.
        box: centre x, centre y and size in pixels, and 1 if mirrored.
        background: colours at the top and at the bottom, RGB in [0, 1].
        captions: what each shows.
    """

    drawing: Int[np.ndarray, "N"]
    box: Float[np.ndarray, "N 4"]
    background: Float[np.ndarray, "N 2 3"]
    captions: Sequence[str]

    def render(
        self, pixels: UInt8[np.ndarray, "M 64 64 4"], rows: Int[np.ndarray, "B"]
    ) -> Float[Array, "B h w 3"]:
        """Compose the pictures of these rows, RGB in [-1, 1]."""
        return _compose(pixels, self.drawing[rows], self.box[rows], self.background[rows])


@jax.jit
def _compose(pixels: Array, drawing: Array, box: Array, background: Array) -> Array:
    return compose(pixels, drawing[:, None], box[:, None], background)


def caption(rng: np.random.Generator, person: Person, colour: str) -> str:
    """Write a caption with the full name, the first or the last one, and perhaps a typing error."""
    name = person.name if rng.random() < FULL else one_of(rng, person.synonyms)
    if rng.random() < MISSPELT:
        name = misspell(rng, name)
    text = one_of(rng, TEMPLATES).format(name)
    if rng.random() < BACKGROUND_CLAUSE:
        text = one_of(rng, BACKGROUNDS).format(text, with_article(colour))
    return text[0].upper() + text[1:] if rng.random() < CAPITAL else text


def draw(drawing: Int[np.ndarray, "N"], person: Int[np.ndarray, "M"], seed: int) -> Pictures:
    """Place drawings on random backgrounds and caption them.

    Args:
        drawing: index of the drawing in each picture.
        person: index of each drawing's person.
        seed: different seeds give different pictures.
    """
    rng = np.random.default_rng(seed)
    count = len(drawing)
    colours = rng.integers(len(COLOURS), size=count)
    box = np.zeros((count, 4), np.float32)
    box[:, :2] = 32 + rng.uniform(-JITTER, JITTER, (count, 2))
    box[:, 2] = rng.uniform(*SIDES, count)
    box[:, 3] = rng.random(count) < 0.5
    background = np.stack([draw_background(rng, colour) for colour in colours.tolist()])
    captions = [
        caption(rng, PERSONS[person[index]], COLOURS[colour])
        for index, colour in zip(drawing.tolist(), colours.tolist(), strict=True)
    ]
    return Pictures(drawing.astype(np.int32), box, background.astype(np.float32), captions)


def as_uint8(pictures: Float[Array, "B h w 3"]) -> UInt8[np.ndarray, "B h w 3"]:
    """Round pictures in [-1, 1] to 0..255."""
    return np.asarray(jnp.round(127.5 * (pictures + 1)), np.uint8)
