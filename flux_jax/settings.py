"""Settings of adapters and of sampling; free of JAX, so that reading settings needs none."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from flux_jax.errors import InputError

# Query and key projections of the text stream in dual-stream blocks.
TEXT_QUERY_KEY = ("dual_blocks/attn/add_q_proj", "dual_blocks/attn/add_k_proj")
# Last part of a target whose change applies to text tokens only, and the layers that have such.
TEXT_ONLY = "text"
JOINED_LAYERS = tuple(
    f"single_blocks/{name}"
    for name in ("attn/to_q", "attn/to_k", "attn/to_v", "proj_mlp", "proj_out")
)
# Names of blocks in messages, by the first part of a target's path, and their number in FLUX.1.
BLOCKS = {"dual_blocks": "double block", "single_blocks": "single block"}
MOST_BLOCKS = {"dual_blocks": 19, "single_blocks": 38}


class Storage(NamedTuple):
    """How quantised kernels are stored: the dtype, and its largest value, which a scale maps to."""

    dtype: str
    largest: float


# By the value of `model.quantize`. int8 is symmetric, so that zero is represented exactly.
STORAGE = {"int8": Storage("int8", 127.0), "fp8": Storage("float8_e4m3fn", 448.0)}

# The largest seed of noise.
MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class SamplingOptions:
    """Settings for generating images.

    Attributes:
        steps: Euler steps.
        guidance: distilled guidance scale.
        height: pixels; None is the native size of the autoencoder.
        width: pixels; None is the native size of the autoencoder.
        batch: images generated at once.
    """

    steps: int = 28
    guidance: float = 3.5
    height: int | None = None
    width: int | None = None
    batch: int = 16


def layer_of(target: str) -> str:
    """The dense layer of a target; that of `single_blocks/attn/to_q/text` is without the end."""
    return target.removesuffix(f"/{TEXT_ONLY}")


def check_seeds(seeds: Iterable[int], name: str = "seed") -> None:
    """Checks that seeds of noise are different seeds: only 32 bits of a seed are used.

    Args:
        seeds: the seeds.
        name: their field, for the message.

    Raises:
        InputError: one is outside them.
    """
    for seed in seeds:
        if not 0 <= seed <= MOST_SEED:
            raise InputError(f"{name} = {seed!s:.40} must be from 0 to {MOST_SEED}")


def check_sampling(steps: int, guidance: float) -> None:
    """Checks the number of steps and the guidance.

    Raises:
        InputError: steps is below 1, or guidance is negative or not finite.
    """
    if steps < 1:
        raise InputError(f"steps = {steps} must be at least 1")
    if not 0 <= guidance < math.inf:
        raise InputError(f"guidance = {guidance} must be a finite number, at least 0")
