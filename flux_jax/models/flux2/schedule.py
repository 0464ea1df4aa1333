"""Noise levels and token positions of FLUX.2.

Axis letters: S image tokens.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flux_jax.sampling import Schedule

# Lines through the shifts that suit 10 and 200 steps, as functions of the image's tokens: slope and
# value at 0, as in diffusers' `compute_empirical_mu`.
AT_10, AT_200 = (8.73809524e-05, 1.89833333), (0.00016927, 0.45666666)
# Above so many tokens the second line serves for any number of steps, and the shift falls.
MOST_TOKENS = 4300


def empirical_mu(tokens: int, steps: int) -> float:
    """Strength of the dynamic shift for a number of image tokens and of steps."""
    at_10, at_200 = (slope * tokens + start for slope, start in (AT_10, AT_200))
    if tokens > MOST_TOKENS:
        return at_200
    slope = (at_200 - at_10) / 190
    return slope * steps + at_200 - 200 * slope


@dataclass(frozen=True)
class Flux2Schedule(Schedule):
    """Scheduler settings; the shift depends on the number of steps as well."""

    def sigmas(self, steps: int, image_tokens: int) -> Float[np.ndarray, "{steps}+1"]:
        """Noise levels from 1 down to 0, float32; see `Schedule.sigmas`."""
        return self.shifted(steps, empirical_mu(image_tokens, steps))


def latent_ids(rows: int, columns: int) -> Float[Array, "S 4"]:
    """Positions (0, row, column, 0) of the packed tokens of a latent grid of rows x columns."""
    row, column = jnp.meshgrid(jnp.arange(rows // 2), jnp.arange(columns // 2), indexing="ij")
    zero = jnp.zeros_like(row)
    return jnp.stack([zero, row, column, zero], -1).reshape(-1, 4).astype(jnp.float32)
