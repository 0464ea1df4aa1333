"""Scenes: captions with the pictures that they describe, made by the hundred thousand.

A scene is kept as what stands where, which is small; `compose` draws it on the accelerator.
Axis letters: N scenes, B batch, K places for sprites in a scene, M sprites, E entities,
S styles, T text tokens, h w output and input pixels along one axis.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from recipes.emoji_flux import captions, layout, tokenizers
from recipes.emoji_flux.captions import Caption
from recipes.emoji_flux.world import BACKGROUNDS, ENTITIES, RELATIONS

SIDE = 64
PLACES = 5
# Empty pixels that resampling sees around a sprite, so that its edges stay smooth.
MARGIN = 4
# Share of backgrounds that grow lighter towards the top.
GRADIENT = 0.5
# Scenes that a process draws at a time.
CHUNK = 10_000


@dataclass(frozen=True)
class Scenes:
    """Scenes with their tokens and labels, as arrays of one length.

    Attributes:
        sprite: index into the sprites' pixels, -1 for none; later ones stand in front.
        box: centre x, centre y and size in pixels, and 1 where mirrored.
        background: colours at the top and at the bottom, RGB in [0, 1].
        t5_ids: tokens, padded with 0.
        clip_ids: tokens, padded with the end of text.
        entities: which are shown.
        style: index into `world.STYLES`.
        relation: index into `world.RELATIONS`, -1 where the caption states none.
        subject: first entity of the caption.
        object: its second entity, -1 if there is none.
        background_colour: index into `world.BACKGROUNDS`.
    """

    sprite: Int[np.ndarray, "N K"]
    box: Float[np.ndarray, "N K 4"]
    background: Float[np.ndarray, "N 2 3"]
    t5_ids: Int[np.ndarray, "N T"]
    clip_ids: Int[np.ndarray, "N T"]
    entities: Bool[np.ndarray, "N E"]
    style: Int[np.ndarray, "N"]
    relation: Int[np.ndarray, "N"]
    subject: Int[np.ndarray, "N"]
    object: Int[np.ndarray, "N"]
    background_colour: Int[np.ndarray, "N"]

    def __len__(self) -> int:
        return len(self.sprite)

    def save(self, path: Path) -> None:
        """Writes one `.npz` file, all or nothing."""
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **{field.name: getattr(self, field.name) for field in fields(self)})
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Scenes":
        """Reads what `save` wrote."""
        with np.load(path) as file:
            return cls(**{field.name: file[field.name] for field in fields(cls)})


def make(
    pixels: UInt8[np.ndarray, "M 64 64 4"],
    sprite_of: Int[np.ndarray, "E S"],
    tokenizer_folder: Path,
    seed: int,
    count: int,
    workers: int = 1,
) -> Scenes:
    """Draws scenes; the same arguments give the same scenes, whatever the number of workers.

    Args:
        pixels: the sprites.
        sprite_of: index of each entity's sprite in each style, -1 where there is none.
        tokenizer_folder: holds `tokenizer/` and `tokenizer_2/`.
        seed: two seeds share no scenes.
        count: number of scenes.
        workers: processes.
    """
    extents = layout.extents(pixels)
    starts = range(0, count, CHUNK)
    tasks = [
        (extents, sprite_of, tokenizer_folder, (seed, start), min(CHUNK, count - start))
        for start in starts
    ]
    if workers == 1:
        parts = [make_part(*task) for task in tasks]
    else:
        # Forking a process in which JAX runs can hang it.
        context = get_context("forkserver")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            parts = list(pool.map(make_part, *zip(*tasks, strict=True)))
    return Scenes(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Scenes)
        }
    )


def make_part(
    extents: Float[np.ndarray, "M 2"],
    sprite_of: Int[np.ndarray, "E S"],
    tokenizer_folder: Path,
    seed: tuple[int, int],
    count: int,
) -> Scenes:
    """Draws scenes in one process; `make` says what the arguments are."""
    rng = np.random.default_rng(seed)
    clip_tokenizer, t5_tokenizer = tokenizers.load(tokenizer_folder)
    drawn, t5_ids, clip_ids = [], [], []
    while len(drawn) < count:
        batch = [captions.draw(rng, sprite_of >= 0) for _ in range(count - len(drawn))]
        texts = [caption.text for caption in batch]
        t5, clip = (each(texts, verbose=False).input_ids for each in (t5_tokenizer, clip_tokenizer))
        # A sentence that would be cut off says less than the picture shows.
        for caption, *ids in zip(batch, t5, clip, strict=True):
            if max(len(each) for each in ids) <= tokenizers.TOKENS:
                drawn.append(caption)
                t5_ids.append(padded(ids[0], t5_tokenizer.pad_token_id))
                clip_ids.append(padded(ids[1], clip_tokenizer.pad_token_id))
    sprite = np.full((count, PLACES), -1, np.int32)
    box = np.zeros((count, PLACES, 4), np.float32)
    # A box needs a size even where it is empty.
    box[..., 2] = 1
    background = np.zeros((count, 2, 3), np.float32)
    entities = np.zeros((count, len(ENTITIES)), bool)
    for row, caption in enumerate(drawn):
        shown = [caption.subject, caption.object][: 1 + (caption.object >= 0)]
        of = sprite_of[shown, caption.style]
        for index, thing in enumerate(layout.place(rng, arrangement(caption), extents[of])):
            sprite[row, index] = of[thing.who]
            box[row, index] = (thing.x, thing.y, thing.size, thing.mirrored)
        background[row] = draw_background(rng, caption.background)
        entities[row, shown] = True
    return Scenes(
        sprite,
        box,
        background,
        np.array(t5_ids, np.int16),
        np.array(clip_ids, np.int16),
        entities,
        *(
            np.array([getattr(caption, name) for caption in drawn], kind)
            for name, kind in (
                ("style", np.int8),
                ("relation", np.int8),
                ("subject", np.int16),
                ("object", np.int16),
                ("background", np.int8),
            )
        ),
    )


def padded(ids: list[int], padding: object) -> list[int]:
    """Token ids, filled up to the limit."""
    assert isinstance(padding, int)
    return ids + [padding] * (tokenizers.TOKENS - len(ids))


def arrangement(caption: Caption) -> str | None:
    """What `layout.place` calls the caption's way of standing together."""
    if caption.object < 0:
        return None
    return RELATIONS[caption.relation] if caption.relation >= 0 else "and"


