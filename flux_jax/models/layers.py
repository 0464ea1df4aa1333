"""Layers of the MMDiT: dense layers with adapters, norms, embedders, modulation.

Parameters keep the dtype that they are loaded with; matrix products run in the module's `dtype`;
norms and sinusoids in float32.
Axis letters: B batch, N tokens, C channels, K modulation vectors, R rank.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float8e4m3fn, Float32, Int8, Shaped

from flux_jax.models.attention import compiled_for
from flux_jax.models.kernels import fp8_hopper
from flux_jax.models.quantize import rounded
from flux_jax.settings import STORAGE, TEXT_ONLY

# Rematerialisation for cheap functions: the backward pass keeps only the arguments and recomputes
# the rest, which is faster than writing it to memory and reading it back.
light = functools.partial(jax.checkpoint, prevent_cse=False)

# Types of a layer's inputs and of their gradient in a product with a float8_e4m3fn kernel.
INPUTS = STORAGE["fp8"]
GRADIENT = STORAGE["fp8"]

NORM_EPS = 1e-6
SINUSOID_CHANNELS = 256


def scanned(
    block: type[nn.Module],
    length: int,
    unroll: bool = False,
    collections: tuple[str, ...] = ("params",),
) -> Any:
    """Applies a block again and again, over weights that are stacked along their first axis.

    Args:
        block: takes the carry, then inputs that all blocks share; returns carry and output.
        length: number of blocks.
        unroll: whether they are compiled one by one instead of as the body of a loop.
        collections: the stacked collections of variables. The collection "stack" is passed to every
            block whole.
    """
    return nn.scan(
        block,
        variable_axes=dict.fromkeys(collections, 0),
        variable_broadcast="stack",
        split_rngs={"params": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=length,
        check_constancy_invariants=False,
        unroll=length if unroll else 1,
    )


class Dense(nn.Module):
    """x W + b, plus the changes of an adapter.

    The collection `lora` may contain A [C, R] and B [R, features], which add (x A) B; D
    [C, features], which adds x D; `gain` [features], which adds gain * (x W); and b [features],
    which is added to the bias. `text` may contain another A and B, which apply to the first tokens
    only, those of the text. See `flux_jax.lora`.
    If the parameters also contain a `scale` [features], W is kernel * scale, see
    `flux_jax.models.quantize`. FLUX.2's layers have no b.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... C"], text: int = 0) -> Float[Array, "... features"]:
        """Applies the layer in `dtype`; the first `text` tokens of x are the text's."""
        x = x.astype(self.dtype)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        if self.has_variable("params", "scale"):
            stack = None
            if self.has_variable("stack", "kernel") and self.dtype == jnp.bfloat16:
                stack = self.get_variable("stack", "kernel"), self.get_variable("block", "index")
            base = quantized_product(x, kernel, self.get_variable("params", "scale"), stack)
        else:
            base = apart(x @ kernel.astype(self.dtype))
        y = base
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)
        change = {
            name: self.get_variable("lora", name).astype(self.dtype)
            for name in ("A", "B", "D", "gain", "b")
            if self.has_variable("lora", name)
        }
        if "A" in change:
            y = y + (x @ change["A"]) @ change["B"]
        if "D" in change:
            y = y + apart(x @ change["D"])
        if "gain" in change:
            y = y + base * change["gain"]
        if "b" in change:
            y = y + change["b"]
        if self.has_variable("lora", TEXT_ONLY):
            half = jax.tree.map(
                lambda leaf: leaf.astype(self.dtype), self.get_variable("lora", TEXT_ONLY)
            )
            changed = y[..., :text, :] + (x[..., :text, :] @ half["A"]) @ half["B"]
            y = jnp.concatenate([changed, y[..., text:, :]], axis=-2)
        return y


def quantized_product(
    x: Float[Array, "... C"],
    kernel: Shaped[Array, "C K"],
    scale: Float32[Array, "K"],
    stack: tuple[Array, Array] | None = None,
) -> Float[Array, "... K"]:
    """Computes x (kernel * scale) in x's dtype for a kernel of `flux_jax.models.quantize`."""
    if kernel.dtype == INPUTS.dtype:
        return product_fp8(x, kernel, scale, stack)
    return (apart(product(x, kernel)) * scale).astype(x.dtype)


@light
def product(x: Float[Array, "... C"], kernel: Int8[Array, "C K"]) -> Float[Array, "... K"]:
    """Matrix product in x's dtype.

    Its gradient keeps the kernel as integers: the kernels of all blocks in x's dtype would take the
    memory that quantisation saves.
    """
    return x @ kernel.astype(x.dtype)


@jax.custom_vjp
def product_fp8(
    x: Float[Array, "... C"],
    kernel: Float8e4m3fn[Array, "C K"],
    scale: Float32[Array, "K"],
    stack: tuple[Array, Array] | None = None,
) -> Float[Array, "... K"]:
    """Computes x (kernel * scale) in float8, summed in float32; the result has x's dtype.

    Each token's x is rounded to float8_e4m3fn with a scale of its own. The gradient of x is that
    of the product without this rounding: the result's gradient times `scale` is rounded for each
    token as `GRADIENT` says, and multiplied with the kernel. The kernel and its scale are frozen.

    Args:
        x: the layer's inputs.
        kernel: the rounded kernel.
        scale: its scales.
        stack: the kernels of all blocks [L, K, C] and this block's index, where
            `flux_jax.models.kernels.fp8_hopper` may read them in place (`hopper_kernels`).

    Raises:
        TypeError: a gradient of the kernel or of its scale is asked for.
    """
    values, steps = rounded(x, *INPUTS)
    return _scaled_product(values, steps, kernel, scale, stack).astype(x.dtype)


