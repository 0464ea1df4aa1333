"""Programs compiled without reading weights: what memory they need, and updates ahead of training.

Every program is compiled for shapes instead of arrays. It needs memory for its arguments (weights,
bank, states), temporaries and results. Programs run one after another, so the largest one counts,
with the data that stays on the device besides.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from convert import tables
from erase.config.schema import Config
from erase.data import bank
from erase.data.trajectories import trajectories
from erase.methods import method_of
from erase.methods.base import Step
from erase.methods.parts.compiled import StepContext
from erase.methods.parts.step import State
from erase.methods.planning import flops
from erase.methods.planning.configured import context_of, shapes_of, start
from erase.model.open import place_model
from erase.runtime.memory import MENDS, memory
from erase.runtime.mesh import RUNS
from erase.training.prepare import shared_settings
from flux_jax import programs
from flux_jax import sharding as meshes
from flux_jax.pipeline import Pipeline
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.weights.loading import Weights

GB = 1e9


@dataclass(frozen=True)
class Need:
    """Memory that a program needs on each device, in bytes.

    Attributes:
        arguments: weights and data passed to the program.
        temporaries: intermediate buffers.
        results: results that do not reuse an argument's buffer.
        beside: other data that stays on the device and is not an argument.
    """

    arguments: int
    temporaries: int
    results: int
    beside: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.arguments + self.temporaries + self.results + self.beside


def need(function: Any, *arguments: Any, beside: int = 0, **options: Any) -> Need:
    """Compile a jitted function for shapes and return the memory that it needs.

    Args:
        function: a function returned by `jax.jit`.
        *arguments: shapes with their shardings, or values.
        beside: bytes that stay on the device and are not an argument.
        **options: static arguments.
    """
    used = function.lower(*arguments, **options).compile().memory_analysis()
    results = max(0, used.output_size_in_bytes - used.alias_size_in_bytes)
    return Need(used.argument_size_in_bytes, used.temp_size_in_bytes, results, beside)


def plan(configs: Mapping[str, Config], pipe: Pipeline) -> Iterator[tuple[str, Need]]:
    """Yield the programs of a command's runs with the memory they need, in order of execution.

    Args:
        configs: configurations of the runs, by name.
        pipe: the frozen model, on its devices; its weights are not read.

    Yields:
        A program's name, and the memory that it needs.
    """
    config, runs = shared_settings(configs), len(configs)
    yield from _preparing(config, pipe)
    yield from training(config, runs, pipe)
    if config.evaluation.pictures:
        yield from _drawing(config, pipe)


def _preparing(config: Config, pipe: Pipeline) -> Iterator[tuple[str, Need]]:
    """Yield the programs of the preparation: text encoding, then denoising."""
    weights, count = _weights(pipe), config.bank.batch
    lengths = pipe.tokenizer.model_max_length, pipe.tokenizer_2.model_max_length
    yield (
        "encoding prompts",
        need(
            programs.encode,
            pipe.text_encoder,
            pipe.text_encoder_2,
            weights["text_encoder"],
            weights["text_encoder_2"],
            *(_batch(pipe, count, length) for length in lengths),
        ),
    )
    one = _bank(config, pipe)
    sigmas = jnp.zeros(config.steps + 1)
    model = Denoiser(pipe.transformer, weights["transformer"], one.image_ids, config.guidance)
    latents, prompts = _samples(one, pipe, count)
    with jax.set_mesh(pipe.mesh):
        denoising = need(trajectories, model, latents, prompts, sigmas)
    yield "denoising", denoising


def training(config: Config, runs: int, pipe: Pipeline) -> Iterator[tuple[str, Need]]:
    """Yield the updates of `runs` runs with the memory they need; see `plan`."""
    for name, (step, arguments, context) in updates(config, runs, pipe).items():
        yield f"{name} update", need(step.update, *arguments, context=context)


def updates(
    config: Config, runs: int, pipe: Pipeline
) -> dict[str, tuple[Step, tuple[PyTree, ...], StepContext[object]]]:
    """Return an iteration's steps by name, with the shapes of their arguments and their context.

    Args:
        config: configuration of any of the runs.
        runs: number of runs trained at once.
        pipe: the frozen model, on the devices of training; its weights are not read.
    """
    context = context_of(config, pipe.transformer, pipe.mesh)
    sharding = NamedSharding(pipe.mesh, PartitionSpec(RUNS))

    def divided(tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype, sharding=sharding),
            tree,
        )

    one = _bank(config, pipe)
    shared = {name: getattr(one, name) for name in ("times", "image_ids")}
    alike = meshes.whole(pipe.mesh)
    banks = divided(one).replace(
        **{n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=alike) for n, s in shared.items()}
    )
    # Same shardings as in training, so that programs that it has compiled are reused.
    keys = divided(jax.eval_shape(lambda: jax.random.key(0)))
    arguments = divided(_state(config, pipe)), _weights(pipe)["transformer"], banks, keys
    steps = method_of(config).steps(config)
    return {name: (step, arguments, context) for name, step in steps.items()}


@contextlib.contextmanager
def compiling_updates(configs: Mapping[str, Config], pipe: Pipeline) -> Iterator[None]:
    """Compile the updates of runs in threads; the block ends when they are compiled.

    Meanwhile the caller reads weights and computes banks, for which a GPU leaves the host's cores
    idle. Training finds the programs in JAX's memory. An error is not raised here: training meets
    it again. Several processes must compile in the same order, so they compile when they train.

    Args:
        configs: configurations of the runs, by name.
        pipe: the frozen model; its weights need not be read.
    """
    if jax.process_count() > 1:
        yield
        return
    shared = shared_settings(configs)
    planned = updates(shared, len(configs), place_model(pipe, shared, len(configs)))
    with ThreadPoolExecutor(max(1, len(planned)), "compiling") as pool:
        for step, arguments, context in planned.values():
            pool.submit(_compile, step, arguments, context)
        yield


def _compile(step: Step, arguments: tuple[PyTree, ...], context: StepContext[object]) -> None:
    """Compile an update for the shapes of its arguments."""
    step.update.lower(*arguments, context=context).compile()


def _drawing(config: Config, pipe: Pipeline) -> Iterator[tuple[str, Need]]:
    """Yield the programs that generate the evaluation's pictures."""
    settings, weights, one = config.evaluation, _weights(pipe), _bank(config, pipe)
    count = min(settings.batch, settings.pictures)
    latents, prompts = _samples(one, pipe, count)
    transformer, lora = weights["transformer"], _state(config, pipe).lora
    model = Denoiser(pipe.transformer, transformer, one.image_ids, settings.guidance, lora)
    sigmas = jnp.zeros(settings.steps + 1)
    with jax.set_mesh(pipe.mesh):
        drawing = need(programs.denoise, model, latents, prompts, sigmas, None)
    yield "drawing", drawing
    grid = pipe.grid(config.height, config.width)
    yield (
        "decoding",
        need(programs.decode, pipe.vae, weights["vae"], latents, grid, beside=nbytes(transformer)),
    )


