"""What is compiled into the updates, and where their arrays lie."""

import math
from dataclasses import dataclass, replace

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from erase.bank import Bank
from erase.config import Config, Lower, Upper
from flux_jax.transformer import FluxTransformer

# Axes of the mesh: runs that train at once, and the samples of each.
RUNS, SAMPLES = "concept", "data"


@dataclass(frozen=True)
class Setup:
    """What is compiled into the updates, the same for all runs that train at once.

    Attributes:
        transformer: the model.
        mesh: devices, with the axes `concept` and `data`.
        batch_size: samples an update, a multiple of the devices along `data`.
        guidance: distilled guidance scale.
        alpha: the adapter's.
        lower: settings of the erasing level.
        upper: settings of the preserving level.
        adaptive: whether the joint update's weights follow what is being preserved.
    """

    transformer: FluxTransformer
    mesh: Mesh
    batch_size: int
    guidance: float
    alpha: float
    lower: Lower
    upper: Upper
    adaptive: bool

    @classmethod
    def of(
        cls,
        config: Config,
        transformer: FluxTransformer,
        runs: int = 1,
        mesh: Mesh | None = None,
    ) -> "Setup":
        """The setup of runs; by default on as many devices as share them and their batch evenly.

        Args:
            config: of any of the runs.
            transformer: the model.
            runs: how many train at once.
            mesh: devices.
        """
        return cls(
            transformer=transformer.clone(remat=config.model.remat),
            mesh=mesh or make_mesh(runs, config.batch_size),
            batch_size=config.batch_size,
            guidance=config.guidance,
            alpha=config.adapter.alpha or config.adapter.rank,
            # What a bank is made of is not compiled in.
            lower=replace(config.lower, eta=0.0, erase_to="", stand_in=None),
            upper=replace(config.upper, prompts=(), folder=None),
            adaptive=config.alternation == "adaptive",
        )

    def replicated(self, tree: PyTree) -> PyTree:
        """A tree's arrays on every device of the mesh."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def divided(self, tree: PyTree) -> PyTree:
        """A tree's arrays with their first axis, the runs', split over the mesh."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(RUNS)))

    def placed(self, bank: Bank) -> Bank:
        """A stacked bank where the updates want it."""
        common = {"times": bank.times, "image_ids": bank.image_ids}
        own = bank.replace(**dict.fromkeys(common))  # pyright: ignore[reportAttributeAccessIssue]
        return self.divided(own).replace(**self.replicated(common))


def make_mesh(runs: int, batch_size: int, devices: int | None = None) -> Mesh:
    """A mesh of the first devices; the compiler places what is not said (axis type Auto).

    Args:
        runs: how many train at once; as many devices as divide them share them.
        batch_size: samples an update; as many of the devices left as divide them share those.
        devices: how many may be used; by default all.
    """
    available = devices or jax.device_count()
    shape = (across := math.gcd(runs, available), math.gcd(batch_size, available // across))
    return jax.make_mesh(
        shape,
        (RUNS, SAMPLES),
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[: math.prod(shape)],
    )


def split_samples(setup: Setup, tree: PyTree) -> PyTree:
    """Splits the first axis, the samples', over the mesh."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(setup.mesh, PartitionSpec(SAMPLES)))


def split_runs(setup: Setup, tree: PyTree) -> PyTree:
    """Splits the first axis, the runs', over the mesh."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(setup.mesh, PartitionSpec(RUNS)))
