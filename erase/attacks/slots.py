"""Prompts with embeddings of any kind in the concept's place, and the way to the velocity.

Axis letters: B prompts, T text tokens, K tokens in the concept's place, E text width, P pooled
width, N points, S image tokens, C latent channels.
"""

import re
from collections.abc import Sequence
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from erase.attacks.points import Points
from erase.data.words.templates import SLOT_PATTERN, phrase
from erase.methods.parts.losses import squared_error
from flux_jax import sharding
from flux_jax.errors import InputError
from flux_jax.models.t5 import T5Encoder
from flux_jax.pipeline import Pipeline
from flux_jax.programs import Conditioning, Denoiser


class SlotPrompts(flax.struct.PyTreeNode):
    """Prompts with K open places for tokens.

    Attributes:
        ids: T5's token ids; padding at the open places.
        slots: 1 where a prompt has the k-th of the tokens.
        pooled: CLIP's output for the prompt without the concept, since only T5 has the tokens.
    """

    ids: Int[Array, "*B T"]
    slots: Float[Array, "*B T K"]
    pooled: Float[Array, "*B P"]

    def __getitem__(self, rows: Any) -> "SlotPrompts":
        """A subset of the prompts."""
        return jax.tree.map(lambda leaf: leaf[rows], self)


def slot_prompts(pipe: Pipeline, templates: Sequence[str], count: int) -> SlotPrompts:
    """Tokenise sentences with "{}" in the concept's place, which stays open for tokens.

    Args:
        pipe: the frozen model.
        templates: the sentences.
        count: K.

    Raises:
        InputError: a sentence with so many tokens is over the limit.
    """
    rows = [_row(pipe, template, count) for template in templates]
    bare = [phrase(template, "") for template in templates]
    pipe.remember(bare, len(bare))
    ids, slots = (np.stack(part) for part in zip(*rows, strict=True))
    return SlotPrompts(*sharding.gather(pipe.mesh, (ids, slots, pipe.recall(bare).pooled)))


def _row(pipe: Pipeline, template: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [T] of a sentence, and its open places [T, K]."""
    tokenizer = pipe.tokenizer_2
    limit = tokenizer.model_max_length
    # A plural's ending would belong to the word.
    parts = re.split(rf"{SLOT_PATTERN}(?:s\b)?", template)
    ids, at = [], []
    for index, part in enumerate(parts):
        if index:
            at += [(len(ids) + place, place) for place in range(count)]
            ids += [tokenizer.pad_token_id] * count
        ids += tokenizer(part, add_special_tokens=False).input_ids
    ids.append(tokenizer.eos_token_id)
    if len(ids) > limit:
        raise InputError(
            f"tokens = {count}: {template!r:.100} has {len(ids)} tokens with them, over the limit "
            f"of {limit}; take fewer"
        )
    slots = np.zeros((limit, count), np.float32)
    slots[tuple(np.transpose(at))] = 1
    return np.array(ids + [tokenizer.pad_token_id] * (limit - len(ids)), np.int32), slots


class TokenModel(flax.struct.PyTreeNode):
    """The attacked model as a function of the embeddings in the concept's place.

    Attributes:
        encoder: T5's encoder, static in compiled programs.
        params: its parameters.
        denoiser: the attacked transformer.
        prompts: sentences to search with.
    """

    encoder: T5Encoder = flax.struct.field(pytree_node=False)
    params: PyTree
    denoiser: Denoiser
    prompts: SlotPrompts

    @staticmethod
    def of(pipe: Pipeline, denoiser: Denoiser, prompts: SlotPrompts) -> "TokenModel":
        """Build it from the frozen model's encoder."""
        return TokenModel(pipe.text_encoder_2, pipe.params["text_encoder_2"], denoiser, prompts)

    @property
    def table(self) -> Float[Array, "V E"]:
        """Embeddings of the vocabulary."""
        return table_of(self.params)

    def encode(self, prompts: SlotPrompts, tokens: Float[Array, "K E"]) -> Conditioning:
        """Encode prompts with embeddings in their open places."""
        text = encode(self.encoder, self.params, prompts, tokens)
        return Conditioning(text, prompts.pooled)

    def error(
        self, tokens: Float[Array, "K E"], points: Points, rows: Int[Array, "N"]
    ) -> Float[Array, ""]:
        """Mean squared error of the velocity at some points, with the tokens in their prompts.

        Args:
            tokens: embeddings in the concept's place.
            points: the concept's pictures with noise.
            rows: which of them.
        """
        chosen = points[rows]
        conditioning = self.encode(self.prompts[chosen.prompts], tokens)
        velocity = self.denoiser.velocity(chosen.latents, conditioning, chosen.times)
        return squared_error(velocity, chosen.targets)


def table_of(params: PyTree) -> Float[Array, "V E"]:
    """Return the embeddings of T5's vocabulary, from its parameters."""
    return params["token_embedder"]["embedding"].astype(jnp.float32)


def encode(
    encoder: T5Encoder, params: PyTree, prompts: SlotPrompts, tokens: Float[Array, "K E"]
) -> Float[Array, "B T E"]:
    """Encode prompts with T5, with embeddings in their open places.

    Args:
        encoder: T5's encoder.
        params: its parameters.
        prompts: the prompts.
        tokens: the embeddings.
    """
    words = table_of(params)[prompts.ids]
    open_places = jnp.sum(prompts.slots, axis=-1, keepdims=True)
    put = jnp.einsum("btk,ke->bte", prompts.slots, tokens)
    embedded = words * (1 - open_places) + put
    return cast(Array, encoder.apply({"params": params}, prompts.ids, embedded))


@jax.jit
def held_out_errors(
    model: TokenModel, points: Points, tokens: Float[Array, "R K E"]
) -> Float[Array, "R"]:
    """Mean error of several tokens over all points, one point at a time to save memory."""

    def of_point(row: Int[Array, ""]) -> Float[Array, "R"]:
        return jax.vmap(lambda each: model.error(each, points, row[None]))(tokens)

    return jnp.mean(jax.lax.map(of_point, jnp.arange(len(points.times))), axis=0)
