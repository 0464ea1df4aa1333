"""Positions, sizes and mirroring of a scene's objects for each of the ten relations.

Lengths are in pixels of the 64 x 64 picture, x to the right and y down.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

SIDE = 64
MIDDLE = SIDE / 2
# Small: tokens are 8 pixels wide, so an object that moves has to be learnt at every offset.
JITTER = 0.75


@dataclass(frozen=True)
class Thing:
    """One placed object.

    Attributes:
        who: 0 for the caption's subject, 1 for its object.
        x: centre.
        y: centre.
        size: side of the square box; the drawing's longer side fills it.
        mirrored: whether it is flipped left to right.
    """

    who: int
    x: float
    y: float
    size: float
    mirrored: bool = False


def extents(pixels: UInt8[np.ndarray, "M 64 64 4"]) -> Float[np.ndarray, "M 2"]:
    """Width and height of each sprite as shares of its box, in 0..1."""
    shown = pixels[..., 3] > 25
    across, down = shown.any(1), shown.any(2)
    return np.stack([across.sum(1), down.sum(1)], 1) / pixels.shape[1]


@dataclass(frozen=True)
class Chance:
    """Random offsets and sizes.

    Attributes:
        rng: source of randomness.
    """

    rng: np.random.Generator

    def jitter(self, reach: float = JITTER) -> float:
        """Sample an offset of at most `reach` pixels in either direction."""
        return float(self.rng.uniform(-reach, reach))

    def size(self, low: float, high: float) -> float:
        """Sample a length."""
        return float(self.rng.uniform(low, high))


def place(
    rng: np.random.Generator, relation: str | None, extent: Float[np.ndarray, "W 2"]
) -> list[Thing]:
    """Place a scene's objects, front ones last.

    Args:
        rng: source of randomness.
        relation: name of the relation, "and" for two objects side by side, None for one object.
        extent: width and height of subject and object as shares of their boxes.
    """
    chance = Chance(rng)
    jitter, size = chance.jitter, chance.size
    if relation is None:
        return [Thing(0, MIDDLE + jitter(1), MIDDLE + jitter(1), size(51, 53))]
    if relation == "and":
        relation = ("left of", "right of", "above", "below")[int(rng.integers(4))]
    if relation in ("left of", "right of", "above", "below"):
        return _side_by_side(chance, relation)
    if relation == "in":
        around = Thing(1, MIDDLE + jitter(), MIDDLE + jitter(), size(55, 57))
        return [around, Thing(0, around.x + jitter(), around.y + jitter(), size(22.5, 23.5))]
    if relation == "on":
        return _on(chance, extent)
    if relation == "behind":
        aside = float(rng.choice([-1, 1])) * size(7, 8)
        return [
            Thing(0, MIDDLE - aside, 23.5 + jitter(), size(41, 42)),
            Thing(1, MIDDLE + aside, 44.5 + jitter(), size(33.5, 34.5)),
        ]
    if relation == "amidst":
        corners = [(x, y) for x in (10.5, SIDE - 10.5) for y in (10.5, SIDE - 10.5)]
        side = size(18, 18.5)
        ring = [Thing(1, x + jitter(0.5), y + jitter(0.5), side) for x, y in corners]
        return [Thing(0, MIDDLE + jitter(), MIDDLE + jitter(), size(25.5, 26.5)), *ring]
    if relation in ("back to back", "hugging close"):
        return _touching(chance, relation, extent)
    raise ValueError(f"relation {relation!r} has no layout")


def _side_by_side(chance: Chance, relation: str) -> list[Thing]:
    """Two objects apart from each other along one axis."""
    first, second = (0, 1) if relation in ("left of", "above") else (1, 0)
    apart = relation in ("left of", "right of")
    things = []
    for who, at in ((first, 15.5), (second, SIDE - 15.5)):
        along, across = at + chance.jitter(0.5), MIDDLE + chance.jitter(1)
        x, y = (along, across) if apart else (across, along)
        things.append(Thing(who, x, y, chance.size(26.5, 27.5)))
    return things


def _on(chance: Chance, extent: Float[np.ndarray, "W 2"]) -> list[Thing]:
    """One object standing on the other."""
    upper, lower = chance.size(26.5, 27.5), chance.size(34, 35)
    heights = upper * extent[0, 1], lower * extent[1, 1]
    bottom = MIDDLE + (sum(heights) - 2) / 2 + chance.jitter(0.5)
    y_lower = bottom - heights[1] / 2
    y_upper = bottom - heights[1] + 2 - heights[0] / 2
    return [
        Thing(1, MIDDLE + chance.jitter(), y_lower, lower),
        Thing(0, MIDDLE + chance.jitter(), y_upper, upper),
    ]


def _touching(chance: Chance, relation: str, extent: Float[np.ndarray, "W 2"]) -> list[Thing]:
    """Two objects that touch, facing away from each other or overlapping."""
    left, right = (0, 1) if chance.rng.random() < 0.5 else (1, 0)
    close = relation == "hugging close"
    if close:
        side = chance.size(37, 38)
        depth = 0.4 * side * min(extent[left, 0], extent[right, 0])
    else:
        # Each faces outwards: emoji that have a side face left.
        side, depth = chance.size(31.5, 32.5), 1.0
    widths = side * extent[left, 0], side * extent[right, 0]
    start = MIDDLE - (sum(widths) - depth) / 2 + chance.jitter(0.5)
    y, jitter = MIDDLE + chance.jitter(1), chance.jitter
    return [
        Thing(left, start + widths[0] / 2, y + jitter(0.5), side, mirrored=close),
        Thing(right, start + widths[0] - depth + widths[1] / 2, y + jitter(0.5), side, not close),
    ]
