"""Device mesh: the division of samples, runs and weights among devices."""

import math
import os
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

# Mesh axes besides `fsdp`: runs trained at once, and the samples of each run.
RUNS, SAMPLES = "concept", "data"


def make_mesh(
    wanted: MeshConfig,
    runs: int,
    batch_size: int,
    nbytes: int = 0,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Create a mesh with the axes `concept`, `data` and `fsdp`.

    Axes left at None are chosen from the workload: the weights are split over the fewest devices
    that leave half of each device's memory free; the remaining devices are divided among the runs,
    then among their samples. With several processes each must take part, so devices that would be
    idle split weights too.

    Args:
        wanted: sizes of the axes.
        runs: number of runs trained at once.
        batch_size: samples per update.
        nbytes: size of the frozen weights.
        devices: by default all.

    Raises:
        InputError: the sizes do not divide the number of devices, or the batch size cannot be
            divided among them.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    named = math.prod(size or 1 for size in (wanted.data, wanted.fsdp))
    if count % named:
        said = " and ".join(
            f"mesh.{axis} = {size}" for axis, size in asdict(wanted).items() if size
        )
        raise InputError(
            f"{said}: the devices ({count}) cannot be divided this way; choose sizes whose "
            f"product is one of {', '.join(map(str, _divisors(count)))}"
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
    """Number of devices to split the weights over."""
    if memory is None:
        return 1
    enough = (parts for parts in _divisors(devices) if nbytes / parts <= memory / 2)
    return next(enough, devices)


def cores() -> int:
    """Return the number of CPU cores that XLA uses: NPROC if set, else those of the process."""
    if (said := os.environ.get("NPROC", "")).isdecimal():
        return int(said)
    # Not all systems have `sched_getaffinity`.
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return len(allowed(0))
