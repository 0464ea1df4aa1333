"""FLUX.2's transformer: like FLUX.1's, with one modulation for all blocks, SwiGLU and no biases.

Other differences: no pooled text vector, rotary positions with four axes (reference picture, row,
column, text token), and single-stream blocks that project once into queries, keys, values and both
halves of SwiGLU.
Axis letters: B batch, N tokens (text first, image last), T text, S image, C model width, Z latent
channels, E text width, L dual-stream blocks, M single-stream blocks, H heads, P channel pairs,
G groups of text tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flux_jax.errors import InputError
from flux_jax.models.attention import (
    apply_rope,
    attend,
    attention_mass,
    attention_weights,
    rope_tables,
    silence,
)
from flux_jax.models.blocks import JointAttention, Shared, split_heads
from flux_jax.models.config import read_fields, require
from flux_jax.models.layers import (
    MLP,
    Dense,
    Modulation,
    RMSNorm,
    light,
    modulate,
    scanned,
    sinusoid,
)

FILE = "transformer/config.json"
AXES = 4


@dataclass(frozen=True)
class Flux2Config:
    """Sizes, with the names and defaults of a diffusers `transformer/config.json` of FLUX.2."""

    in_channels: int = 128
    num_layers: int = 8
    num_single_layers: int = 48
    attention_head_dim: int = 128
    num_attention_heads: int = 48
    joint_attention_dim: int = 15360
    mlp_ratio: float = 3.0
    guidance_embeds: bool = True
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)
    rope_theta: int = 2000
    out_channels: int | None = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Flux2Config":
        """Reads the fields from a parsed `config.json`.

        Raises:
            InputError: a value is of the wrong type, or the sizes contradict each other.
        """
        require(config, FILE, patch_size=(1,), timestep_guidance_channels=(256,), eps=(1e-6,))
        sizes = read_fields(cls, config, FILE)
        if len(sizes.axes_dims_rope) != AXES:
            raise InputError(
                f"{FILE}: axes_dims_rope = {sizes.axes_dims_rope} must have {AXES} entries"
            )
        if sum(sizes.axes_dims_rope) != sizes.attention_head_dim:
            raise InputError(
                f"{FILE}: axes_dims_rope = {sizes.axes_dims_rope} must sum to attention_head_dim = "
                f"{sizes.attention_head_dim}"
            )
        return sizes

    @property
    def width(self) -> int:
        """Model width, heads times head width."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """Width of each half of SwiGLU."""
        return int(self.width * self.mlp_ratio)


class Modulations(NamedTuple):
    """Shifts, scales and gates, the same in every block; and what joint attention shares."""

    image: tuple[Float[Array, "B C"], ...]
    text: tuple[Float[Array, "B C"], ...]
    single: tuple[Float[Array, "B C"], ...]
    joint: Shared


@light
def swiglu(x: Float[Array, "... C"]) -> Float[Array, "... _"]:
    """silu(a) * b of the halves a and b of the last axis."""
    gate, value = jnp.split(x, 2, axis=-1)
    return nn.silu(gate) * value


class FeedForward(nn.Module):
    """linear_out(swiglu(linear_in x)), without biases."""

    hidden: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        """Applies the layer."""
        y = swiglu(Dense(2 * self.hidden, self.dtype, bias=False, name="linear_in")(x))
        return Dense(x.shape[-1], self.dtype, bias=False, name="linear_out")(y)


class Flux2DualStreamBlock(nn.Module):
    """Text and image with separate weights, joined in attention only (Flux2TransformerBlock)."""

    heads: int
    hidden: int
    attention: Literal["weights"] | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "B S C"], Float[Array, "B T C"]], shared: Modulations
    ) -> tuple[tuple[Float[Array, "B S C"], Float[Array, "B T C"]], Array | None]:
        """Applies the block; the second output is the one that `nn.scan` stacks."""
        image, text = carry
        image_mixed, text_mixed, seen = JointAttention(
            self.heads, self.attention, self.dtype, bias=False, name="attn"
        )(
            modulate(image, shared.image[0], shared.image[1]),
            modulate(text, shared.text[0], shared.text[1]),
            shared.joint,
        )

        def finish(x: Array, mixed: Array, vectors: tuple[Array, ...], name: str) -> Array:
            _, _, gate, shift_mlp, scale_mlp, gate_mlp = vectors
            x = x + gate[:, None] * mixed
            y = FeedForward(self.hidden, self.dtype, name=name)(modulate(x, shift_mlp, scale_mlp))
            return x + gate_mlp[:, None] * y

        image = finish(image, image_mixed, shared.image, "ff")
        text = finish(text, text_mixed, shared.text, "ff_context")
        return (image, text), seen


class ParallelAttention(nn.Module):
    """Attention and SwiGLU of a single-stream block, from one projection into one projection."""

    heads: int
    hidden: int
    attention: Literal["weights"] | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N C"], shared: Shared
    ) -> tuple[Float[Array, "B N C"], Array | None]:
        """Returns the output, and weights or masses on request."""
        width = x.shape[-1]
        y = Dense(3 * width + 2 * self.hidden, self.dtype, bias=False, name="to_qkv_mlp_proj")(x)
        q, k, v = (split_heads(y[..., i * width : (i + 1) * width], self.heads) for i in range(3))
        q = apply_rope(RMSNorm(name="norm_q")(q), shared.cos, shared.sin)
        k = apply_rope(RMSNorm(name="norm_k")(k), shared.cos, shared.sin)
        mixed = attend(q, k, silence(v, shared.silenced)).reshape(x.shape)
        seen = None
        if self.attention == "weights":
            seen = attention_weights(q, k)
        elif shared.token_masks is not None:
            seen = attention_mass(q, k, shared.token_masks)
        y = jnp.concatenate([mixed, swiglu(y[..., 3 * width :])], axis=-1)
        return Dense(width, self.dtype, bias=False, name="to_out")(y), seen


class Flux2SingleStreamBlock(nn.Module):
    """Attention and SwiGLU in parallel over the joined tokens (Flux2SingleTransformerBlock)."""

    heads: int
    hidden: int
    attention: Literal["weights"] | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N C"], shared: Modulations
    ) -> tuple[Float[Array, "B N C"], Array | None]:
        """Applies the block; the signature is that of `nn.scan`."""
        shift, scale, gate = shared.single
        y, seen = ParallelAttention(
            self.heads, self.hidden, self.attention, self.dtype, name="attn"
        )(modulate(x, shift, scale), shared.joint)
        return x + gate[:, None] * y, seen


class Flux2Transformer(nn.Module):
    """FLUX.2's MMDiT; attributes as `flux_jax.models.transformer.FluxTransformer`'s."""

    config: Flux2Config
    dtype: DTypeLike = jnp.float32
    unroll: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "B S Z"],
        text: Float[Array, "B T E"],
        timestep: Float[Array, "B"],
        image_ids: Float[Array, "S 4"],
        guidance: Float[Array, "B"] | None = None,
        *,
        token_masks: Float[Array, "B T G"] | None = None,
        silenced: Float[Array, "B T"] | None = None,
        attention: Literal["weights"] | None = None,
        stop_after: Literal["dual"] | None = None,
    ) -> tuple[Float[Array, "B S Z"] | None, dict[str, Array]]:
        """Predicts the velocity ε - x_0.

        Args:
            latents: packed, normalised latents x_t.
            text: the text encoder's output, padding included.
            timestep: t in [0, 1]; 1 is noise.
            image_ids: positions (reference picture, row, column, 0) of the image tokens; text
                tokens are at (0, 0, 0, their index).
            guidance: distilled guidance scale; only for models that embed it.
            token_masks: 1 where a text token belongs to a group.
            silenced: 1 where a text token contributes nothing to any token, itself included.
            attention: "weights" returns the full attention matrices.
            stop_after: "dual" skips the single-stream blocks; the velocity is then None.

        Returns:
            The velocity, and a dict: `attention` of the dual-stream blocks [L, B, H, N, N] (all
            weights) or, with token_masks, [L, B, H, N, G] (the mass on each group); and
            `single_attention`, the same of the single-stream blocks [M, ...].

        Raises:
            InputError: guidance is passed to a model without guidance embedding, or is missing.
                PyTorch's model computes something else without it, in silence.
        """
        config = self.config
        if config.guidance_embeds != (guidance is not None):
            raise InputError(
                f"guidance: this model {'needs' if config.guidance_embeds else 'has no'} "
                f"guidance embedding, so guidance must "
                f"{'be a number for each sample' if config.guidance_embeds else 'be None'}"
            )
        width = config.width
        sizes = (config.num_attention_heads, config.hidden, attention, self.dtype)

        def repeated(block: type[nn.Module], length: int) -> Any:
            block = nn.remat(block, prevent_cse=False) if self.remat else block
            return scanned(block, length, self.unroll, ("params", "lora", "seen"))

        def embedder(name: str) -> MLP:
            return MLP(width, width, "silu", self.dtype, bias=False, name=name)

        def modulation(vectors: int, name: str) -> tuple[Array, ...]:
            return Modulation(vectors, self.dtype, bias=False, name=name)(conditioning)

        conditioning = embedder("time_embedder")(sinusoid(timestep))
        if guidance is not None:
            conditioning += embedder("guidance_embedder")(sinusoid(guidance))

        words = jnp.arange(text.shape[1], dtype=image_ids.dtype)
        text_ids = jnp.zeros((len(words), AXES), image_ids.dtype).at[:, -1].set(words)
        cos, sin = rope_tables(
            jnp.concatenate([text_ids, image_ids]), config.axes_dims_rope, config.rope_theta
        )
        shared = Modulations(
            modulation(6, "double_stream_modulation_img"),
            modulation(6, "double_stream_modulation_txt"),
            modulation(3, "single_stream_modulation"),
            Shared(conditioning, cos, sin, token_masks, silenced),
        )

        image_stream = Dense(width, self.dtype, bias=False, name="x_embedder")(latents)
        text_stream = Dense(width, self.dtype, bias=False, name="context_embedder")(text)
        dual = repeated(Flux2DualStreamBlock, config.num_layers)
        (image_stream, text_stream), seen = dual(*sizes, name="dual_blocks")(
            (image_stream, text_stream), shared
        )
        out = {} if seen is None else {"attention": seen}
        if stop_after == "dual":
            return None, out

        joined = jnp.concatenate([text_stream, image_stream], axis=1)
        single = repeated(Flux2SingleStreamBlock, config.num_single_layers)
        joined, seen = single(*sizes, name="single_blocks")(joined, shared)
        out |= {} if seen is None else {"single_attention": seen}
        image_stream = joined[:, text.shape[1] :]

        # Scale before shift, as diffusers stores them; in the blocks shift comes first.
        scale, shift = modulation(2, "norm_out")
        channels = config.out_channels or config.in_channels
        velocity = Dense(channels, self.dtype, bias=False, name="proj_out")(
            modulate(image_stream, shift, scale)
        )
        return velocity, out
