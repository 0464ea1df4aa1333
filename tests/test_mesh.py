"""Meshes: their shapes, refusals, and the placement of arrays."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.devices import run_on
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from erase.config.schema import MeshConfig
from erase.runtime import mesh as mesh_module
from flux_jax import load, sharding
from flux_jax.errors import InputError
from flux_jax.models import attention

GB = 10**9


@pytest.mark.parametrize(
    ("devices", "wanted", "runs", "batch", "nbytes", "shape"),
    [
        (1, {}, 1, 1, 24, (1, 1, 1)),
        # If the weights fit, samples are split, and runs before them.
        (8, {}, 1, 1, 24, (1, 1, 1)),
        (8, {}, 1, 8, 24, (1, 8, 1)),
        (8, {}, 1, 6, 24, (1, 2, 1)),
        (8, {}, 30, 4, 24, (2, 4, 1)),
        # If they do not, as few devices as possible split them.
        (8, {}, 1, 1, 100, (1, 1, 4)),
        (8, {}, 1, 8, 100, (1, 2, 4)),
        (2, {}, 1, 1, 1000, (1, 1, 2)),
        (8, {"fsdp": 2}, 1, 1, 24, (1, 1, 2)),
        (8, {"data": 2}, 1, 4, 100, (1, 2, 4)),
        (8, {"data": 1, "fsdp": 1}, 3, 4, 24, (1, 1, 1)),
        (8, {"data": 2}, 4, 2, 24, (4, 2, 1)),
    ],
)
def test_shapes(monkeypatch, devices, wanted, runs, batch, nbytes, shape):
    monkeypatch.setattr(sharding, "make", lambda shape, devices: Mock(spec=Mesh, shape=shape))
    card = SimpleNamespace(process_index=0, memory_stats=lambda: {"bytes_limit": 60 * GB})
    made = mesh_module.make_mesh(MeshConfig(**wanted), runs, batch, nbytes * GB, [card] * devices)
    assert tuple(made.shape.values()) == shape


def test_every_process_takes_part(monkeypatch):
    monkeypatch.setattr(sharding, "make", lambda shape, devices: Mock(spec=Mesh, shape=shape))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    cards = [SimpleNamespace(process_index=0, memory_stats=lambda: None)] * 8
    for config in (MeshConfig(), MeshConfig(fsdp=4)):
        made = mesh_module.make_mesh(config, 1, 2, 0, cards)
        assert tuple(made.shape.values()) == (1, 2, 4)
    with pytest.raises(InputError, match="batch_size = 2 leaves 4 of 8 devices without work"):
        mesh_module.make_mesh(MeshConfig(fsdp=2), 1, 2, 0, cards)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"data": 3},
            r"mesh.data = 3: the devices \(8\) cannot be .* one of 1, 2, 4, 8",
        ),
        ({"data": 4, "fsdp": 4}, r"mesh.data = 4 and mesh.fsdp = 4: the devices \(8\)"),
        ({"data": 4}, "batch_size = 6 cannot be divided over mesh.data = 4 devices; make it 8"),
    ],
)
def test_what_does_not_divide_is_refused(wanted: dict, message: str):
    cards = [SimpleNamespace(process_index=0, memory_stats=lambda: None)] * 8
    with pytest.raises(InputError, match=message):
        mesh_module.make_mesh(MeshConfig(**wanted), 1, 6, 0, cards)


@pytest.mark.slow
def test_a_pipeline_on_eight_devices_draws_the_same_pictures(tiny_folder: Path, tmp_path: Path):
    pictures = draw(tiny_folder, 1)
    code = f"import test_mesh; test_mesh.on_eight({str(tiny_folder)!r}, {str(tmp_path)!r})"
    done = run_on(8, code)
    assert done.returncode == 0, done.stderr[-2000:]
    others = np.load(tmp_path / "pictures.npy").astype(int)
    # Partial sums round differently: a few values round to the neighbouring grey level.
    assert np.abs(others - pictures).max() <= 1
    assert (others != pictures).mean() < 5e-3


def draw(folder: Path | str, fsdp: int) -> np.ndarray:
    devices = jax.devices()
    mesh = sharding.make({"data": len(devices) // fsdp, "fsdp": fsdp}, devices)
    pipe = load(folder).on(mesh)
    return pipe(["a cat", "a dog"], steps=2, height=16, width=16)


def on_eight(folder: str, out: str) -> None:
    sharding.WHOLE = 1
    pipe = load(folder).on(sharding.make({"data": 2, "fsdp": 4}))
    leaf = pipe.params["transformer"]["single_blocks"]["proj_mlp"]["kernel"]
    # Loaded in parts, each on its own device: the blocks' axis is whole, the longest is split.
    assert leaf.addressable_shards[0].data.shape == (3, 32, 128 // 4)
    shared = sharding.share_out(pipe.mesh, np.zeros((8, 3)))
    assert [shard.data.shape for shard in shared.addressable_shards] == [(1, 3)] * 8
    np.save(Path(out) / "pictures.npy", draw(folder, 4))
    # The pipeline that another was derived from still generates the same pictures.
    alone = load(folder)
    before = alone(["a cat"], steps=1, height=16, width=16)
    spread = alone.on(pipe.mesh)
    assert np.abs(spread(["a cat"], steps=1, height=16, width=16) - before.astype(int)).max() <= 1
    np.testing.assert_array_equal(alone(["a cat"], steps=1, height=16, width=16), before)
    assert alone.params["transformer"]["x_embedder"]["kernel"].is_fully_addressable
    assert len(alone.params["vae"]["decoder"]["conv_in"]["kernel"].devices()) == 1


@pytest.mark.slow
def test_each_gpu_attends_for_its_own_samples():
    done = run_on(2, "import test_mesh; test_mesh.on_two_gpus()")
    assert done.returncode == 0, done.stderr[-2000:]


def on_two_gpus() -> None:
    """The compiler must not split cuDNN's kernel: it supports few ways of splitting."""
    plain, seen = jax.nn.dot_product_attention, []

    def kernel(*qkv: jax.Array, implementation: str) -> jax.Array:
        assert implementation == "cudnn"
        seen.append(qkv[0].shape)
        return plain(*qkv, implementation="xla")

    jax.nn.dot_product_attention = kernel
    attention.compiled_for = lambda: "gpu"
    for axis, samples, own in (("data", 2, 1), ("fsdp", 2, 1), ("fsdp", 1, 1), ("data", 3, 3)):
        shape = (3, samples, 24, 2, 16)
        q, k, v = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.bfloat16)
        with jax.set_mesh(sharding.make({"concept": 1, axis: 2})):
            found = jax.jit(attention.attend)(q, k, v)
        assert seen.pop() == (own, *shape[2:])
        np.testing.assert_array_equal(found, plain(q, k, v, implementation="xla"))


def test_weights_and_samples_lie_as_told():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"))
    weights = {
        (19, 3072, 12288): (None, None, "fsdp"),
        (19, 12288, 3072): (None, "fsdp", None),
        # Not split: the axis of blocks, axes without a divisor, and small axes.
        (4096, 3001, 3): ("fsdp", None, None),
        (3001, 3001): (None, None),
        (19, 3072): (None, None),
    }
    for shape, spec in weights.items():
        assert tuple(sharding.of_weight(mesh, shape).spec) == spec
        alone = sharding.of_weight(AbstractMesh((2,), ("data",)), shape)
        assert alone.is_fully_replicated
    for samples, axes in {8: ("data", "fsdp"), 2: ("data",), 4: ("data",), 1: (), 3: ()}.items():
        assert sharding.of_batch(mesh, samples).spec == PartitionSpec(axes)
