"""Layers: little memory is saved for gradients, and weights are read in place."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flux_jax.models import layers
from flux_jax.models.attention import attention_mass, attention_weights
from flux_jax.models.layers import Dense, gelu, modulate, rms_norm
from flux_jax.system import xla_flags


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "others"),
    [
        (gelu, []),
        (rms_norm, [jnp.ones(16)]),
        (modulate, [jnp.ones((2, 16)), jnp.ones((2, 16))]),
    ],
    ids=["gelu", "rms_norm", "modulate"],
)
def test_a_gradient_keeps_the_arguments_alone(function, others):
    x = jax.random.normal(jax.random.key(0), (2, 8, 16))
    _, backward = jax.vjp(lambda x: function(x, *others), x)
    kept = sum(leaf.size for leaf in jax.tree.leaves(backward))
    assert x.size <= kept <= x.size + sum(leaf.size for leaf in others)


def test_on_a_gpu_the_bias_stays_out_of_the_product(monkeypatch: pytest.MonkeyPatch):
    x = jax.random.normal(jax.random.key(0), (2, 3))
    layer = Dense(4)
    variables = layer.init(jax.random.key(1), x)
    expected = layer.apply(variables, x)
    barrier = "optimization_barrier"
    assert barrier not in str(jax.make_jaxpr(layer.apply)(variables, x))
    monkeypatch.setattr(layers, "compiled_for", lambda: "gpu")
    assert barrier in str(jax.make_jaxpr(lambda *given: layer.apply(*given))(variables, x))
    np.testing.assert_array_equal(layer.apply(variables, x), expected)


def test_what_the_user_tells_the_compiler_wins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=true")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    xla_flags.set_flags()
    assert os.environ["XLA_FLAGS"] == f"{xla_flags.FLAGS} --xla_gpu_enable_triton_gemm=true"
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == xla_flags.MEMORY
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    xla_flags.set_flags()
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


@pytest.mark.slow
@pytest.mark.parametrize("groups", [3, 8, 20])
def test_attention_falls_on_any_number_of_groups(groups: int):
    """Including more groups than a head is wide."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((2, 30, 3, 8)), jnp.float32) for _ in range(2))
    masks = (rng.random((2, 24, groups)) < 0.3).astype(np.float32)
    found = attention_mass(q, k, jnp.asarray(masks))
    weights = np.asarray(attention_weights(q, k), np.float64)[..., :24]
    np.testing.assert_allclose(found, np.einsum("bhqt,btg->bhqg", weights, masks), atol=1e-6)
