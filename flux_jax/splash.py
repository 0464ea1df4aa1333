"""Flash attention on TPU: JAX's Pallas "splash" kernel without a mask, on one device or a mesh.

Neither its forward nor its backward kernels hold a matrix of N x N.
Axis letters: B batch, N tokens, H heads, D head width, V values' width.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float

from flux_jax.mesh import FSDP

# A register's lanes, in multiples of which the kernel takes widths and tokens.
LANES = 128
# Tokens a block at most: what fits the vector memory; which is fastest was not measured.
BLOCK = 640
BLOCKS = tuple(
    f"block_{name}"
    for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
)
# Axes of a mesh over which samples are split; a mesh's others belong to whoever maps over them.
SAMPLES = ("data", FSDP)


def takes(k: Float[Array, "B N H D"], v: Float[Array, "B N H V"]) -> bool:
    """Whether the kernel takes keys and values of these shapes."""
    return not any(size % LANES for size in (k.shape[1], k.shape[-1], v.shape[-1]))


def attend(
    q: Float[Array, "B N H D"],
    k: Float[Array, "B N H D"],
    v: Float[Array, "B N H V"],
    *,
    interpret: bool = False,
) -> Float[Array, "B N H V"]:
    """softmax(q k^T / sqrt(D)) v.

    The compiler cannot split a kernel over devices by itself. Under a mesh (`jax.set_mesh`,
    `jax.sharding.use_abstract_mesh`) each device therefore takes the samples that are its own.

    Args:
        q: queries.
        k: keys.
        v: values.
        interpret: whether to run without a TPU, which is slow and good for tests.
    """
    local = functools.partial(_attend, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1 and not mesh.are_all_axes_manual:
        samples = PartitionSpec(axes_that_divide(mesh, len(q)))
        # The kernel does not say over which axes its results vary.
        local = jax.shard_map(local, in_specs=samples, out_specs=samples, check_vma=False)
    return local(q, k, v)


def axes_that_divide(mesh: AbstractMesh, samples: int) -> tuple[str, ...]:
    """The axes of a mesh that a number of samples can be split over evenly."""
    axes: tuple[str, ...] = ()
    for axis in SAMPLES:
        if axis in mesh.shape and samples % mesh.shape[axis] == 0:
            axes, samples = (*axes, axis), samples // mesh.shape[axis]
    return axes


def _attend(q: Array, k: Array, v: Array, *, interpret: bool) -> Array:
    _, tokens, heads, width = q.shape
    sizes: Any = dict.fromkeys(BLOCKS, _block(tokens))
    kernel: Any = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([pallas.FullMask((tokens, tokens))] * heads),
        block_sizes=pallas.BlockSizes(**sizes),
        interpret=interpret,
    )
    # The kernel does not scale. In float32, so that a half precision query is rounded once.
    q = (q.astype(jnp.float32) / math.sqrt(width)).astype(q.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)


def _block(tokens: int) -> int:
    """The largest block that the tokens are a multiple of."""
    return next(size for size in range(BLOCK, 0, -LANES) if tokens % size == 0)
