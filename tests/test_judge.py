"""The judge: its files, its questions, and its training on synthetic sprites."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from erase.evaluation.emoji_judge import CHUNK, NetworkJudge, to_float
from erase.evaluation.judge_network import JudgeConfig, JudgeNetwork, ask, init
from erase.evaluation.statistics import wilson_interval
from flux_jax.errors import InputError
from flux_jax.tree import flatten
from flux_jax.weights.safetensors_files import read_file, write_file
from recipes.emoji_flux import judge_training
from recipes.emoji_flux.scenes import Scenes

RELATIONS = ("left of", "right of", "on")
INVERSE = {"left of": "right of", "right of": "left of"}
LABELS = JudgeConfig(
    ("disc", "square", "bar", "cross"),
    ("plain", "dark"),
    RELATIONS,
    widths=(16, 16, 24),
    blocks=(1, 1, 1),
    embedding=8,
)
SIDE = 64


@pytest.fixture(scope="module")
def judge() -> NetworkJudge:
    params = init(JudgeNetwork(LABELS), jax.random.key(0))
    # An untrained judge would find nothing at all.
    params["entity_head"]["bias"] *= 0
    return NetworkJudge(LABELS, params)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (CHUNK + 3, SIDE, SIDE, 3), np.uint8)


def sprites() -> np.ndarray:
    """Four shapes in two styles, premultiplied RGBA; index 2 * entity + style."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    masks = (
        np.hypot(x, y) < 28,
        np.maximum(abs(x), abs(y)) < 26,
        abs(y) < 9,
        np.minimum(abs(x), abs(y)) < 7,
    )
    pixels = np.zeros((8, SIDE, SIDE, 4), np.uint8)
    for entity, mask in enumerate(masks):
        for style, colour in enumerate(((240, 60, 30), (20, 20, 60))):
            pixels[2 * entity + style, mask] = (*colour, 255)
    return pixels


def scenes(count: int) -> Scenes:
    """One object, or two of which one is left of, right of or on the other."""
    rng = np.random.default_rng(1)
    subject = rng.integers(0, 4, count)
    other = (subject + rng.integers(1, 4, count)) % 4
    relation = rng.integers(-1, 3, count)
    style = rng.integers(0, 2, count)
    alone = relation < 0
    places = np.array([[15, 32], [49, 32], [32, 16], [32, 32]], float)
    sprite = np.full((count, 5), -1)
    box = np.zeros((count, 5, 4), np.float32)
    box[..., 2] = 1
    sprite[:, 0] = 2 * subject + style
    sprite[:, 1] = np.where(alone, -1, 2 * other + style)
    box[:, 0, :2] = places[relation]
    box[:, 1, :2] = np.where(relation[:, None] == 2, [32, 48], places[1 - relation.clip(0, 1)])
    box[:, :2, 2] = np.where(alone, 50, 26)[:, None]
    entities = np.zeros((count, 4), bool)
    entities[np.arange(count), subject] = True
    entities[np.flatnonzero(~alone), other[~alone]] = True
    ids = np.zeros((count, 4), np.int16)
    return Scenes(
        sprite=sprite,
        box=box,
        background=rng.uniform(0.5, 1, (count, 2, 3)).astype(np.float32),
        t5_ids=ids,
        clip_ids=ids,
        entities=entities,
        style=style.astype(np.int8),
        relation=relation.astype(np.int8),
        subject=subject,
        object=np.where(alone, -1, other),
        background_colour=np.zeros(count, np.int8),
    )


