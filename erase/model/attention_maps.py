"""Attention maps of a concept, with and without an adapter.

Axis letters: K prompts, y x image tokens, T text tokens, S image tokens, C packed latent channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from erase.config.schema import Config
from erase.data.words.word_tokens import concept_masks
from flux_jax import sharding
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.programs import Conditioning, Denoiser

# Timesteps t from early ones, which decide a picture's content, to the middle.
TIMES = (0.9, 0.7, 0.5)


def attention_maps(
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    prompts: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Float[np.ndarray, "K y x"]]:
    """Attention of image tokens to the concept's tokens, before and after erasing.

    Mean over the dual-stream blocks, their heads and `TIMES`. Both use the same x_t, on the
    straight line between the noise and the base model's picture from it.
    """
    settings = config.evaluation
    noise = pipe.noise(seeds, config.height, config.width)
    conditioning = pipe.encode(prompts)
    ids = pipe.image_ids(config.height, config.width)
    clean = pipe.denoise(
        noise, conditioning, ids, settings.steps, settings.guidance, [(adapter, 0.0)]
    )
    masks = concept_masks(pipe.tokenizer_2, prompts, config.concept)
    rows, columns = (side // 2 for side in pipe.grid(config.height, config.width))
    maps = {}
    for side, strength in (("before", 0.0), ("after", settings.strength)):
        model = pipe.denoiser(ids, settings.guidance, [(adapter, strength)])
        mass = concept_mass(pipe, model, noise, clean, conditioning, masks)
        maps[side] = mass.reshape(-1, rows, columns)
    return maps


def concept_mass(
    pipe: Pipeline,
    model: Denoiser,
    noise: Float[ArrayLike, "K S C"],
    clean: Float[ArrayLike, "K S C"],
    conditioning: Conditioning,
    masks: Float[np.ndarray, "K T"],
) -> Float[np.ndarray, "K S"]:
    """Attention of image tokens to a concept's tokens: mean over blocks, heads and `TIMES`.

    Args:
        pipe: pipeline with the device mesh.
        model: the base or the adapted model.
        noise: x_t at t = 1.
        clean: x_t at t = 0.
        conditioning: encoded prompts.
        masks: ones at the concept's tokens.
    """
    samples = sharding.share_out(pipe.mesh, (noise, clean, conditioning))
    with jax.set_mesh(pipe.mesh):
        mass = _attention_mass(model, *samples, jnp.asarray(masks)[..., None])
    return np.asarray(sharding.gather(pipe.mesh, mass), np.float32)


@jax.jit
def _attention_mass(
    model: Denoiser,
    noise: Float[Array, "K S C"],
    clean: Float[Array, "K S C"],
    conditioning: Conditioning,
    masks: Float[Array, "K T 1"],
) -> Float[Array, "K S"]:
    def at(time: Array) -> Array:
        latents = (1 - time) * clean + time * noise
        _, out = model.predict(latents, conditioning, time, token_masks=masks, stop_after="dual")
        return out["attention"][..., 0].mean((0, 2))[:, masks.shape[1] :]

    return jax.lax.map(at, jnp.array(TIMES)).mean(0)
