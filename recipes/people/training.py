"""Teach the persons to the small FLUX: an adapter on its transformer, and its T5 encoder.

With the encoder frozen, the adapter drew persons, but not those that the captions name.

Axis letters: B batch, N pictures, T and K text tokens, S image tokens, C packed latent channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8

from flux_jax import lora
from flux_jax.pipeline import Pipeline, batches
from flux_jax.programs import Conditioning, Denoiser, encode
from recipes.emoji_flux import captions, fit
from recipes.emoji_flux.flux_training import GUIDANCE, draw_times
from recipes.people.scenes import Pictures, as_uint8

SIDE = 64
# Of the adapter, in bfloat16 about 3 MB.
RANK = 24
RATE = 4e-4
# Pictures of the frozen model that the adapter has to leave as they are, for each batch of persons.
OTHERS = 0.5
# Share of the others' captions that are empty, and of pooled vectors that are left out.
EMPTY, DROP_POOLED = 0.1, 0.5


class Captioned(flax.struct.PyTreeNode):
    """Pictures with their captions' tokens, on the device."""

    latents: Float[Array, "N S C"]
    clip_ids: Int[Array, "N K"]
    t5_ids: Int[Array, "N T"]

    def sample(self, key: PRNGKeyArray, count: int) -> "Captioned":
        """Return random rows."""
        rows = jax.random.randint(key, (count,), 0, len(self.latents))
        return jax.tree.map(lambda leaf: leaf[rows], self)


class Data(flax.struct.PyTreeNode):
    """What the loss samples from.

    Attributes:
        persons: pictures of persons.
        others: the frozen model's pictures of other things.
        empty: the empty prompt's tokens, in place of a picture.
        frozen: the frozen model's parameters, by component.
    """

    persons: Captioned
    others: Captioned
    empty: Captioned
    frozen: PyTree


class Taught(flax.struct.PyTreeNode):
    """What is trained: the transformer's adapter and the T5 encoder's parameters."""

    adapter: PyTree
    text_encoder_2: PyTree


class Samples(flax.struct.PyTreeNode):
    """Inputs of the transformer.

    Attributes:
        latents: x_t.
        times: t.
        captions: tokens of the captions.
        keep: whether the pooled vector is kept.
        guidance: distilled guidance scale.
    """

    latents: Float[Array, "B S C"]
    times: Float[Array, "B"]
    captions: Captioned
    keep: Bool[Array, "B 1"]
    guidance: Float[Array, "B"]


