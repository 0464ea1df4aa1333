"""The sampler: Euler steps along the velocity field.

Axis letters: K steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def denoise(
    velocity: Callable[[Float[Array, "*shape"], Float[Array, ""]], Float[Array, "*shape"]],
    noise: Float[Array, "*shape"],
    sigmas: Float[Array, "K+1"],
    keep_trajectory: bool = False,
) -> Float[Array, "*shape"] | Float[Array, "K+1 *shape"]:
    """Integrates dx/dσ = velocity(x, σ) from noise: x_{k+1} = x_k + (σ_{k+1} - σ_k) v(x_k, σ_k).

    Args:
        velocity: the field, given latents and the scalar noise level (which is the timestep).
        noise: latents at σ_0.
        sigmas: noise levels, falling; the last one is that of the result.
        keep_trajectory: whether to return the latents at every noise level.

    Returns:
        The latents at the last noise level or, on request, at all of them (the noise first);
        float32, whatever dtype the velocity has.
    """
    noise = noise.astype(jnp.float32)
    sigmas = jnp.asarray(sigmas, jnp.float32)

    def step(x: Array, levels: tuple[Array, Array]) -> tuple[Array, Array | None]:
        level, following = levels
        x = x + (following - level) * velocity(x, level).astype(jnp.float32)
        return x, x if keep_trajectory else None

    latents, trajectory = jax.lax.scan(step, noise, (sigmas[:-1], sigmas[1:]))
    return latents if trajectory is None else jnp.concatenate([noise[None], trajectory])
