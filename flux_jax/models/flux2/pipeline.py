"""FLUX.2 [klein] from prompts to images: tokenise, encode, denoise, decode.

Axis letters: B batch, T text tokens, S image tokens, C packed latent channels, E text width,
N noise levels, h w image height and width.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree, UInt8

from flux_jax import progress
from flux_jax.errors import InputError, shortened
from flux_jax.models.flux2.qwen3 import Qwen3Config, Qwen3Encoder
from flux_jax.models.flux2.schedule import Flux2Schedule, latent_ids
from flux_jax.models.flux2.transformer import AXES, Flux2Config, Flux2Transformer
from flux_jax.models.flux2.vae import Flux2AutoencoderKL, Flux2VAEConfig
from flux_jax.models.tokenizers import chat_ids, read_chat_tokenizer
from flux_jax.models.vae import pack, unpack
from flux_jax.sampling import denoise as integrate
from flux_jax.settings import check_sampling
from flux_jax.weights import family, original
from flux_jax.weights.hub import find_model
from flux_jax.weights.mapping import to_flax
from flux_jax.weights.safetensors_files import find_weights, read_weights
from flux_jax.weights.source import CONFIG, SCHEDULER, read_config
from flux_jax.weights.tables import FLUX2_TRANSFORMER, FLUX2_VAE, qwen3

if TYPE_CHECKING:
    from flux_jax.models.tokenizers import PreTrainedTokenizerBase

PIPELINE = "Flux2KleinPipeline"
# Tokens of the text, padding included; the pipeline of diffusers fixes it.
TEXT_TOKENS = 512
# A tensor of files in the original names alone.
ORIGINAL = "double_blocks.0.img_attn.qkv.weight"


@dataclass(frozen=True)
class Component:
    """How to build one of the pipeline's models from its folder."""

    config: Any
    module: Any
    inputs: Any


def _transformer_inputs(config: Flux2Config) -> tuple[Any, ...]:
    of, one = jax.ShapeDtypeStruct, jax.ShapeDtypeStruct((1,), jnp.float32)
    return (
        of((1, 4, config.in_channels), jnp.float32),
        of((1, 4, config.joint_attention_dim), jnp.float32),
        one,
        of((4, AXES), jnp.float32),
        one if config.guidance_embeds else None,
    )


def _text_inputs(config: Qwen3Config) -> tuple[Any, ...]:
    del config
    return (jax.ShapeDtypeStruct((1, 4), jnp.int32),) * 2


def _vae_inputs(config: Flux2VAEConfig) -> tuple[Any, ...]:
    side = config.spatial_factor
    return (jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32),)


COMPONENTS = {
    "transformer": Component(Flux2Config.from_dict, Flux2Transformer, _transformer_inputs),
    "text_encoder": Component(Qwen3Config.from_dict, Qwen3Encoder, _text_inputs),
    "vae": Component(Flux2VAEConfig.from_dict, Flux2AutoencoderKL, _vae_inputs),
}


def abstract_params(name: str, config: Any) -> PyTree:
    """Shapes of a component's parameters, a tree of `jax.ShapeDtypeStruct`; allocates nothing."""
    component = COMPONENTS[name]
    inputs = component.inputs(config)
    return jax.eval_shape(component.module(config).init, jax.random.key(0), *inputs)["params"]


