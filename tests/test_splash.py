"""TPU's attention kernel, interpreted on CPU, against XLA's: values, gradients, sharding."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.devices import run_on
from helpers.small import BANK, CONFIG, KEY, SIZES, every, random_tree
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from erase.data.bank import bank_shapes, stack_banks
from erase.data.plan import Needs
from erase.methods.erase_anything import lower_update
from erase.methods.planning.configured import context_of, start
from flux_jax import sharding
from flux_jax.models import attention
from flux_jax.models.kernels import splash_attention
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.weights.loading import abstract_params

B, N, H, D, T, G = 2, 256, 2, 128, 5, 3
TPU = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")


def on_tpu() -> Any:
    """Trace for one TPU."""
    return jax.sharding.use_abstract_mesh(
        AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=TPU)
    )


def normal(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


Q, K, V, WEIGHT = (normal(B, N, H, D, seed=seed) for seed in range(4))


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the kernel everywhere, interpreted."""
    monkeypatch.setattr(attention, "compiled_for", lambda: "tpu")
    monkeypatch.setattr(
        splash_attention, "attend", functools.partial(splash_attention.attend, interpret=True)
    )


def value_and_gradients(attend: Any) -> Any:
    return jax.jit(
        jax.value_and_grad(lambda *qkv: jnp.sum(attend(*qkv) * WEIGHT), argnums=(0, 1, 2))
    )(Q, K, V)


def close(found: Any, wanted: Any) -> None:
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_values_and_gradients(interpreted):
    plain = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    np.testing.assert_allclose(attention.attend(Q, K, V), plain(Q, K, V), atol=2e-6)
    close(value_and_gradients(attention.attend), value_and_gradients(plain))


@pytest.mark.slow
def test_mass_and_its_gradients(interpreted):
    masks = (normal(B, T, G, seed=5) > 0).astype(jnp.float32)
    weight = normal(B, H, N, G, seed=6)

    def by_columns(q: jax.Array, k: jax.Array) -> jax.Array:
        return attention.attention_weights(q, k)[..., :T] @ masks[:, None]

    def by_kernel(q: jax.Array, k: jax.Array) -> jax.Array:
        return attention.attention_mass(q, k, masks)

    assert "pallas_call" in str(jax.make_jaxpr(by_kernel)(Q, K))
    results = [
        jax.jit(jax.value_and_grad(lambda q, k, of=of: jnp.sum(of(q, k) * weight), (0, 1)))(Q, K)
        for of in (by_kernel, by_columns)
    ]
    np.testing.assert_allclose(by_kernel(Q, K), by_columns(Q, K), atol=2e-6)
    close(*results)


@pytest.mark.slow
def test_more_groups_than_the_heads_are_wide(interpreted):
    masks = jnp.broadcast_to(jnp.eye(N), (1, N, N))
    found = attention.attention_mass(Q[:1], K[:1], masks)
    np.testing.assert_allclose(found, attention.attention_weights(Q[:1], K[:1]), atol=2e-6)


@pytest.mark.parametrize("tokens", [1280, 4608])
def test_at_flux_size_a_tpu_program_holds_no_matrix(tokens):
    """Lowered to the TPU's own kernels, including the backward pass; this needs no TPU."""
    of = jax.ShapeDtypeStruct((1, tokens, 24, 128), jnp.bfloat16)
    masks = jax.ShapeDtypeStruct((1, tokens, 1), jnp.float32)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, masks: jax.Array) -> jax.Array:
        mass = attention.attention_mass(q, k, masks)
        return jnp.sum(attention.attend(q, k, v).astype(jnp.float32)) + jnp.sum(mass)

    def traced(q: jax.Array, k: jax.Array, v: jax.Array, masks: jax.Array) -> Any:
        with on_tpu():
            return jax.grad(loss, (0, 1, 2))(q, k, v, masks)

    text = jax.jit(traced).trace(of, of, of, masks).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 2 * 3
    assert f"{tokens}x{tokens}" not in text


def test_the_platform_is_the_mesh_it_is_traced_under():
    assert attention.compiled_for() == "cpu"
    with on_tpu():
        assert attention.compiled_for() == "tpu"


@pytest.mark.parametrize(
    ("tokens", "width", "taken"), [(256, 128, True), (200, 128, False), (256, 64, False)]
)
def test_other_shapes_are_left_to_xla(tokens, width, taken):
    x = jax.ShapeDtypeStruct((1, tokens, 2, width), jnp.float32)

    def traced(x: jax.Array) -> jax.Array:
        with on_tpu():
            return attention.attend(x, x, x)

    assert ("pallas_call" in str(jax.make_jaxpr(traced)(x))) == taken


