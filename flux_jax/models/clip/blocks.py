"""Layers that CLIP's text and image towers share.

Matrix products run in the module's `dtype`; norms and softmax are float32.
Axis letters: B batch, T tokens, P model width.
"""

from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flux_jax.errors import InputError
from flux_jax.models.config import require


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """CLIP-L's approximation of GELU, x sigmoid(1.702 x)."""
    return x * nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU with the error function."""
    return nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


@runtime_checkable
class Sizes(Protocol):
    """Sizes of a tower, with the names of a transformers `config.json`."""

    @property
    def hidden_size(self) -> int:
        """Model width P."""
        ...

    @property
    def intermediate_size(self) -> int:
        """Width between the dense layers of a feed-forward layer."""
        ...

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
        ...

    @property
    def num_attention_heads(self) -> int:
        """Number of heads."""
        ...

    @property
    def hidden_act(self) -> str:
        """A key of `ACTIVATIONS`."""
        ...

    @property
    def layer_norm_eps(self) -> float:
        """Epsilon of the norms."""
        ...


def check_sizes(sizes: Sizes, where: str) -> None:
    """Checks what depends on more than one field, and that the activation is implemented.

    Raises:
        InputError: the heads do not divide the width, or the activation is unknown.
    """
    require({"hidden_act": sizes.hidden_act}, where, hidden_act=tuple(ACTIVATIONS))
    if sizes.hidden_size % sizes.num_attention_heads:
        raise InputError(
            f"{where}: hidden_size = {sizes.hidden_size} must be a multiple of "
            f"num_attention_heads = {sizes.num_attention_heads}"
        )


def layer_norm(config: Sizes, name: str) -> nn.LayerNorm:
    """Layer norm in float32 with two-pass variance, which agrees with PyTorch's."""
    return nn.LayerNorm(
        config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name
    )


class SelfAttention(nn.Module):
    """Attention; if causal, of each token to itself and those before it."""

    config: Sizes
    dtype: DTypeLike
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T P"]) -> Float[Array, "B T P"]:
        """Mixes the tokens."""
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        q, k, v = (
            nn.Dense(width, dtype=self.dtype, name=name)(x).reshape(*x.shape[:2], heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal, implementation="xla")
        return nn.Dense(width, dtype=self.dtype, name="out_proj")(mixed.reshape(x.shape))


class FeedForward(nn.Module):
    """Two dense layers around the configuration's activation."""

    config: Sizes
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T P"]) -> Float[Array, "B T P"]:
        """Applies both layers."""
        y = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x)
        y = ACTIVATIONS[self.config.hidden_act](y)
        return nn.Dense(self.config.hidden_size, dtype=self.dtype, name="fc2")(y)


class Block(nn.Module):
    """Attention and feed-forward, each with pre-norm and residual connection."""

    config: Sizes
    dtype: DTypeLike
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T P"], _: None) -> tuple[Float[Array, "B T P"], None]:
        """Applies the block; the signature is that of `nn.scan`."""
        config = self.config
        y = layer_norm(config, "norm1")(x)
        x = x + SelfAttention(config, self.dtype, self.causal, name="attn")(y)
        y = layer_norm(config, "norm2")(x)
        return x + FeedForward(config, self.dtype, name="mlp")(y), None


def transformer(sizes: Sizes, dtype: DTypeLike, *, causal: bool, unroll: bool = False) -> Any:
    """A tower's blocks, scanned over stacked weights, as the submodule `blocks`.

    Args:
        sizes: the tower's.
        dtype: dtype of matrix products.
        causal: whether tokens see only those before them.
        unroll: see `FluxTransformer`.
    """
    blocks = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        check_constancy_invariants=False,
        length=sizes.num_hidden_layers,
        unroll=sizes.num_hidden_layers if unroll else 1,
    )
    return blocks(sizes, dtype, causal, name="blocks")