@dataclass(frozen=True)
class Flux2Pipeline:
    """A FLUX.2 [klein] pipeline; every step can be called separately.

    Attributes:
        params: parameters under the keys transformer, text_encoder and vae.
        distilled: whether a step takes one pass; otherwise guidance takes a second one, with the
            empty prompt.
    """

    transformer: Flux2Transformer
    text_encoder: Qwen3Encoder
    vae: Flux2AutoencoderKL
    params: Mapping[str, PyTree]
    tokenizer: "PreTrainedTokenizerBase"
    schedule: Flux2Schedule
    distilled: bool

    @property
    def pixels_per_token(self) -> int:
        """Side in pixels of the square that one image token represents."""
        return 2 * self.vae.config.spatial_factor

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Latent height and width (before 2 x 2 packing) of an image.

        Raises:
            InputError: a side is not a positive multiple of `pixels_per_token`.
        """
        step = self.pixels_per_token
        for name, side in (("height", height), ("width", width)):
            if side < step or side % step:
                near = max(step, round(side / step) * step)
                raise InputError(
                    f"{name} = {side} is not a multiple of {step} pixels; the nearest is {near}"
                )
        factor = self.vae.config.spatial_factor
        return height // factor, width // factor

    def encode(self, prompts: Sequence[str]) -> Float[Array, "B T E"]:
        """Encodes prompts in the chat template.

        Raises:
            InputError: a prompt is over the token limit; diffusers cuts off the template's end.
        """
        ids, mask = chat_ids(self.tokenizer, prompts, TEXT_TOKENS)
        return _encode(self.text_encoder, self.params["text_encoder"], ids, mask)

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Float[Array, "B S C"]:
        """Packed standard normal latents from one seed per image, independent of the batch."""
        rows, columns = self.grid(height, width)
        shape = (rows // 2 * (columns // 2), self.transformer.config.in_channels)
        # As in any JAX key, only 32 bits of a seed are used.
        keys = jax.vmap(jax.random.key)(np.asarray(seeds) & 0xFFFFFFFF)
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    def denoise(
        self,
        noise: Float[Array, "B S C"],
        text: Float[Array, "B T E"],
        image_ids: Float[Array, "S 4"],
        steps: int = 4,
        guidance: float = 4.0,
    ) -> Float[Array, "B S C"]:
        """Integrates the velocity from noise (t = 1) to packed latents (t = 0) in Euler steps.

        Args:
            noise: packed latents.
            text: encoded prompts.
            image_ids: positions of the image tokens.
            steps: Euler steps.
            guidance: of two passes; a distilled model takes one and ignores it.
        """
        check_sampling(steps, guidance)
        sigmas = self.schedule.sigmas(steps, noise.shape[1])
        empty = None if self.distilled or guidance <= 1 else self.encode([""] * len(text))
        return _denoise(
            self.transformer,
            self.params["transformer"],
            noise,
            text,
            empty,
            image_ids,
            (sigmas, guidance),
        )

    def decode(
        self, latents: Float[Array, "B S C"], height: int, width: int
    ) -> UInt8[np.ndarray, "B h w 3"]:
        """Decodes packed latents to images."""
        grid = self.grid(height, width)
        return np.asarray(_decode(self.vae, self.params["vae"], latents, grid))

    def encode_pictures(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[Array, "B S C"]:
        """Encodes images as packed latents, the means of their distributions; `decode` inverts it.

        Raises:
            InputError: a side is not a positive multiple of `pixels_per_token`.
        """
        self.grid(*pictures.shape[1:3])
        return _encode_pictures(self.vae, self.params["vae"], pictures)

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float = 4.0,
        height: int = 512,
        width: int = 512,
        latents: Float[Array, "B S C"] | None = None,
    ) -> UInt8[np.ndarray, "B h w 3"]:
        """Generates an image for every prompt.

        Args:
            prompts: one per image.
            seeds: one per image; 0, 1, ... if neither seeds nor latents are set.
            steps: Euler steps; 4 for a distilled model by default, otherwise 50.
            guidance: see `denoise`.
            height: pixels.
            width: pixels.
            latents: packed noise to start from, instead of seeds.

        Raises:
            InputError: invalid sizes, steps, guidance, seeds, latents or a prompt.
        """
        if latents is None:
            seeds = range(len(prompts)) if seeds is None else seeds
            if len(seeds) != len(prompts):
                raise InputError(f"seeds = {list(seeds)} must be one for each prompt")
            latents = self.noise(seeds, height, width)
        elif seeds is not None:
            raise InputError("seeds and latents exclude each other; give one of them")
        ids = latent_ids(*self.grid(height, width))
        wanted = (len(prompts), len(ids), self.transformer.config.in_channels)
        if latents.shape != wanted:
            raise InputError(f"latents have shape {latents.shape} and must have {wanted}")
        steps = (4 if self.distilled else 50) if steps is None else steps
        return self.decode(
            self.denoise(latents, self.encode(prompts), ids, steps, guidance), height, width
        )


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    encoder: Qwen3Encoder, params: PyTree, ids: Int[Array, "B T"], mask: Int[Array, "B T"]
) -> Float[Array, "B T E"]:
    return cast(Array, encoder.apply({"params": params}, ids, mask))


@functools.partial(jax.jit, static_argnums=0)
def _denoise(
    transformer: Flux2Transformer,
    params: PyTree,
    noise: Float[Array, "B S C"],
    text: Float[Array, "B T E"],
    empty: Float[Array, "B T E"] | None,
    image_ids: Float[Array, "S 4"],
    levels: tuple[Float[Array, "N"], Float[Array, ""] | float],
) -> Float[Array, "B S C"]:
    """Denoises with `empty`'s velocity as the negative one; levels: noise levels and guidance."""
    sigmas, guidance = levels
    embeds = transformer.config.guidance_embeds

    def velocity(latents: Array, text: Array, level: Array) -> Array:
        batch = latents.shape[:1]
        scale = jnp.full(batch, guidance, jnp.float32) if embeds else None
        inputs = (latents, text, jnp.broadcast_to(level, batch), image_ids, scale)
        predicted, _ = cast(Any, transformer.apply({"params": params}, *inputs))
        return predicted

    def field(latents: Array, level: Array) -> Array:
        wanted = velocity(latents, text, level)
        if empty is None:
            return wanted
        unwanted = velocity(latents, empty, level)
        return unwanted + guidance * (wanted - unwanted)

    return integrate(field, noise, sigmas)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _decode(
    vae: Flux2AutoencoderKL, params: PyTree, latents: Float[Array, "B S C"], grid: tuple[int, int]
) -> UInt8[Array, "B h w 3"]:
    tokens = cast(Array, vae.apply({"params": params}, latents, method="restore"))
    pictures = cast(Array, vae.apply({"params": params}, unpack(tokens, *grid), method="decode"))
    pictures = jnp.clip(pictures.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return jnp.round(pictures * 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnums=0)
def _encode_pictures(
    vae: Flux2AutoencoderKL, params: PyTree, pictures: UInt8[Array, "B h w 3"]
) -> Float[Array, "B S C"]:
    signed = pictures.astype(jnp.float32) / 127.5 - 1
    mean, _ = cast(Any, vae.apply({"params": params}, signed, method="encode"))
    tokens = pack(mean.astype(jnp.float32))
    return cast(Array, vae.apply({"params": params}, tokens, method="normalise"))


def load(
    path: str | Path,
    dtype: DTypeLike | None = None,
    transformer: str | Path | None = None,
) -> Flux2Pipeline:
    """Opens a FLUX.2 [klein] pipeline in diffusers' layout, on the first device.

    Args:
        path: its folder, or its name on the Hugging Face hub.
        dtype: dtype of parameters and matrix products; by default float32 on CPU, else bfloat16.
        transformer: file with other weights of the transformer, in diffusers' names or in the
            original ones, also behind ComfyUI's prefix.

    Raises:
        InputError: a file is missing or damaged, or does not fit the model.
    """
    root = find_model(str(path))
    index = read_config(root / family.INDEX)
    said = index.get(family.CLASS)
    if said != PIPELINE:
        raise InputError(
            f"{root}: {family.INDEX} says {shortened(str(said))}, and this reads {PIPELINE}; use "
            "flux_jax.load for FLUX.1"
        )
    chosen = dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    files = {name: read_config(root / name / CONFIG) for name in COMPONENTS}
    configs = {name: COMPONENTS[name].config(file) for name, file in files.items()}
    check_widths(configs)
    tokenizer = read_chat_tokenizer(root, "tokenizer", configs["text_encoder"].vocab_size)
    found = {name: find_weights(root / name) for name in COMPONENTS}
    if transformer is not None:
        found["transformer"] = Path(transformer)
    params = {name: _params(found[name], name, configs[name], chosen) for name in COMPONENTS}
    modules = {name: COMPONENTS[name].module(configs[name], dtype=chosen) for name in COMPONENTS}
    return Flux2Pipeline(
        **modules,
        params=params,
        tokenizer=tokenizer,
        schedule=Flux2Schedule.from_dict(read_config(root / SCHEDULER)),
        distilled=index.get("is_distilled") is True,
    )


def check_widths(configs: Mapping[str, Any]) -> None:
    """Checks that the models belong to one pipeline, such as 4B's or 9B's.

    Raises:
        InputError: the output width of a model is not the input width of the transformer.
    """
    vae, text = configs["vae"], configs["text_encoder"]
    for name, width, taker in (
        (f"text_encoder: {len(text.layers)} hidden_size", text.width, "joint_attention_dim"),
        ("vae: 4 latent_channels", 4 * vae.latent_channels, "in_channels"),
    ):
        expected = getattr(configs["transformer"], taker)
        if width != expected:
            raise InputError(
                f"{name} = {width} and the transformer's {taker} = {expected} must be the same; "
                "take all models from one pipeline"
            )


def _params(found: Path, name: str, config: Any, dtype: DTypeLike) -> PyTree:
    """Reads the parameters of one model, key by key, with a progress bar."""
    tensors = read_weights(found)
    if name == "text_encoder":
        table = qwen3(config.num_hidden_layers, max(config.layers))
    elif name == "vae":
        table = FLUX2_VAE
    elif any(ORIGINAL in key for key in tensors):
        table = original.FLUX2_TRANSFORMER
        tensors = {key.removeprefix(original.BUNDLED): each for key, each in tensors.items()}
    else:
        table = FLUX2_TRANSFORMER
    shapes = abstract_params(name, config)
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    title = {"desc": f"loading {name}", "total": 2 * size, "unit": "B", "unit_scale": True}
    with progress.bar(**title) as bar:
        return to_flax(
            table,
            tensors,
            shapes,
            source=found,
            place=lambda path, leaf: jnp.asarray(np.asarray(leaf), dtype),
            advance=bar.update,
        )
