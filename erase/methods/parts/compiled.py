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
# For classes that only read the settings: a context with a method's settings is accepted wherever
# any settings are.
ReadSettingsT = TypeVar("ReadSettingsT", covariant=True)
# For callables that only take the settings as an argument.
AskedSettingsT = TypeVar("AskedSettingsT", contravariant=True)


@dataclass(frozen=True)
class StepContext(Generic[ReadSettingsT]):
    """Static arguments of the training step, shared by all runs trained together.

    Attributes:
        transformer: the model.
        mesh: device mesh, with the axes `concept`, `data` and `fsdp`.
        batch_size: samples per update, a multiple of the devices along `data`.
        guidance: distilled guidance scale.
        alpha: alpha of the adapter.
        settings: settings of the method that its steps use.
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
        """Build the context of runs.

        Args:
            config: configuration of any of the runs.
            settings: settings of the method that are compiled in.
            transformer: the model.
            mesh: device mesh, from `make_mesh`.
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
        """Place a tree's arrays on the mesh, with their first axis, the runs, split over it."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(RUNS)))

    def placed(self, bank: Bank) -> Bank:
        """Place a stacked bank on the mesh as the training step expects it."""
        common = {"times": bank.times, "image_ids": bank.image_ids}
        per_run = bank.replace(**dict.fromkeys(common))
        return self.divided(per_run).replace(**sharding.gather(self.mesh, common))


def split_samples(context: StepContext[object], tree: PyTree) -> PyTree:
    """Split the first axis, the samples, over `data`, and over `fsdp` where that divides it."""

    def split(leaf: Array) -> Array:
        both = len(leaf) % (context.mesh.shape[SAMPLES] * context.mesh.shape[FSDP]) == 0
        spec = PartitionSpec((SAMPLES, FSDP) if both else SAMPLES)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(context.mesh, spec))

    return jax.tree.map(split, tree)


def split_runs(context: StepContext[object], tree: PyTree) -> PyTree:
    """Split the first axis, the runs, over the mesh."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(context.mesh, PartitionSpec(RUNS)))
