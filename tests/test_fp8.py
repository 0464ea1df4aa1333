"""Products in fp8: values and gradients against NumPy, and the velocities of a whole model."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.devices import run_on
from helpers.small import BANK, CONTEXT, KEY, KEYS, PARAMS, every, fresh, lower

from erase.data.bank import stack_banks
from erase.methods.erase_anything import lower_update
from flux_jax.lora import Adapter
from flux_jax.models import layers
from flux_jax.models.dora import resolve
from flux_jax.models.layers import product_fp8
from flux_jax.models.quantize import quantized, quantized_params
from flux_jax.pipeline import load
from flux_jax.programs import Denoiser
from flux_jax.settings import STORAGE, Storage
from flux_jax.tree import flatten, nest

ROUNDED = quantized_params(PARAMS, "fp8")


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_small_models_velocities_are_near_those_of_float32():
    pipe = load("models/emoji-flux")
    params = pipe.params["transformer"]
    prompts = pipe.encode(["a soccer ball", "a cat on a blue background"])
    noise, times = pipe.noise([0, 1], 64, 64), jnp.array([0.9, 0.3])
    ids = pipe.image_ids(64, 64)

    @functools.partial(jax.jit, static_argnames="dtype")
    def velocity(params: Any, dtype: str = "float32") -> jax.Array:
        model = Denoiser(pipe.transformer.clone(dtype=jnp.dtype(dtype)), params, ids, 3.5)
        return model.velocity(noise, prompts, times)

    exact = np.asarray(velocity(params))
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    found = {kind: velocity(quantized_params(params, kind)) for kind in STORAGE}
    found["bfloat16"] = velocity(halves, "bfloat16").astype(jnp.float32)
    errors = {
        kind: float(np.linalg.norm(np.asarray(ours) - exact) / np.linalg.norm(exact))
        for kind, ours in found.items()
    }
    # 0.02, 0.02 and 0.1: e4m3 has three bits of mantissa.
    assert max(errors["bfloat16"], errors["int8"]) < 0.05 < errors["fp8"] < 0.2


@pytest.mark.slow
def test_an_update_trains_the_adapter_in_fp8():
    _, losses = lower(fresh().lora, params=ROUNDED, bank=BANK, key=KEY, context=CONTEXT)
    after, metrics = lower_update(
        every(fresh()), ROUNDED, stack_banks([BANK]), KEYS, context=CONTEXT
    )
    for name, value in losses.items():
        np.testing.assert_allclose(metrics[name][0], value, rtol=1e-4)
    assert all(np.any(leaf) for path, leaf in flatten(after.lora).items() if path.endswith("/B"))


def test_dora_gains_are_those_of_the_rounded_weights():
    target = "dual_blocks/attn/add_q_proj"
    kernel, scale = (np.asarray(flatten(ROUNDED)[f"{target}/{n}"]) for n in ("kernel", "scale"))
    weights = kernel.astype(np.float32) * scale[:, None]
    magnitude = 2 * np.linalg.norm(weights, axis=1)
    blocks, inputs, outputs = weights.shape
    leaves = {"A": np.zeros((blocks, inputs, 2)), "B": np.zeros((blocks, 2, outputs))}
    leaves = {f"{target}/{name}": jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()}
    lora = nest(leaves | {f"{target}/M": jnp.asarray(magnitude)})
    gains = flatten(resolve(Adapter(lora, 2.0), ROUNDED).lora)[f"{target}/gain"]
    np.testing.assert_allclose(gains, 1.0, rtol=1e-5)


@pytest.mark.slow
def test_on_four_devices_the_numbers_are_those_of_one(tiny_folder: Path):
    done = run_on(4, ON_FOUR.format(folder=str(tiny_folder)))
    assert done.returncode == 0, done.stderr[-2000:]


# Without this module's imports, which take longer than the rest.
ON_FOUR = """
from pathlib import Path
import jax
import jax.numpy as jnp
import numpy as np
from flux_jax import sharding
from flux_jax.models.vae import latent_ids
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.weights.loading import Weights, build
from flux_jax.weights.source import open_source

sharding.WHOLE = 1 << 12
source = open_source(Path({folder!r}), "transformer")
model = build("transformer", source.config)
rng = np.random.default_rng(0)
def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)
sizes = model.config
text = normal(4, 6, sizes.joint_attention_dim), normal(4, sizes.pooled_projection_dim)
latents = normal(4, 16, sizes.in_channels)

def loss(latents, params):
    velocity = Denoiser(model, params, latent_ids(8, 8), 3.5).velocity(
        latents, Conditioning(*text), jnp.full(4, 0.5)
    )
    return jnp.sum(jnp.square(velocity)), velocity

results = []
for shape in ({{}}, {{"fsdp": 4}}):
    mesh = sharding.make(shape)
    params = Weights({{"transformer": source}}, "float32", mesh, "fp8")["transformer"]
    layer = params["single_blocks"]["proj_mlp"]
    assert layer["kernel"].dtype == "float8_e4m3fn"
    given = sharding.share_out(mesh, latents)
    with jax.set_mesh(mesh):
        results.append(jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(given, params)))
assert layer["kernel"].addressable_shards[0].data.size * 4 == layer["kernel"].size
for ours, theirs in zip(*results):
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    # Sums in another order change a number's rounding to float8 now and then.
    assert error < 0.01, error
"""
