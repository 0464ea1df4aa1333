"""The two kinds of MMDiT block, written for `nn.scan` over stacked weights.

Axis letters: B batch, N tokens (text first, image last), T text, S image, C model width,
H heads, D head width, P = D / 2 channel pairs, G groups of text tokens.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flux_jax.models.attention import apply_rope, attend, attention_mass, attention_weights, silence
from flux_jax.models.layers import MLP, Dense, Modulation, RMSNorm, gelu, modulate

MLP_RATIO = 4


class Shared(NamedTuple):
    """Inputs shared by every block of a forward pass."""

    conditioning: Float[Array, "B C"]
    cos: Float[Array, "N P"]
    sin: Float[Array, "N P"]
    token_masks: Float[Array, "B T G"] | None
    silenced: Float[Array, "B T"] | None


def split_heads(x: Float[Array, "B N C"], heads: int) -> Float[Array, "B N H D"]:
    """Splits the channels into heads."""
    return x.reshape(*x.shape[:-1], heads, -1)


class JointAttention(nn.Module):
    """Attention of a dual-stream block: separate projections for text and image, one softmax."""

    heads: int
    attention: Literal["weights"] | None
    dtype: DTypeLike
    bias: bool = True

    @nn.compact
    def __call__(
        self, image: Float[Array, "B S C"], text: Float[Array, "B T C"], shared: Shared
    ) -> tuple[Float[Array, "B S C"], Float[Array, "B T C"], Array | None]:
        """Returns the image's part, the text's part, and weights or masses on request."""

        def project(name: str, x: Array) -> Array:
            return split_heads(Dense(x.shape[-1], self.dtype, self.bias, name=name)(x), self.heads)

        q = jnp.concatenate(
            [
                RMSNorm(name="norm_added_q")(project("add_q_proj", text)),
                RMSNorm(name="norm_q")(project("to_q", image)),
            ],
            axis=1,
        )
        k = jnp.concatenate(
            [
                RMSNorm(name="norm_added_k")(project("add_k_proj", text)),
                RMSNorm(name="norm_k")(project("to_k", image)),
            ],
            axis=1,
        )
        v = jnp.concatenate([project("add_v_proj", text), project("to_v", image)], axis=1)
        q = apply_rope(q, shared.cos, shared.sin)
        k = apply_rope(k, shared.cos, shared.sin)
        mixed = attend(q, k, silence(v, shared.silenced)).reshape(*v.shape[:2], -1)

        seen = None
        if self.attention == "weights":
            seen = attention_weights(q, k)
        elif shared.token_masks is not None:
            seen = attention_mass(q, k, shared.token_masks)

        tokens = text.shape[1]
        image = Dense(image.shape[-1], self.dtype, self.bias, name="to_out")(mixed[:, tokens:])
        text = Dense(text.shape[-1], self.dtype, self.bias, name="to_add_out")(mixed[:, :tokens])
        return image, text, seen


class DualStreamBlock(nn.Module):
    """Text and image with separate weights, joined in attention only (FluxTransformerBlock)."""

    heads: int
    attention: Literal["weights"] | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "B S C"], Float[Array, "B T C"]], shared: Shared
    ) -> tuple[tuple[Float[Array, "B S C"], Float[Array, "B T C"]], Array | None]:
        """Applies the block; the second output is the one that `nn.scan` stacks."""
        image, text = carry
        width = image.shape[-1]
        of_image = Modulation(6, self.dtype, name="norm1")(shared.conditioning)
        of_text = Modulation(6, self.dtype, name="norm1_context")(shared.conditioning)

        image_mixed, text_mixed, seen = JointAttention(
            self.heads, self.attention, self.dtype, name="attn"
        )(
            modulate(image, of_image[0], of_image[1]),
            modulate(text, of_text[0], of_text[1]),
            shared,
        )

        def finish(x: Array, mixed: Array, vectors: tuple[Array, ...], name: str) -> Array:
            _, _, gate, shift_mlp, scale_mlp, gate_mlp = vectors
            x = x + gate[:, None] * mixed
            mlp = MLP(MLP_RATIO * width, width, "gelu", self.dtype, name=name)
            return x + gate_mlp[:, None] * mlp(modulate(x, shift_mlp, scale_mlp))

        image = finish(image, image_mixed, of_image, "ff")
        text = finish(text, text_mixed, of_text, "ff_context")
        return (image, text), seen


class SingleAttention(nn.Module):
    """Attention of a single-stream block: queries, keys and values, no output projection."""

    heads: int
    dtype: DTypeLike
    text: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"], shared: Shared) -> Float[Array, "B N C"]:
        """Attends over the joined tokens."""
        q, k, v = (
            split_heads(Dense(x.shape[-1], self.dtype, name=name)(x, self.text), self.heads)
            for name in ("to_q", "to_k", "to_v")
        )
        q = apply_rope(RMSNorm(name="norm_q")(q), shared.cos, shared.sin)
        k = apply_rope(RMSNorm(name="norm_k")(k), shared.cos, shared.sin)
        return attend(q, k, silence(v, shared.silenced)).reshape(x.shape)


class SingleStreamBlock(nn.Module):
    """Attention and MLP in parallel over the joined tokens (FluxSingleTransformerBlock).

    Attributes:
        heads: H.
        dtype: dtype of matrix products.
        text: T, for adapters that change text tokens only.
    """

    heads: int
    dtype: DTypeLike
    text: int = 0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N C"], shared: Shared
    ) -> tuple[Float[Array, "B N C"], None]:
        """Applies the block; the signature is that of `nn.scan`."""
        width = x.shape[-1]
        shift, scale, gate = Modulation(3, self.dtype, name="norm")(shared.conditioning)
        y = modulate(x, shift, scale)
        hidden = gelu(Dense(MLP_RATIO * width, self.dtype, name="proj_mlp")(y, self.text))
        mixed = SingleAttention(self.heads, self.dtype, self.text, name="attn")(y, shared)
        joined = jnp.concatenate([mixed, hidden], axis=-1)
        y = Dense(width, self.dtype, name="proj_out")(joined, self.text)
        return x + gate[:, None] * y, None
