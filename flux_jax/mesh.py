"""Where arrays lie on a mesh of devices: weights whole or in parts, samples shared out.

A mesh may have any axes. Weights are split along its axis `fsdp`, if it has one; the samples of a
batch over all axes together.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

FSDP = "fsdp"
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


def of_weight(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
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


def of_batch(mesh: Mesh, samples: int) -> NamedSharding:
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


def gather(mesh: Mesh, tree: PyTree) -> PyTree:
    """A tree of arrays, whole on every device, so that any process can read them."""
    return jax.device_put(tree, whole(mesh))
