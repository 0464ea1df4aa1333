"""Pictures and attention maps of a run's examples, as the report embeds them.

Axis letters: y x image tokens, h w picture sides.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import to_hex
from PIL import Image

from erase.evaluation.statistics import SIDES
from erase.model import draw
from erase.report.colours import goodness
from erase.runtime import run_folder
from erase.runtime.records import MEND
from erase.runtime.results import EvaluationResult, Example
from flux_jax.errors import InputError, counted
from flux_jax.system.arrays import read_npz
from flux_jax.system.pictures import read_picture

# Examples of a cell.
MAX_EXAMPLES = 8


# Pictures are embedded no larger than this, and shown without blur below `PIXELS`.
LARGEST, PIXELS = 320, 128


COLOUR_MAP = "inferno"


GROUPS = {
    "Acc_e": "Prompts with “{}”",
    "Acc_g": "Prompts with synonyms of “{}”",
    "Acc_ir": "Prompts with other concepts, which should stay",
}


class HeatMap(TypedDict):
    """An example's pictures and attention maps as the page embeds them, and the maps' means."""

    prompt: str
    rendering: str
    picture_before: str
    map_before: str
    mean_before: float
    picture_after: str
    map_after: str
    mean_after: float


class EmbeddedExample(Example):
    """An example whose pictures are embedded.

    Attributes:
        good: by side, how near the judge's answer is to the right one.
        rendering: the pictures' class.
    """

    good: dict[str, float | None]
    rendering: str


class PictureGroup(TypedDict):
    """Examples of a cell, under a heading."""

    title: str
    examples: list[EmbeddedExample]


def example_groups(workdir: Path, evaluation: EvaluationResult) -> list[PictureGroup]:
    """The first examples of every cell.

    Raises:
        InputError: a picture cannot be read.
    """
    groups: list[PictureGroup] = []
    for cell, title in GROUPS.items():
        examples = [e for e in evaluation.get("pictures", []) if e["cell"] == cell][:MAX_EXAMPLES]
        if examples:
            embedded = [_embedded(workdir, cell, example) for example in examples]
            groups.append({"title": title.format(evaluation["concept"]), "examples": embedded})
    return groups


def _embedded(workdir: Path, cell: str, example: Example) -> EmbeddedExample:
    before, after = (_open(workdir / example[side]) for side in SIDES)
    hits = {"before": example["found_before"], "after": example["found_after"]}
    return {
        **example,
        "before": _embed(before),
        "after": _embed(after),
        "good": {
            side: None if hit is None else goodness(cell, float(hit)) for side, hit in hits.items()
        },
        "rendering": _rendering(before),
    }


def heat_maps(workdir: Path, evaluation: EvaluationResult) -> tuple[list[HeatMap], float]:
    """Pictures and attention maps of a run's examples, ready to embed.

    Returns:
        One dictionary an example, and the attention that the brightest colour stands for.

    Raises:
        InputError: the maps or a picture cannot be read.
    """
    examples = evaluation.get("attention", [])
    if not examples:
        return [], 0.0
    path = workdir / run_folder.ATTENTION
    maps = read_npz(path, SIDES, MEND)
    if any(each.ndim != 3 or len(each) != len(examples) or not each.size for each in maps.values()):
        shapes = " and ".join(str(list(each.shape)) for each in maps.values())
        raise InputError(
            f"{path} has maps of {shapes} for {counted(len(examples), 'example')}; {MEND}"
        )
    # One scale for all maps; the top percent would leave the rest dark.
    top = float(np.percentile(np.concatenate([maps["before"], maps["after"]]), 99.5)) or 1.0

    def on_picture(picture: np.ndarray, heat: np.ndarray) -> str:
        return data_uri(draw.png(overlay(picture, heat / top)))

    embedded: list[HeatMap] = []
    for example, heat_before, heat_after in zip(
        examples, maps["before"], maps["after"], strict=True
    ):
        before, after = (_open(workdir / example[side]) for side in SIDES)
        embedded.append(
            {
                "prompt": example["prompt"],
                "rendering": _rendering(after),
                "picture_before": _embed(before),
                "map_before": on_picture(before, heat_before),
                "mean_before": float(heat_before.mean()),
                "picture_after": _embed(after),
                "map_after": on_picture(after, heat_after),
                "mean_after": float(heat_after.mean()),
            }
        )
    return embedded, top


def overlay(
    picture: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "y x"], side: int = 192
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Lays a heat map over a grey version of its picture.

    Args:
        picture: the picture.
        heat: values in [0, 1], one an image token; clipped.
        side: the result's larger side in pixels.
    """
    height, width = picture.shape[:2]
    size = (round(side * width / max(height, width)), round(side * height / max(height, width)))
    wide = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(wide), 0, 1)
    colour = mpl.colormaps[COLOUR_MAP](level)[..., :3]
    grey = np.asarray(Image.fromarray(picture).convert("L").resize(size), float)[..., None] / 255
    return np.round(255 * (0.8 * colour + 0.2 * grey)).astype(np.uint8)


def gradient(stops: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> str:
    """The colours of heat maps, from the lowest value to the highest, as a CSS gradient."""
    colours = [to_hex(mpl.colormaps[COLOUR_MAP](stop)) for stop in stops]
    return f"linear-gradient(90deg, {', '.join(colours)})"


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """File content as an address that a page can hold in itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _open(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    return read_picture(path, MEND)


def _embed(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((LARGEST, LARGEST))
    return data_uri(draw.png(np.asarray(image)))


def _rendering(picture: np.ndarray) -> str:
    """The class of pictures so small that browsers would blur them."""
    return "pixels" if max(picture.shape[:2]) < PIXELS else ""