def test_samples_go_over_the_axes_that_divide_them():
    def axes(samples: int) -> tuple[str, ...]:
        mesh = AbstractMesh((2, 3, 4), ("concept", "data", "fsdp"))
        return sharding.axes_that_divide(mesh, samples)

    assert [axes(n) for n in (12, 3, 4, 1)] == [("data", "fsdp"), ("data",), ("fsdp",), ()]


@pytest.mark.slow
def test_in_loops_of_runs_on_a_mesh():
    done = run_on(4, "import test_splash; test_splash.compare_meshes()")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["4", "devices", "agree"]


class Block(nn.Module):
    """The part of a block around the kernel."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        scale = self.param("scale", nn.initializers.ones, (3,))
        q, k, v = (jnp.sin(x * s) for s in scale)
        return x + splash_attention.attend(q, k, v, interpret=True), None


def compare_meshes() -> None:
    """Gradients of runs through scanned, rematerialised blocks on one device and on four."""
    remade = nn.remat(Block, prevent_cse=False)
    blocks = nn.scan(remade, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()
    params = jnp.asarray([[1.0, 0.5, 2.0], [0.3, 0.2, 0.1]])

    def loss(scale: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(blocks.apply({"params": {"scale": scale}}, x, None)[0] ** 2)

    runs, x = jnp.stack([params, 1.5 * params]), jnp.stack([Q, K])
    results = []
    for shape in ((1, 1, 1), (1, 2, 2), (2, 1, 2), (1, 1, 4)):
        count = int(np.prod(shape))
        names = ("concept", "data", "fsdp")
        mesh = jax.make_mesh(
            shape, names, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:count]
        )
        of_runs = NamedSharding(mesh, PartitionSpec("concept"))
        every = jax.jit(jax.vmap(jax.value_and_grad(loss), spmd_axis_name="concept"))
        with jax.set_mesh(mesh):
            results.append(every(*jax.device_put((runs, x), of_runs)))
    for other in results[1:]:
        close(other, results[0])
    print(jax.device_count(), "devices agree")


@pytest.mark.slow
def test_an_update_of_runs_on_a_mesh_takes_the_kernel():
    done = run_on(4, "import test_splash; test_splash.compare_update()")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["4", "devices", "agree"]


def compare_update() -> None:
    """An update of two runs by XLA on one device, and by the kernel on four."""
    half = splash_attention.LANES // 2
    sizes = SIZES | {"attention_head_dim": splash_attention.LANES, "axes_dims_rope": (32, 48, 48)}
    model = FluxTransformer(FluxConfig.from_dict(sizes))
    params = random_tree(abstract_params("transformer", sizes), 1, 0.05)
    needs = Needs(pools=(("",), ("",) * 3), shown=("",) * 2)
    of_bank = bank_shapes(CONFIG, model, half, half, needs)
    bank = random_tree(of_bank, 2).replace(
        masks=(random_tree(of_bank.masks, 3) > 0).astype(jnp.float32),
        kinds=BANK.kinds,
        eta=BANK.eta,
        trajectory_sentences=jnp.zeros(of_bank.trajectory_sentences.shape, jnp.int32),
        times=jnp.linspace(1.0, 0.1, CONFIG.steps),
    )
    keys, results = jax.random.split(KEY), []
    kernel = functools.partial(splash_attention.attend, interpret=True)
    for shape, platform in (((1, 1, 1), "cpu"), ((2, 1, 2), "tpu")):
        attention.compiled_for = lambda platform=platform: platform
        splash_attention.attend = kernel
        mesh = sharding.make(dict(zip(("concept", "data", "fsdp"), shape, strict=True)))
        context = context_of(CONFIG, model, mesh)
        state = context.divided(every(*(start(key, params, CONFIG) for key in keys)))
        placed = (
            sharding.place_weights(mesh, params),
            context.placed(stack_banks([bank, bank])),
            context.divided(keys),
        )
        traced = lower_update.trace(state, *placed, context=context)
        assert ("shard_map" in str(traced.jaxpr)) == (platform == "tpu")
        state, metrics = lower_update(state, *placed, context=context)
        results.append((state.lora, metrics))
    close(results[1], results[0])
    print(jax.device_count(), "devices agree")
