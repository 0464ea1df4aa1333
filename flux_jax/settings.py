"""Settings of adapters and of sampling; needs no JAX, so that reading them does not either."""

import math
from dataclasses import dataclass

from flux_jax.errors import InputError

# Queries and keys of the text in dual-stream blocks.
TEXT_QUERY_KEY = ("dual_blocks/attn/add_q_proj", "dual_blocks/attn/add_k_proj")
# What messages call the blocks of a target, by how its path begins, and FLUX.1's number of them.
BLOCKS = {"dual_blocks": "double block", "single_blocks": "single block"}
MOST_BLOCKS = {"dual_blocks": 19, "single_blocks": 38}


@dataclass(frozen=True)
class SamplingOptions:
    """How pictures are drawn.

    Attributes:
        steps: Euler steps.
        guidance: distilled guidance scale.
        height: pixels; None is the size that the autoencoder was made for.
        width: pixels; likewise.
        batch: pictures drawn at once.
    """

    steps: int = 28
    guidance: float = 3.5
    height: int | None = None
    width: int | None = None
    batch: int = 16


def check_sampling(steps: int, guidance: float) -> None:
    """Makes sure that pictures can be drawn so.

    Raises:
        InputError: there are no steps, or guidance is negative or no finite number.
    """
    if steps < 1:
        raise InputError(f"steps = {steps} must be at least 1")
    if not 0 <= guidance < math.inf:
        raise InputError(f"guidance = {guidance} must be a finite number, at least 0")
