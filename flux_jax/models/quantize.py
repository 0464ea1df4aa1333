"""The frozen transformer's large kernels as int8 numbers: half of bfloat16's memory.

Each output channel of a kernel has a scale, its largest absolute value / 127, and each of its
entries is the nearest whole number of scales. `flux_jax.models.layers.Dense` multiplies with the
whole numbers and scales what comes out. Embedders, norms and biases, a small part, stay as they
are.
Axis letters: L blocks, I inputs, O outputs.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8, PyTree

from flux_jax.errors import InputError
from flux_jax.lora import stacked
from flux_jax.tree import flatten, nest

TYPE = "int8"
# As many steps to each side, so that zero stays zero.
STEPS = 127


class Quantized(NamedTuple):
    """A kernel, which is about `kernel * scale`."""

    kernel: Int8[Array, "L I O"]
    scale: Float32[Array, "L O"]


def check(quantize: str | None) -> None:
    """Makes sure that there is such a type.

    Raises:
        InputError: it is neither None nor int8.
    """
    if quantize not in (None, TYPE):
        raise InputError(f"quantize = {quantize!r} must be {TYPE}, or None")


@jax.jit
def quantized(kernel: Float[Array, "L I O"]) -> Quantized:
    """Rounds a kernel: each entry is at most half a scale off."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-2) / STEPS
    # A channel of zeros has whole numbers of anything.
    step = jnp.where(scale > 0, scale, 1.0)
    return Quantized(jnp.round(kernel / step[..., None, :]).astype(jnp.int8), scale)


def quantized_params(params: Mapping[str, Any]) -> PyTree:
    """A transformer's parameters with their stacked dense kernels rounded."""
    kernels = {f"{layer}/kernel": quantized(leaf) for layer, leaf in stacked(params).items()}
    return beside(nest(flatten(params) | kernels))


def shapes(params: Mapping[str, Any]) -> PyTree:
    """What `quantized_params` would make of parameters of these shapes; needs no memory."""
    return jax.eval_shape(quantized_params, params)


def beside(params: Mapping[str, Any]) -> PyTree:
    """Parameters whose kernels are `Quantized`, with `scale` in the layer beside `kernel`."""
    flat: dict[str, Any] = {}
    for path, leaf in flatten(params).items():
        if isinstance(leaf, Quantized):
            flat[path] = leaf.kernel
            flat[f"{path.removesuffix('kernel')}scale"] = leaf.scale
        else:
            flat[path] = leaf
    return nest(flat)
