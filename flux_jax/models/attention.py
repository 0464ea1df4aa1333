"""Joint attention of text and image tokens: rotary positions, kernels, and attention weights.

Axis letters: B batch, N tokens (text first, image last), T text, H heads, D head width,
P = D / 2 channel pairs, G groups of text tokens, A position axes.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flux_jax.models.kernels import splash_attention
from flux_jax.sharding import by_samples

ROPE_BASE = 10_000.0


def rope_tables(
    ids: Float[Array, "N A"], axes_dims: Sequence[int], base: float = ROPE_BASE
) -> tuple[Float[Array, "N P"], Float[Array, "N P"]]:
    """Cosines and sines of rotary position embedding, in float32.

    Args:
        ids: position of each token on each axis.
        axes_dims: how many of the D channels each axis rotates; their sum is D.
        base: of the frequencies; FLUX.1's by default.

    Returns:
        Tables for adjacent channel pairs: pair i of axis a is rotated by
        ids[:, a] * base^(-2i / axes_dims[a]) radians (RoFormer, eq. 15).
    """
    angles = [
        ids[:, axis, None].astype(jnp.float32)
        * jnp.asarray(base ** -(np.arange(0, dim, 2) / max(dim, 1)), jnp.float32)
        for axis, dim in enumerate(axes_dims)
    ]
    angle = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(
    x: Float[Array, "B N H D"], cos: Float[Array, "N P"], sin: Float[Array, "N P"]
) -> Float[Array, "B N H D"]:
    """Rotates adjacent channel pairs of queries or keys in float32; the result has x's dtype."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def compiled_for() -> str:
    """The platform that a traced function is compiled for: "cpu", "gpu" or "tpu".

    It is that of the current mesh, since a program for a pod can be compiled on any machine;
    without a mesh, that of the default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def attend(
    q: Float[Array, "B N H D"], k: Float[Array, "B N H D"], v: Float[Array, "B N H V"]
) -> Float[Array, "B N H V"]:
    """softmax(q k^T / sqrt(D)) v, by the fastest exact kernel of the platform.

    cuDNN's flash attention for half precision on NVIDIA GPUs, a Pallas kernel on TPUs; elsewhere,
    and for shapes that these do not support, XLA's own, with the softmax in float32.
    """
    platform = compiled_for()
    if platform == "tpu" and splash_attention.takes(k, v):
        return splash_attention.attend(q, k, v)
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if half and platform == "gpu" and v.shape == k.shape:
        return by_samples(_cudnn, q, k, v)
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def _cudnn(
    q: Float[Array, "B N H D"], k: Float[Array, "B N H D"], v: Float[Array, "B N H D"]
) -> Float[Array, "B N H D"]:
    """Flash attention by cuDNN, for any number of tokens.

    JAX (0.10 to 0.12) refuses its gradient at an odd number of tokens, so one token is added, which
    the kernel masks out through the sequence lengths: the result is exact.
    """
    flash = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    tokens = q.shape[1]
    if tokens % 2 == 0:
        return flash(q, k, v)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full(len(q), tokens, jnp.int32)
    return flash(q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths)[:, :tokens]


def silence(
    v: Float[Array, "B N H D"], silenced: Float[Array, "B T"] | None
) -> Float[Array, "B N H D"]:
    """Sets the values of silenced text tokens to zero.

    This is the same as zeroing the tokens' columns of the attention matrix after the softmax: their
    share of the attention is lost, not redistributed.
    """
    if silenced is None:
        return v
    weights = (1 - silenced).astype(v.dtype)
    return v.at[:, : silenced.shape[1]].multiply(weights[:, :, None, None])


def attention_weights(
    q: Float[Array, "B N H D"], k: Float[Array, "B N H D"]
) -> Float[Array, "B H N N"]:
    """The joint attention matrix, softmax(q k^T / sqrt(D)), with queries as rows; float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores / np.sqrt(q.shape[-1]), axis=-1)


def attention_mass(
    q: Float[Array, "B N H D"], k: Float[Array, "B N H D"], token_masks: Float[Array, "B T G"]
) -> Float[Array, "B H N G"]:
    """Share of each query's attention on each group of text tokens, in [0, 1]; float32.

    Computed as attention with the masks as values: the sum of the matrix's columns without the
    matrix, exact and differentiable for every kernel.
    """
    batch, tokens, _, width = k.shape
    text, groups = token_masks.shape[1:]
    masses = []
    # Values as wide as the keys, because all kernels support this width.
    for start in range(0, groups, width):
        some = token_masks[..., start : start + width].astype(k.dtype)
        values = jnp.zeros((batch, tokens, width), k.dtype)
        values = values.at[:, :text, : some.shape[-1]].set(some)
        values = jnp.broadcast_to(values[:, :, None, :], k.shape)
        masses.append(attend(q, k, values)[..., : some.shape[-1]])
    mass = jnp.concatenate(masses, axis=-1)
    return mass.transpose(0, 2, 1, 3).astype(jnp.float32)
