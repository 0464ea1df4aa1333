"""The Hopper kernel in Pallas' interpreter, and the layers that use it, against XLA's product."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu

from flux_jax.models import quantize
from flux_jax.models.kernels import fp8_hopper
from flux_jax.models.kernels.fp8_hopper import Tile, tile_for
from flux_jax.models.layers import product_fp8
from flux_jax.models.quantize import by_output, quantized
from flux_jax.models.transformer import FluxConfig, FluxTransformer

# The interpreter of earlier versions stops in a pipeline with a warpgroup of its own.
interpreted = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="the kernel needs JAX 0.11 or later"
)
BLOCKS = 3


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fp8_hopper, "BLOCKS", 2)
    with mosaic_gpu.force_gpu_interpret_mode():
        yield


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("sizes", "tile"),
    [
        # Several tiles along each axis.
        ((256, 384, 512), Tile(64, 256, 128)),
        ((512, 256, 256), Tile(128, 128, 128)),
        ((128, 128, 192), Tile(64, 192, 128)),
        # Tokens that fill no tile.
        ((150, 128, 128), Tile(64, 64, 128)),
    ],
)
def test_the_kernel_multiplies_with_the_wanted_block(sizes: tuple[int, int, int], tile: Tile):
    m, k, n = sizes
    x, kernels = normal(m, k).astype("float8_e4m3fn"), normal(BLOCKS, n, k, seed=1)
    kernels = kernels.astype("float8_e4m3fn")
    steps, scale = jnp.abs(normal(m, seed=2)) + 0.1, jnp.abs(normal(n, seed=3)) + 0.1
    ours = fp8_hopper.matmul(x, steps, scale, kernels, jnp.int32(1), tile)
    wide = np.asarray(x, np.float64) @ np.asarray(kernels[1], np.float64).T
    wide = wide * np.asarray(steps)[:, None] * np.asarray(scale)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float64), wide, rtol=2**-8, atol=1e-4)


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_a_layer_and_its_gradient_in_runs_are_those_of_xla():
    rounded = quantized(normal(BLOCKS, 128, 64), "fp8")
    x, given = (normal(2, 2, 64, size, seed=size).astype(jnp.bfloat16) for size in (128, 64))
    # The gradient's product has 64 inputs, which no tile divides; the second layer's has 128.
    turned = quantized(normal(BLOCKS, 64, 128, seed=9), "fp8")

    def layer(stacks: Any, x: jax.Array) -> jax.Array:
        for weights, stack in zip((rounded, turned), stacks, strict=True):
            x = product_fp8(x, weights.kernel[2], weights.scale[2], stack)
        return x

    def both(stacks: Any) -> Any:
        y, pull = jax.vjp(jax.vmap(functools.partial(layer, stacks)), x)
        return y, *pull(jnp.concatenate([given, given], -1))

    stacks = tuple((w.kernel.swapaxes(1, 2), jnp.int32(2)) for w in (rounded, turned))
    for ours, theirs in zip(both(stacks), both((None, None)), strict=True):
        np.testing.assert_array_equal(ours.astype(jnp.float32), theirs.astype(jnp.float32))


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_the_transformers_blocks_read_the_stacked_kernels(monkeypatch: pytest.MonkeyPatch):
    sizes = {
        "in_channels": 8,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 128,
        "num_attention_heads": 1,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 6,
        "axes_dims_rope": [32, 48, 48],
    }
    model = FluxTransformer(FluxConfig.from_dict(sizes), jnp.bfloat16)
    inputs = normal(1, 128, 8), normal(1, 128, 12), normal(1, 6), jnp.ones(1), normal(128, 3)
    params = jax.jit(model.init)(jax.random.key(0), *inputs)["params"]
    own = {"params": quantize.quantized_params(params, "fp8")}
    used: list[int] = []
    matmul = fp8_hopper.matmul

    def watched(*arguments: Any) -> jax.Array:
        used.append(len(arguments[3]))
        return matmul(*arguments)

    monkeypatch.setattr(fp8_hopper, "matmul", watched)
    plain = jax.jit(model.apply)(own, *inputs)[0]
    assert not used
    ours = jax.jit(model.apply)(own | by_output(own["params"]), *inputs)[0]
    # Stacks of one dual-stream block and of two single-stream blocks.
    assert sorted(set(used)) == [1, 2]
    error = jnp.linalg.norm((ours - plain).astype(jnp.float32)) / jnp.linalg.norm(plain)
    assert error < 0.01


def test_tiles_fill_the_card():
    assert tile_for(1280, 3072, 12288) == Tile(64, 192, 128)
    assert tile_for(1280, 3072, 3072) == Tile(128, 128, 128)
    assert tile_for(256, 12288, 3072) == Tile(64, 64, 128)
    # A token too many, modulation, and sizes of the small model.
    assert tile_for(1281, 3072, 3072) == Tile(64, 256, 128)
    assert tile_for(4, 3072, 9216) is None
    assert tile_for(128, 96, 384) is None


def test_the_kernel_is_for_one_hopper_gpu():
    class Device:
        platform, compute_capability = "gpu", "9.0"

    class Older(Device):
        compute_capability = "8.0"

    new = jax.__version_info__ >= (0, 11)
    assert fp8_hopper.runs_on([Device()]) == new
    assert not fp8_hopper.runs_on([Device(), Device()])
    assert not fp8_hopper.runs_on([Older()])
    assert not fp8_hopper.runs_on(jax.devices()[:1])
