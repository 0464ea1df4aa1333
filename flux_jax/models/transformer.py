"""FLUX.1's transformer (MMDiT): velocity from latents, text and time; attention on request.

Axis letters: B batch, N tokens (text first, image last), T text, S image, C latent channels,
E text width, P pooled width, L dual-stream blocks, H heads, G groups of text tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flux_jax.errors import InputError
from flux_jax.models.attention import rope_tables
from flux_jax.models.blocks import DualStreamBlock, Shared, SingleStreamBlock
from flux_jax.models.config import read_fields, require
from flux_jax.models.layers import MLP, Dense, Modulation, modulate, scanned, sinusoid


@dataclass(frozen=True)
class FluxConfig:
    """Sizes, with the names and defaults of a diffusers `transformer/config.json`."""

    in_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    out_channels: int | None = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "FluxConfig":
        """Reads the fields from a parsed `config.json`.

        Raises:
            InputError: a value is of the wrong type, or the sizes contradict each other.
        """
        sizes = read_fields(cls, config, "transformer/config.json")
        if sum(sizes.axes_dims_rope) != sizes.attention_head_dim:
            raise InputError(
                f"transformer/config.json: axes_dims_rope = {sizes.axes_dims_rope} must sum to "
                f"attention_head_dim = {sizes.attention_head_dim}"
            )
        require(config, "transformer/config.json", patch_size=(1,))
        return sizes

    @property
    def width(self) -> int:
        """Model width, heads times head width."""
        return self.num_attention_heads * self.attention_head_dim


class FluxTransformer(nn.Module):
    """The MMDiT.

    Attributes:
        config: sizes.
        dtype: dtype of matrix products; parameters keep their own.
        unroll: whether the blocks are compiled one by one instead of as the body of a loop: faster
            for narrow models, slower to compile.
        remat: whether the backward pass recomputes each block from its input instead of storing
            the activations of the forward pass: less memory, more time.
    """

    config: FluxConfig
    dtype: DTypeLike = jnp.float32
    unroll: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "B S C"],
        text: Float[Array, "B T E"],
        pooled: Float[Array, "B P"],
        timestep: Float[Array, "B"],
        image_ids: Float[Array, "S 3"],
        guidance: Float[Array, "B"] | None = None,
        *,
        token_masks: Float[Array, "B T G"] | None = None,
        silenced: Float[Array, "B _"] | None = None,
        attention: Literal["weights"] | None = None,
        stop_after: Literal["dual"] | None = None,
    ) -> tuple[Float[Array, "B S C"] | None, dict[str, Array]]:
        """Predicts the velocity ε - x_0.

        An adapter is passed as the variable collection `lora` (see `flux_jax.lora`).

        Args:
            latents: packed latents x_t.
            text: T5's output.
            pooled: CLIP's pooled output.
            timestep: t in [0, 1]; 1 is noise.
            image_ids: positions of the image tokens; text tokens are at 0.
            guidance: distilled guidance scale; only for models that embed it.
            token_masks: 1 where a text token belongs to a group.
            silenced: 1 where a text token contributes nothing to any token, itself included: its
                columns of every block's attention are set to zero after the softmax. The returned
                `attention` is computed before that.
            attention: "weights" returns the full attention matrices.
            stop_after: "dual" skips the single-stream blocks; the velocity is then None.

        Returns:
            The velocity, and a dict: `attention` is [L, B, H, N, N] (all weights) or, with
            token_masks, [L, B, H, N, G] (the mass on each group).

        Raises:
            InputError: guidance is passed to a model without guidance embedding, or is missing; or
                silenced is not one number for each text token.
        """
        config = self.config
        if config.guidance_embeds != (guidance is not None):
            raise InputError(
                f"guidance: this model {'needs' if config.guidance_embeds else 'has no'} "
                f"guidance embedding, so guidance must "
                f"{'be a number for each sample' if config.guidance_embeds else 'be None'}"
            )
        if silenced is not None and silenced.shape != text.shape[:2]:
            raise InputError(
                f"silenced has shape {silenced.shape} and must have {text.shape[:2]}: one number "
                "for each text token"
            )
        width = config.width
        heads = config.num_attention_heads

        def repeated(block: type[nn.Module], length: int) -> Any:
            # In a loop nothing merges the two passes, so preventing this would only cost time.
            block = nn.remat(block, prevent_cse=False) if self.remat else block
            # "seen" holds what callers capture from a layer with `nn.intercept_methods`.
            return scanned(block, length, self.unroll, ("params", "lora", "seen", "block"))

        def embedder(name: str) -> MLP:
            return MLP(width, width, "silu", self.dtype, name=name)

        conditioning = embedder("time_embedder")(sinusoid(timestep))
        if guidance is not None:
            conditioning += embedder("guidance_embedder")(sinusoid(guidance))
        conditioning += embedder("pooled_embedder")(pooled)

        text_ids = jnp.zeros((text.shape[1], image_ids.shape[1]), image_ids.dtype)
        cos, sin = rope_tables(jnp.concatenate([text_ids, image_ids]), config.axes_dims_rope)
        shared = Shared(conditioning, cos, sin, token_masks, silenced)

        image_stream = Dense(width, self.dtype, name="x_embedder")(latents)
        text_stream = Dense(width, self.dtype, name="context_embedder")(text)
        dual = repeated(DualStreamBlock, config.num_layers)
        (image_stream, text_stream), seen = dual(heads, attention, self.dtype, name="dual_blocks")(
            (image_stream, text_stream), shared
        )
        out = {} if seen is None else {"attention": seen}
        if stop_after == "dual":
            return None, out

        joined = jnp.concatenate([text_stream, image_stream], axis=1)
        single = repeated(SingleStreamBlock, config.num_single_layers)
        joined, _ = single(heads, self.dtype, text.shape[1], name="single_blocks")(joined, shared)
        image_stream = joined[:, text.shape[1] :]

        # Scale before shift, as diffusers stores them; in the blocks shift comes first.
        scale, shift = Modulation(2, self.dtype, name="norm_out")(conditioning)
        channels = config.out_channels or config.in_channels
        velocity = Dense(channels, self.dtype, name="proj_out")(
            modulate(image_stream, shift, scale)
        )
        return velocity, out
