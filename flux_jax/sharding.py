"""Where arrays lie on a mesh of devices: weights whole or in parts, samples shared out.

A mesh may have any axes. Weights are split along its axis `fsdp`, if it has one; the samples of a
batch over all axes together.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

FSDP = "fsdp"
# Axes over which kernels split samples; a mesh's others belong to whoever maps over them.
SAMPLES = ("data", FSDP)
# Weights of fewer numbers are whole on every device: gathering them takes longer than they save.
WHOLE = 1 << 20


def make(shape: dict[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the first devices; the compiler places what is not said (axis type Auto).

    Args:
        shape: axes with their sizes.
        devices: by default all.
    """
    used = (jax.devices() if devices is None else devices)[: math.prod(shape.values())]
    sizes, names = tuple(shape.values()), tuple(shape)
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=used)


def of_weight(mesh: Mesh | AbstractMesh, shape: Sequence[int]) -> NamedSharding:
    """How a weight lies: its longest axis that the devices of `fsdp` share evenly is split.

    The axis of stacked blocks is far shorter than the others and stays whole, so that a loop over
    blocks gathers one block at a time.
    """
    parts = mesh.shape.get(FSDP, 1)
    even = [axis for axis, size in enumerate(shape) if size % parts == 0]
    spec: list[str | None] = [None] * len(shape)
    if parts > 1 and math.prod(shape) >= WHOLE and even:
        spec[max(even, key=lambda axis: shape[axis])] = FSDP
    return NamedSharding(mesh, PartitionSpec(*spec))


def of_batch(mesh: Mesh | AbstractMesh, samples: int) -> NamedSharding:
    """How an array lies whose first axis is samples: over as many devices as share them evenly."""
    axes, parts = [], 1
    for name, size in mesh.shape.items():
        if samples % (parts * size) == 0:
            axes.append(name)
            parts *= size
    return NamedSharding(mesh, PartitionSpec(tuple(axes)))


def whole(mesh: Mesh) -> NamedSharding:
    """How an array lies of which every device has all."""
    return NamedSharding(mesh, PartitionSpec())


def place_weights(mesh: Mesh, tree: PyTree) -> PyTree:
    """A tree of weights as `of_weight` has them; what lies so already is not copied."""
    return jax.device_put(tree, jax.tree.map(lambda leaf: of_weight(mesh, leaf.shape), tree))


def share_out(mesh: Mesh, tree: PyTree) -> PyTree:
    """A tree of arrays with a sample's row each, as `of_batch` has them."""
    return jax.device_put(tree, jax.tree.map(lambda leaf: of_batch(mesh, len(leaf)), tree))


def by_samples(kernel: Callable[..., Array], *arrays: Array) -> Array:
    """A kernel's result, of arrays with a sample's row each.

    The compiler cannot split a kernel over devices by itself, or only in some ways. Under a mesh
    (`jax.set_mesh`, `jax.sharding.use_abstract_mesh`) each device therefore takes the samples that
    are its own, and all of them where these cannot be shared out.

    Args:
        kernel: a function of arrays, in which no sample's result depends on another.
        *arrays: what it is given.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1 and not mesh.are_all_axes_manual:
        samples = PartitionSpec(axes_that_divide(mesh, len(arrays[0])))
        # Kernels do not say over which axes their results vary.
        kernel = jax.shard_map(kernel, in_specs=samples, out_specs=samples, check_vma=False)
    return kernel(*arrays)


def axes_that_divide(mesh: AbstractMesh, samples: int) -> tuple[str, ...]:
    """The axes of a mesh that a number of samples can be split over evenly."""
    axes: tuple[str, ...] = ()
    for axis in SAMPLES:
        if axis in mesh.shape and samples % mesh.shape[axis] == 0:
            axes, samples = (*axes, axis), samples // mesh.shape[axis]
    return axes


def gather(mesh: Mesh, tree: PyTree) -> PyTree:
    """A tree of arrays, whole on every device, so that any process can read them."""
    return jax.device_put(tree, whole(mesh))
