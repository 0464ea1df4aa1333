"""The sampler: Euler steps along the velocity field.

Axis letters: K noise levels, one more than the number of steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flux_jax.errors import InputError
from flux_jax.models.config import read_fields, require


def denoise(
    velocity: Callable[[Float[Array, "*shape"], Float[Array, ""]], Float[Array, "*shape"]],
    noise: Float[Array, "*shape"],
    sigmas: Float[Array, "K"],
    keep_trajectory: bool = False,
) -> Float[Array, "*shape"] | Float[Array, "K *shape"]:
    """Integrates dx/dσ = velocity(x, σ) from noise: x_{k+1} = x_k + (σ_{k+1} - σ_k) v(x_k, σ_k).

    Args:
        velocity: the field, a function of the latents and the scalar noise level (the timestep).
        noise: latents at σ_0.
        sigmas: decreasing noise levels; the last one is that of the result.
        keep_trajectory: whether to return the latents at every noise level.

    Returns:
        The latents at the last noise level or, with `keep_trajectory`, at all of them (the noise
        first); float32, whatever the dtype of the velocity.
    """
    noise = noise.astype(jnp.float32)
    sigmas = jnp.asarray(sigmas, jnp.float32)

    def step(x: Array, levels: tuple[Array, Array]) -> tuple[Array, Array | None]:
        level, following = levels
        x = euler(x, velocity(x, level), level, following)
        return x, x if keep_trajectory else None

    latents, trajectory = jax.lax.scan(step, noise, (sigmas[:-1], sigmas[1:]))
    return latents if trajectory is None else jnp.concatenate([noise[None], trajectory])


def euler(
    x: Float[Array, "*shape"],
    velocity: Float[Array, "*shape"],
    level: Float[Array, ""],
    following: Float[Array, ""],
) -> Float[Array, "*shape"]:
    """One Euler step, x + (σ_{k+1} - σ_k) v in float32.

    Args:
        x: latents at σ_k, float32.
        velocity: v at x and σ_k.
        level: σ_k.
        following: σ_{k+1}.
    """
    return x + (following - level) * velocity.astype(jnp.float32)


FILE = "scheduler/scheduler_config.json"
S = TypeVar("S", bound="Schedule")


@dataclass(frozen=True)
class Schedule:
    """Scheduler settings, with the names and defaults of a diffusers `scheduler_config.json`."""

    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: str = "exponential"
    shift_terminal: float | None = None

    @classmethod
    def from_dict(cls: type[S], config: Mapping[str, Any]) -> S:
        """Reads the fields from a parsed `scheduler_config.json`.

        Raises:
            InputError: a setting is not implemented.
        """
        off = (False, None)
        require(
            config,
            FILE,
            _class_name=("FlowMatchEulerDiscreteScheduler",),
            num_train_timesteps=(1000,),
            time_shift_type=("exponential", "linear"),
            invert_sigmas=off,
            use_karras_sigmas=off,
            use_exponential_sigmas=off,
            use_beta_sigmas=off,
            stochastic_sampling=off,
            use_flow_sigmas=off,
        )
        return read_fields(cls, config, FILE)

    def mu(self, image_tokens: int) -> float:
        """Strength of the dynamic shift, linear in the number of image tokens."""
        slope = (self.max_shift - self.base_shift) / (
            self.max_image_seq_len - self.base_image_seq_len
        )
        return self.base_shift + slope * (image_tokens - self.base_image_seq_len)

    def sigmas(self, steps: int, image_tokens: int) -> Float[np.ndarray, "{steps}+1"]:
        """Noise levels from 1 down to 0, float32; more image tokens keep them high for longer.

        Args:
            steps: Euler steps.
            image_tokens: tokens of the image; only the dynamic shift depends on it.

        Raises:
            InputError: steps is below 1, or below 2 for a schedule with a terminal shift.
        """
        return self.shifted(steps, self.mu(image_tokens))

    def shifted(self, steps: int, mu: float) -> Float[np.ndarray, "{steps}+1"]:
        """Noise levels with a dynamic shift of strength mu, where it is switched on.

        Raises:
            InputError: as for `sigmas`.
        """
        fewest = 2 if self.shift_terminal else 1
        if steps < fewest:
            raise InputError(f"steps = {steps} must be at least {fewest}")
        sigmas = np.linspace(1.0, 1.0 / steps, steps)
        factor = self.shift
        if self.use_dynamic_shifting:
            factor = np.exp(mu) if self.time_shift_type == "exponential" else mu
        sigmas = factor / (factor + (1.0 / sigmas - 1.0))
        if self.shift_terminal:
            stretch = (1.0 - self.shift_terminal) / (1.0 - sigmas[-1])
            sigmas = 1.0 - (1.0 - sigmas) * stretch
        return np.append(sigmas, 0.0).astype(np.float32)
