"""Kernels as int8 and fp8: rounding error, layers with such kernels, and whole runs."""

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.devices import run_on
from helpers.small import BANK, CONTEXT, KEY, KEYS, LORA, MODEL, PARAMS, every, fresh, lower, scaled

from convert.pipeline import convert
from erase.cli import evaluate
from erase.config.schema import Model
from erase.data.bank import stack_banks
from erase.methods.erase_anything import lower_update
from erase.model import open
from erase.runs import configure, load_config, load_runs
from flux_jax.errors import InputError
from flux_jax.lora import Adapter, init, stacked
from flux_jax.models import quantize
from flux_jax.models.layers import Dense
from flux_jax.models.quantize import Quantized, quantized, quantized_params
from flux_jax.pipeline import load
from flux_jax.programs import Denoiser
from flux_jax.settings import STORAGE
from flux_jax.tree import flatten, nest

USABLE = {"concept": "cat", "synonyms": ("kitty",), "irrelevant": ("dog", "sun", "tree")}
ROUNDED = quantized_params(PARAMS, "int8")
ROUNDED8 = quantized_params(PARAMS, "fp8")
BOTH = pytest.mark.parametrize("kind", ["int8", "fp8"])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def restored(params: dict) -> dict:
    """Floats again: each rounded kernel times its scale."""
    flat = flatten(params)
    scales = {path for path, leaf in flat.items() if leaf.dtype in (jnp.int8, "float8_e4m3fn")}
    for path in scales:
        scale = flat.pop(path.removesuffix("kernel") + "scale")
        flat[path] = flat[path].astype(jnp.float32) * scale[:, None]
    return nest(flat)


@jax.jit
def velocity(params: dict, lora: dict | None) -> jax.Array:
    prompts = jax.tree.map(lambda leaf: leaf[:, 0], BANK.sentences)
    latents, times = BANK.trajectories[:3, 0], BANK.times[:3]
    return Denoiser(MODEL, params, BANK.image_ids, 3.5, lora).velocity(latents, prompts, times)


def off(ours: Any, reference: Any) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.max(np.abs(ours - reference)) / np.max(np.abs(reference)))


def test_rounding_is_half_a_step_at_most():
    # Channels of very different magnitude: a single scale would lose the small ones.
    kernel = normal(2, 64, 5) * np.array([1e-3, 1.0, 30.0, 1e-8, 5.0], np.float32)
    rounded = quantized(kernel, "int8")
    assert rounded.kernel.dtype == jnp.int8
    assert rounded.scale.dtype == jnp.float32
    assert rounded.scale.shape == (2, 5)
    np.testing.assert_allclose(rounded.scale, np.abs(kernel).max(1) / 127, rtol=1e-6)
    steps = np.asarray(rounded.scale)[:, None]
    error = np.abs(np.asarray(rounded.kernel) * steps - kernel)
    # A whole number of up to 127 steps is itself a float32.
    assert np.all(error <= steps * (0.5 + 127 * 2**-22))
    assert np.max(error / steps) > 0.4
    assert set(np.abs(rounded.kernel).max(1).ravel().tolist()) == {127}


