"""What both sides of the comparison are given, what they give back, and how far that is apart.

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
# Diffusers rounds 1000 * guidance to the model's dtype, and its sinusoids are off by as much: in
# bfloat16 3500 becomes 3504, while 4000 stays.
GUIDANCES = (3.5, 4.0)

Kind = Literal["dual", "single"]
# By whether the adapter is applied, and by guidance.
Velocities = dict[tuple[bool, float], Float[np.ndarray, "1 S C"]]


@dataclass(frozen=True)
class Inputs:
    """What a velocity is computed from, besides timestep and guidance.

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
    """The two parts of what goes from block to block."""

    image: Float[np.ndarray, "1 S W"]
    text: Float[np.ndarray, "1 T W"]


@dataclass(frozen=True)
class Block:
    """A block of diffusers' at work.

    Attributes:
        kind: of which stack of blocks.
        index: in the stack.
        given: what it got.
        conditioning: what it was modulated by.
        made: what it gave back.
    """

    kind: Kind
    index: int
    given: Streams
    conditioning: Float[np.ndarray, "1 W"]
    made: Streams


def random_inputs(config: FluxConfig, side: int, text_tokens: int, seed: int) -> Inputs:
    """Standard normal numbers that bfloat16 holds, so that every dtype gets the same.

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
    """The distance of one array from another, in lengths of the other."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def slope(one: np.ndarray, other: np.ndarray) -> float:
    """How much of an array is in another: 1 if they differ by what has no part of it, as noise."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(np.vdot(one, other) / np.vdot(other, other))