def draw_background(rng: np.random.Generator, colour: int) -> Float[np.ndarray, "2 3"]:
    """A colour, slightly off, plain or lighter towards the top."""
    base = np.array(list(BACKGROUNDS.values())[colour]) + rng.uniform(-0.02, 0.02, 3)
    top = base + 0.5 * (1 - base) if rng.random() < GRADIENT else base
    return np.clip(np.stack([top, base]), 0, 1)


def resampling(
    centre: Float[Array, "B"], size: Float[Array, "B"], mirrored: Bool[Array, "B"] | None = None
) -> Float[Array, "B h w"]:
    """Weights with which output pixels along an axis take input pixels.

    The kernel is a triangle, widened by 64/size where that shrinks, its weights normalised, as
    in `jax.image.scale_and_translate` on a sprite that has an empty margin.

    Args:
        centre: where the sprite's middle goes, in output pixels.
        size: of the sprite in output pixels.
        mirrored: where to read the input backwards.
    """
    step = (SIDE / size)[:, None, None]
    output = jnp.arange(SIDE)[None, :, None] + 0.5
    inputs = jnp.arange(-MARGIN, SIDE + MARGIN)[None, None, :] + 0.5
    at = (output - centre[:, None, None]) * step + SIDE / 2
    weights = jnp.maximum(0, 1 - jnp.abs(at - inputs) / jnp.maximum(step, 1))
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total > 1e-3, total, 1)
    weights = weights[..., MARGIN:-MARGIN]
    if mirrored is None:
        return weights
    return jnp.where(mirrored[:, None, None], weights[..., ::-1], weights)


def compose(
    pixels: UInt8[Array, "M 64 64 4"],
    sprite: Int[Array, "B K"],
    box: Float[Array, "B K 4"],
    background: Float[Array, "B 2 3"],
) -> Float[Array, "B 64 64 3"]:
    """Draws scenes: sprites scaled, mirrored, moved, and laid over each other in order.

    Returns:
        RGB in [-1, 1].
    """
    down = ((jnp.arange(SIDE) + 0.5) / SIDE)[None, :, None, None]
    top, bottom = background[:, None, None, 0], background[:, None, None, 1]
    canvas = jnp.broadcast_to(top + down * (bottom - top), (len(sprite), SIDE, SIDE, 3))

    def lay(canvas: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
        index, (x, y, size, mirrored) = place[0], place[1].T
        drawing = pixels[jnp.maximum(index, 0)].astype(jnp.float32) / 255
        drawing = drawing * (index >= 0)[:, None, None, None]
        placed = jnp.einsum(
            "bij,bjkc,blk->bilc",
            resampling(y, size),
            drawing,
            resampling(x, size, mirrored > 0.5),
            precision=jax.lax.Precision.HIGHEST,
        )
        return placed[..., :3] + (1 - placed[..., 3:]) * canvas, None

    canvas, _ = jax.lax.scan(lay, canvas, (sprite.T, jnp.moveaxis(box, 1, 0)))
    return 2 * jnp.clip(canvas, 0, 1) - 1
