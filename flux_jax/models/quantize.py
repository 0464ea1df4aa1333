"""Int8 quantisation of the frozen transformer's large kernels: half of bfloat16's memory.

Each output channel of a kernel has a scale, its largest absolute value / 127; its entries are
rounded to multiples of the scale. `flux_jax.models.layers.Dense` multiplies with the integers and
scales the result. Embedders, norms and biases, a small part, are not quantised.
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
# Symmetric around zero, so that zero is represented exactly.
STEPS = 127


class Quantized(NamedTuple):
    """A quantised kernel, approximately `kernel * scale`."""

    kernel: Int8[Array, "L I O"]
    scale: Float32[Array, "L O"]


def check(quantize: str | None) -> None:
    """Checks the quantisation type.

    Raises:
        InputError: it is neither None nor int8.
    """
    if quantize not in (None, TYPE):
        raise InputError(f"quantize = {quantize!r} must be {TYPE}, or None")


@jax.jit
def quantized(kernel: Float[Array, "L I O"]) -> Quantized:
    """Quantises a kernel: each entry is off by at most half a scale."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-2) / STEPS
    # Any step works for a channel of zeros.
    step = jnp.where(scale > 0, scale, 1.0)
    return Quantized(jnp.round(kernel / step[..., None, :]).astype(jnp.int8), scale)


def quantized_params(params: Mapping[str, Any]) -> PyTree:
    """Quantises the stacked dense kernels of a transformer's parameters."""
    kernels = {f"{layer}/kernel": quantized(leaf) for layer, leaf in stacked(params).items()}
    return beside(nest(flatten(params) | kernels))


def shapes(params: Mapping[str, Any]) -> PyTree:
    """Shapes of `quantized_params`'s result for parameters of these shapes; allocates nothing."""
    return jax.eval_shape(quantized_params, params)


def beside(params: Mapping[str, Any]) -> PyTree:
    """Splits `Quantized` kernels into the leaves `kernel` and `scale` of their layer."""
    flat: dict[str, Any] = {}
    for path, leaf in flatten(params).items():
        if isinstance(leaf, Quantized):
            flat[path] = leaf.kernel
            flat[f"{path.removesuffix('kernel')}scale"] = leaf.scale
        else:
            flat[path] = leaf
    return nest(flat)