@pytest.mark.slow
def test_chunks_and_padding_leave_the_verdict_alone(judge: NetworkJudge, pictures: np.ndarray):
    verdict = judge(pictures)
    subject = np.arange(len(pictures)) % 4
    relation = judge.relation(pictures, subject, subject[::-1])
    direct, asked = ask(
        JudgeNetwork(LABELS),
        judge.params,
        to_float(jnp.asarray(pictures)),
        jnp.asarray(subject),
        jnp.asarray(subject[::-1]),
    )
    assert verdict.entities.shape == (len(pictures), 4)
    assert relation.shape == (len(pictures), 4)
    for ours, theirs in ((verdict, direct), (relation, asked)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


def test_relation_depends_on_the_order_of_the_pair(judge: NetworkJudge, pictures: np.ndarray):
    zeros, ones = np.zeros(len(pictures), int), np.ones(len(pictures), int)
    there, back = judge.relation(pictures, zeros, ones), judge.relation(pictures, ones, zeros)
    assert np.abs(there - back).max() > 1e-3


@pytest.mark.slow
def test_saved_judge_comes_back_in_bfloat16(
    judge: NetworkJudge, tmp_path: Path, pictures: np.ndarray
):
    judge.save(tmp_path)
    read = NetworkJudge.load(tmp_path)
    assert read.config == LABELS
    rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), judge.params)
    jax.tree.map(np.testing.assert_array_equal, read.params, rounded)
    np.testing.assert_allclose(read(pictures).style, judge(pictures).style, atol=0.1)


def test_shows_agrees_with_the_logits(judge: NetworkJudge, pictures: np.ndarray):
    verdict = judge(pictures)
    labels = ["bar", "dark"] * len(pictures)
    expected = np.where(
        np.arange(len(pictures)) % 2 == 0, verdict.entities[:, 2] > 0, verdict.style.argmax(-1) == 1
    )
    assert np.array_equal(judge.shows_each(pictures, labels[: len(pictures)]), expected)
    assert np.array_equal(judge.shows(pictures, "disc"), verdict.entities[:, 0] > 0)


def test_kinds_and_unknown_names(judge: NetworkJudge, pictures: np.ndarray):
    assert [judge.kind(name) for name in ("cross", "dark", "on")] == ["entity", "style", "relation"]
    with pytest.raises(InputError, match=r"'sqare'.*'square'"):
        judge.kind("sqare")
    with pytest.raises(InputError, match="'on' is a relation"):
        judge.shows_each(pictures[:1], ["on"])


def test_unusable_pictures_are_refused(judge: NetworkJudge):
    with pytest.raises(InputError, match="uint8"):
        judge(np.zeros((2, 32, 32, 3), np.uint8))


def test_unusable_folders_are_refused(judge: NetworkJudge, tmp_path: Path):
    with pytest.raises(InputError, match="has no config"):
        NetworkJudge.load(tmp_path / "none")
    judge.save(tmp_path)
    weights = tmp_path / "judge.safetensors"
    tensors = read_file(weights)
    tensors["surplus"] = tensors.pop("seek/bias")
    tensors["style_head/bias"] = np.zeros(7, np.float32)
    write_file(weights, tensors, {})
    with pytest.raises(InputError, match="seek/bias, style_head/bias, surplus"):
        NetworkJudge.load(tmp_path)
    weights.write_bytes(b"torn")
    with pytest.raises(InputError, match=r"judge\.safetensors"):
        NetworkJudge.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"entities": ["disc"]}))
    with pytest.raises(InputError, match="lacks relations, styles"):
        NetworkJudge.load(tmp_path)
    names = {"entities": ["disc"], "styles": ["plain"], "relations": ["on"]}
    for name, value in (("widths", [8, 0, 8]), ("blocks", [1, -1, 1])):
        (tmp_path / "config.json").write_text(json.dumps(names | {name: value}))
        with pytest.raises(InputError, match=f"{name} = .*must be from 1 to 4096"):
            NetworkJudge.load(tmp_path)