@dataclass(frozen=True)
class Teaching:
    """The static parts of the loss.

    Attributes:
        pipe: the frozen model's modules.
        batch: pictures of persons for each device.
    """

    pipe: Pipeline
    batch: int

    def encode(self, params: PyTree, rows: Captioned, keep: Array) -> Conditioning:
        """Encode captions; where `keep` is False, the pooled vector is 0."""
        pipe, encoders = self.pipe, (params["text_encoder"], params["text_encoder_2"])
        ids = rows.clip_ids.astype(jnp.int32), rows.t5_ids.astype(jnp.int32)
        encoded = encode(pipe.text_encoder, pipe.text_encoder_2, *encoders, *ids)
        return encoded.replace(pooled=jnp.where(keep, encoded.pooled, 0))

    def velocity(
        self, frozen: PyTree, taught: "Taught | None", rows: "Samples"
    ) -> Float[Array, "B S C"]:
        """The velocity of the taught or, with None, of the frozen model, in float32."""
        params = frozen if taught is None else frozen | {"text_encoder_2": taught.text_encoder_2}
        text = self.encode(params, rows.captions, rows.keep)
        adapter = None if taught is None else taught.adapter
        ids = self.pipe.image_ids(SIDE, SIDE)
        model = Denoiser(self.pipe.transformer, frozen["transformer"], ids, rows.guidance, adapter)
        return model.velocity(rows.latents, text, rows.times).astype(jnp.float32)

    def loss(
        self, taught: "Taught", key: PRNGKeyArray, data: Data
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Flow matching on the persons' pictures at guidance 1, and what has to stay.

        The second part is the squared error to the frozen model on other things, at any guidance.
        Guidance is not distilled again: the frozen model's response to it holds for persons, too.
        """
        keys = jax.random.split(key, 3)
        persons, target = self.noised(data.persons, keys[0], self.batch)
        persons = persons.replace(guidance=jnp.ones(self.batch))
        count = round(OTHERS * self.batch)
        rest, _ = self.noised(self.others(data, keys[1], count), keys[2], count)
        both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), persons, rest)
        velocity = self.velocity(data.frozen, taught, both)
        same = self.velocity(data.frozen, None, rest)
        parts = {
            "persons": jnp.mean(jnp.square(velocity[: self.batch] - target)),
            "others": jnp.mean(jnp.square(velocity[self.batch :] - same)),
        }
        return sum(parts.values(), jnp.zeros(())), parts

    def noised(self, data: Captioned, key: PRNGKeyArray, count: int) -> tuple["Samples", Array]:
        """Sample pictures with noise mixed in at times as in the small model's training.

        Returns:
            Samples with guidance drawn from `GUIDANCE`, and the velocity ε - x_0 [B, S, C].
        """
        keys = jax.random.split(key, 6)
        rows = data.sample(keys[0], count)
        clean = rows.latents.astype(jnp.float32)
        noise = jax.random.normal(keys[1], clean.shape)
        times = draw_times(keys[2], keys[3], count)
        guidance = jax.random.uniform(keys[4], (count,), minval=GUIDANCE[0], maxval=GUIDANCE[1])
        keep = jax.random.bernoulli(keys[5], 1 - DROP_POOLED, (count, 1))
        wide = times[:, None, None]
        latents = (1 - wide) * clean + wide * noise
        return Samples(latents, times, rows, keep, guidance), noise - clean

    def others(self, data: Data, key: PRNGKeyArray, count: int) -> Captioned:
        """Sample pictures to leave as they are, some with the empty prompt."""
        keys = jax.random.split(key)
        others = data.others.sample(keys[0], count)
        left_out = jax.random.bernoulli(keys[1], EMPTY, (count, 1))
        return others.replace(
            clip_ids=jnp.where(left_out, data.empty.clip_ids, others.clip_ids),
            t5_ids=jnp.where(left_out, data.empty.t5_ids, others.t5_ids),
        )


def person_data(pipe: Pipeline, pixels: UInt8[np.ndarray, "M 64 64 4"], pictures: Pictures) -> Any:
    """Encode the persons' pictures and tokenise their captions."""
    count, size = len(pictures.captions), 512
    parts = []
    for rows in batches(count, size, "encoding pictures"):
        drawn = as_uint8(pictures.render(pixels, np.array(rows)))
        parts.append(np.asarray(pipe.encode_pictures(drawn)))
    return captioned(pipe, np.concatenate(parts)[:count], pictures.captions)


def other_data(pipe: Pipeline, count: int, seed: int) -> Captioned:
    """The frozen model's pictures of its own world, as latents."""
    rng, size = np.random.default_rng(seed), 512
    texts = [captions.draw(rng).text for _ in range(count)]
    parts = []
    for rows in batches(count, size, "pictures to keep"):
        text = pipe.encode([texts[row] for row in rows], cut=True)
        noise = pipe.noise([seed + row for row in rows], SIDE, SIDE)
        parts.append(np.asarray(pipe.denoise(noise, text, pipe.image_ids(SIDE, SIDE))))
    return captioned(pipe, np.concatenate(parts)[:count], texts)


def captioned(pipe: Pipeline, latents: np.ndarray, texts: Sequence[str]) -> Captioned:
    """Join latents with their captions' tokens, cut at the model's limit."""
    clip_ids, t5_ids = pipe.tokenize(texts, cut=True)
    return Captioned(jnp.asarray(latents), jnp.asarray(clip_ids), jnp.asarray(t5_ids))


def train(
    pipe: Pipeline, persons: Captioned, others: Captioned, folder: Path, updates: int, batch: int
) -> Taught:
    """Train the adapter and the encoder; resumes from checkpoints.

    Args:
        pipe: the frozen model.
        persons: pictures of persons.
        others: the frozen model's pictures.
        folder: for the checkpoints.
        updates: their number.
        batch: pictures of persons per update.

    Returns:
        The averaged weights; the adapter has A and B of the dense layers in the blocks.
    """
    empty = captioned(pipe, np.zeros((1, *persons.latents.shape[1:]), np.float32), [""])
    names = ("transformer", "text_encoder", "text_encoder_2")
    data = Data(persons, others, empty, {name: pipe.params[name] for name in names})
    # On a GPU, blocks as narrow as these run faster without a loop over them (10 ms an update
    # instead of 15); on a CPU, compiling them one by one takes longer than the updates gain.
    unroll = jax.default_backend() != "cpu"
    modules: dict[str, Any] = {name: getattr(pipe, name).clone(unroll=unroll) for name in names}
    teaching = Teaching(replace(pipe, **modules), fit.per_device(batch))
    # Changes of the modulations made training diverge.
    targets = [path for path in sorted(lora.stacked(pipe.shapes)) if "/norm" not in path]
    first = Taught(
        lora.init(jax.random.key(0), pipe.shapes, targets, RANK), pipe.params["text_encoder_2"]
    )
    # A copy, in float32, since the state is donated.
    start = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), first)
    optimizer = fit.adamw(RATE, updates)
    state = fit.start(start, optimizer)
    average = fit.fit(state, teaching.loss, data, optimizer, updates, folder, title="persons")
    return jax.tree.map(np.asarray, average)
