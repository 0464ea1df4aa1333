"""Array placement on a mesh of devices: sharded or replicated weights, batches split by sample.

A mesh may have any axes. Weights are split along its axis `fsdp`, if it has one; the samples of a
batch along all axes together.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

FSDP = "fsdp"
# Axes over which kernels split samples; code that maps over the mesh's other axes manages those.
SAMPLES = ("data", FSDP)
# Smaller weights are replicated on every device: gathering them takes longer than it saves.
WHOLE = 1 << 20


def make(shape: dict[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh of the first devices; unspecified shardings are up to the compiler (type Auto).

    Args:
        shape: sizes of the axes by name.
        devices: all devices by default.
    """
    used = (jax.devices() if devices is None else devices)[: math.prod(shape.values())]
    sizes, names = tuple(shape.values()), tuple(shape)
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=used)


def of_weight(mesh: Mesh | AbstractMesh, shape: Sequence[int]) -> NamedSharding:
    """Sharding of a weight: split along the longest axis that the `fsdp` size divides.

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
    """Sharding of an array with samples first: split over as many devices as divide the samples."""
    axes, parts = [], 1
    for name, size in mesh.shape.items():
        if samples % (parts * size) == 0:
            axes.append(name)
            parts *= size
    return NamedSharding(mesh, PartitionSpec(tuple(axes)))


def whole(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place_weights(mesh: Mesh, tree: PyTree) -> PyTree:
    """Places a tree of weights by `of_weight`; arrays that are already placed so are not copied."""
    return jax.device_put(tree, jax.tree.map(lambda leaf: of_weight(mesh, leaf.shape), tree))


def share_out(mesh: Mesh, tree: PyTree) -> PyTree:
    """Places a tree of arrays that have one row for each sample by `of_batch`."""
    return jax.device_put(tree, jax.tree.map(lambda leaf: of_batch(mesh, len(leaf)), tree))


def by_samples(kernel: Callable[..., Array], *arrays: Array) -> Array:
    """Calls a kernel on arrays that have one row for each sample.

    The compiler cannot split a kernel over devices, or only in some ways. Under a mesh
    (`jax.set_mesh`, `jax.sharding.use_abstract_mesh`) each device therefore runs the kernel on its
    share of the samples, or on all of them if they cannot be divided evenly.

    Args:
        kernel: a function of arrays that treats every sample independently.
        *arrays: its arguments.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1 and not mesh.are_all_axes_manual:
        samples = PartitionSpec(axes_that_divide(mesh, len(arrays[0])))
        # Kernels do not declare over which mesh axes their results vary.
        kernel = jax.shard_map(kernel, in_specs=samples, out_specs=samples, check_vma=False)
    return kernel(*arrays)


def axes_that_divide(mesh: AbstractMesh, samples: int) -> tuple[str, ...]:
    """Mesh axes over which a number of samples can be split evenly."""
    axes: tuple[str, ...] = ()
    for axis in SAMPLES:
        if axis in mesh.shape and samples % mesh.shape[axis] == 0:
            axes, samples = (*axes, axis), samples // mesh.shape[axis]
    return axes


def gather(mesh: Mesh, tree: PyTree) -> PyTree:
    """Replicates a tree of arrays on every device, so that any process can read them."""
    return jax.device_put(tree, whole(mesh))
