"""What is compiled into the updates, and where their arrays lie."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from convert.errors import InputError
from erase.bank import Bank
from erase.config import Config, MeshConfig
from flux_jax import mesh as meshes
from flux_jax.mesh import FSDP
from flux_jax.transformer import FluxTransformer

# Axes of the mesh besides `fsdp`: runs that train at once, and the samples of each.
RUNS, SAMPLES = "concept", "data"


@dataclass(frozen=True)
class Setup:
    """What is compiled into the updates, the same for all runs that train at once.

    Attributes:
        transformer: the model.
        mesh: devices, with the axes `concept`, `data` and `fsdp`.
        batch_size: samples an update, a multiple of the devices along `data`.
        guidance: distilled guidance scale.
        alpha: the adapter's.
        settings: the method's, as far as its updates look at them.
    """

    transformer: FluxTransformer
    mesh: Mesh
    batch_size: int
    guidance: float
    alpha: float
    settings: Any

    @classmethod
    def of(cls, config: Config, settings: Any, transformer: FluxTransformer, mesh: Mesh) -> "Setup":
        """The setup of runs.

        Args:
            config: of any of the runs.
            settings: what is compiled in of its method's.
            transformer: the model.
            mesh: devices, from `make_mesh`.
        """
        return cls(
            transformer=transformer.clone(remat=config.model.remat),
            mesh=mesh,
            batch_size=config.batch_size,
            guidance=config.guidance,
            alpha=config.adapter.alpha or config.adapter.rank,
            settings=settings,
        )

    def divided(self, tree: PyTree) -> PyTree:
        """A tree's arrays with their first axis, the runs', split over the mesh."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(RUNS)))

    def placed(self, bank: Bank) -> Bank:
        """A stacked bank where the updates want it."""
        common = {"times": bank.times, "image_ids": bank.image_ids}
        own = bank.replace(**dict.fromkeys(common))  # pyright: ignore[reportAttributeAccessIssue]
        return self.divided(own).replace(**meshes.gather(self.mesh, common))


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
    return meshes.make({RUNS: across, SAMPLES: data, FSDP: fsdp}, devices)


def memory(devices: Sequence[Any]) -> int | None:
    """Bytes that each of the devices offers; None where they do not say, as CPUs."""
    # Only a process's own devices answer.
    own = next(device for device in devices if device.process_index == jax.process_index())
    return (own.memory_stats() or {}).get("bytes_limit")


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _parts(nbytes: int, memory: int | None, devices: int) -> int:
    """Over how many devices weights are split."""
    if memory is None:
        return 1
    enough = (parts for parts in _divisors(devices) if nbytes / parts <= memory / 2)
    return next(enough, devices)


def split_samples(setup: Setup, tree: PyTree) -> PyTree:
    """Splits the first axis, the samples', over `data`, and over `fsdp` where that divides it."""

    def split(leaf: Array) -> Array:
        both = len(leaf) % (setup.mesh.shape[SAMPLES] * setup.mesh.shape[FSDP]) == 0
        spec = PartitionSpec((SAMPLES, FSDP) if both else SAMPLES)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(setup.mesh, spec))

    return jax.tree.map(split, tree)


def split_runs(setup: Setup, tree: PyTree) -> PyTree:
    """Splits the first axis, the runs', over the mesh."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(setup.mesh, PartitionSpec(RUNS)))