@BOTH
def test_a_channel_of_zeros_stays_zero(kind: str):
    kernel = normal(1, 8, 3)
    kernel[..., 1] = 0
    rounded = quantized(kernel, kind)
    assert np.all(np.isfinite(rounded.scale))
    assert not np.any(np.asarray(rounded.kernel)[..., 1])
    assert np.any(rounded.kernel, axis=1).tolist() == [[True, False, True]]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_layer_multiplies_with_what_the_numbers_mean(dtype: Any):
    x, layer = normal(4, 32), Dense(16, dtype)
    wide = normal(1, 32, 16, seed=1) * np.linspace(0.1, 3, 16, dtype=np.float32)
    rounded = quantized(wide, "int8")
    kernel, scale = rounded.kernel[0], rounded.scale[0]
    adapter = {"A": jnp.asarray(normal(32, 2, seed=2)), "B": jnp.asarray(normal(2, 16, seed=3))}
    own = {"kernel": kernel, "scale": scale, "bias": jnp.asarray(normal(16, seed=4))}
    float_own = {"kernel": kernel * scale, "bias": own["bias"]}

    def loss(lora: dict, params: dict) -> jax.Array:
        y = layer.apply({"params": params, "lora": lora}, x)
        assert isinstance(y, jax.Array)
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    bound = 1e-6 if dtype == jnp.float32 else 2**-6
    for lora in ({}, {"lora": adapter}):
        ours = layer.apply({"params": own, **lora}, x)
        theirs = layer.apply({"params": float_own, **lora}, x)
        assert ours.dtype == theirs.dtype == dtype
        assert off(*(np.asarray(y, np.float32) for y in (ours, theirs))) <= bound
    for part, theirs in jax.grad(loss)(adapter, float_own).items():
        assert off(jax.grad(loss)(adapter, own)[part], theirs) <= bound
    unscaled = layer.apply({"params": own | {"scale": jnp.ones(16)}}, x)
    meant = layer.apply({"params": float_own}, x)
    assert off(*(np.asarray(y, np.float32) for y in (unscaled, meant))) > 1


@BOTH
def test_exactly_the_blocks_kernels_are_rounded(kind: str):
    kernels = {f"{layer}/kernel" for layer in stacked(PARAMS)}
    assert "single_blocks/norm/linear/kernel" in kernels
    assert "x_embedder/kernel" not in kernels
    flat, old = flatten({"int8": ROUNDED, "fp8": ROUNDED8}[kind]), flatten(PARAMS)
    narrow = {path for path, leaf in flat.items() if leaf.dtype == STORAGE[kind].dtype}
    assert narrow == kernels
    scales = {path.removesuffix("kernel") + "scale" for path in kernels}
    assert flat.keys() == old.keys() | scales
    assert all(flat[path] is old[path] for path in old.keys() - kernels)


@pytest.mark.slow
def test_velocities_are_those_of_the_rounded_weights():
    lora = scaled(LORA)
    ours, theirs, unrounded = (
        velocity(params, lora) for params in (ROUNDED, restored(ROUNDED), PARAMS)
    )
    assert off(ours, theirs) <= 1e-5
    # Random weights with few inputs; the rounding error is measurable, but small.
    assert 1e-3 < off(ours, unrounded) <= 0.05


@pytest.mark.slow
@BOTH
def test_gradients_keep_no_floats_of_all_blocks_kernels(kind: str):
    params = {"int8": ROUNDED, "fp8": ROUNDED8}[kind]

    def loss(lora: dict) -> jax.Array:
        return jnp.sum(jnp.square(velocity(params, lora)))

    kept = {
        leaf.aval.shape
        for equation in equations(jax.make_jaxpr(jax.grad(loss))(LORA).jaxpr)
        if equation.primitive.name == "scan"
        for leaf in equation.outvars
    }
    # Activations are saved, kernels are not.
    assert (2, 3, 6, 64) in kept
    assert not kept & {leaf.shape for leaf in stacked(ROUNDED).values()}


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, including those in loops and functions."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=has_equations):
            if has_equations(inner):
                yield from equations(getattr(inner, "jaxpr", inner))


def has_equations(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "kind"), [("diffusers", "int8"), ("flax", "int8"), ("diffusers", "fp8")]
)
def test_loading_rounds_leaf_by_leaf(
    tiny_folder: Path, tmp_path: Path, layout: str, kind: str, monkeypatch: pytest.MonkeyPatch
):
    folder = tiny_folder
    if layout == "flax":
        convert(tiny_folder, folder := tmp_path / "flax")
    expected = quantized_params(load(folder).params["transformer"], kind)
    given: list[weakref.ref] = []

    def watched(kernel: jax.Array, storage: str) -> Quantized:
        assert not any(earlier() is not None for earlier in given)
        given.append(weakref.ref(kernel))
        return quantized(kernel, storage)

    monkeypatch.setattr(quantize, "quantized", watched)
    pipe = load(folder, quantize=kind)
    read = pipe.params["transformer"]
    assert len(given) == len(stacked(read)) > 10
    assert {path: leaf.dtype for path, leaf in flatten(read).items()} == {
        path: leaf.dtype for path, leaf in flatten(expected).items()
    }
    jax.tree.map(np.testing.assert_array_equal, read, expected)
    other = pipe.params["text_encoder"]
    assert {leaf.dtype for leaf in jax.tree.leaves(other)} == {jnp.dtype("float32")}
    assert len(given) == len(stacked(read))
    monkeypatch.undo()
    planned = pipe.params.shapes("transformer")
    assert jax.tree.map(jnp.shape, read) == jax.tree.map(jnp.shape, planned)


