"""What a run needs of each device's memory, found by compiling its programs; nothing is read.

Every program gets shapes in the arrays' places; what it needs are its arguments (weights, bank,
states), temporaries and results. Programs run one after another, so the largest counts, with what
stays on the device beside it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

from erase import bank
from erase.command import MENDS
from erase.config import Config
from erase.setup import RUNS, Setup, memory
from erase.updates import joint_update, lower_update, start, upper_update
from flux_jax import mesh as meshes
from flux_jax import pipeline
from flux_jax.pipeline import Conditioning, Pipeline
from flux_jax.weights import Weights

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
    config, runs = next(iter(configs.values())), len(configs)
    mesh, tokens = pipe.mesh, len(pipe.image_ids(config.height, config.width))
    text_tokens = pipe.tokenizer_2.model_max_length
    assert isinstance(pipe.params, Weights)
    weights = {name: pipe.params.shapes(name) for name in pipe.params}
    one = bank.shapes(config, pipe.transformer, tokens, text_tokens, forms(config))

    limits = pipe.tokenizer.model_max_length, text_tokens
    ids = (batch(mesh, config.bank.batch, limit) for limit in limits)
    encoders = weights["text_encoder"], weights["text_encoder_2"]
    yield (
        "encoding prompts",
        need(pipeline._encode, pipe.text_encoder, pipe.text_encoder_2, *encoders, *ids),
    )
    sizes = pipe.transformer.config
    latents = (tokens, sizes.in_channels)

    def samples(count: int) -> tuple[Any, Conditioning]:
        return batch(mesh, count, *latents, dtype=jnp.float32), jax.tree.map(
            lambda leaf: batch(mesh, count, *leaf.shape[1:], dtype=leaf.dtype), one.picture_prompts
        )

    transformer = weights["transformer"]
    banks = runs * nbytes(one)
    with jax.set_mesh(mesh):
        sigmas = jnp.zeros(config.steps + 1)
        given = (*samples(config.bank.batch), one.image_ids, config.guidance, sigmas)
        yield (
            "denoising",
            need(bank._trajectories, pipe.transformer, transformer, *given, beside=banks),
        )

    setup = Setup.of(config, pipe.transformer, mesh)
    state = jax.eval_shape(lambda: start(jax.random.key(0), pipe.shapes, config))
    own = jax.tree.map(lambda leaf: divided(setup, runs, leaf), state)
    stacked = jax.tree.map(lambda leaf: divided(setup, runs, leaf), one)
    stacked = stacked.replace(times=one.times, image_ids=one.image_ids)
    keys = jax.random.split(jax.random.key(0), runs)
    updates = {"joint update": joint_update}
    if config.alternation == "bilevel":
        updates = {"lower update": lower_update, "upper update": upper_update}
    for name, update in updates.items():
        yield name, need(update, own, transformer, stacked, keys, setup=setup)

    settings = config.evaluation
    if settings.pictures:
        with jax.set_mesh(mesh):
            drawn = min(settings.batch, settings.pictures)
            sigmas = jnp.zeros(settings.steps + 1)
            given = (state.lora, *samples(drawn), one.image_ids, settings.guidance, sigmas, None)
            yield "drawing", need(pipeline._denoise, pipe.transformer, transformer, *given)
        grid = pipe.grid(config.height, config.width)
        decoded = batch(mesh, drawn, *latents, dtype=jnp.float32)
        yield (
            "decoding",
            need(
                pipeline._decode,
                pipe.vae,
                weights["vae"],
                decoded,
                grid,
                beside=nbytes(transformer),
            ),
        )


def batch(mesh: Mesh, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    """The shape of samples that the devices share out."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.of_batch(mesh, shape[0]))


def divided(setup: Setup, runs: int, leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape of what every run has one of."""
    sharding = NamedSharding(setup.mesh, PartitionSpec(RUNS))
    return jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype, sharding=sharding)


def nbytes(tree: PyTree) -> int:
    """Bytes of all leaves on one device."""

    def own(leaf: Any) -> int:
        whole = leaf.sharding is None
        shape = leaf.shape if whole else leaf.sharding.shard_shape(leaf.shape)
        return jnp.dtype(leaf.dtype).itemsize * math.prod(shape)

    return sum(map(own, jax.tree.leaves(tree)))


def forms(config: Config) -> int:
    """V: a sentence with the concept and, where L_rsc looks at them, with every other word."""
    return 1 + (len(config.synonyms) + len(config.irrelevant) if config.upper.rsc else 0)


def held(configs: Mapping[str, Config], pipe: Pipeline) -> dict[str, int]:
    """Bytes that lie on each device, by part; not all of them at once.

    Args:
        configs: of the runs, by name.
        pipe: the frozen model, on its devices; nothing of it is read.
    """
    assert isinstance(pipe.params, Weights)
    config = next(iter(configs.values()))
    tokens = len(pipe.image_ids(config.height, config.width))
    limit = pipe.tokenizer_2.model_max_length
    one = bank.shapes(config, pipe.transformer, tokens, limit, forms(config))
    state = jax.eval_shape(lambda: start(jax.random.key(0), pipe.shapes, config))
    own = -(-len(configs) // pipe.mesh.shape[RUNS])
    return {
        **{f"weights of {name}": nbytes(pipe.params.shapes(name)) for name in pipe.params},
        "bank": own * nbytes(one),
        "adapter and optimisers": own * nbytes(state),
    }


def show(configs: Mapping[str, Config], pipe: Pipeline) -> bool:
    """Prints what each program needs, as it is known, and whether all fit.

    Returns:
        Whether they do; True where the devices do not say how much they have.
    """
    console = Console()
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
    for name, found in plan(configs, pipe):
        sizes = (found.arguments, found.temporaries, found.results, found.beside, found.total)
        table.add_row(name, *(f"{size / GB:.2f}" for size in sizes))
        largest = max(largest, found.total)
    console.print(table)
    kind = jax.devices()[0].device_kind
    if available is None:
        console.print(f"At most {largest / GB:.2f} GB; {kind} does not say how much it has.")
        return True
    fits = largest <= available
    console.print(
        f"At most {largest / GB:.2f} of {available / GB:.2f} GB on each {kind}: "
        + ("fits." if fits else f"does not fit. {MENDS}")
    )
    return fits