def _forward(
    x: CustomVJPPrimal, *frozen: CustomVJPPrimal | Any
) -> tuple[Array, tuple[Array, Array, Array | None]]:
    if any(leaf.perturbed for leaf in jax.tree.leaves(frozen)):
        raise TypeError("float8 kernels are frozen: they and their scales have no gradient")
    kernel, scale, stack = jax.tree.map(lambda leaf: leaf.value, frozen)
    index = stack[1] if stack else None
    return product_fp8(x.value, kernel, scale, stack), (kernel, scale, index)


def _backward(
    kept: tuple[Array, Array, Array | None], gradient: Array
) -> tuple[Array, None, None, None]:
    kernel, scale, index = kept
    values, steps = rounded(gradient.astype(jnp.float32) * scale, *GRADIENT)
    # A copy of this block's kernel in the other order.
    stack = None if index is None else (kernel[None], jnp.zeros_like(index))
    back = _scaled_product(values, steps, kernel.T, jnp.ones(len(kernel)), stack)
    return back.astype(gradient.dtype), None, None, None


product_fp8.defvjp(_forward, _backward, symbolic_zeros=True)


def _scaled_product(
    x: Array, steps: Array, kernel: Array, scale: Array, stack: tuple[Array, Array] | None
) -> Array:
    """(x * steps) (kernel * scale) for float8 x and kernel, summed in float32.

    Without the Hopper kernel XLA recognises the conversion to bfloat16, which is exact, and
    multiplies in float8 on GPUs that can.
    """
    if stack and fp8_hopper.tile_for(steps.size, *kernel.shape):
        y = fp8_hopper.matmul(x.reshape(-1, len(kernel)), steps.reshape(-1), scale, *stack)
        return y.reshape(*x.shape[:-1], -1)
    wide = jnp.float32 if compiled_for() == "cpu" else jnp.bfloat16
    sums = jnp.matmul(x.astype(wide), kernel.astype(wide), preferred_element_type=jnp.float32)
    return apart(sums) * steps[..., None] * scale


def hopper_kernels() -> bool:
    """Whether float8 products of the traced function run in `fp8_hopper` where its sizes allow."""
    alone = jax.sharding.get_abstract_mesh().size <= 1
    return alone and compiled_for() == "gpu" and fp8_hopper.runs_on(jax.devices()[:1])


def apart(product: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Keeps the GPU compiler from fusing the product with later operations.

    It would add the bias within the product's kernel, which then could not read a block's weights
    directly from the stacked ones and would copy them first: a fifth of a forward pass.
    """
    return jax.lax.optimization_barrier(product) if compiled_for() == "gpu" else product


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        """Normalises over the last axis; the result has x's dtype."""
        return rms_norm(x, self.param("scale", nn.initializers.ones, (x.shape[-1],)))


@light
def rms_norm(x: Float[Array, "... C"], scale: Float[Array, "C"]) -> Float[Array, "... C"]:
    """RMS norm over the last axis, x / rms(x) * scale, in float32; the result has x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + NORM_EPS)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


@light
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU with the tanh approximation."""
    return nn.gelu(x, approximate=True)


@light
def modulate(
    x: Float[Array, "B N C"], shift: Float[Array, "B C"], scale: Float[Array, "B C"]
) -> Float[Array, "B N C"]:
    """LayerNorm without affine part, then (1 + scale) x + shift, in float32; returns x's dtype."""
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(y - mean), axis=-1, keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(variance + NORM_EPS)
    y = y * (1 + scale[:, None].astype(jnp.float32)) + shift[:, None].astype(jnp.float32)
    return y.astype(x.dtype)


class Modulation(nn.Module):
    """AdaLN: K vectors [B, C] from the conditioning vector, the same for all tokens of a sample."""

    vectors: int
    dtype: DTypeLike = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, conditioning: Float[Array, "B C"]) -> tuple[Float[Array, "B C"], ...]:
        """linear(silu(conditioning)), split into K vectors."""
        width = conditioning.shape[-1]
        y = Dense(self.vectors * width, self.dtype, self.bias, name="linear")(nn.silu(conditioning))
        return tuple(jnp.split(y, self.vectors, axis=-1))


class MLP(nn.Module):
    """Two dense layers around an activation: GELU (tanh) in blocks, SiLU in embedders."""

    hidden: int
    features: int
    activation: str
    dtype: DTypeLike = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... features"]:
        """Applies both layers."""
        y = Dense(self.hidden, self.dtype, self.bias, name="linear_1")(x)
        y = gelu(y) if self.activation == "gelu" else nn.silu(y)
        return Dense(self.features, self.dtype, self.bias, name="linear_2")(y)


def sinusoid(value: Float[Array, "B"]) -> Float[Array, "B 256"]:
    """Cosines, then sines, of 1000 * value at 128 geometric frequencies from 1 to 1/10000.

    This embeds the timestep (in [0, 1]) and the guidance. Always float32: in bfloat16
    1000 * value would be off by up to 2.
    """
    half = SINUSOID_CHANNELS // 2
    # The exponent is rounded to float32 before exponentiation, as PyTorch does: at angles of
    # 1000 rad the last bit of a frequency makes a difference.
    exponent = np.float32(-np.log(10_000.0)) * np.arange(half, dtype=np.float32) / half
    frequencies = jnp.asarray(np.exp(exponent.astype(np.float64)), jnp.float32)
    angle = (1000.0 * value.astype(jnp.float32))[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
