"""Render every entity in every style: emoji sets from npm, as 64 x 64 premultiplied RGBA.

Axis letters: M sprites, E entities, S styles.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image
from scipy import ndimage

from flux_jax import progress
from flux_jax.errors import InputError
from flux_jax.system.pictures import FORMATS
from recipes.emoji_flux.world import ENTITIES, STYLES, Entity
from recipes.npm import fetch

SIDE = 64
RASTER = 256
# Ink of single-colour drawings.
INK_RGB = (38, 38, 46)
INK = "#{:02x}{:02x}{:02x}".format(*INK_RGB)
# Width of a sticker's white border and of the thin grey line around it, in pixels of the raster.
BORDER, RIM = 17, 4
# Widths of line art's lines and of the rim of silhouettes, in pixels of the raster.
LINE, EDGE = 7, 20
# A thin white border, so that a silhouette is visible in front of another.
HALO = 7
# Share of ink below which a drawing counts as outlines.
MOSTLY_INK = 0.55
PERMITTED = frozenset({"Apache-2.0", "MIT", "CC-BY-4.0"})


@dataclass(frozen=True)
class EmojiSet:
    """An npm package of drawings, and its style.

    Attributes:
        package: npm name and pinned version.
        style: name in `STYLES`.
        licence: SPDX name of the drawings' licence.
        author: whom to attribute, and where.
        names: names of icons in this set that differ from the usual ones.
        licence_from: the licence in the package's own metadata, if that is the code's licence.
    """

    package: str
    style: str
    licence: str
    author: str
    names: dict[str, str]
    package_licence: str = ""


FIREFOX_NAMES = {
    "ear-of-corn": "earofmaize",
    "pizza": "sliceofpizza",
    "pool-8-ball": "billiards",
    "cat": "catside",
    "dog": "dogside",
    "pig-face": "pig",
    "rabbit-face": "bunny",
    "panda": "pandaface",
    "spouting-whale": "spurtingwhale",
    "locomotive": "steamlocomotive",
    "tokyo-tower": "",
    "house": "housebuilding",
    "castle": "europeancastle",
    "scissors": "blackscissors",
    "sun": "sunrays",
    "high-voltage": "bolt",
    "globe-showing-europe-africa": "europeafricaglobe",
    "santa-claus": "fatherchristmas",
    "umbrella": "umbrellawithraindrops",
    # These have a square of sky as background.
    "ferris-wheel": "",
    "rainbow": "",
    "sailboat": "",
    "ship": "",
}
HUG = {"smiling-face-with-open-hands": "hugging-face"}
GOOGLE = "Google, github.com/googlefonts/noto-emoji"
MICROSOFT = "Microsoft, github.com/microsoft/fluentui-emoji"
MOZILLA = "Mozilla, github.com/mozilla/fxemoji"
EMOJITWO = "EmojiTwo (from EmojiOne 2), github.com/EmojiTwo/emojitwo"
TWITTER = "Twitter and other contributors, github.com/jdecked/twemoji"
SETS: tuple[EmojiSet, ...] = (
    EmojiSet("@iconify-json/noto@1.2.9", "noto", "Apache-2.0", GOOGLE, {}),
    EmojiSet("@twemoji/svg@15.0.0", "twitter", "CC-BY-4.0", TWITTER, {}, "MIT"),
    EmojiSet("@lobehub/fluent-emoji-3d@1.1.0", "render", "MIT", MICROSOFT, {}),
    EmojiSet("@iconify-json/noto-v1@1.2.5", "blob", "Apache-2.0", GOOGLE, HUG),
    EmojiSet("@iconify-json/emojione@1.2.3", "emojione", "CC-BY-4.0", EMOJITWO, HUG),
    EmojiSet("@iconify-json/fluent-emoji-high-contrast@1.2.6", "silhouette", "MIT", MICROSOFT, HUG),
    EmojiSet("@iconify-json/fluent-emoji-flat@1.2.6", "flat", "MIT", MICROSOFT, HUG),
    EmojiSet("@iconify-json/emojione-monotone@1.2.1", "lineart", "CC-BY-4.0", EMOJITWO, HUG),
    EmojiSet("@iconify-json/fxemoji@1.2.2", "firefox", "Apache-2.0", MOZILLA, FIREFOX_NAMES),
    EmojiSet("@twemoji/svg@15.0.0", "sticker", "CC-BY-4.0", TWITTER, {}, "MIT"),
)


def check_licence(emoji_set: EmojiSet, manifest: dict[str, Any]) -> None:
    """Refuse a package whose licence is not the one that was reviewed.

    Raises:
        InputError: the package states another licence, or the licence is not permissive.
    """
    expected = emoji_set.package_licence or emoji_set.licence
    if manifest.get("license") != expected or emoji_set.licence not in PERMITTED:
        raise InputError(
            f"{emoji_set.package}: licence is {manifest.get('license')!r}, expected {expected!r}; "
            "review the package before using it"
        )


def read_set(emoji_set: EmojiSet, archive: Path) -> Callable[[Entity], Image.Image | None]:
    """Open a package; the result renders an entity, or returns None if the set lacks it."""
    with tarfile.open(archive) as opened:
        names = opened.getnames()

        def read(name: str) -> bytes:
            member = opened.extractfile(name)
            assert member is not None, name
            return member.read()

        check_licence(emoji_set, json.loads(read("package/package.json")))
        if "package/icons.json" in names:
            icons = json.loads(read("package/icons.json"))
            return lambda entity: draw_icon(emoji_set, icons, entity)
        wanted = {}
        for entity in ENTITIES:
            for stem in (entity.codepoint, f"{entity.codepoint}-fe0f"):
                for name in (f"package/{stem}.svg", f"package/assets/{stem}.webp"):
                    if name in names:
                        wanted[entity.name] = (name, read(name))

    def draw(entity: Entity) -> Image.Image | None:
        if entity.name not in wanted:
            return None
        name, content = wanted[entity.name]
        if name.endswith(".svg"):
            return draw_svg(content.decode())
        return Image.open(io.BytesIO(content), formats=FORMATS).convert("RGBA")

    return draw


def draw_icon(emoji_set: EmojiSet, icons: dict[str, Any], entity: Entity) -> Image.Image | None:
    """Render an icon of an Iconify set."""
    usual = emoji_set.names.get(entity.icon, entity.icon)
    for name in (usual, usual.replace("-", "")):
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = icons["icons"].get(name)
        if icon is None:
            continue
        width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
        left, top = icon.get("left", 0), icon.get("top", 0)
        return draw_svg(
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" color="{INK}">{icon["body"]}</svg>'
        )
    return None


def draw_svg(svg: str) -> Image.Image:
    """Render to a raster of `RASTER` pixels.

    Raises:
        InputError: the renderer is not installed.
    """
    # Imported here, since only the extra `recipe` installs it.
    try:
        import resvg_py  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise InputError(
            "resvg_py: not installed, so drawings cannot be rendered; pip install '.[recipe]'"
        ) from error

    png = resvg_py.svg_to_bytes(svg_string=svg, width=RASTER, height=RASTER, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)), formats=FORMATS).convert("RGBA")


def as_sticker(picture: Image.Image) -> Image.Image:
    """Cut out a drawing with a white border and a thin grey line around it."""
    wide = widened(picture, BORDER + RIM + 2)
    alpha = np.asarray(wide)[..., 3]
    rim = plate(alpha, BORDER + RIM, (150, 150, 158))
    border = plate(alpha, BORDER, (255, 255, 255))
    return Image.alpha_composite(Image.alpha_composite(rim, border), wide)


def as_line_art(picture: Image.Image) -> Image.Image:
    """Reduce broad areas of ink to their outlines, on white paper."""
    ink = np.asarray(picture)[..., 3]
    solid = ink >= 128
    lines = np.minimum(ink / 255, np.clip(LINE + 0.5 - depth(solid), 0, 1))
    paper = np.maximum(filled(solid), lines)
    return coloured(lines[..., None] * INK_RGB + (1 - lines[..., None]) * 255, paper)


def as_silhouette(picture: Image.Image) -> Image.Image:
    """Fill drawings that are mostly outlines with ink, and cut out their inner lines."""
    ink = np.asarray(picture)[..., 3] / 255
    inside = filled(ink >= 0.5)
    if ink[inside].mean() < MOSTLY_INK:
        edge = np.clip(EDGE + 0.5 - depth(inside), 0, 1)
        ink = np.where(inside, np.maximum(edge, 1 - ink), ink)
    return haloed(coloured(INK_RGB, ink), HALO)


def depth(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Distance of each pixel inside a shape from its outside, in pixels."""
    return np.asarray(ndimage.distance_transform_edt(mask))


