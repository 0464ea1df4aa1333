"""Train the judge on rendered scenes; it never sees a picture that the model generated.

Axis letters: B batch, N scenes, h w picture sides, E entities, R relations.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.judge_network import JudgeConfig, JudgeNetwork, ask, init
from recipes.emoji_flux import fit
from recipes.emoji_flux.scenes import Scenes
from recipes.emoji_flux.vae_training import SceneData

BATCH = 512
HELD_OUT = 8192
# Share of pictures blurred beyond recognition, whose entities are labelled as absent.
WIPED = 0.05
# Shares of the relation questions with subject and object swapped, and with an entity that is not
# shown; the rest are asked as the scene was composed.
SWAPPED, ABSENT = 0.25, 0.25


class JudgeData(flax.struct.PyTreeNode):
    """Scenes with their labels, on the device.

    Attributes:
        inverse: for every relation, that of the object to the subject, or R if none of the
            relations holds.
    """

    scenes: SceneData
    entities: Float[Array, "N E"]
    style: Int[Array, "N"]
    relation: Int[Array, "N"]
    subject: Int[Array, "N"]
    object: Int[Array, "N"]
    inverse: Int[Array, "R"]


def judge_data(pixels: np.ndarray, scenes: Scenes, inverse: Int[np.ndarray, "R"]) -> JudgeData:
    """Move sprites, scenes and labels to the device."""
    return JudgeData(
        SceneData.of(pixels, scenes),
        jnp.asarray(scenes.entities, jnp.float32),
        *(
            jnp.asarray(each, jnp.int32)
            for each in (scenes.style, scenes.relation, scenes.subject, scenes.object, inverse)
        ),
    )


def inverse_relations(relations: tuple[str, ...], pairs: Mapping[str, str]) -> np.ndarray:
    """Index of every relation's inverse; len(relations) if it has none.

    Args:
        relations: the names.
        pairs: relation and inverse by name; a symmetric relation is its own inverse.
    """
    return np.array(
        [relations.index(pairs[name]) if name in pairs else len(relations) for name in relations]
    )


def blur(pictures: Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
    """Binomial filter [1 2 1] / 4 down and across."""
    for axis in (1, 2):
        padding = [(1, 1) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(pictures, padding, mode="edge")
        size = pictures.shape[axis]
        before, middle, after = (
            jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)
        )
        pictures = (before + 2 * middle + after) / 4
    return pictures


def augment(key: PRNGKeyArray, pictures: Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
    """Make renders as imperfect as samples: shifts, colour changes, blur, noise and a grid.

    Args:
        key: random key.
        pictures: values in [-1, 1].
    """
    batch, height, width, _ = pictures.shape
    keys = iter(jax.random.split(key, 12))

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        return jax.random.uniform(next(keys), (batch, *shape), minval=low, maxval=high)

    reach = 3
    padded = jnp.pad(pictures, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="edge")
    corner = jax.random.randint(next(keys), (batch, 2), 0, 2 * reach + 1)
    pictures = jax.vmap(
        lambda picture, at: jax.lax.dynamic_slice(picture, (at[0], at[1], 0), (height, width, 3))
    )(padded, corner)
    pictures = pictures * uniform(1, 1, 3, low=0.85, high=1.1) + uniform(
        1, 1, 3, low=-0.1, high=0.1
    )
    for _ in range(2):
        mix = uniform(1, 1, 1)
        pictures = (1 - mix) * pictures + mix * blur(pictures)
    # Latent cells are 4 pixels wide and tokens 8: errors of the autoencoder and of the transformer.
    for cell in (1, 4, 8):
        shape = (batch, height // cell, width // cell, 3)
        grain = jax.random.normal(next(keys), shape) * uniform(1, 1, 1, high=0.12 / cell**0.5)
        pictures = pictures + grain.repeat(cell, 1).repeat(cell, 2)
    return jnp.clip(pictures, -1, 1)


def wipe(pictures: Float[Array, "B h w 3"], cells: int = 4) -> Float[Array, "B h w 3"]:
    """Downsample pictures to cells x cells and scale them up again: colours without shapes."""
    batch, height, width, channels = pictures.shape
    small = pictures.reshape(batch, cells, height // cells, cells, width // cells, channels)
    return jax.image.resize(small.mean((2, 4)), pictures.shape, "linear")


def questions(key: PRNGKeyArray, rows: Int[Array, "B"], data: JudgeData) -> tuple[Array, ...]:
    """Sample ordered pairs to ask about, with their answers.

    Returns:
        subject [B], object [B], answer [B] in 0..R (R means none) and weight [B], 0 where the
        answer is not certain.
    """
    none = len(data.inverse)
    kind_key, side_key, other_key = jax.random.split(key, 3)
    subject, other = data.subject[rows], data.object[rows]
    relation = data.relation[rows]
    known = relation >= 0
    draw = jax.random.uniform(kind_key, rows.shape)
    absent = (draw > 1 - ABSENT) | ~known
    swap = (draw < SWAPPED) & ~absent

    stranger = jax.random.randint(other_key, rows.shape, 0, data.entities.shape[1])
    truly_absent = data.entities[rows, stranger] == 0
    as_subject = jax.random.bernoulli(side_key, 0.5, rows.shape)
    # In a scene of one entity, that entity is the subject; its object may be undefined.
    anchor = jnp.argmax(data.entities[rows], axis=1)
    asked = jnp.where(
        absent, jnp.where(as_subject, stranger, anchor), jnp.where(swap, other, subject)
    )
    about = jnp.where(
        absent, jnp.where(as_subject, anchor, stranger), jnp.where(swap, subject, other)
    )
    turned = data.inverse[relation]
    answer = jnp.where(absent, none, jnp.where(swap, turned, relation))
    weight = jnp.where(absent, truly_absent, subject != other).astype(jnp.float32)
    return asked, about, answer, weight


def judge_loss(
    network: JudgeNetwork, rows: int, batch: int, params: PyTree, key: PRNGKeyArray, data: JudgeData
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Binary cross-entropy of entities, cross-entropy of style and of the relation asked about.

    Args:
        network: the judge.
        rows: number of training scenes, the first ones.
        batch: pictures per update.
        params: the judge's parameters.
        key: random key.
        data: scenes and labels.
    """
    row_key, picture_key, wipe_key, question_key = jax.random.split(key, 4)
    chosen = jax.random.randint(row_key, (batch,), 0, rows)
    wiped = jax.random.bernoulli(wipe_key, WIPED, (batch,))
    pictures = data.scenes.pictures(chosen)
    pictures = jnp.where(wiped[:, None, None, None], wipe(pictures), pictures)
    pictures = augment(picture_key, pictures)
    subject, other, answer, weight = questions(question_key, chosen, data)
    answer = jnp.where(wiped, len(data.inverse), answer)

    verdict, relation = ask(network, params, pictures, subject, other)
    present = data.entities[chosen] * ~wiped[:, None]
    entity = optax.sigmoid_binary_cross_entropy(verdict.entities, present).sum(-1).mean()
    styled = optax.softmax_cross_entropy_with_integer_labels(verdict.style, data.style[chosen])
    related = optax.softmax_cross_entropy_with_integer_labels(relation, answer)
    style = jnp.mean(styled * ~wiped)
    relation = jnp.sum(related * weight) / jnp.maximum(jnp.sum(weight), 1)
    losses = {"entity": entity, "style": style, "relation": relation}
    return entity + style + relation, losses