@pytest.mark.parametrize(("found", "of"), [(0, 64), (13, 64), (64, 64)])
def test_intervals_are_wilsons(found: int, of: int):
    z = 1.959963984540054
    p = found / of
    middle = (p + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * np.sqrt(p * (1 - p) / of + z**2 / (4 * of**2))
    value = wilson_interval(found, of)
    assert value["share"] == p
    np.testing.assert_allclose(
        [value["low"], value["high"]], [middle - half, middle + half], atol=1e-9
    )


@pytest.mark.slow
def test_questions_are_answered_as_the_scenes_are_labelled():
    made = scenes(400)
    inverse = judge_training.inverse_relations(RELATIONS, INVERSE)
    assert inverse.tolist() == [1, 0, 3]
    data = judge_training.judge_data(sprites(), made, inverse)
    rows = jnp.arange(400)
    subject, other, answer, weight = map(
        np.asarray, judge_training.questions(jax.random.key(0), rows, data)
    )
    assert (weight[made.relation >= 0] > 0).mean() > 0.8
    seen = set()
    for i in np.flatnonzero(weight):
        pair = subject[i], other[i]
        if pair == (made.subject[i], made.object[i]):
            assert answer[i] == made.relation[i]
            seen.add("as made")
        elif pair == (made.object[i], made.subject[i]):
            assert answer[i] == inverse[made.relation[i]]
            seen.add("turned")
        else:
            assert answer[i] == len(RELATIONS)
            assert made.entities[i, list(pair)].sum() == 1
            seen.add("absent")
    assert seen == {"as made", "turned", "absent"}


@pytest.mark.slow
def test_augmentation_is_mild_and_wiping_is_not():
    data = judge_training.judge_data(sprites(), scenes(64), np.array([1, 0, 3]))
    clean = data.scenes.pictures(jnp.arange(64))
    changed = judge_training.augment(jax.random.key(0), clean)
    assert changed.shape == clean.shape
    assert float(jnp.abs(changed).max()) <= 1
    similar = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(clean, changed, strict=True)]
    assert np.mean(similar) > 0.8
    assert not np.array_equal(clean, changed)
    edges = [
        float(jnp.abs(jnp.diff(each, axis=2)).max()) for each in (clean, judge_training.wipe(clean))
    ]
    assert edges[1] < 0.25 * edges[0]


@pytest.mark.slow
def test_training_goes_on_where_it_was_cut_off(tmp_path: Path):
    inverse = judge_training.inverse_relations(LABELS.relations, INVERSE)
    data = judge_training.judge_data(sprites(), scenes(96), inverse)
    arguments = {"batch": 2, "held_out": 32, "dtype": jnp.float32}
    judge_training.train(data, LABELS, tmp_path / "work", tmp_path / "judge", 1, **arguments)
    once = NetworkJudge.load(tmp_path / "judge")
    shares = judge_training.train(
        data, LABELS, tmp_path / "work", tmp_path / "judge", 2, **arguments
    )
    twice = NetworkJudge.load(tmp_path / "judge")
    lines = (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [1, 2]
    kernel = "entity_head"
    assert not np.array_equal(once.params[kernel]["kernel"], twice.params[kernel]["kernel"])
    assert set(shares) == {"entity", "style", "relation", "relation_swapped"}
    assert json.loads((tmp_path / "judge" / "accuracy.json").read_text())["held_out"] == 32


@pytest.mark.slow
def test_the_loss_reaches_every_parameter_and_falls():
    data = judge_training.judge_data(sprites(), scenes(256), np.array([1, 0, 3]))
    network = JudgeNetwork(LABELS)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def update(params, state, key):
        loss = partial(judge_training.judge_loss, network, 256, 16)
        (value, parts), slope = jax.value_and_grad(loss, has_aux=True)(params, key, data)
        change, state = optimizer.update(slope, state)
        return optax.apply_updates(params, change), state, value, parts, slope

    params = init(network, jax.random.key(0))
    state = optimizer.init(params)
    values = []
    for number in range(20):
        params, state, value, parts, slope = update(params, state, jax.random.key(number))
        values.append(float(value))
        if number == 0:
            silent = [path for path, leaf in flatten(slope).items() if not np.any(leaf)]
            assert silent == []
            assert value == pytest.approx(sum(map(float, parts.values())), rel=1e-5)
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])
