"""What is compiled of a pipeline: its steps as jitted functions of modules, parameters and arrays.

Axis letters: B batch, K noise levels, U and T tokens for CLIP and T5, S image tokens, C packed
latent channels, E text width, P pooled width, h w picture sides.
"""

import functools
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, UInt8

from flux_jax.models.clip import CLIPTextEncoder
from flux_jax.models.t5 import T5Encoder
from flux_jax.models.transformer import FluxTransformer
from flux_jax.models.vae import AutoencoderKL, pack, scale_latents, unpack, unscale_latents
from flux_jax.sampling import denoise as integrate


class Conditioning(flax.struct.PyTreeNode):
    """Encoded prompts.

    Attributes:
        text: T5's output for every token, padding included.
        pooled: CLIP's output at the end-of-text token.
    """

    text: Float[Array, "*B T E"]
    pooled: Float[Array, "*B P"]

    def __getitem__(self, rows: Any) -> "Conditioning":
        """The conditioning of some of the prompts."""
        return Conditioning(self.text[rows], self.pooled[rows])


@functools.partial(jax.jit, static_argnums=(0, 1))
def encode(
    text_encoder: CLIPTextEncoder,
    text_encoder_2: T5Encoder,
    clip_params: PyTree,
    t5_params: PyTree,
    clip_ids: Int[Array, "B U"],
    t5_ids: Int[Array, "B T"],
) -> Conditioning:
    """Conditioning of prompts, from both encoders' parameters and the tokens' ids."""
    text = cast(Array, text_encoder_2.apply({"params": t5_params}, t5_ids))
    pooled = cast(Array, text_encoder.apply({"params": clip_params}, clip_ids))
    return Conditioning(text, pooled)


def apply_transformer(
    transformer: FluxTransformer,
    params: PyTree,
    lora: PyTree | None,
    latents: Float[Array, "B S C"],
    conditioning: Conditioning,
    timestep: Float[Array, "B"],
    image_ids: Float[Array, "S 3"],
    guidance: Float[Array, "B"] | Float[Array, ""] | float,
    **options: Any,
) -> tuple[Float[Array, "B S C"] | None, dict[str, Array]]:
    """The transformer with or without an adapter tree, one guidance scale for all or for each.

    Options go to `FluxTransformer` (token_masks, silenced, attention, stop_after).
    """
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    embeds = transformer.config.guidance_embeds
    scale = jnp.full(latents.shape[:1], guidance, jnp.float32) if embeds else None
    out = transformer.apply(
        variables,
        latents,
        conditioning.text,
        conditioning.pooled,
        timestep,
        image_ids,
        scale,
        **options,
    )
    return cast(tuple[Array | None, dict[str, Array]], out)


@functools.partial(jax.jit, static_argnums=0)
def velocity(
    transformer: FluxTransformer, params: PyTree, lora: PyTree | None, *arguments: Any
) -> Float[Array, "B S C"]:
    """The velocity alone; arguments are those of `apply_transformer`."""
    predicted, _ = apply_transformer(transformer, params, lora, *arguments)
    assert predicted is not None
    return predicted


@functools.partial(jax.jit, static_argnums=0)
def denoise(
    transformer: FluxTransformer,
    params: PyTree,
    lora: PyTree | None,
    noise: Float[Array, "B S C"],
    conditioning: Conditioning,
    image_ids: Float[Array, "S 3"],
    guidance: Float[Array, ""] | float,
    sigmas: Float[Array, "K"],
    silenced: Float[Array, "B T"] | None,
) -> Float[Array, "B S C"]:
    """Packed latents at σ = 0 from those at the first of the noise levels."""

    def at(latents: Array, timestep: Array) -> Array:
        timesteps = jnp.broadcast_to(timestep, latents.shape[:1])
        predicted, _ = apply_transformer(
            transformer,
            params,
            lora,
            latents,
            conditioning,
            timesteps,
            image_ids,
            guidance,
            silenced=silenced,
        )
        assert predicted is not None
        return predicted

    return integrate(at, noise, sigmas)


@functools.partial(jax.jit, static_argnums=(0, 3))
def decode(
    vae: AutoencoderKL, params: PyTree, latents: Float[Array, "B S C"], grid: tuple[int, int]
) -> UInt8[Array, "B h w 3"]:
    """Pictures of packed latents, grid being the latents' height and width before packing."""
    raw = unscale_latents(vae.config, unpack(latents, *grid))
    pictures = cast(Array, vae.apply({"params": params}, raw, method="decode"))
    pictures = jnp.clip(pictures.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return jnp.round(pictures * 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnums=0)
def encode_pictures(
    vae: AutoencoderKL, params: PyTree, pictures: UInt8[Array, "B h w 3"]
) -> Float[Array, "B S C"]:
    """Packed latents of pictures."""
    signed = pictures.astype(jnp.float32) / 127.5 - 1
    mean, _ = vae.apply({"params": params}, signed, method="encode")
    return pack(scale_latents(vae.config, mean.astype(jnp.float32)))
