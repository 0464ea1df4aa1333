"""Quantisation of the frozen transformer's large kernels: half of bfloat16's memory.

Each output channel of a kernel has a scale, its largest absolute value / the largest value of the
storage type (`flux_jax.settings.STORAGE`); its entries are stored as multiples of the scale.
`flux_jax.models.layers.Dense` multiplies with the stored numbers and scales the result. With "int8"
the inputs of products stay as they are; with "fp8" each token's input has a scale too and becomes
float8_e4m3fn, so that GPUs that multiply this type compute the product in it. Embedders, norms and
biases, a small part, are not quantised.
Axis letters: L blocks, I inputs, O outputs.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, PyTree, Shaped

from flux_jax.errors import InputError
from flux_jax.lora import stacked
from flux_jax.settings import STORAGE
from flux_jax.tree import flatten, nest


class Quantized(NamedTuple):
    """A quantised kernel, approximately `kernel * scale`; the kernel is int8 or float8_e4m3fn."""

    kernel: Shaped[Array, "L I O"]
    scale: Float32[Array, "L O"]


def check(quantize: str | None) -> None:
    """Checks the quantisation type.

    Raises:
        InputError: it is neither None nor a key of `flux_jax.settings.STORAGE`.
    """
    if quantize is not None and quantize not in STORAGE:
        raise InputError(f"quantize = {quantize!r} must be {' or '.join(STORAGE)}, or None")


@functools.partial(jax.jit, static_argnames="storage")
def quantized(kernel: Float[Array, "L I O"], storage: str) -> Quantized:
    """Quantises a kernel.

    Each entry is off by at most half a scale in int8; by at most 1/16 of itself, or 2^-10 scales if
    that is more, in fp8.

    Args:
        kernel: the kernel of a layer in every block.
        storage: a key of `flux_jax.settings.STORAGE`.
    """
    dtype, largest = STORAGE[storage]
    return Quantized(*rounded(kernel, jnp.dtype(dtype), largest, axis=-2))


def rounded(
    x: Float[Array, "..."], dtype: DTypeLike, largest: float, axis: int = -1
) -> tuple[Shaped[Array, "..."], Float32[Array, "..."]]:
    """Rounds an array to a narrow type, with a scale for each vector along an axis.

    Args:
        x: the array.
        dtype: the narrow type, of integers or floats.
        largest: the value that the largest absolute entry of each vector becomes.
        axis: the axis that a scale is shared along.

    Returns:
        The rounded array, approximately x / scale, and the scales, without that axis.
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axis) / largest
    # Any step works for a vector of zeros.
    steps = x / jnp.expand_dims(jnp.where(scale > 0, scale, 1.0), axis)
    whole = jnp.issubdtype(dtype, jnp.integer)
    return (jnp.round(steps) if whole else steps).astype(dtype), scale


def quantized_params(params: Mapping[str, Any], storage: str) -> PyTree:
    """Quantises the stacked dense kernels of a transformer's parameters."""
    kernels = {
        f"{layer}/kernel": quantized(leaf, storage) for layer, leaf in stacked(params).items()
    }
    return beside(nest(flatten(params) | kernels))


def shapes(params: Mapping[str, Any], storage: str) -> PyTree:
    """Shapes of `quantized_params`'s result for parameters of these shapes; allocates nothing."""
    return jax.eval_shape(functools.partial(quantized_params, storage=storage), params)


def by_output(params: Mapping[str, Any]) -> dict[str, PyTree]:
    """Variable collections that give a layer the fp8 kernels of all blocks, and its block's index.

    Returns:
        `stack` with `kernel` [L, O, I] of every layer that is stored in fp8, and `block` with
        `index` [L]; empty without such layers. The kernels are copied unless they lie so in memory
        (`flux_jax.weights.loading`).
    """
    kernels = {
        path: leaf for path, leaf in flatten(params).items() if leaf.dtype == STORAGE["fp8"].dtype
    }
    if not kernels:
        return {}
    indices = {
        f"{path.removesuffix('kernel')}index": jnp.arange(len(leaf), dtype=jnp.int32)
        for path, leaf in kernels.items()
    }
    turned = {path: leaf.swapaxes(1, 2) for path, leaf in kernels.items()}
    return {"stack": nest(turned), "block": nest(indices)}


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