@pytest.mark.slow
def test_parts_lie_on_their_devices(tiny_folder: Path):
    done = run_on(4, ON_FOUR.format(folder=str(tiny_folder)))
    assert done.returncode == 0, done.stderr[-2000:]


# Without this module's imports, which take longer than the rest.
ON_FOUR = """
from pathlib import Path
from flux_jax.weights.source import open_source
from flux_jax import sharding
from flux_jax.weights.loading import Weights

sharding.WHOLE = 1 << 12
source = open_source(Path({folder!r}), "transformer")
weights = Weights({{"transformer": source}}, "float32", sharding.make({{"fsdp": 4}}), "int8")
layer = weights["transformer"]["single_blocks"]["proj_mlp"]
assert layer["kernel"].dtype == "int8"
assert layer["kernel"].addressable_shards[0].data.shape == (3, 32, 128 // 4)
assert layer["scale"].addressable_shards[0].data.shape == (3, 128)
"""


@pytest.mark.slow
def test_an_update_trains_the_adapter_on_rounded_weights():
    # The update may reuse the memory of its state.
    expected, losses = lower(
        fresh().lora, params=restored(ROUNDED), bank=BANK, key=KEY, context=CONTEXT
    )
    after, metrics = lower_update(
        every(fresh()), ROUNDED, stack_banks([BANK]), KEYS, context=CONTEXT
    )
    assert expected > 0
    for name, value in losses.items():
        np.testing.assert_allclose(metrics[name][0], value, rtol=1e-5)
    assert all(np.any(leaf) for path, leaf in flatten(after.lora).items() if path.endswith("/B"))


@pytest.mark.slow
def test_the_configuration_reaches_the_model_and_its_bytes_are_counted(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    counted: list[int] = []
    make: Callable[..., Any] = open.make_mesh

    def watched(wanted: Any, runs: int, samples: int, nbytes: int) -> Any:
        counted.append(nbytes)
        return make(wanted, runs, samples, nbytes)

    monkeypatch.setattr(open, "make_mesh", watched)
    for kind in (None, "int8", "fp8"):
        config = tiny.run_config(tiny_folder, model=Model(str(tiny_folder), quantize=kind))
        params = open.open_model(config).params["transformer"]
        types = {leaf.dtype for leaf in stacked(params).values()}
        assert types == {jnp.dtype(STORAGE[kind].dtype if kind else "float32")}
        assert counted.pop() == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_evaluation_opens_the_same_model(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lora = init(jax.random.key(0), load(tiny_folder).shapes, rank=2)
    adapter = Adapter(lora, 2.0)
    monkeypatch.setattr("erase.model.adapters.read_adapter", lambda folder: adapter)
    wanted = {"path": str(tiny_folder), "quantize": "int8"}
    configured = load_runs(configure(**USABLE, model=wanted))
    monkeypatch.setattr(evaluate, "configured", lambda: configured)
    runs = evaluate.read_runs(SimpleNamespace(workdir=str(tmp_path), adapter=None))
    pipe = evaluate.open_model_of(runs)
    assert list(runs) == [""]
    types = {leaf.dtype for leaf in stacked(pipe.params["transformer"]).values()}
    assert types == {jnp.dtype("int8")}


def test_other_types_are_refused(tiny_folder: Path):
    with pytest.raises(InputError, match=r"model\.quantize = 'int4' must be int8 or fp8"):
        load_config(configure(**USABLE, model={"quantize": "int4"}))
    with pytest.raises(InputError, match="quantize = 'int4' must be int8 or fp8, or None"):
        load(tiny_folder, quantize="int4")