def accuracy(
    judge: NetworkJudge, data: JudgeData, rows: Int[np.ndarray, "N"], batch: int = 512
) -> dict[str, float]:
    """Accuracy on clean renders.

    Returns:
        Shares of scenes in [0, 1]: `entity` (exactly the right set), `style`, and of scenes with
        a relation: `relation` and `relation_swapped` (subject and object swapped).
    """
    network = JudgeNetwork(judge.config)

    @jax.jit
    def correct(params: PyTree, rows: Array, data: JudgeData) -> dict[str, Array]:
        pictures = data.scenes.pictures(rows)
        relation = data.relation[rows]
        pair = data.subject[rows], data.object[rows]
        verdict, asked = ask(network, params, pictures, *pair)
        _, swapped = ask(network, params, pictures, *reversed(pair))
        known = (relation >= 0) & (pair[0] != pair[1])
        return {
            "entity": jnp.all((verdict.entities > 0) == (data.entities[rows] > 0), axis=-1),
            "style": verdict.style.argmax(-1) == data.style[rows],
            "relation": jnp.where(known, asked.argmax(-1) == relation, jnp.nan),
            "relation_swapped": jnp.where(
                known, swapped.argmax(-1) == data.inverse[relation], jnp.nan
            ),
        }

    padded = np.pad(rows, (0, -len(rows) % batch), mode="edge").reshape(-1, batch)
    parts = [correct(judge.params, jnp.asarray(part), data) for part in padded]
    joined = {
        name: np.concatenate([np.asarray(part[name], float) for part in parts])[: len(rows)]
        for name in parts[0]
    }
    return {
        name: float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")
        for name, values in joined.items()
    }


def train(
    data: JudgeData,
    labels: JudgeConfig,
    workdir: Path,
    out: Path,
    updates: int = 10_000,
    batch: int = BATCH,
    held_out: int = HELD_OUT,
    dtype: DTypeLike = jnp.bfloat16,
) -> dict[str, float]:
    """Train the judge and write its folder.

    Args:
        data: labelled scenes, see `judge_data`; the last `held_out` of them are for measuring.
        labels: names of entities, styles and relations, in the order of the scenes' labels.
        workdir: for checkpoints and metrics; an interrupted run resumes from there.
        out: where the judge's folder is written.
        updates: number of updates.
        batch: pictures per update.
        held_out: scenes for measuring.
        dtype: compute dtype of training.

    Returns:
        `accuracy` on the held-out scenes, also written to `accuracy.json` in `out`.
    """
    count = len(data.style)
    network = JudgeNetwork(labels, dtype)
    optimizer = fit.adamw(1e-3, updates)
    params = init(JudgeNetwork(labels), jax.random.key(0))
    params = fit.fit(
        fit.start(params, optimizer),
        partial(judge_loss, network, count - held_out, fit.per_device(batch)),
        data,
        optimizer,
        updates,
        workdir,
        title="judge",
    )
    NetworkJudge(labels, params).save(out)
    # Measured as shipped, after rounding to the file's bfloat16.
    rows = np.arange(count - held_out, count)
    shares = accuracy(NetworkJudge.load(out), data, rows, min(batch, held_out))
    (out / "accuracy.json").write_text(
        json.dumps({"held_out": held_out, "updates": updates, **shares}, indent=2) + "\n"
    )
    return shares
