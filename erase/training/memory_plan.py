"""What a run needs of each device's memory, found by compiling its programs; nothing is read.

Every program gets shapes in the arrays' places; what it needs are its arguments (weights, bank,
states), temporaries and results. Programs run one after another, so the largest counts, with what
stays on the device beside it.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

from erase.config.schema import Config
from erase.data import bank
from erase.data.trajectories import trajectories
from erase.methods import flops, method_of
from erase.methods.configured import context_of, shapes_of, start
from erase.methods.parts.step import State
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
    """What a program needs on each device, in bytes.

    Attributes:
        arguments: weights and data that it is given.
        temporaries: what it computes with.
        results: that take no argument's place.
        beside: what stays on the device and is no argument.
    """

    arguments: int
    temporaries: int
    results: int
    beside: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.arguments + self.temporaries + self.results + self.beside


def need(function: Any, *arguments: Any, beside: int = 0, **options: Any) -> Need:
    """Compiles a jitted function for shapes and asks what it needs.

    Args:
        function: what `jax.jit` returned.
        *arguments: shapes with their shardings, or values.
        beside: bytes that stay on the device and are no argument.
        **options: arguments that are compiled in.
    """
    used = function.lower(*arguments, **options).compile().memory_analysis()
    results = max(0, used.output_size_in_bytes - used.alias_size_in_bytes)
    return Need(used.argument_size_in_bytes, used.temp_size_in_bytes, results, beside)


def plan(configs: Mapping[str, Config], pipe: Pipeline) -> Iterator[tuple[str, Need]]:
    """The programs of a command's runs with their needs, in the order in which they run.

    Args:
        configs: of the runs, by name.
        pipe: the frozen model, on its devices; nothing of it is read.

    Yields:
        A program's name, and what it needs.
    """
    config, runs = shared_settings(configs), len(configs)
    yield from _preparing(config, pipe)
    yield from training(config, runs, pipe)
    if config.evaluation.pictures:
        yield from _drawing(config, pipe)


def _preparing(config: Config, pipe: Pipeline) -> Iterator[tuple[str, Need]]:
    """The text encoders, then the frozen model's trajectories."""
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
    """The updates of so many runs with their needs; see `plan`."""
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
    # As training places them, so that what it has compiled is not compiled again.
    keys = divided(jax.eval_shape(lambda: jax.random.key(0)))
    for name, step in method_of(config).steps(config).items():
        state, weights = divided(_state(config, pipe)), _weights(pipe)["transformer"]
        yield f"{name} update", need(step.update, state, weights, banks, keys, context=context)


def _drawing(config: Config, pipe: Pipeline) -> Iterator[tuple[str, Need]]:
    """Evaluation's pictures."""
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
    """Every model's parameters, as shapes in their places."""
    assert isinstance(pipe.params, Weights)
    return {name: pipe.params.shapes(name) for name in pipe.params}


def _bank(config: Config, pipe: Pipeline) -> bank.Bank:
    """A run's bank, as shapes."""
    tokens = len(pipe.image_ids(config.height, config.width))
    length = pipe.tokenizer_2.model_max_length
    return shapes_of(config, pipe.transformer, tokens, length)


def _state(config: Config, pipe: Pipeline) -> State:
    """A run's adapter and optimisers, as shapes."""
    return jax.eval_shape(lambda: start(jax.random.key(0), pipe.shapes, config))


def _samples(one: bank.Bank, pipe: Pipeline, count: int) -> tuple[Any, Conditioning]:
    """Latents and encoded prompts of so many samples, as shapes."""
    latents = _batch(pipe, count, *one.trajectories.shape[2:], dtype=jnp.float32)
    prompts = jax.tree.map(
        lambda leaf: _batch(pipe, count, *leaf.shape[2:], dtype=leaf.dtype), one.sentences
    )
    return latents, prompts


def _batch(pipe: Pipeline, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    """The shape of samples that the devices share out."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.of_batch(pipe.mesh, shape[0]))


def nbytes(tree: PyTree) -> int:
    """Bytes of all leaves on one device."""

    def bytes_of(leaf: Any) -> int:
        whole = leaf.sharding is None
        shape = leaf.shape if whole else leaf.sharding.shard_shape(leaf.shape)
        return jnp.dtype(leaf.dtype).itemsize * math.prod(shape)

    return sum(map(bytes_of, jax.tree.leaves(tree)))


def of_a_run(configs: Mapping[str, Config], pipe: Pipeline) -> int:
    """Bytes that the largest update needs for each run, besides the frozen weights.

    Args:
        configs: of the runs, by name.
        pipe: the frozen model, on its devices.

    Returns:
        What one run adds on the device that it trains on; 0 where nothing is trained.
    """
    config, runs = shared_settings(configs), len(configs)
    pipe = place_model(pipe, config, runs)
    weights = nbytes(_weights(pipe)["transformer"])
    needs = [program.total - weights for _, program in training(config, runs, pipe)]
    return max(needs, default=0) // (runs // pipe.mesh.shape[RUNS])


def held(configs: Mapping[str, Config], pipe: Pipeline) -> dict[str, int]:
    """Bytes that lie on each device, by part; not all of them at once.

    Args:
        configs: of the runs, by name.
        pipe: the frozen model, on its devices; nothing of it is read.
    """
    config = shared_settings(configs)
    runs_a_device = len(configs) // pipe.mesh.shape[RUNS]
    return {
        **{f"weights of {name}": nbytes(shapes) for name, shapes in _weights(pipe).items()},
        "bank": runs_a_device * nbytes(_bank(config, pipe)),
        "adapter and optimisers": runs_a_device * nbytes(_state(config, pipe)),
    }


def show(configs: Mapping[str, Config], pipe: Pipeline) -> bool:
    """Prints what each program needs, as it is known, and whether all fit.

    Returns:
        Whether they do; True where the devices do not say how much they have.
    """
    console = Console()
    config = shared_settings(configs)
    # Before anything is compiled.
    console.print(flops.estimate(config, pipe, len(configs)))
    parts = Table("", title="GB (10⁹ bytes) that lie on each device, not all at once")
    parts.add_column("", justify="right")
    for name, size in held(configs, pipe).items():
        parts.add_row(name, f"{size / GB:.2f}")
    console.print(parts)
    available = memory(list(pipe.mesh.devices.flat))
    table = Table(title="GB that programs need, one after another")
    for heading in ("", "arguments", "temporaries", "results", "beside", "total"):
        table.add_column(heading, justify="right" if heading else "left")
    largest = 0
    for name, program in plan(configs, pipe):
        sizes = (*dataclasses.astuple(program), program.total)
        table.add_row(name, *(f"{size / GB:.2f}" for size in sizes))
        largest = max(largest, program.total)
    console.print(table)
    kind = jax.devices()[0].device_kind
    if available is None:
        console.print(f"At most {largest / GB:.2f} GB; {kind} does not say how much it has.")
        if jax.default_backend() == "cpu":
            # cuDNN's kernel never holds the attention weights; XLA's programs for a CPU do.
            console.print("A GPU needs less: plan on the machine that is to train.")
        return True
    fits = largest <= available
    console.print(
        f"At most {largest / GB:.2f} of {available / GB:.2f} GB on each {kind}: "
        + ("fits." if fits else f"does not fit. {MENDS}")
    )
    return fits
