from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes.emoji_flux import layout, scenes, tokenizers
from recipes.emoji_flux.scenes import Scenes, compose, resampling
from recipes.emoji_flux.world import BACKGROUNDS, ENTITIES, RELATIONS, STYLES, SYMMETRIC

SHIPPED = Path(__file__).parent.parent / "models" / "emoji-flux"


def synthetic_pixels(count: int, seed: int = 0) -> np.ndarray:
    """Random premultiplied drawings, opaque in a rectangle."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((count, 64, 64, 4), np.uint8)
    for sprite in pixels:
        top, left = rng.integers(0, 20, 2)
        patch = sprite[top : 64 - top, left : 64 - left]
        alpha = rng.integers(30, 256, patch.shape[:2])
        patch[..., 3] = alpha
        patch[..., :3] = rng.random((*patch.shape[:2], 3)) * alpha[..., None]
    return pixels


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    pixels = synthetic_pixels(50)
    sprite_of = np.random.default_rng(1).integers(0, 50, (len(ENTITIES), len(STYLES)))
    sprite_of[::7, 3] = -1
    return pixels, sprite_of.astype(np.int32)


@pytest.fixture(scope="module")
def made(world: tuple[np.ndarray, np.ndarray]) -> Scenes:
    return scenes.make(*world, SHIPPED, seed=5, count=3000)


def reference(pixels: np.ndarray, sprite: np.ndarray, box: np.ndarray, background: np.ndarray):
    """One scene by `jax.image.scale_and_translate` on sprites with an empty margin."""
    margin = 16
    ramp = (np.arange(64) + 0.5) / 64
    canvas = background[0] + ramp[:, None] * (background[1] - background[0])
    canvas = np.broadcast_to(canvas[:, None], (64, 64, 3))
    for index, (x, y, size, mirrored) in zip(sprite, box, strict=True):
        if index < 0:
            continue
        drawing = pixels[index].astype(np.float32) / 255
        if mirrored:
            drawing = drawing[:, ::-1]
        drawing = np.pad(drawing, [(margin, margin), (margin, margin), (0, 0)])
        scale = size / 64
        corner = jnp.array([y, x]) - (32 + margin) * scale
        placed = jax.image.scale_and_translate(
            jnp.asarray(drawing),
            (64, 64, 4),
            (0, 1),
            jnp.full(2, scale),
            corner,
            method="linear",
            precision=jax.lax.Precision.HIGHEST,
        )
        canvas = placed[..., :3] + (1 - placed[..., 3:]) * canvas
    return 2 * np.asarray(canvas) - 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_compose_equals_scale_and_translate(seed: int):
    rng = np.random.default_rng(seed)
    pixels = synthetic_pixels(6, seed)
    sprite = rng.integers(-1, 6, (4, 5)).astype(np.int32)
    box = np.stack(
        [
            rng.uniform(0, 64, (4, 5)),
            rng.uniform(0, 64, (4, 5)),
            rng.uniform(17, 80, (4, 5)),
            rng.integers(0, 2, (4, 5)),
        ],
        -1,
    ).astype(np.float32)
    background = rng.random((4, 2, 3)).astype(np.float32)
    ours = jax.jit(compose)(pixels, sprite, box, background)
    for row in range(4):
        expected = reference(pixels, sprite[row], box[row], background[row])
        assert np.abs(np.asarray(ours[row]) - expected).max() < 2e-5


def test_a_sprite_in_its_own_size_is_laid_over_unchanged():
    pixels = synthetic_pixels(2, 3)
    box = np.array([[[32, 32, 64, 0]], [[32, 32, 64, 1]]], np.float32)
    background = np.full((2, 2, 3), 0.25, np.float32)
    ours = np.asarray(jax.jit(compose)(pixels, np.array([[1], [1]]), box, background))
    drawing = pixels[1].astype(np.float32) / 255
    expected = 2 * (drawing[..., :3] + (1 - drawing[..., 3:]) * 0.25) - 1
    np.testing.assert_allclose(ours[0], expected, atol=1e-6)
    np.testing.assert_allclose(ours[1], expected[:, ::-1], atol=1e-6)


@pytest.mark.slow
def test_shrinking_averages_all_pixels():
    weights = np.asarray(resampling(jnp.array([32.0]), jnp.array([16.0])))[0]
    # Every input pixel has the same weight, so that no line of a drawing is skipped.
    np.testing.assert_allclose(weights.sum(0), 0.25, atol=0.02)
    assert weights[:20].max() == weights[44:].max() == 0


@pytest.mark.slow
def test_labels_agree_with_places(made: Scenes, world: tuple[np.ndarray, np.ndarray]):
    _, sprite_of = world
    assert len(made) == 3000
    for row in range(len(made)):
        who = [made.subject[row]] + ([made.object[row]] if made.object[row] >= 0 else [])
        assert set(np.flatnonzero(made.entities[row])) == set(who)
        drawn = {int(sprite_of[entity, made.style[row]]) for entity in who}
        assert -1 not in drawn
        assert {int(index) for index in made.sprite[row] if index >= 0} == drawn
    assert set(made.relation) == set(range(-1, len(RELATIONS)))
    assert (made.relation[made.object < 0] == -1).all()
    assert made.background.min() >= 0
    assert made.background.max() <= 1
    named = np.array(list(BACKGROUNDS.values()))[made.background_colour]
    assert np.abs(made.background[:, 1] - named).max() <= 0.0201


def test_relations_are_where_they_should_be(made: Scenes, world: tuple[np.ndarray, np.ndarray]):
    _, sprite_of = world
    seen = set()
    for row in np.flatnonzero(made.relation >= 0):
        name = RELATIONS[made.relation[row]]
        of_subject, of_object = (
            sprite_of[each[row], made.style[row]] for each in (made.subject, made.object)
        )
        if of_subject == of_object:
            continue
        seen.add(name)
        order = list(made.sprite[row])
        subject = made.box[row, order.index(of_subject)]
        other = made.box[row, order.index(of_object)]
        apart = subject[:2] - other[:2]
        touching = (subject[2] + other[2]) / 2
        match name:
            case "left of":
                assert apart[0] < -touching
            case "right of":
                assert apart[0] > touching
            case "above":
                assert apart[1] < -touching
            case "below":
                assert apart[1] > touching
            case "in":
                assert np.abs(apart).max() < 4
                assert 2 * subject[2] < other[2]
                assert order.index(of_subject) > order.index(of_object)
            case "on":
                assert apart[1] < 0
                assert subject[2] < other[2]
                assert abs(apart[0]) < 4
            case "behind":
                assert order.index(of_subject) < order.index(of_object)
                assert apart[1] < -15
            case "amidst":
                assert order.count(of_object) == 4
                assert order.count(of_subject) == 1
            case _:
                assert name in SYMMETRIC
                left, right = (subject, other) if apart[0] < 0 else (other, subject)
                assert left[3] == (name == "hugging close")
                assert right[3] == (name == "back to back")
    assert seen == set(RELATIONS)


@pytest.mark.parametrize("relation", RELATIONS)
def test_nothing_is_cut_off(relation: str):
    rng = np.random.default_rng(8)
    for _ in range(50):
        extent = rng.uniform(0.4, 1, (2, 2))
        extent[np.arange(2), rng.integers(0, 2, 2)] = 1
        for thing in layout.place(rng, relation, extent):
            half = thing.size / 2 * extent[thing.who]
            assert min(thing.x - half[0], thing.y - half[1]) > -2.5
            assert max(thing.x + half[0], thing.y + half[1]) < 66.5


def test_back_to_back_touches_and_hugging_overlaps():
    rng = np.random.default_rng(9)
    extent = np.array([[0.5, 1.0], [0.8, 1.0]])
    for relation, low, high in (("back to back", 0.5, 1.5), ("hugging close", 6.5, 8.0)):
        for _ in range(20):
            left, right = layout.place(rng, relation, extent)
            widths = [thing.size * extent[thing.who, 0] for thing in (left, right)]
            overlap = left.x + widths[0] / 2 - (right.x - widths[1] / 2)
            assert low < overlap < high


@pytest.mark.slow
def test_scenes_do_not_depend_on_the_number_of_workers(
    world: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(scenes, "CHUNK", 40)
    alone = scenes.make(*world, SHIPPED, seed=2, count=100)
    shared = scenes.make(*world, SHIPPED, seed=2, count=100, workers=2)
    shared.save(tmp_path / "scenes.npz")
    loaded = Scenes.load(tmp_path / "scenes.npz")
    other = scenes.make(*world, SHIPPED, seed=3, count=100)
    for field in fields(Scenes):
        expected = getattr(alone, field.name)
        np.testing.assert_array_equal(getattr(loaded, field.name), expected)
    assert (other.t5_ids != alone.t5_ids).any()
    # Chunks of one seed differ too.
    assert (alone.t5_ids[:20] != alone.t5_ids[40:60]).any()


def test_tokens_are_those_of_the_captions(made: Scenes):
    clip, t5 = tokenizers.load(SHIPPED)
    for row in range(50):
        text = t5.decode(made.t5_ids[row], skip_special_tokens=True)
        full = {"padding": "max_length", "max_length": tokenizers.TOKENS}
        assert t5(text, **full).input_ids == made.t5_ids[row].tolist()
        assert clip(text, **full).input_ids == made.clip_ids[row].tolist()


def test_extents_are_what_a_sprite_fills():
    pixels = np.zeros((1, 64, 64, 4), np.uint8)
    pixels[0, 10:42, 5:21] = 255
    np.testing.assert_allclose(layout.extents(pixels), [[0.25, 0.5]])


def test_pictures_stand_on_their_background(made: Scenes, world: tuple[np.ndarray, np.ndarray]):
    pixels, _ = world
    rows = slice(0, 16)
    pictures = np.asarray(
        jax.jit(compose)(pixels, made.sprite[rows], made.box[rows], made.background[rows])
    )
    assert pictures.shape == (16, 64, 64, 3)
    assert pictures.min() >= -1
    assert pictures.max() <= 1
    # Corners show the background, unless a ring of things is there.
    free = np.array([RELATIONS[r] != "amidst" or r < 0 for r in made.relation[rows]])
    corner = (pictures[free, 0, 0] + 1) / 2
    ramp = made.background[rows][free]
    expected = ramp[:, 0] + (ramp[:, 1] - ramp[:, 0]) * 0.5 / 64
    assert np.mean(np.abs(corner - expected).max(-1) < 1e-4) > 0.6
