"""Denoising trajectories of the frozen model, from noise to picture, at every step.

Axis letters: B batch, N noise levels, S image tokens, C latent channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from erase.config.schema import Config
from flux_jax import sharding
from flux_jax.pipeline import Pipeline, batches
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.sampling import denoise


def denoised(
    config: Config, pipe: Pipeline, conditioning: Conditioning, seeds: Sequence[int]
) -> Float[np.ndarray, "B N S C"]:
    """Compute trajectories of the frozen model in batches, collected on the host."""
    image_ids = pipe.image_ids(config.height, config.width)
    sigmas = jnp.asarray(pipe.schedule.sigmas(config.steps, len(image_ids)))
    parts = []
    for rows in batches(len(seeds), config.bank.batch, "denoising"):
        noise = pipe.noise([seeds[i] for i in rows], config.height, config.width)
        samples = sharding.share_out(pipe.mesh, (noise, conditioning[rows]))
        model = pipe.denoiser(image_ids, config.guidance)
        with jax.set_mesh(pipe.mesh):
            run = trajectories(model, *samples, sigmas)
        parts.append(np.asarray(sharding.gather(pipe.mesh, run)))
    return np.concatenate(parts)[: len(seeds)]


@jax.jit
def trajectories(
    model: Denoiser,
    noise: Float[Array, "B S C"],
    conditioning: Conditioning,
    sigmas: Float[Array, "N"],
) -> Float[Array, "B N S C"]:
    """Latents of the model at all noise levels, starting with the noise."""

    def field(latents: Array, level: Array) -> Array:
        return model.velocity(latents, conditioning, level)

    run = denoise(field, noise, sigmas, keep_trajectory=True)
    return run.swapaxes(0, 1).astype(model.transformer.dtype)
