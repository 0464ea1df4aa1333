"""The training step: gradient, optimiser, metrics and guard, for all runs of a command at once.

`train_step` is the step of every method; an `Update` says what is the method's own in it. Runs are
split over the mesh's axis `concept`, the samples of each over `data`, large frozen weights over
`fsdp` (which shares samples too, where there are enough). What a run samples follows from its key
alone, whatever trains beside it.
Axis letter: R runs.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from erase.config.schema import AdamW
from erase.data.bank import Bank, run_axes
from erase.methods.parts.compiled import AskedSettingsT, SettingsT, StepContext, split_runs
from erase.methods.parts.forward import RunInputs
from erase.runtime.mesh import RUNS
from flux_jax.sharding import whole

Metrics = dict[str, Float[Array, ""]]
RunMetrics = dict[str, Float[Array, "R"]]


class State(flax.struct.PyTreeNode):
    """What training changes.

    Attributes:
        lora: the adapter's tree, float32.
        own: what the method's steps keep besides, by name: their optimisers' states.
        active: whether steps still change anything; a run that has stopped is kept as it is.
    """

    lora: PyTree
    own: dict[str, PyTree]
    active: Bool[Array, ""]


# What a step of one run minimises, from the adapter's tree: the sum that counts, and its parts.
Losses = Callable[[PyTree, RunInputs[SettingsT], PRNGKeyArray], tuple[Float[Array, ""], Metrics]]
# What its optimiser is given, and the losses' parts.
Gradient = Callable[[State, RunInputs[SettingsT], PRNGKeyArray], tuple[PyTree, Metrics]]
# What changes after the optimiser's step: the state and the metrics as they then are.
Follow = Callable[[State, Metrics, RunInputs[SettingsT], PRNGKeyArray], tuple[State, Metrics]]


@dataclass(frozen=True)
class Update(Generic[SettingsT]):
    """What a method's step changes, and how.

    Attributes:
        name: of the gradient's norm (before clipping) among the metrics, `NAME_gradient`.
        gradient: what the optimiser is given.
        optimiser: from the method's settings.
        optimiser_state: its name in `State.own`.
        trains: the name in `State.own` of what is trained; None is the adapter.
        follow: what comes after the optimiser's step, if anything does.
    """

    name: str
    gradient: Gradient[SettingsT]
    optimiser: Callable[[SettingsT], optax.GradientTransformation]
    optimiser_state: str
    trains: str | None = None
    follow: Follow[SettingsT] | None = None


@runtime_checkable
class TrainStep(Protocol[AskedSettingsT]):
    """`train_step` of an update, jitted."""

    def __call__(  # noqa: D102
        self,
        state: State,
        params: PyTree,
        bank: Bank,
        key: Key[Array, "R"],
        *,
        context: StepContext[AskedSettingsT],
    ) -> tuple[State, RunMetrics]: ...

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered: ...  # noqa: D102
    def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced: ...  # noqa: D102


def train_step(
    update: Update[SettingsT],
    state: State,
    params: PyTree,
    bank: Bank,
    key: Key[Array, "R"],
    *,
    context: StepContext[SettingsT],
) -> tuple[State, RunMetrics]:
    """One step of all runs.

    Args:
        update: what the method's step does.
        state: of the runs [R, ...].
        params: the frozen transformer's.
        bank: the runs' banks, stacked.
        key: random keys [R].
        context: static arguments.

    Returns:
        The new state and the metrics [R]. A run's state is the old one where it has stopped, or
        where one of its metrics is no finite number.
    """

    def one_run(state: State, bank: Bank, key: PRNGKeyArray) -> tuple[State, Metrics]:
        run = RunInputs.of(context, params, bank)
        gradient, metrics = update.gradient(state, run, key)

        # The optimiser's step.
        trained = state.own[update.trains] if update.trains else state.lora
        changes, optimiser_state = update.optimiser(context.settings).update(
            gradient, state.own[update.optimiser_state], trained
        )
        trained = optax.apply_updates(trained, changes)
        opt_states = state.own | {update.optimiser_state: optimiser_state}
        after = (
            state.replace(own=opt_states | {update.trains: trained})
            if update.trains
            else state.replace(lora=trained, own=opt_states)
        )

        metrics = metrics | {f"{update.name}_gradient": optax.tree.norm(gradient)}
        if update.follow:
            after, metrics = update.follow(after, metrics, run, key)

        # The guard: one infinite number would end the adapter and the optimiser's state.
        finite = jnp.isfinite(jnp.stack(jax.tree.leaves(metrics))).all()
        accepted = state.active & finite
        return jax.tree.map(lambda *both: jnp.where(accepted, *both), after, state), metrics

    runs = jax.vmap(one_run, in_axes=(0, run_axes(), 0), spmd_axis_name=RUNS)
    # Kernels that the compiler cannot split have to know what they are split over.
    with jax.sharding.use_abstract_mesh(context.mesh.abstract_mesh):
        state, metrics = runs(state, bank, key)
    metrics = jax.lax.with_sharding_constraint(metrics, whole(context.mesh))
    return split_runs(context, state), metrics


def jit_over_runs(update: Update[SettingsT]) -> TrainStep[SettingsT]:
    """`train_step` of an update, jitted; donates the state."""
    return jax.jit(
        functools.partial(train_step, update), static_argnames="context", donate_argnames="state"
    )


def adamw(level: AdamW) -> optax.GradientTransformation:
    """AdamW with the level's own settings, of gradients that may be clipped by their norm."""
    step = optax.adamw(level.learning_rate, weight_decay=level.weight_decay)
    return optax.chain(optax.clip_by_global_norm(level.clip), step) if level.clip else step


def gradient_of(losses: Losses[SettingsT]) -> Gradient[SettingsT]:
    """The losses' gradient with respect to the adapter, and their parts."""

    def gradient(
        state: State, run: RunInputs[SettingsT], key: PRNGKeyArray
    ) -> tuple[PyTree, Metrics]:
        return jax.grad(losses, has_aux=True)(state.lora, run, key)

    return gradient
