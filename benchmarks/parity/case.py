"""Inputs and outputs of both sides of the comparison, and the error between them.

Axis letters: S image tokens, T text tokens, C latent channels, E text width, P pooled width,
W model width. There is one sample.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flux_jax.models.transformer import FluxConfig

TIMESTEP = 0.6
# Diffusers rounds 1000 * guidance to the model's dtype, and its sinusoids change accordingly: in
# bfloat16 3500 becomes 3504, while 4000 is exact.
GUIDANCES = (3.5, 4.0)

Kind = Literal["dual", "single"]
# Keys: whether the adapter is applied, and the guidance.
Velocities = dict[tuple[bool, float], Float[np.ndarray, "1 S C"]]


@dataclass(frozen=True)
class Inputs:
    """Inputs of a velocity, besides timestep and guidance.

    Attributes:
        latents: packed latents.
        text: T5's output.
        pooled: CLIP's output.
        side: image tokens along each side of the picture.
    """

    latents: Float[np.ndarray, "1 S C"]
    text: Float[np.ndarray, "1 T E"]
    pooled: Float[np.ndarray, "1 P"]
    side: int


@dataclass(frozen=True)
class Streams:
    """Image and text streams between blocks."""

    image: Float[np.ndarray, "1 S W"]
    text: Float[np.ndarray, "1 T W"]


@dataclass(frozen=True)
class Block:
    """Recorded inputs and outputs of one of diffusers' blocks.

    Attributes:
        kind: which stack of blocks it is in.
        index: its position in the stack.
        given: its input.
        conditioning: its modulation input.
        made: its output.
    """

    kind: Kind
    index: int
    given: Streams
    conditioning: Float[np.ndarray, "1 W"]
    made: Streams


def random_inputs(config: FluxConfig, side: int, text_tokens: int, seed: int) -> Inputs:
    """Standard normal numbers, exact in bfloat16, so that every dtype gets the same inputs.

    Args:
        config: the transformer's.
        side: image tokens along each side.
        text_tokens: T5's.
        seed: of the numbers.
    """
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(jnp.bfloat16).astype(np.float32)

    return Inputs(
        normal(1, side * side, config.in_channels),
        normal(1, text_tokens, config.joint_attention_dim),
        normal(1, config.pooled_projection_dim),
        side,
    )


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """Relative error ‖one - other‖ / ‖other‖."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def slope(one: np.ndarray, other: np.ndarray) -> float:
    """⟨one, other⟩ / ⟨other, other⟩: 1 if they differ only by a part orthogonal to `other`."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(np.vdot(one, other) / np.vdot(other, other))