def filled(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Fill the holes of a shape."""
    return np.asarray(ndimage.binary_fill_holes(mask))


def coloured(
    rgb: Sequence[int] | Shaped[np.ndarray, "... 3"], alpha: Float[np.ndarray, "h w"]
) -> Image.Image:
    """A picture from one colour, or one per pixel, in 0..255, and opacities in 0..1."""
    full = np.broadcast_to(np.asarray(rgb, float), (*alpha.shape, 3))
    return Image.fromarray(np.dstack([full, 255 * alpha]).round().astype(np.uint8))


def plate(alpha: UInt8[np.ndarray, "h w"], reach: float, colour: Sequence[int]) -> Image.Image:
    """A shape of one colour that extends `reach` pixels beyond the opaque pixels."""
    return coloured(colour, np.clip(reach + 0.5 - depth(alpha < 128), 0, 1))


def haloed(picture: Image.Image, reach: int) -> Image.Image:
    """Add a white border around the outside of a drawing."""
    wide = widened(picture, reach + 2)
    alpha = np.asarray(wide)[..., 3]
    border = np.array(plate(alpha, reach, (255, 255, 255)))
    border[..., 3][filled(alpha >= 128) & (alpha < 128)] = 0
    return Image.alpha_composite(Image.fromarray(border), wide)


def widened(picture: Image.Image, margin: int) -> Image.Image:
    """Add an empty margin to the picture."""
    wide = Image.new("RGBA", (picture.width + 2 * margin, picture.height + 2 * margin))
    wide.paste(picture, (margin, margin))
    return wide


def fit(picture: Image.Image) -> UInt8[np.ndarray, "64 64 4"]:
    """Crop to the visible part, scale its longer side to fill the sprite, and centre it.

    Returns:
        Premultiplied RGBA.
    """
    shown = np.asarray(picture)[..., 3] > 8
    rows, columns = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
    if not len(rows):
        raise InputError("a drawing is empty; try another version of the package")
    picture = picture.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)).convert("RGBa")
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Pillow's filters widen when they shrink a picture, so no pixel of the raster is skipped.
    picture = picture.resize(size, Image.Resampling.HAMMING)
    sprite = np.zeros((SIDE, SIDE, 4), np.uint8)
    left, top = ((SIDE - side) // 2 for side in size)
    # The raw bytes of Pillow's premultiplied mode.
    pixels = np.frombuffer(picture.tobytes("raw", "RGBa"), np.uint8).reshape(size[1], size[0], 4)
    sprite[top : top + size[1], left : left + size[0]] = pixels
    return sprite


# Changes that some styles make to their set's drawings.
TREATMENTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "sticker": as_sticker,
    "lineart": as_line_art,
    "silhouette": as_silhouette,
}


def draw_all(cache: Path) -> Iterator[tuple[int, int, UInt8[np.ndarray, "64 64 4"]]]:
    """Yield entity, style and sprite for every drawing in the sets."""
    for emoji_set in progress.bar(SETS, desc="drawing", unit="set"):
        draw = read_set(emoji_set, fetch(emoji_set.package, cache))
        for index, entity in enumerate(ENTITIES):
            picture = draw(entity)
            if picture is not None:
                picture = TREATMENTS.get(emoji_set.style, lambda same: same)(picture)
                yield index, STYLES.index(emoji_set.style), fit(picture)


def build(cache: Path, out: Path) -> tuple[UInt8[np.ndarray, "M 64 64 4"], Int[np.ndarray, "E S"]]:
    """Render all sprites and write them.

    Args:
        cache: folder for the npm packages.
        out: `.npz` file to write, with `pixels` and `sprite_of`.

    Returns:
        Pixels, and the index of each entity's sprite in each style, -1 if there is none.
    """
    pixels, sprite_of = [], np.full((len(ENTITIES), len(STYLES)), -1, np.int32)
    for entity, style, sprite in draw_all(cache):
        sprite_of[entity, style] = len(pixels)
        pixels.append(sprite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial.npz")
    np.savez_compressed(partial, pixels=np.stack(pixels), sprite_of=sprite_of)
    partial.rename(out)
    return np.stack(pixels), sprite_of


def load(path: Path) -> tuple[UInt8[np.ndarray, "M 64 64 4"], Int[np.ndarray, "E S"]]:
    """Load a file written by `build`.

    Raises:
        InputError: the file is missing or was made for other entities or styles.
    """
    if not path.exists():
        raise InputError(f"{path}: not found; run `sprites.build` first")
    with np.load(path) as file:
        pixels, sprite_of = file["pixels"], file["sprite_of"]
    if sprite_of.shape != (len(ENTITIES), len(STYLES)):
        raise InputError(
            f"{path}: holds {sprite_of.shape[0]} entities and {sprite_of.shape[1]} styles, the "
            f"world has {len(ENTITIES)} and {len(STYLES)}; build it again"
        )
    return pixels, sprite_of


def attribution() -> str:
    """ATTRIBUTION.md: authors and licences of the drawings that the model was trained on."""
    lines = [
        "# Attribution",
        "",
        "The weights in this folder were trained on compositions of emoji from these npm packages.",
        "The drawings themselves are not part of this repository; the recipe downloads them.",
        "",
        "| style | package | version | licence of the drawings | author |",
        "| --- | --- | --- | --- | --- |",
    ]
    for emoji_set in SETS:
        name, version = emoji_set.package.rsplit("@", 1)
        lines.append(
            f"| {emoji_set.style} | {name} | {version} | {emoji_set.licence} | {emoji_set.author} |"
        )
    lines += [
        "",
        "Changes: drawings were cropped, scaled to 64 x 64 pixels, mirrored and placed on coloured",
        f"backgrounds. Drawings in one colour were inked in {INK}: `silhouette` was filled, with a",
        "thin white border; `lineart` was reduced to lines on white. `sticker` is Twemoji cut out",
        "with a white border.",
        "",
        "Licences: Apache-2.0 (apache.org/licenses/LICENSE-2.0), MIT (opensource.org/license/mit),",
        "CC-BY-4.0 (creativecommons.org/licenses/by/4.0).",
    ]
    return "\n".join(lines) + "\n"
