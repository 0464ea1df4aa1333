"""The frozen model's way from noise to pictures, every step of it.

Axis letters: B batch, N noise levels, S image tokens, C latent channels.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from erase.config.schema import Config
from flux_jax import sharding as meshes
from flux_jax.models.transformer import FluxTransformer
from flux_jax.pipeline import Pipeline, batches
from flux_jax.programs import Conditioning, apply_transformer
from flux_jax.sampling import denoise


def denoised(
    config: Config, pipe: Pipeline, conditioning: Conditioning, seeds: Sequence[int]
) -> Float[np.ndarray, "B N S C"]:
    """Trajectories of the frozen model, kept on the host until all are there."""
    image_ids = pipe.image_ids(config.height, config.width)
    sigmas = jnp.asarray(pipe.schedule.sigmas(config.steps, len(image_ids)))
    parts = []
    for rows in batches(len(seeds), config.bank.batch, "denoising"):
        noise = pipe.noise([seeds[i] for i in rows], config.height, config.width)
        samples = meshes.share_out(pipe.mesh, (noise, conditioning[rows]))
        params = pipe.params["transformer"]
        with jax.set_mesh(pipe.mesh):
            run = trajectories(
                pipe.transformer, params, *samples, image_ids, config.guidance, sigmas
            )
        parts.append(np.asarray(meshes.gather(pipe.mesh, run)))
    return np.concatenate(parts)[: len(seeds)]


@functools.partial(jax.jit, static_argnames="transformer")
def trajectories(
    transformer: FluxTransformer,
    params: PyTree,
    noise: Float[Array, "B S C"],
    conditioning: Conditioning,
    image_ids: Float[Array, "S 3"],
    guidance: Array,
    sigmas: Float[Array, "N"],
) -> Float[Array, "B N S C"]:
    """The frozen model's latents at all noise levels, the noise first."""

    def velocity(latents: Array, time: Array) -> Array:
        times = jnp.broadcast_to(time, latents.shape[:1])
        predicted, _ = apply_transformer(
            transformer, params, None, latents, conditioning, times, image_ids, guidance
        )
        assert predicted is not None
        return predicted

    run = denoise(velocity, noise, sigmas, keep_trajectory=True)
    return run.swapaxes(0, 1).astype(transformer.dtype)
