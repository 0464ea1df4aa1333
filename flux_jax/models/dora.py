"""DoRA layers: computes their gains from the magnitudes and the model's weights.

The weight of such a layer is m * (W + s A B) / ‖W + s A B‖ per output (Liu et al. 2024, Eq. 5).
With c = m / ‖W + s A B‖ this is W + (c - 1) W + c s A B: a gain of c - 1 on x W, and B times c.
Axis letters: L blocks, I inputs, O outputs, R rank.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from flux_jax.lora import Adapter
from flux_jax.tree import flatten, nest


def is_dora(adapter: Adapter) -> bool:
    """Whether any layer has DoRA magnitudes."""
    return any(path.endswith("/M") for path in flatten(adapter.lora))


def resolve(adapter: Adapter, params: Mapping[str, Any]) -> Adapter:
    """Replaces every M by a gain, and multiplies what is added to W by c.

    Args:
        adapter: an adapter fitted to the model.
        params: the transformer's parameters, quantised or not.
    """
    leaves, weights = flatten(adapter.lora), flatten(params)
    for path in [path for path in leaves if path.endswith("/M")]:
        target, magnitude = path.removesuffix("/M"), leaves.pop(path)
        names = {"kernel": f"{target}/kernel", "scale": f"{target}/scale"}
        held = {name: weights[path] for name, path in names.items() if path in weights}
        added = {name: leaves[f"{target}/{name}"] for name in "ABD" if f"{target}/{name}" in leaves}
        ratio = _ratios(held, added, magnitude, adapter.alpha / adapter.rank)
        leaves[f"{target}/gain"] = ratio - 1
        for name in added.keys() & {"B", "D"}:
            leaves[f"{target}/{name}"] = added[name] * ratio[..., None, :]
    return Adapter(nest(leaves), adapter.alpha)


@jax.jit
def _ratios(
    held: Mapping[str, Array],
    added: Mapping[str, Array],
    magnitude: Float[Array, "*L O"],
    scale: Float[Array, ""] | float,
) -> Float[Array, "*L O"]:
    """The factor c of every output, block by block; 1 where a layer is not DoRA (M is NaN)."""

    def of_block(block: PyTree) -> Array:
        held, added, magnitude = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), block)
        total = held["kernel"] * held.get("scale", 1.0)
        if "A" in added:
            total += scale * (added["A"] @ added["B"])
        if "D" in added:
            total += added["D"]
        lengths = jnp.linalg.norm(total, axis=0)
        # If all weights of an output are zero, so is the output.
        keeps = jnp.isnan(magnitude) | (lengths == 0)
        return jnp.where(keeps, 1.0, magnitude / jnp.where(lengths == 0, 1.0, lengths))

    block = (held, added, magnitude)
    return of_block(block) if magnitude.ndim == 1 else jax.lax.map(of_block, block)
