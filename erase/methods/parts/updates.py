"""Updates of methods: what one run does to its adapter, made into a jitted update of all runs.

All runs of a command train at once over one mesh: runs are split over its axis `concept`, the
samples of each over `data`, large frozen weights over `fsdp` (which shares samples too, where there
are enough). What a run draws follows from its key alone, whatever trains beside it.
Axis letter: R runs.
"""

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from erase.data.bank import Bank
from erase.methods.parts.compiled import Setup, split_runs
from erase.runtime.mesh import RUNS
from flux_jax.sharding import whole

Metrics = dict[str, Float[Array, ""]]


class State(flax.struct.PyTreeNode):
    """What training changes.

    Attributes:
        lora: the adapter's tree, float32.
        own: what the method's updates keep besides, by name: their optimisers' states.
        active: whether updates still change anything; a run that has stopped is kept as it is.
    """

    lora: PyTree
    own: dict[str, PyTree]
    active: Bool[Array, ""]


@runtime_checkable
class Descent(Protocol):
    """How an optimiser steps: AdamW's settings, in a method's part of the configuration.

    Attributes:
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        clip: largest norm of a gradient, longer ones are shortened to it; None shortens none.
    """

    @property
    def learning_rate(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def clip(self) -> float | None: ...  # noqa: D102


@runtime_checkable
class Losses(Protocol):
    """What an update of one run minimises."""

    def __call__(
        self, lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
    ) -> tuple[Float[Array, ""], Metrics]:
        """The sum that counts, and its parts."""
        ...


# What one run does: its state, the frozen parameters, its bank, its key and what is compiled in.
RunUpdate = Callable[[State, PyTree, Bank, PRNGKeyArray, Setup], tuple[State, Metrics]]


def optimiser(level: Descent) -> optax.GradientTransformation:
    """AdamW with the level's own settings, of gradients that may be clipped by their norm."""
    step = optax.adamw(level.learning_rate, weight_decay=level.weight_decay)
    return optax.chain(optax.clip_by_global_norm(level.clip), step) if level.clip else step


def in_every_run(update: RunUpdate) -> Any:
    """The update of one run as a jitted one of all runs of a command.

    Its arguments are the state [R, ...], donated; the frozen transformer's parameters; the runs'
    banks, stacked; their random keys [R]; and `setup`, what is compiled in. Its results are the new
    state and the metrics [R]. Where one of a run's metrics is no finite number, its state is the
    old one.
    """

    @functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
    @functools.wraps(update)
    def every(
        state: State, params: PyTree, bank: Bank, key: Key[Array, "R"], *, setup: Setup
    ) -> tuple[State, dict[str, Float[Array, "R"]]]:
        own: dict[str, Any] = dict.fromkeys((spec.name for spec in fields(Bank)), 0)
        own |= {"times": None, "image_ids": None}
        bank_axes = Bank(**own)

        def unless_stopped(state: State, bank: Bank, key: PRNGKeyArray) -> tuple[State, Metrics]:
            changed, metrics = update(state, params, bank, key, setup)
            # One infinite number in a gradient would end the adapter and both optimisers.
            finite = jnp.isfinite(jnp.stack(jax.tree.leaves(metrics))).all()
            taken = state.active & finite
            return jax.tree.map(lambda *both: jnp.where(taken, *both), changed, state), metrics

        runs = jax.vmap(unless_stopped, in_axes=(0, bank_axes, 0), spmd_axis_name=RUNS)
        # Kernels that the compiler cannot split have to know what they are split over.
        with jax.sharding.use_abstract_mesh(setup.mesh.abstract_mesh):
            state, metrics = runs(state, bank, key)
        metrics = jax.lax.with_sharding_constraint(metrics, whole(setup.mesh))
        return split_runs(setup, state), metrics

    return every


def descent(name: str, losses: Losses, level: Callable[[Any], Descent]) -> RunUpdate:
    """The update of one run that makes losses smaller, with the optimiser of this name.

    Args:
        name: of the optimiser's state, and of the gradient's norm (before clipping) among the
            metrics: `NAME_gradient`.
        losses: with their metrics.
        level: the optimiser's settings in what is compiled in of the method's.
    """

    def update(
        state: State, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
    ) -> tuple[State, Metrics]:
        loss = functools.partial(losses, params=params, bank=bank, key=key, setup=setup)
        step = optimiser(level(setup.settings))
        lora, own, metrics = descend(loss, state.lora, state.own[name], step)
        metrics[f"{name}_gradient"] = metrics.pop("gradient")
        return state.replace(lora=lora, own=state.own | {name: own}), metrics

    return update


def descend(
    loss: Callable[[PyTree], tuple[Array, Metrics]],
    tree: PyTree,
    state: optax.OptState,
    transformation: optax.GradientTransformation,
) -> tuple[PyTree, optax.OptState, Metrics]:
    """One step of an optimiser; adds the gradient's norm to the metrics."""
    gradient, metrics = jax.grad(loss, has_aux=True)(tree)
    changes, state = transformation.update(gradient, state, tree)
    return (
        optax.apply_updates(tree, changes),
        state,
        metrics | {"gradient": optax.tree.norm(gradient)},
    )
