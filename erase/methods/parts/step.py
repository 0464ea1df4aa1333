"""Training step: gradient, optimiser, metrics and guard, for all runs of a command at once.

All methods use `train_step`; an `Update` holds what differs between methods. Runs are split over
the mesh's axis `concept`, the samples of each over `data`, large frozen weights over `fsdp` (which
shares samples too, where there are enough). A run's samples depend only on its key, not on the
runs trained together with it.
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
    """Training state.

    Attributes:
        lora: the adapter's tree, float32.
        own: further state of the method's steps by name, such as their optimisers' states.
        active: whether steps still update the run; a stopped run does not change.
    """

    lora: PyTree
    own: dict[str, PyTree]
    active: Bool[Array, ""]


# Losses of one run at the adapter's tree: the minimised sum, and its parts.
Losses = Callable[[PyTree, RunInputs[SettingsT], PRNGKeyArray], tuple[Float[Array, ""], Metrics]]
# Gradient for the optimiser, and the parts of the losses.
Gradient = Callable[[State, RunInputs[SettingsT], PRNGKeyArray], tuple[PyTree, Metrics]]
# Hook after the optimiser's step: returns the new state and metrics.
Follow = Callable[[State, Metrics, RunInputs[SettingsT], PRNGKeyArray], tuple[State, Metrics]]


@dataclass(frozen=True)
class Update(Generic[SettingsT]):
    """The parts of a training step that are specific to a method.

    Attributes:
        name: name of the step; the metric `NAME_gradient` is the gradient's norm before clipping.
        gradient: computes the gradient for the optimiser.
        optimiser: builds the optimiser from the method's settings.
        optimiser_state: name of the optimiser's state in `State.own`.
        trains: name in `State.own` of the trained parameters; None trains the adapter.
        follow: hook after the optimiser's step, if any.
    """

    name: str
    gradient: Gradient[SettingsT]
    optimiser: Callable[[SettingsT], optax.GradientTransformation]
    optimiser_state: str
    trains: str | None = None
    follow: Follow[SettingsT] | None = None


@runtime_checkable
class TrainStep(Protocol[AskedSettingsT]):
    """Jitted `train_step` of an update."""

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
    """Run one step of all runs.

    Args:
        update: the method's part of the step.
        state: state of the runs [R, ...].
        params: parameters of the frozen transformer.
        bank: the runs' banks, stacked.
        key: random keys [R].
        context: static arguments.

    Returns:
        The new state and the metrics [R]. A run's state does not change if the run has stopped or
        one of its metrics is not finite.
    """

    def one_run(state: State, bank: Bank, key: PRNGKeyArray) -> tuple[State, Metrics]:
        run = RunInputs.of(context, params, bank)
        gradient, metrics = update.gradient(state, run, key)

        # Optimiser step.
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

        # Guard: a single non-finite number would ruin the adapter and the optimiser's state.
        finite = jnp.isfinite(jnp.stack(jax.tree.leaves(metrics))).all()
        accepted = state.active & finite
        return jax.tree.map(lambda *both: jnp.where(accepted, *both), after, state), metrics

    runs = jax.vmap(one_run, in_axes=(0, run_axes(), 0), spmd_axis_name=RUNS)
    # Kernels that the compiler cannot partition read the mesh from the context.
    with jax.sharding.use_abstract_mesh(context.mesh.abstract_mesh):
        state, metrics = runs(state, bank, key)
    metrics = jax.lax.with_sharding_constraint(metrics, whole(context.mesh))
    return split_runs(context, state), metrics


def jit_over_runs(update: Update[SettingsT]) -> TrainStep[SettingsT]:
    """Return the jitted `train_step` of an update; it donates the state."""
    return jax.jit(
        functools.partial(train_step, update), static_argnames="context", donate_argnames="state"
    )


def adamw(level: AdamW) -> optax.GradientTransformation:
    """Return AdamW with a level's settings; clips gradients by their norm if `clip` is set."""
    step = optax.adamw(level.learning_rate, weight_decay=level.weight_decay)
    return optax.chain(optax.clip_by_global_norm(level.clip), step) if level.clip else step


def gradient_of(losses: Losses[SettingsT]) -> Gradient[SettingsT]:
    """Return a function for the gradient with respect to the adapter, and the losses' parts."""

    def gradient(
        state: State, run: RunInputs[SettingsT], key: PRNGKeyArray
    ) -> tuple[PyTree, Metrics]:
        return jax.grad(losses, has_aux=True)(state.lora, run, key)

    return gradient
