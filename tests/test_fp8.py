"""Products in fp8: values and gradients against NumPy, and the velocities of a whole model."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from flux_jax.models import layers
from flux_jax.models.layers import product_fp8
from flux_jax.models.quantize import quantized
from flux_jax.settings import STORAGE, Storage


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded8(x: np.ndarray, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """e4m3 by ml_dtypes, with a scale of amax / 448 for each vector along an axis."""
    scale = np.max(np.abs(x), axis=axis, keepdims=True) / np.float32(448)
    return (x / np.where(scale > 0, scale, 1)).astype(ml_dtypes.float8_e4m3fn), scale


def exact8(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A product of e4m3 numbers in float64."""
    return x.astype(np.float64) @ kernel.astype(np.float64)


def test_kernels_in_fp8_are_those_of_ml_dtypes():
    kernel = normal(2, 64, 5) * np.array([1e-3, 1.0, 30.0, 1e-8, 5.0], np.float32)
    ours = quantized(kernel, "fp8")
    values, scale = rounded8(kernel, axis=-2)
    assert ours.kernel.dtype == values.dtype
    np.testing.assert_allclose(ours.scale, scale[:, 0], rtol=2**-23)
    steps = np.asarray(ours.scale)[:, None]
    exact = (kernel / steps).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(ours.kernel.view(np.uint8), exact.view(np.uint8))
    assert set(np.abs(exact.astype(np.float32)).max(1).ravel().tolist()) == {448}
    error = np.abs(exact.astype(np.float32) * steps - kernel)
    assert np.all(error <= np.maximum(np.abs(kernel) / 16, steps * 2**-10) * (1 + 1e-6))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_in_fp8_and_its_gradient_are_those_of_the_formula(dtype: Any):
    # Tokens and channels of very different magnitude, and a token of zeros.
    x = normal(2, 3, 32) * np.array([[1e-4], [1.0], [50.0]], np.float32)
    x[1, 1] = 0
    x, given = jnp.asarray(x, dtype), jnp.asarray(normal(2, 3, 16, seed=2), dtype)
    wide = normal(1, 32, 16, seed=1) * np.linspace(0.1, 3, 16, dtype=np.float32)
    kernel, scale = (leaf[0] for leaf in quantized(wide, "fp8"))
    y, pull = jax.vjp(lambda x: product_fp8(x, kernel, scale), x)
    (back,) = pull(given)
    assert y.dtype == back.dtype == dtype

    values, steps = rounded8(np.asarray(x, np.float32))
    expected = exact8(values, np.asarray(kernel)) * steps * np.asarray(scale)
    gradient = np.asarray(given, np.float32) * np.asarray(scale)
    values, steps = rounded8(gradient)
    expected_back = exact8(values, np.asarray(kernel).T) * steps
    bound = 2e-6 if dtype == jnp.float32 else 2**-8
    for ours, theirs in ((y, expected), (back, expected_back)):
        largest = np.abs(theirs).max(-1, keepdims=True)
        assert np.all(np.abs(np.asarray(ours, np.float64) - theirs) <= bound * largest)
    unrounded = np.asarray(x, np.float64) @ (np.asarray(kernel, np.float64) * np.asarray(scale))
    assert 0.005 < np.max(row_errors(np.asarray(y, np.float64)[0], unrounded[0])) < 0.1


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_of_an_fp8_kernel_is_refused(which: int):
    rounded = quantized(normal(3, 8, 8), "fp8")

    @jax.jit
    def loss(frozen: Any) -> jax.Array:
        parts = [*rounded]
        parts[which] = frozen

        def block(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
            return product_fp8(x, *own), None

        return jax.lax.scan(jax.checkpoint(block), jnp.ones((2, 8)), tuple(parts))[0].sum()

    with pytest.raises(TypeError, match="float8 kernels are frozen"):
        jax.grad(loss)(rounded[which])


def test_the_gradients_type_is_the_nearer_one(monkeypatch: pytest.MonkeyPatch):
    # As of a mean over many tokens: magnitudes over many decades.
    rng = np.random.default_rng(5)
    given = normal(64, 128, seed=2) * 10 ** rng.uniform(-6, 0, (64, 1)).astype(np.float32)
    kernel, scale = (leaf[0] for leaf in quantized(normal(1, 96, 128), "fp8"))
    exact = given @ (np.asarray(kernel, np.float32) * np.asarray(scale)).T
    errors = {}
    for storage in (STORAGE["fp8"], Storage("float8_e5m2", 57344.0)):
        monkeypatch.setattr(layers, "GRADIENT", storage)
        _, pull = jax.vjp(lambda x: product_fp8(x, kernel, scale), jnp.ones((64, 96)))
        errors[storage.dtype] = float(np.mean(row_errors(np.asarray(pull(given)[0]), exact)))
    assert errors["float8_e4m3fn"] < min(0.04, 0.6 * errors["float8_e5m2"])


def row_errors(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Root mean square of each row's difference, as a share of the row's."""
    return np.linalg.norm(ours - reference, axis=-1) / np.linalg.norm(reference, axis=-1)
