"""Every picture size trains on a GPU: traced for one, computed with XLA's kernel instead.

`benchmarks.speed.attention_sizes` runs the real kernel on a GPU.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from flux_jax.models import attention

H100 = AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
# Text tokens: the small model, CLIP's limit, the paper's preset, T5's limit.
TEXT = (32, 77, 256, 512)
SIDES = range(256, 1537, 16)


def on_gpu() -> Any:
    """Trace for one GPU."""
    return jax.sharding.use_abstract_mesh(
        AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=H100)
    )


@pytest.fixture
def cudnn_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to JAX's queries about cuDNN and the GPU during tracing."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91900)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)


def trace(tokens: int, text: int) -> None:
    """Trace the gradient of attention and of attention masses for a GPU."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, masks: jax.Array) -> jax.Array:
        out = attention.attend(q, k, v).astype(jnp.float32).sum()
        return out + attention.attention_mass(q, k, masks).sum()

    heads = jax.ShapeDtypeStruct((1, tokens, 2, 128), jnp.bfloat16)
    masks = jax.ShapeDtypeStruct((1, text, 2), jnp.float32)
    with on_gpu():
        jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), heads, heads, heads, masks)


@pytest.mark.slow
def test_every_size_from_256_to_1536_traces(cudnn_is_there):
    # Sizes with equally many tokens are one program.
    pictures = {(height // 16) * (width // 16) for height in SIDES for width in SIDES}
    counts = {(image + text, text) for image in pictures for text in TEXT}
    assert (33 * 33 + 256, 256) in counts
    assert len(counts) > 5000
    # What is refused depends on parities: some squares and some others, and both ends.
    squares = {((side // 16) ** 2 + text, text) for side in SIDES for text in TEXT}
    some = {*sorted(squares)[::7], *sorted(counts)[::97], min(counts), max(counts)}
    assert {(tokens % 2, text) for tokens, text in some} == {
        (odd, t) for odd in (0, 1) for t in TEXT
    }
    for tokens, text in some:
        trace(tokens, text)


def test_jax_still_refuses_an_odd_number_of_tokens(cudnn_is_there):
    """If this fails, `attention._cudnn` no longer needs to pad."""
    odd = jax.ShapeDtypeStruct((1, 1345, 2, 128), jnp.bfloat16)

    def loss(q: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, q, q, implementation="cudnn").sum()

    with pytest.raises(NotImplementedError, match="Unsupported sequence length"):
        jax.eval_shape(jax.grad(loss), odd)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [9, 10])
def test_padding_is_exact(tokens: int, monkeypatch: pytest.MonkeyPatch):
    """With XLA's kernel, which supports sequence lengths too: values, gradients, masses."""
    plain, lengths = jax.nn.dot_product_attention, []

    def kernel(*qkv: jax.Array, implementation: str, **seq: jax.Array) -> jax.Array:
        assert implementation == "cudnn"
        assert qkv[0].shape[1] % 2 == 0
        lengths.extend(np.asarray(length).tolist() for length in seq.values())
        return plain(*qkv, implementation="xla", **seq)

    rng = np.random.default_rng(0)
    q, k, v, weight = jnp.asarray(rng.normal(size=(4, 2, tokens, 2, 8)), jnp.float32)
    masks = jnp.asarray(rng.integers(0, 2, (2, 4, 3)), jnp.float32)

    def value_and_gradients(attend: Any) -> Any:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(attend(q, k, v) * weight)

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

    wanted = value_and_gradients(lambda q, k, v: plain(q, k, v, implementation="xla"))
    mass = attention.attention_mass(q, k, masks)
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    found = value_and_gradients(attention._cudnn)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, wanted)
    assert all(length == [tokens, tokens] for length in lengths)
    assert bool(lengths) == bool(tokens % 2)
    monkeypatch.setattr(attention, "attend", attention._cudnn)
    np.testing.assert_allclose(attention.attention_mass(q, k, masks), mass, rtol=2e-5, atol=1e-6)
