"""Denoising trajectories of the frozen model, from noise to picture, at every step.

Axis letters: B batch, N noise levels, D = N - 1 denoising steps, S image tokens, C latent channels.
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
from flux_jax.sampling import denoise, euler


def denoised(
    config: Config,
    pipe: Pipeline,
    conditioning: Conditioning,
    seeds: Sequence[int],
    *,
    velocities: bool = False,
) -> tuple[Float[np.ndarray, "B N S C"], Float[np.ndarray, "B D S C"] | None]:
    """Compute trajectories of the frozen model in batches, collected on the host.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        conditioning: encoded prompts.
        seeds: seeds of the noise.
        velocities: whether to return the velocity of each step too.
    """
    image_ids = pipe.image_ids(config.height, config.width)
    sigmas = jnp.asarray(pipe.schedule.sigmas(config.steps, len(image_ids)))
    parts = []
    for rows in batches(len(seeds), config.bank.batch, "denoising"):
        noise = pipe.noise([seeds[i] for i in rows], config.height, config.width)
        samples = sharding.share_out(pipe.mesh, (noise, conditioning[rows]))
        model = pipe.denoiser(image_ids, config.guidance)
        with jax.set_mesh(pipe.mesh):
            program = trajectories_with_velocities if velocities else trajectories
            run = program(model, *samples, sigmas)
        parts.append(jax.tree.map(np.asarray, sharding.gather(pipe.mesh, run)))
    found = jax.tree.map(lambda *rows: np.concatenate(rows)[: len(seeds)], *parts)
    return found if velocities else (found, None)


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


@jax.jit
def trajectories_with_velocities(
    model: Denoiser,
    noise: Float[Array, "B S C"],
    conditioning: Conditioning,
    sigmas: Float[Array, "N"],
) -> tuple[Float[Array, "B N S C"], Float[Array, "B D S C"]]:
    """Latents as `trajectories` returns them, and the velocity of each step."""

    def step(x: Array, levels: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        level, following = levels
        velocity = model.velocity(x, conditioning, level)
        x = euler(x, velocity, level, following)
        return x, (x, velocity)

    noise = noise.astype(jnp.float32)
    _, (run, velocities) = jax.lax.scan(step, noise, (sigmas[:-1], sigmas[1:]))
    run = jnp.concatenate([noise[None], run])
    dtype = model.transformer.dtype
    return run.swapaxes(0, 1).astype(dtype), velocities.swapaxes(0, 1).astype(dtype)
