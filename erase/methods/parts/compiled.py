"""Static arguments of the jitted training step, and array placement on the mesh."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from erase.config.schema import Config
from erase.data.bank import Bank
from erase.runtime.mesh import RUNS, SAMPLES
from flux_jax import sharding
from flux_jax.models.transformer import FluxTransformer
from flux_jax.sharding import FSDP

SettingsT = TypeVar("SettingsT")
# Of what only reads the settings: one with a method's settings serves where any do.
ReadSettingsT = TypeVar("ReadSettingsT", covariant=True)
# Of what is only called with them.
AskedSettingsT = TypeVar("AskedSettingsT", contravariant=True)


@dataclass(frozen=True)
class StepContext(Generic[ReadSettingsT]):
    """Static arguments of the training step, the same for all runs that train at once.

    Attributes:
        transformer: the model.
        mesh: devices, with the axes `concept`, `data` and `fsdp`.
        batch_size: samples an update, a multiple of the devices along `data`.
        guidance: distilled guidance scale.
        alpha: the adapter's.
        settings: the method's, as far as its steps look at them.
    """

    transformer: FluxTransformer
    mesh: Mesh
    batch_size: int
    guidance: float
    alpha: float
    settings: ReadSettingsT

    @staticmethod
    def of(
        config: Config, settings: SettingsT, transformer: FluxTransformer, mesh: Mesh
    ) -> "StepContext[SettingsT]":
        """The context of runs.

        Args:
            config: of any of the runs.
            settings: those of its method's settings that are compiled in.
            transformer: the model.
            mesh: devices, from `make_mesh`.
        """
        return StepContext(
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
        """A stacked bank where the training step wants it."""
        common = {"times": bank.times, "image_ids": bank.image_ids}
        per_run = bank.replace(**dict.fromkeys(common))
        return self.divided(per_run).replace(**sharding.gather(self.mesh, common))


def split_samples(context: StepContext[object], tree: PyTree) -> PyTree:
    """Splits the first axis, the samples', over `data`, and over `fsdp` where that divides it."""

    def split(leaf: Array) -> Array:
        both = len(leaf) % (context.mesh.shape[SAMPLES] * context.mesh.shape[FSDP]) == 0
        spec = PartitionSpec((SAMPLES, FSDP) if both else SAMPLES)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(context.mesh, spec))

    return jax.tree.map(split, tree)


def split_runs(context: StepContext[object], tree: PyTree) -> PyTree:
    """Splits the first axis, the runs', over the mesh."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(context.mesh, PartitionSpec(RUNS)))
