"""The mesh: which devices share samples, runs and weights."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
from jax.sharding import Mesh

from erase.config.schema import MeshConfig
from erase.runtime.memory import memory
from flux_jax import sharding
from flux_jax.errors import InputError
from flux_jax.sharding import FSDP

# Axes of the mesh besides `fsdp`: runs that train at once, and the samples of each.
RUNS, SAMPLES = "concept", "data"


def make_mesh(
    wanted: MeshConfig,
    runs: int,
    batch_size: int,
    nbytes: int = 0,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh with the axes `concept`, `data` and `fsdp`.

    What is not said follows the work: weights are split over as few devices as leave half of
    each one's memory for the rest; the runs, then their samples, share what is left. Where several
    processes train together each must take part, so devices without work split weights too.

    Args:
        wanted: sizes of axes.
        runs: how many train at once.
        batch_size: samples an update.
        nbytes: of the frozen weights.
        devices: by default all.

    Raises:
        InputError: sizes do not divide the devices, or the samples do not divide over them.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    named = math.prod(size or 1 for size in (wanted.data, wanted.fsdp))
    if count % named:
        said = " and ".join(
            f"mesh.{axis} = {size}" for axis, size in asdict(wanted).items() if size
        )
        raise InputError(
            f"{said}: the devices ({count}) cannot be divided so; choose sizes whose product is "
            f"one of {', '.join(map(str, _divisors(count)))}"
        )
    if wanted.data and batch_size % wanted.data:
        raise InputError(
            f"batch_size = {batch_size} cannot be divided over mesh.data = {wanted.data} devices; "
            f"make it {math.ceil(batch_size / wanted.data) * wanted.data}, or mesh.data one of "
            f"{', '.join(map(str, _divisors(batch_size)))}"
        )
    left = count // (wanted.data or 1)
    fsdp = wanted.fsdp or _parts(nbytes, memory(devices), left)
    left = left // fsdp
    across = math.gcd(runs, left)
    data = wanted.data or math.gcd(batch_size, left // across)
    idle = count // (across * data * fsdp)
    if idle > 1 and jax.process_count() > 1:
        if wanted.fsdp:
            raise InputError(
                f"batch_size = {batch_size} leaves {count - count // idle} of {count} devices "
                f"without work; make it a multiple of {left // across}"
            )
        fsdp *= idle
    return sharding.make({RUNS: across, SAMPLES: data, FSDP: fsdp}, devices)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _parts(nbytes: int, memory: int | None, devices: int) -> int:
    """Over how many devices weights are split."""
    if memory is None:
        return 1
    enough = (parts for parts in _divisors(devices) if nbytes / parts <= memory / 2)
    return next(enough, devices)
