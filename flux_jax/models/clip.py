"""CLIP's text encoder, of which FLUX uses the pooled output.

Matrix products run in the module's `dtype`, parameters keep their dtype; norms and softmax are
float32.
Axis letters: B batch, T tokens, P model width, H heads, D head width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flux_jax.errors import InputError
from flux_jax.models.config import read_fields, require

FILE = "text_encoder/config.json"
# Configurations written before transformers fixed the end-of-text token have this id.
LEGACY_EOS = 2


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """CLIP-L's approximation of GELU, x sigmoid(1.702 x)."""
    return x * nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU with the error function."""
    return nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes, with the names and defaults of a transformers `config.json`."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "CLIPTextConfig":
        """Reads the fields from a parsed `config.json`, of the text encoder or of a whole CLIP.

        Raises:
            InputError: a value is of the wrong type, or is not implemented.
        """
        if config.get("model_type") == "clip":
            nested = config.get("text_config")
            config = nested if isinstance(nested, Mapping) else {}
        require(config, FILE, hidden_act=tuple(ACTIVATIONS))
        read = read_fields(cls, config, FILE)
        if read.hidden_size % read.num_attention_heads:
            raise InputError(
                f"{FILE}: hidden_size = {read.hidden_size} must be a multiple of "
                f"num_attention_heads = {read.num_attention_heads}"
            )
        return read


def layer_norm(config: CLIPTextConfig, name: str) -> nn.LayerNorm:
    """Layer norm in float32 with two-pass variance, which agrees with PyTorch's."""
    return nn.LayerNorm(
        config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name
    )


class SelfAttention(nn.Module):
    """Causal attention."""

    config: CLIPTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T P"]) -> Float[Array, "B T P"]:
        """Attends to each token and those before it."""
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        q, k, v = (
            nn.Dense(width, dtype=self.dtype, name=name)(x).reshape(*x.shape[:2], heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
        return nn.Dense(width, dtype=self.dtype, name="out_proj")(mixed.reshape(x.shape))


class FeedForward(nn.Module):
    """Two dense layers around the configuration's activation."""

    config: CLIPTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T P"]) -> Float[Array, "B T P"]:
        """Applies both layers."""
        y = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x)
        y = ACTIVATIONS[self.config.hidden_act](y)
        return nn.Dense(self.config.hidden_size, dtype=self.dtype, name="fc2")(y)


class Block(nn.Module):
    """Attention and feed-forward, each with pre-norm and residual connection."""

    config: CLIPTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T P"], _: None) -> tuple[Float[Array, "B T P"], None]:
        """Applies the block; the signature is that of `nn.scan`."""
        config = self.config
        y = layer_norm(config, "norm1")(x)
        x = x + SelfAttention(config, self.dtype, name="attn")(y)
        y = layer_norm(config, "norm2")(x)
        return x + FeedForward(config, self.dtype, name="mlp")(y), None


def end_of_text(ids: Int[Array, "B T"], eos_token_id: int) -> Int[Array, "B"]:
    """Position of the first end-of-text token.

    With the legacy id, it is the position of the largest id: in CLIP's vocabulary that is the
    end-of-text token, whatever the configuration says.
    """
    return jnp.argmax(ids if eos_token_id == LEGACY_EOS else ids == eos_token_id, axis=-1)


class CLIPTextEncoder(nn.Module):
    """The text transformer; its blocks are scanned over stacked weights."""

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32
    # See `FluxTransformer`.
    unroll: bool = False

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B P"]:
        """Returns the final norm's output at the end-of-text token.

        Raises:
            InputError: there are more tokens than positions.
        """
        config = self.config
        tokens, positions = ids.shape[1], config.max_position_embeddings
        if tokens > positions:
            raise InputError(
                f"{tokens} tokens a prompt: max_position_embeddings = {positions} is the maximum"
            )
        # In the table's dtype, see `t5`.
        x = nn.Embed(config.vocab_size, config.hidden_size, name="token_embedder")(ids)
        x = x.astype(self.dtype)
        x += nn.Embed(positions, config.hidden_size, dtype=self.dtype, name="position_embedder")(
            jnp.arange(tokens)
        )
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.num_hidden_layers,
            unroll=config.num_hidden_layers if self.unroll else 1,
        )
        x, _ = blocks(config, self.dtype, name="blocks")(x, None)
        x = x[jnp.arange(x.shape[0]), end_of_text(ids, config.eos_token_id)]
        return layer_norm(config, "final_norm")(x).astype(self.dtype)
