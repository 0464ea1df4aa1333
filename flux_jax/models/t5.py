"""The T5 v1.1 encoder, FLUX's second text encoder.

Matrix products run in the module's `dtype`, parameters keep their dtype; norms and softmax are
float32. There is no attention mask: FLUX attends to padding tokens.
Axis letters: B batch, T tokens, E model width, H heads, D head width, F hidden width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flux_jax.errors import InputError
from flux_jax.models.config import read_fields, require
from flux_jax.models.layers import NORM_EPS, RMSNorm, scanned

FILE = "text_encoder_2/config.json"


@dataclass(frozen=True)
class T5Config:
    """Sizes, with the names and defaults of a transformers `config.json`."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "T5Config":
        """Reads the fields from a parsed `config.json`.

        Raises:
            InputError: a value is of the wrong type, or the encoder is not of version 1.1.
        """
        require(
            {"feed_forward_proj": "relu"} | dict(config),  # what an absent field stands for
            FILE,
            model_type=("t5",),
            feed_forward_proj=("gated-gelu",),
            dense_act_fn=("gelu_new",),
            layer_norm_epsilon=(NORM_EPS,),
        )
        read = read_fields(cls, config, FILE)
        buckets, distance = (
            read.relative_attention_num_buckets,
            read.relative_attention_max_distance,
        )
        if buckets < 4 or buckets % 4 or distance <= buckets // 4:
            raise InputError(
                f"{FILE}: relative_attention_num_buckets = {buckets} must be a multiple of 4, and "
                f"relative_attention_max_distance = {distance} above a quarter of it"
            )
        return read


def relative_position_bucket(
    offset: Int[np.ndarray, "*shape"], buckets: int, max_distance: int
) -> Int[np.ndarray, "*shape"]:
    """Bucket of each offset, key position minus query position (Raffel et al. 2020, section 2.1).

    One half of the buckets is for keys at or before the query, the other for keys after it. In
    each half the first half of the buckets are for one distance each; the others grow
    logarithmically up to `max_distance`, and the last one is for all greater distances.
    """
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # float32 in this order, as the published weights were trained: it decides the bucket edges.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int32), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)


class SelfAttention(nn.Module):
    """Attention with a learnt relative position bias; scores are not scaled."""

    config: T5Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T E"], bias: Float[Array, "1 H T T"]
    ) -> Float[Array, "B T E"]:
        """Attends over all tokens."""
        config = self.config
        q, k, v = (
            nn.Dense(config.num_heads * config.d_kv, use_bias=False, dtype=self.dtype, name=name)(
                x
            ).reshape(*x.shape[:2], config.num_heads, config.d_kv)
            for name in ("q", "k", "v")
        )
        mixed = jax.nn.dot_product_attention(q, k, v, bias, scale=1.0, implementation="xla")
        mixed = mixed.reshape(*x.shape[:2], -1)
        return nn.Dense(config.d_model, use_bias=False, dtype=self.dtype, name="o")(mixed)


class GatedFeedForward(nn.Module):
    """wo(gelu(wi_0 x) * wi_1 x), GELU with the tanh approximation."""

    config: T5Config
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
        """Applies the layer."""
        gate, value = (
            nn.Dense(self.config.d_ff, use_bias=False, dtype=self.dtype, name=name)(x)
            for name in ("wi_0", "wi_1")
        )
        y = nn.gelu(gate, approximate=True) * value
        return nn.Dense(self.config.d_model, use_bias=False, dtype=self.dtype, name="wo")(y)


class Block(nn.Module):
    """Attention and feed-forward, each with pre-norm and residual connection."""

    config: T5Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T E"], bias: Float[Array, "1 H T T"]
    ) -> tuple[Float[Array, "B T E"], None]:
        """Applies the block; the signature is that of `nn.scan`."""
        y = RMSNorm(name="attn_norm")(x)
        x = x + SelfAttention(self.config, self.dtype, name="attn")(y, bias)
        y = RMSNorm(name="ff_norm")(x)
        return x + GatedFeedForward(self.config, self.dtype, name="ff")(y), None


class T5Encoder(nn.Module):
    """The encoder stack; its blocks are scanned over stacked weights and share the bias table."""

    config: T5Config
    dtype: DTypeLike = jnp.float32
    # See `FluxTransformer`.
    unroll: bool = False

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B T"], embedded: Float[Array, "B T E"] | None = None
    ) -> Float[Array, "B T E"]:
        """Returns the output for every token, padding included.

        Args:
            ids: token ids.
            embedded: the tokens' embeddings, if they are not those of the ids.
        """
        config = self.config
        positions = np.arange(ids.shape[1])
        bucket = relative_position_bucket(
            positions[None, :] - positions[:, None],
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        )
        table = nn.Embed(
            config.relative_attention_num_buckets,
            config.num_heads,
            dtype=jnp.float32,
            name="relative_attention_bias",
        )
        bias = table(jnp.asarray(bucket)).transpose(2, 0, 1)[None]
        # In the table's dtype, because its gradient sums over tokens, many of them padding:
        # bfloat16 would lose small terms, and GPUs have no fast bfloat16 atomics.
        words = nn.Embed(config.vocab_size, config.d_model, name="token_embedder")
        blocks = scanned(Block, config.num_layers, self.unroll)
        x = words(ids) if embedded is None else embedded
        x, _ = blocks(config, self.dtype, name="blocks")(x.astype(self.dtype), bias)
        return RMSNorm(name="final_norm")(x)
