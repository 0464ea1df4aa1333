"""The Qwen3 language model as FLUX.2 [klein]'s text encoder: hidden states of three of its layers.

Matrix products run in the module's `dtype`, parameters keep their dtype; norms, rotations and
softmax are float32. Tokens see those before them that are no padding.
Axis letters: B batch, T tokens, E model width, H heads, K heads of keys and values, D head width,
F hidden width, O = E times the number of chosen layers.
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

FILE = "text_encoder/config.json"
# The layers after which [klein] reads hidden states, counted from 1.
LAYERS = (9, 18, 27)


@dataclass(frozen=True)
class Qwen3Config:
    """Sizes, with the names and defaults of a transformers `config.json`.

    Attributes:
        rope_theta: base of the rotary positions' frequencies.
        layers: those whose hidden states are the output; blocks after the last one are not run.
    """

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    rope_theta: float = 10000.0
    layers: tuple[int, ...] = LAYERS

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Qwen3Config":
        """Reads the fields from a parsed `config.json`.

        Raises:
            InputError: a value is of the wrong type, the model is no Qwen3, or it has too few
                layers.
        """
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        require(
            {"model_type": None, "rope_type": "default"} | dict(config) | dict(rope),
            FILE,
            model_type=("qwen3",),
            hidden_act=("silu",),
            attention_bias=(False,),
            rms_norm_eps=(NORM_EPS,),
            rope_type=("default",),
            use_sliding_window=(False,),
        )
        base = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
        read = read_fields(cls, {**config, **base}, FILE)
        # After the last layer transformers returns normalised states.
        if max(read.layers) >= read.num_hidden_layers:
            raise InputError(
                f"{FILE}: num_hidden_layers = {read.num_hidden_layers} must be above "
                f"{max(read.layers)}: FLUX.2 reads the hidden states of layers {read.layers}"
            )
        if read.num_attention_heads % read.num_key_value_heads:
            raise InputError(
                f"{FILE}: num_attention_heads = {read.num_attention_heads} must be a multiple of "
                f"num_key_value_heads = {read.num_key_value_heads}"
            )
        return read

    @property
    def width(self) -> int:
        """Width of the output: the chosen layers side by side."""
        return len(self.layers) * self.hidden_size


def rotate(x: Float[Array, "B T H D"], base: float) -> Float[Array, "B T H D"]:
    """Rotary positions: channel i of the first half is paired with channel i of the second."""
    half = x.shape[-1] // 2
    frequencies = jnp.asarray(base ** -(np.arange(half) / half), jnp.float32)
    angle = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None, None] * frequencies
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


class SelfAttention(nn.Module):
    """Causal attention, with normalised queries and keys; heads share keys and values."""

    config: Qwen3Config
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T E"], mask: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Attends to the tokens up to each one where the mask is 1."""
        config = self.config

        def project(name: str, heads: int) -> Array:
            features = heads * config.head_dim
            y = nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)(x)
            return y.reshape(*x.shape[:2], heads, config.head_dim)

        q = RMSNorm(name="q_norm")(project("q_proj", config.num_attention_heads))
        k = RMSNorm(name="k_norm")(project("k_proj", config.num_key_value_heads))
        v = project("v_proj", config.num_key_value_heads)
        q, k = rotate(q, config.rope_theta), rotate(k, config.rope_theta)
        seen = jnp.broadcast_to(mask[:, None, None, :] > 0, (*mask.shape[:1], 1, 1, x.shape[1]))
        mixed = jax.nn.dot_product_attention(
            q, k, v, mask=seen, is_causal=True, implementation="xla"
        )
        mixed = mixed.reshape(*x.shape[:2], -1)
        return nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="o_proj")(mixed)


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x)."""

    config: Qwen3Config
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
        """Applies the layer."""
        gate, value = (
            nn.Dense(self.config.intermediate_size, use_bias=False, dtype=self.dtype, name=name)(x)
            for name in ("gate_proj", "up_proj")
        )
        y = nn.silu(gate) * value
        return nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="down_proj")(y)


class Block(nn.Module):
    """Attention and MLP, each with pre-norm and residual connection."""

    config: Qwen3Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T E"], mask: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T E"], Float[Array, "B T E"]]:
        """Applies the block; the signature is that of `nn.scan`, and both results are the same."""
        y = RMSNorm(name="attn_norm")(x)
        x = x + SelfAttention(self.config, self.dtype, name="attn")(y, mask)
        y = RMSNorm(name="mlp_norm")(x)
        x = x + GatedMLP(self.config, self.dtype, name="mlp")(y)
        return x, x


class Qwen3Encoder(nn.Module):
    """The blocks up to the last chosen layer, scanned over stacked weights."""

    config: Qwen3Config
    dtype: DTypeLike = jnp.float32
    # See `FluxTransformer`.
    unroll: bool = False

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"], mask: Int[Array, "B T"]) -> Float[Array, "B T O"]:
        """Returns the chosen layers' hidden states side by side, for every token.

        Args:
            ids: tokens of the chat template with the prompt, then padding.
            mask: 0 for padding. The states of padding depend on the prompt, and FLUX.2's
                transformer sees them.
        """
        config = self.config
        words = nn.Embed(config.vocab_size, config.hidden_size, name="token_embedder")
        blocks = scanned(Block, max(config.layers), self.unroll)
        _, states = blocks(config, self.dtype, name="blocks")(words(ids).astype(self.dtype), mask)
        return jnp.concatenate([states[layer - 1] for layer in config.layers], axis=-1)
