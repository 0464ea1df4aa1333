"""The compiled steps of a pipeline, as jitted functions of modules, parameters and arrays.

Axis letters: B batch, K and T tokens for CLIP and T5, G groups of T5's tokens, S image tokens,
N noise levels, C packed latent channels, E text width, P pooled width, h w image height and width.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, Unpack, cast

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, UInt8

from flux_jax.models.clip.text import CLIPTextEncoder
from flux_jax.models.layers import hopper_kernels
from flux_jax.models.quantize import by_output
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
        """The conditioning of a subset of the prompts."""
        return Conditioning(self.text[rows], self.pooled[rows])


@functools.partial(jax.jit, static_argnums=(0, 1))
def encode(
    text_encoder: CLIPTextEncoder,
    text_encoder_2: T5Encoder,
    clip_params: PyTree,
    t5_params: PyTree,
    clip_ids: Int[Array, "B K"],
    t5_ids: Int[Array, "B T"],
) -> Conditioning:
    """Encodes tokenised prompts with both text encoders."""
    text = cast(Array, text_encoder_2.apply({"params": t5_params}, t5_ids))
    pooled = cast(Array, text_encoder.apply({"params": clip_params}, clip_ids))
    return Conditioning(text, pooled)


class Options(TypedDict, total=False):
    """Optional arguments of `FluxTransformer`; documented there."""

    token_masks: Float[Array, "B T G"] | None
    silenced: Float[Array, "B T"] | None
    attention: Literal["weights"] | None
    stop_after: Literal["dual"] | None


class Denoiser(flax.struct.PyTreeNode):
    """The transformer as a velocity field, with the inputs that all samples and steps share.

    A pytree, so that jitted functions and gradients accept it.

    Attributes:
        transformer: the model, static in compiled programs.
        params: its parameters.
        image_ids: positions of the image tokens.
        guidance: distilled guidance scale, one for all samples or one for each; ignored by a model
            that does not embed it.
        lora: an adapter's tree, its scale folded in (`Adapter.scaled`); None for the base model.
    """

    transformer: FluxTransformer = flax.struct.field(pytree_node=False)
    params: PyTree
    image_ids: Float[Array, "S 3"]
    guidance: Float[Array, "B"] | Float[Array, ""] | float
    lora: PyTree | None = None

    def velocity(
        self,
        latents: Float[Array, "B S C"],
        conditioning: Conditioning,
        timestep: Float[Array, "B"] | Float[Array, ""],
        silenced: Float[Array, "B T"] | None = None,
    ) -> Float[Array, "B S C"]:
        """Predicts the velocity ε - x_0.

        Args:
            latents: packed latents x_t.
            conditioning: encoded prompts.
            timestep: t, one for all samples or one for each.
            silenced: 1 where a text token contributes nothing to the image.
        """
        predicted, _ = self.predict(latents, conditioning, timestep, silenced=silenced)
        assert predicted is not None, "the transformer was not stopped early"
        return predicted

    def predict(
        self,
        latents: Float[Array, "B S C"],
        conditioning: Conditioning,
        timestep: Float[Array, "B"] | Float[Array, ""],
        **options: Unpack[Options],
    ) -> tuple[Float[Array, "B S C"] | None, dict[str, Array]]:
        """Predicts the velocity and the requested extras, as `FluxTransformer` returns them."""
        inputs = self._inputs(latents, conditioning, timestep)
        out = self.transformer.apply(self._variables, *inputs, **options)
        return cast(tuple[Array | None, dict[str, Array]], out)

    def velocity_and_sown(
        self,
        latents: Float[Array, "B S C"],
        conditioning: Conditioning,
        timestep: Float[Array, "B"] | Float[Array, ""],
        collection: str,
    ) -> tuple[Float[Array, "B S C"], PyTree]:
        """Predicts the velocity; also returns what the layers sow into a variable collection."""
        inputs = self._inputs(latents, conditioning, timestep)
        out: Any = self.transformer.apply(self._variables, *inputs, mutable=[collection])
        (predicted, _), sown = out
        return predicted, sown[collection]

    @property
    def _variables(self) -> Mapping[str, PyTree]:
        own = {"params": self.params} | ({} if self.lora is None else {"lora": self.lora})
        return own | (by_output(self.params) if hopper_kernels() else {})

    def _inputs(self, latents: Array, conditioning: Conditioning, timestep: Array) -> tuple:
        batch = latents.shape[:1]
        embeds = self.transformer.config.guidance_embeds
        return (
            latents,
            conditioning.text,
            conditioning.pooled,
            jnp.broadcast_to(timestep, batch),
            self.image_ids,
            jnp.full(batch, self.guidance, jnp.float32) if embeds else None,
        )


@jax.jit
def velocity(
    model: Denoiser,
    latents: Float[Array, "B S C"],
    conditioning: Conditioning,
    timestep: Float[Array, "B"],
) -> Float[Array, "B S C"]:
    """Predicts the velocity, see `Denoiser.velocity`."""
    return model.velocity(latents, conditioning, timestep)


@jax.jit
def denoise(
    model: Denoiser,
    noise: Float[Array, "B S C"],
    conditioning: Conditioning,
    sigmas: Float[Array, "N"],
    silenced: Float[Array, "B T"] | None = None,
) -> Float[Array, "B S C"]:
    """Denoises packed latents from the first noise level to the last, σ = 0."""

    def field(latents: Array, level: Array) -> Array:
        return model.velocity(latents, conditioning, level, silenced)

    return integrate(field, noise, sigmas)


@functools.partial(jax.jit, static_argnums=(0, 3))
def decode(
    vae: AutoencoderKL, params: PyTree, latents: Float[Array, "B S C"], grid: tuple[int, int]
) -> UInt8[Array, "B h w 3"]:
    """Decodes packed latents to images; grid is the latents' height and width before packing."""
    raw = unscale_latents(vae.config, unpack(latents, *grid))
    pictures = cast(Array, vae.apply({"params": params}, raw, method="decode"))
    pictures = jnp.clip(pictures.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return jnp.round(pictures * 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnums=0)
def encode_pictures(
    vae: AutoencoderKL, params: PyTree, pictures: UInt8[Array, "B h w 3"]
) -> Float[Array, "B S C"]:
    """Encodes images as packed latents."""
    signed = pictures.astype(jnp.float32) / 127.5 - 1
    mean, _ = vae.apply({"params": params}, signed, method="encode")
    return pack(scale_latents(vae.config, mean.astype(jnp.float32)))
