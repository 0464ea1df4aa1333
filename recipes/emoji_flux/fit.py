"""Resumable, data-parallel training loop for every network of the recipe, and its state."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.config.schema import MeshConfig
from erase.runtime.mesh import SAMPLES, make_mesh
from flux_jax import progress
from flux_jax.errors import InputError
from flux_jax.system import xla_flags

# Updates per compiled call, seconds between checkpoints, and decay of the moving average.
CHUNK, CHECKPOINT_SECONDS, AVERAGE_DECAY = 200, 120.0, 0.999
# State and data are replicated on every device; only samples differ.
EVERYWHERE = PartitionSpec()

LossFunction = Callable[[PyTree, PRNGKeyArray, PyTree], tuple[Float[Array, ""], dict[str, Array]]]


class State(flax.struct.PyTreeNode):
    """State of a training run.

    Attributes:
        params: parameters being optimised.
        average: their exponential moving average, the result of the run.
        optimizer: the optimiser's state.
        update: number of updates so far.
    """

    params: PyTree
    average: PyTree
    optimizer: PyTree
    update: Int[Array, ""]


# Result of an update: the next state, and the metrics to log.
StateAndMetrics = tuple[State, dict[str, Array]]
Update = Callable[[State, PyTree], StateAndMetrics]


def start(params: PyTree, optimizer: optax.GradientTransformation) -> State:
    """Create the state before the first update."""
    # A copy, since the two are donated to the update separately.
    return State(
        params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.zeros((), jnp.int32)
    )


def adamw(peak: float, updates: int, weight_decay: float = 0.01) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine decay to 1 % of the peak; gradients are clipped to norm 1."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, min(500, updates // 10 + 1), updates + 1, peak / 100
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=weight_decay)
    )


def per_device(batch: int) -> int:
    """Samples per device in a batch.

    Raises:
        InputError: the batch cannot be split evenly.
    """
    devices = jax.device_count()
    if batch % devices:
        raise InputError(f"batch = {batch} is not a multiple of the {devices} devices")
    return batch // devices


def fit(
    state: State,
    loss: LossFunction,
    data: PyTree,
    optimizer: optax.GradientTransformation,
    updates: int,
    folder: Path,
    *,
    title: str,
    seed: int = 0,
) -> PyTree:
    """Train up to update `updates`, resuming from the folder's latest checkpoint.

    Updates run in chunks inside one compiled loop, so that the host adds no overhead. Every device
    samples its own batch, and gradients are averaged over devices. The random key of an update
    depends only on seed, update and device: a resumed run sees the same data.

    Args:
        state: from `start`.
        loss: loss and metrics of parameters, a key and the data; samples its own batch of
            `per_device` samples.
        data: arrays that the loss samples from (an argument: a closure would compile them in).
        optimizer: the transformation that `state` was started with.
        updates: total number of updates.
        folder: for `checkpoints/` and `metrics.jsonl`.
        title: of the progress bar.
        seed: of the random keys.

    Returns:
        The averaged parameters.
    """
    mesh = make_mesh(MeshConfig(), 1, jax.device_count())
    state, data = jax.device_put((state, data), NamedSharding(mesh, EVERYWHERE))
    update = functools.partial(one_update, loss=loss, optimizer=optimizer, key=jax.random.key(seed))
    advance = compile_updates(update, mesh)
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options) as manager:
        if manager.latest_step() is not None:
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
        saved, done = time.monotonic(), int(state.update)
        with _log(folder, title, done, updates) as log:
            while done < updates:
                length = min(CHUNK, updates - done)
                begun = time.monotonic()
                state, metrics = advance(state, data, length)
                done += length
                log(done, length, metrics, begun)
                if done == updates or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    manager.save(done, args=ocp.args.StandardSave(state))
                    saved = time.monotonic()
        manager.wait_until_finished()
    return state.average


def compile_updates(update: Update, mesh: Mesh) -> Callable[[State, PyTree, int], StateAndMetrics]:
    """Compile `many_updates` for all devices; the returned function donates the state.

    Args:
        update: one update on each device's own samples.
        mesh: of the devices.
    """
    # The length is traced, so that a last, shorter chunk is not compiled again. Unchecked, since
    # a checked shard_map would itself sum the gradients of replicated parameters.
    sharded = jax.shard_map(
        functools.partial(many_updates, update),
        mesh=mesh,
        in_specs=EVERYWHERE,
        out_specs=EVERYWHERE,
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=0)


def one_update(
    state: State,
    data: PyTree,
    *,
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
) -> StateAndMetrics:
    """Update parameters, optimiser and moving average on each device; also return metrics."""
    device_key = jax.random.fold_in(key, jax.lax.axis_index(SAMPLES))
    step_key = jax.random.fold_in(device_key, state.update)
    (value, metrics), gradient = jax.lax.pmean(
        jax.value_and_grad(loss, has_aux=True)(state.params, step_key, data), SAMPLES
    )
    change, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, change)
    # The average follows quickly at first, so that short runs do not return the initialisation.
    rate = jnp.minimum(AVERAGE_DECAY, (1 + state.update) / (10 + state.update))
    average = jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, state.average, params)
    state = State(params, average, optimizer_state, state.update + 1)
    return state, metrics | {"loss": value, "gradient": optax.tree.norm(gradient)}


def many_updates(
    update: Update,
    state: State,
    data: PyTree,
    length: Array,
) -> StateAndMetrics:
    """Run `length` updates and average their metrics."""

    def body(_: Array, carry: tuple[State, PyTree]) -> tuple[State, PyTree]:
        state, metrics = update(carry[0], data)
        return state, jax.tree.map(jnp.add, carry[1], metrics)

    shapes = jax.eval_shape(update, state, data)[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    state, sums = jax.lax.fori_loop(0, length, body, (state, zeros))
    return state, jax.tree.map(lambda leaf: leaf / length, sums)


@contextlib.contextmanager
def _log(
    folder: Path, title: str, done: int, updates: int
) -> Iterator[Callable[[int, int, Mapping[str, Array], float], None]]:
    """Open a progress bar and `metrics.jsonl`; yields a function that logs a chunk to both."""
    with (
        (folder / "metrics.jsonl").open("a") as file,
        progress.bar(total=updates, initial=done, desc=title, unit="update") as bar,
        xla_flags.told(bar),
    ):

        def log(done: int, length: int, metrics: Mapping[str, Array], begun: float) -> None:
            values = {name: float(value) for name, value in metrics.items()}
            seconds = (time.monotonic() - begun) / length
            line = {"update": done, **values, "seconds": seconds}
            print(json.dumps(line), file=file, flush=True)
            bar.set_postfix(loss=f"{values['loss']:.4f}", ms=f"{1000 * seconds:.1f}")
            bar.update(length)

        yield log
