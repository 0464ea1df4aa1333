"""One step of each level: a lower update erases, an upper update preserves, on the same adapter.

Both train every run of a command at once, and are jitted over one mesh: runs are split over its
axis `concept`, the samples of each over `data`, large frozen weights over `fsdp` (which shares
samples too, where there are enough). What a run draws follows from its key alone, whatever trains
beside it.
Axis letter: R runs.
"""

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from erase import losses
from erase.bank import Bank
from erase.config import Config, Lower, Upper
from erase.levels import Metrics, lower_losses, upper_losses
from erase.setup import RUNS, Setup, split_runs
from flux_jax.lora import init
from flux_jax.mesh import whole

# Of Adam on the balance between the levels, as the code of EraseAnything++ has them.
BALANCE_RATE, BALANCE_DECAY = 0.3, 0.01


@flax.struct.dataclass
class State:
    """What training changes.

    Attributes:
        lora: the adapter's tree, float32.
        lower: state of the erasing level's optimiser.
        upper: state of the preserving level's optimiser.
        balance: w of the adaptive sum, which starts at 0, and its optimiser's state.
        active: whether updates still change anything; a run that has stopped is kept as it is.
    """

    lora: PyTree
    lower: optax.OptState
    upper: optax.OptState
    balance: tuple[Float[Array, ""], optax.OptState]
    active: Bool[Array, ""]


Update = Callable[[State, Bank, PRNGKeyArray], tuple[State, Metrics]]


def optimiser(level: Lower | Upper) -> optax.GradientTransformation:
    """AdamW with the level's own settings, of gradients that may be clipped by their norm."""
    step = optax.adamw(level.learning_rate, weight_decay=level.weight_decay)
    return optax.chain(optax.clip_by_global_norm(level.clip), step) if level.clip else step


def balancer() -> optax.GradientTransformation:
    """Adam on w, with its decay in the gradient."""
    return optax.chain(optax.add_decayed_weights(BALANCE_DECAY), optax.adam(BALANCE_RATE))


def start(key: PRNGKeyArray, params: PyTree, config: Config) -> State:
    """The state before the first update: an adapter that changes nothing, fresh optimisers.

    Args:
        key: random key.
        params: the transformer's parameters (or their shapes).
        config: the run's configuration.

    Raises:
        InputError: a target is not a layer of the model.
    """
    lora = init(key, params, config.adapter.targets, config.adapter.rank)
    balance = jnp.zeros(())
    return State(
        lora=lora,
        lower=optimiser(config.lower).init(lora),
        upper=optimiser(config.upper).init(lora),
        balance=(balance, balancer().init(balance)),
        active=jnp.ones((), bool),
    )  # pyright: ignore[reportCallIssue]


@functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
def lower_update(
    state: State, params: PyTree, bank: Bank, key: PRNGKeyArray, *, setup: Setup
) -> tuple[State, Metrics]:
    """One step against the concept, in every run.

    Args:
        state: [R, ...], donated.
        params: the frozen transformer's parameters.
        bank: what to draw samples from, stacked.
        key: random keys [R].
        setup: what is compiled in.

    Returns:
        The new state; for each run the losses `esd` and `attn` (those that have a weight) and the
        gradient's norm before clipping, `lower_gradient`. Where one of them is no finite number,
        the run's state is the old one.
    """
    return _in_every_run(setup, _level("lower", lower_losses, params, setup))(state, bank, key)


@functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
def upper_update(
    state: State, params: PyTree, bank: Bank, key: PRNGKeyArray, *, setup: Setup
) -> tuple[State, Metrics]:
    """One step for everything else, in every run.

    Arguments and results are `lower_update`'s, with the losses `lora` and `rsc` and the
    gradient's norm `upper_gradient`.
    """
    return _in_every_run(setup, _level("upper", upper_losses, params, setup))(state, bank, key)


@functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
def joint_update(
    state: State, params: PyTree, bank: Bank, key: PRNGKeyArray, *, setup: Setup
) -> tuple[State, Metrics]:
    """One step for the sum of both levels' losses, in every run, with the lower level's optimiser.

    The adaptive sum (`losses.adaptive_sum`) then looks at the preserving loss again, on the same
    samples: Adam lets w grow where the step made it worse and fall where it made it better.
    Arguments and results are `lower_update`'s, with all losses, the gradient's norm
    `joint_gradient` and, if it adapts, w as `balance`.
    """

    def update(state: State, bank: Bank, key: PRNGKeyArray) -> tuple[State, Metrics]:
        keys = jax.random.split(key)
        given = {"params": params, "bank": bank, "setup": setup}
        balance, balance_state = state.balance

        def loss(lora: PyTree) -> tuple[Array, Metrics]:
            erasing, metrics = lower_losses(lora, key=keys[0], **given)
            preserving, more = upper_losses(lora, key=keys[1], **given)
            both = losses.adaptive_sum(erasing, preserving, balance)
            total = both if setup.adaptive else erasing + preserving
            return total, metrics | more | {"preserving": preserving}

        lora, lower, metrics = _descend(loss, state.lora, state.lower, optimiser(setup.lower))
        before = metrics.pop("preserving")
        metrics["joint_gradient"] = metrics.pop("gradient")
        if setup.adaptive:
            after, _ = upper_losses(lora, key=keys[1], **given)
            change, balance_state = balancer().update(before - after, balance_state, balance)
            balance = balance + jnp.asarray(change)
            metrics["balance"] = balance
        return (
            state.replace(lora=lora, lower=lower, balance=(balance, balance_state)),  # pyright: ignore
            metrics,
        )

    return _in_every_run(setup, update)(state, bank, key)


def _level(
    name: Literal["lower", "upper"],
    losses_of: Callable[..., tuple[Array, Metrics]],
    params: PyTree,
    setup: Setup,
) -> Update:
    """The update of one run at a level, by its losses, optimiser and state."""

    def update(state: State, bank: Bank, key: PRNGKeyArray) -> tuple[State, Metrics]:
        loss = functools.partial(losses_of, params=params, bank=bank, key=key, setup=setup)
        level = optimiser(getattr(setup, name))
        lora, own, metrics = _descend(loss, state.lora, getattr(state, name), level)
        metrics[f"{name}_gradient"] = metrics.pop("gradient")
        return state.replace(**{"lora": lora, name: own}), metrics  # pyright: ignore

    return update


def _in_every_run(setup: Setup, update: Update) -> Update:
    """The update of one run, for all of them; results stay where the arguments were."""
    own = dict.fromkeys((spec.name for spec in fields(Bank)), 0)
    bank_axes = Bank(**own | {"times": None, "image_ids": None})  # pyright: ignore

    def unless_stopped(state: State, bank: Bank, key: PRNGKeyArray) -> tuple[State, Metrics]:
        changed, metrics = update(state, bank, key)
        # One infinite number in a gradient would end the adapter and both optimisers.
        finite = jnp.isfinite(jnp.stack(jax.tree.leaves(metrics))).all()
        taken = state.active & finite
        return jax.tree.map(lambda *both: jnp.where(taken, *both), changed, state), metrics

    every = jax.vmap(unless_stopped, in_axes=(0, bank_axes, 0), spmd_axis_name=RUNS)

    def placed(*arguments: Any) -> tuple[State, Metrics]:
        # Kernels that the compiler cannot split have to know what they are split over.
        with jax.sharding.use_abstract_mesh(setup.mesh.abstract_mesh):
            state, metrics = every(*arguments)
        metrics = jax.lax.with_sharding_constraint(metrics, whole(setup.mesh))
        return split_runs(setup, state), metrics

    return placed


def _descend(
    loss: Callable[[PyTree], tuple[Array, Metrics]],
    lora: PyTree,
    state: optax.OptState,
    transformation: optax.GradientTransformation,
) -> tuple[PyTree, optax.OptState, Metrics]:
    """One step of an optimiser; adds the gradient's norm to the metrics."""
    gradient, metrics = jax.grad(loss, has_aux=True)(lora)
    changes, state = transformation.update(gradient, state, lora)
    return (
        optax.apply_updates(lora, changes),
        state,
        metrics | {"gradient": optax.tree.norm(gradient)},
    )