def _weights(pipe: Pipeline) -> dict[str, PyTree]:
    """Return the shapes of every model's parameters, with their shardings."""
    assert isinstance(pipe.params, Weights)
    return {name: pipe.params.shapes(name) for name in pipe.params}


def _bank(config: Config, pipe: Pipeline) -> bank.Bank:
    """Return the shapes of a run's bank."""
    tokens = len(pipe.image_ids(config.height, config.width))
    length = pipe.tokenizer_2.model_max_length
    return shapes_of(config, pipe.transformer, tokens, length)


def _state(config: Config, pipe: Pipeline) -> State:
    """Return the shapes of a run's adapter and optimiser states."""
    return jax.eval_shape(lambda: start(jax.random.key(0), pipe.shapes, config))


def _samples(one: bank.Bank, pipe: Pipeline, count: int) -> tuple[Any, Conditioning]:
    """Return the shapes of latents and encoded prompts of `count` samples."""
    latents = _batch(pipe, count, *one.trajectories.shape[2:], dtype=jnp.float32)
    prompts = jax.tree.map(
        lambda leaf: _batch(pipe, count, *leaf.shape[2:], dtype=leaf.dtype), one.sentences
    )
    return latents, prompts


def _batch(pipe: Pipeline, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    """Return the shape of a batch that is split over the devices."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.of_batch(pipe.mesh, shape[0]))


def nbytes(tree: PyTree) -> int:
    """Return the bytes of all leaves on one device."""

    def bytes_of(leaf: Any) -> int:
        whole = leaf.sharding is None
        shape = leaf.shape if whole else leaf.sharding.shard_shape(leaf.shape)
        return jnp.dtype(leaf.dtype).itemsize * math.prod(shape)

    return sum(map(bytes_of, jax.tree.leaves(tree)))


def of_a_run(configs: Mapping[str, Config], pipe: Pipeline) -> int:
    """Return the bytes that the largest update needs per run, besides the frozen weights.

    Args:
        configs: configurations of the runs, by name.
        pipe: the frozen model, on its devices.

    Returns:
        Bytes that one run adds on the device that it trains on; 0 if nothing is trained.
    """
    config, runs = shared_settings(configs), len(configs)
    pipe = place_model(pipe, config, runs)
    weights = nbytes(_weights(pipe)["transformer"])
    needs = [program.total - weights for _, program in training(config, runs, pipe)]
    return max(needs, default=0) // (runs // pipe.mesh.shape[RUNS])


def held(configs: Mapping[str, Config], pipe: Pipeline) -> dict[str, int]:
    """Return the bytes held on each device, by part; not all parts are held at once.

    Args:
        configs: configurations of the runs, by name.
        pipe: the frozen model, on its devices; its weights are not read.
    """
    config = shared_settings(configs)
    runs_a_device = len(configs) // pipe.mesh.shape[RUNS]
    return {
        **{f"weights of {name}": nbytes(shapes) for name, shapes in _weights(pipe).items()},
        "bank": runs_a_device * nbytes(_bank(config, pipe)),
        "adapter and optimisers": runs_a_device * nbytes(_state(config, pipe)),
    }


def show(configs: Mapping[str, Config], pipe: Pipeline) -> bool:
    """Print the memory that each program needs, and whether all programs fit.

    Returns:
        Whether all programs fit; True if the devices do not report their memory.
    """
    config = shared_settings(configs)
    # Printed first, because compilation takes longer.
    tables.show(flops.estimate(config, pipe, len(configs)))
    parts = tables.Table("", title="GB (10⁹ bytes) held on each device, not all at once")
    parts.add_column("", justify="right")
    for name, size in held(configs, pipe).items():
        parts.add_row(name, f"{size / GB:.2f}")
    tables.show(parts)
    table = tables.Table(title="GB needed by each program; programs run one after another")
    for heading in ("", "arguments", "temporaries", "results", "beside", "total"):
        table.add_column(heading, justify="right" if heading else "left")
    largest = 0
    for name, program in plan(configs, pipe):
        sizes = (*dataclasses.astuple(program), program.total)
        table.add_row(name, *(f"{size / GB:.2f}" for size in sizes))
        largest = max(largest, program.total)
    tables.show(table)
    return show_fit(largest, pipe)


def show_fit(largest: int, pipe: Pipeline) -> bool:
    """Print whether the largest program fits.

    Args:
        largest: bytes that it needs on each device.
        pipe: the frozen model, on its devices.

    Returns:
        Whether it fits; True if the devices do not report their memory.
    """
    available = memory(list(pipe.mesh.devices.flat))
    kind = jax.devices()[0].device_kind
    if available is None:
        if jax.default_backend() == "cpu":
            # cuDNN's kernel does not store the attention weights; XLA's programs for a CPU do.
            tables.show(
                f"At most {largest / GB:.2f} GB in XLA's programs for this CPU. A GPU needs less: "
                "run --plan on the machine used for training."
            )
        else:
            tables.show(f"At most {largest / GB:.2f} GB; {kind} does not report its memory.")
        return True
    fits = largest <= available
    tables.show(
        f"At most {largest / GB:.2f} of {available / GB:.2f} GB on each {kind}: "
        + ("fits." if fits else f"does not fit. {MENDS}")
    )
    return fits
