"""Flash attention on TPU: JAX's Pallas "splash" kernel without a mask, on one device or a mesh.

Neither its forward nor its backward kernels store an N x N matrix.
Axis letters: B batch, N tokens, H heads, D head width, V value width.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flux_jax.sharding import by_samples

# Lanes of a register; the kernel needs widths and tokens in multiples of this.
LANES = 128
# Maximum tokens per block: what fits the vector memory; which size is fastest was not measured.
BLOCK = 640
BLOCKS = tuple(
    f"block_{name}"
    for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
)


def takes(k: Float[Array, "B N H D"], v: Float[Array, "B N H V"]) -> bool:
    """Whether the kernel supports keys and values of these shapes."""
    return not any(size % LANES for size in (k.shape[1], k.shape[-1], v.shape[-1]))


def attend(
    q: Float[Array, "B N H D"],
    k: Float[Array, "B N H D"],
    v: Float[Array, "B N H V"],
    *,
    interpret: bool = False,
) -> Float[Array, "B N H V"]:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: queries.
        k: keys.
        v: values.
        interpret: whether to run without a TPU, which is slow and meant for tests.
    """
    return by_samples(functools.partial(_attend, interpret=interpret), q, k, v)


def _attend(q: Array, k: Array, v: Array, *, interpret: bool) -> Array:
    _, tokens, heads, width = q.shape
    sizes: Any = dict.fromkeys(BLOCKS, _block(tokens))
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    kernel: Any = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([pallas.FullMask((tokens, tokens))] * heads),
        block_sizes=pallas.BlockSizes(**sizes),
        interpret=interpret,
    )
    # The kernel does not scale. Scaled in float32, so that half-precision queries are rounded once.
    q = (q.astype(jnp.float32) / math.sqrt(width)).astype(q.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)


def _block(tokens: int) -> int:
    """The largest block size that divides the number of tokens."""
    return next(size for size in range(BLOCK, 0, -LANES) if tokens % size == 0)
