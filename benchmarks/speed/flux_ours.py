"""Time this project's transformer and updates at FLUX.1 [dev]'s size, on one GPU.

    python -m benchmarks.speed.flux_ours --out flux.json --works forward-512,step-512

`benchmarks.speed.flux` runs this and diffusers. Weights are random bfloat16, generated on the
device. Times are measured on the host, from the call until its results are ready. Memory is the
compiler's: arguments, temporaries and results; donated arguments count once.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from benchmarks.speed import cases as shared
from benchmarks.speed.cases import (
    DECAY,
    GUIDANCE,
    RANK,
    RATE,
    SIZES,
    UNFINISHED,
    WARM_UPS,
    Record,
    Work,
    add,
    attempt,
    chosen,
    times,
)
from configs import nudity
from erase.cli.flags import begin, parse_flags
from erase.config.schema import Config
from erase.data.bank import Bank
from erase.data.plan import CONCEPT, POOL, SYNONYM
from erase.methods import erase_anything
from erase.methods.erase_anything import lower_update, upper_update
from erase.methods.parts.losses import squared_error
from erase.methods.planning import flops
from erase.methods.planning.configured import context_of, shapes_of, start
from erase.runs import load_config
from erase.runtime.mesh import make_mesh
from flux_jax import programs, progress
from flux_jax.errors import InputError, exits_cleanly
from flux_jax.lora import Adapter, init
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.models.vae import latent_ids
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.weights.loading import abstract_params

SIDE = "ours"
MATMUL = 8192


class Inputs(flax.struct.PyTreeNode):
    """Inputs of the transformer, and the target velocity of a step."""

    latents: Float[Array, "B S C"]
    conditioning: Conditioning
    times: Float[Array, "B"]
    image_ids: Float[Array, "S 3"]
    guidance: Float[Array, ""]
    target: Float[Array, "B S C"]


@dataclass(frozen=True)
class Program:
    """A compiled function with its compile time and its peak memory in bytes."""

    call: Callable[..., Any]
    seconds: float
    memory: int | None

    @classmethod
    def of(cls, function: Any, *arguments: Any, **options: Any) -> "Program":
        """Compile a jitted function for these arguments."""
        began = time.perf_counter()
        compiled = function.lower(*arguments, **options).compile()
        seconds = time.perf_counter() - began
        if (used := compiled.memory_analysis()) is None:
            return cls(compiled, seconds, None)
        results = used.output_size_in_bytes - used.alias_size_in_bytes
        memory = used.argument_size_in_bytes + used.temp_size_in_bytes + results
        return cls(compiled, seconds, memory)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def normal(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    mean: float = 0.0,
    deviation: float = 1.0,
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """Normal numbers, sampled in float32 on the device."""
    return (mean + deviation * jax.random.normal(key, shape)).astype(dtype)


def random_params(sizes: Mapping[str, Any], seed: int = 0) -> PyTree:
    """A transformer's weights in bfloat16, tensor by tensor, as in `benchmarks.make_checkpoint`.

    Args:
        sizes: its `config.json`.
        seed: of the weights.
    """
    leaves, tree = jax.tree.flatten_with_path(abstract_params("transformer", sizes))
    drawn = []
    for index, (path, leaf) in enumerate(leaves):
        key = jax.random.fold_in(jax.random.key(seed), index)
        if path[-1].key == "kernel":
            mean, deviation = 0.0, leaf.shape[-2] ** -0.5
        else:
            mean, deviation = float(path[-1].key == "scale"), 0.02
        drawn.append(normal(key, leaf.shape, mean, deviation, jnp.bfloat16).block_until_ready())
    return jax.tree.unflatten(tree, drawn)


def random_inputs(sizes: FluxConfig, work: Work, seed: int = 1) -> Inputs:
    """Random inputs of a workload."""
    keys = jax.random.split(jax.random.key(seed), 4)
    latents = (work.batch, work.image_tokens, sizes.in_channels)
    text = (work.batch, work.text_tokens, sizes.joint_attention_dim)
    pooled = (work.batch, sizes.pooled_projection_dim)
    return Inputs(
        latents=normal(keys[0], latents),
        conditioning=Conditioning(
            normal(keys[1], text, dtype=jnp.bfloat16), normal(keys[2], pooled, dtype=jnp.bfloat16)
        ),
        times=jnp.full(work.batch, 0.5),
        image_ids=latent_ids(work.pixels // 8, work.pixels // 8),
        guidance=jnp.asarray(GUIDANCE),
        target=normal(keys[3], latents),
    )


def random_bank(
    config: Config, model: FluxTransformer, work: Work, seed: int = 2, runs: int = 1
) -> Bank:
    """A random bank with the shapes of each run's bank and a leading axis of runs."""
    pools = (CONCEPT, *(SYNONYM for _ in config.synonyms), *(POOL for _ in config.irrelevant))
    wanted = shapes_of(config, model, work.image_tokens, work.text_tokens)
    leaves, tree = jax.tree.flatten(wanted)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [
        normal(key, (runs, *leaf.shape), dtype=leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn).replace(
        masks=jnp.zeros((runs, *wanted.masks.shape)).at[..., 2:4].set(1),
        kinds=jnp.tile(jnp.asarray(pools, jnp.int32), (runs, 1)),
        eta=jnp.full(runs, config.method_settings(erase_anything.Settings).lower.eta),
        trajectory_sentences=jnp.tile(
            jnp.arange(config.bank.trajectories) % config.bank.sentences, (runs, 1)
        ),
        times=jnp.linspace(1, 1 / config.steps, config.steps),
        image_ids=latent_ids(work.pixels // 8, work.pixels // 8),
    )


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def lora_step(
    state: tuple[PyTree, PyTree], params: PyTree, inputs: Inputs, *, model: FluxTransformer
) -> tuple[tuple[PyTree, PyTree], Float[Array, ""]]:
    """One AdamW step of an adapter towards a target velocity.

    Args:
        state: the adapter and its optimiser's state, donated.
        params: the frozen transformer's parameters.
        inputs: a batch.
        model: the transformer.

    Returns:
        The new state, and the loss.
    """
    lora, moments = state

    def loss(lora: PyTree) -> Float[Array, ""]:
        tree = Adapter(lora, RANK).scaled()
        adapted = Denoiser(model, params, inputs.image_ids, inputs.guidance, tree)
        velocity = adapted.velocity(inputs.latents, inputs.conditioning, inputs.times)
        return squared_error(velocity, inputs.target)

    value, gradient = jax.value_and_grad(loss)(lora)
    changes, moments = _adamw().update(gradient, moments, lora)
    return (optax.apply_updates(lora, changes), moments), value


def _adamw() -> optax.GradientTransformation:
    return optax.adamw(RATE, weight_decay=DECAY)


def forward(model: FluxTransformer, params: PyTree, work: Work, repeats: int) -> Record:
    """Measure one velocity."""
    given = random_inputs(model.config, work)
    denoiser = Denoiser(model, params, given.image_ids, given.guidance)
    arguments = (denoiser, given.latents, given.conditioning, given.times)
    program = Program.of(programs.velocity, *arguments)
    counted = flops.Pass(model.config, work.image_tokens, work.text_tokens).forward
    return record([program], lambda _: program.call(*arguments), None, repeats, work, counted)


def sample(model: FluxTransformer, params: PyTree, work: Work, repeats: int) -> Record:
    """Measure the Euler steps of a picture."""
    given, sigmas = random_inputs(model.config, work), jnp.asarray(work.sigmas)
    denoiser = Denoiser(model, params, given.image_ids, given.guidance)
    arguments = (denoiser, given.latents, given.conditioning, sigmas, None)
    program = Program.of(programs.denoise, *arguments)
    once = flops.Pass(model.config, work.image_tokens, work.text_tokens).forward
    counted = (len(sigmas) - 1) * once
    return record([program], lambda _: program.call(*arguments), None, repeats, work, counted)


def step(model: FluxTransformer, params: PyTree, work: Work, repeats: int) -> Record:
    """Measure an adapter's training step."""
    model, given = model.clone(remat=work.checkpointed), random_inputs(model.config, work)
    lora = init(jax.random.key(3), params, rank=RANK)
    state = lora, _adamw().init(lora)
    program = Program.of(lora_step, state, params, given, model=model)
    once = flops.Pass(model.config, work.image_tokens, work.text_tokens)
    return record(
        [program],
        lambda carried: program.call(carried[0], params, given),
        (state, None),
        repeats,
        work,
        once.forward + once.backward,
    )


def iteration(
    config: Config, model: FluxTransformer, params: PyTree, work: Work, repeats: int
) -> Record:
    """Measure both updates of a run; memory is that of the larger one."""
    bank = random_bank(config, model, work)
    context = context_of(config, model, make_mesh(config.mesh, 1, config.batch_size))
    lower_key, upper_key = jax.random.split(jax.random.key(4), (2, 1))
    state = jax.tree.map(lambda leaf: leaf[None], start(jax.random.key(5), params, config))
    state, bank = context.divided(state), context.placed(bank)
    lower = Program.of(lower_update, state, params, bank, lower_key, context=context)
    upper = Program.of(upper_update, state, params, bank, upper_key, context=context)

    def both(carried: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        state, metrics = lower.call(carried[0], params, bank, lower_key)
        state, more = upper.call(state, params, bank, upper_key)
        return state, metrics | more

    counted = flops.iteration(config, model.config, work.image_tokens, work.text_tokens)
    return record([lower, upper], both, (state, None), repeats, work, counted)


def record(
    programs: Sequence[Program],
    call: Callable[[Any], Any],
    carried: Any,
    repeats: int,
    work: Work,
    counted: int,
) -> Record:
    """Time calls, each of which gets the result of the previous one.

    Args:
        programs: the compiled functions that are called.
        call: the workload as a function.
        carried: argument of the first call.
        repeats: number of timed calls.
        work: the workload.
        counted: operations per sample of its batch.
    """
    samples, carried = timed(call, carried, repeats)
    memory = [program.memory for program in programs if program.memory is not None]
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(carried))
    return {
        **times(samples),
        "compile_seconds": sum(program.seconds for program in programs),
        "memory_bytes": max(memory, default=None),
        "flops": work.batch * counted,
        "finite": finite,
    }


def timed(call: Callable[[Any], Any], carried: Any, repeats: int) -> tuple[list[float], Any]:
    """Seconds of each repeat after warm-up, and the last result."""
    samples = []
    for _ in range(WARM_UPS + repeats):
        began = time.perf_counter()
        carried = jax.block_until_ready(call(carried))
        samples.append(time.perf_counter() - began)
    return samples[WARM_UPS:], carried


def matmul_rate(size: int, repeats: int) -> float:
    """Operations per second of a product of two square matrices in bfloat16."""
    keys = jax.random.split(jax.random.key(6))
    a, b = (normal(key, (size, size), dtype=jnp.bfloat16) for key in keys)
    product = jax.jit(jnp.matmul)
    samples, _ = timed(lambda _: product(a, b), None, repeats)
    return 2 * size**3 / times(samples)["seconds"]


def measure(
    works: Mapping[str, Work], sizes: Mapping[str, Any], config: Config, repeats: int
) -> Iterator[tuple[str, Record]]:
    """Measure workloads one after another.

    Args:
        works: by name.
        sizes: the transformer's `config.json`.
        config: of the run whose iteration is measured.
        repeats: of each workload.

    Yields:
        A workload's name with `UNFINISHED`, and then with its record.
    """
    params = random_params(sizes)
    model = FluxTransformer(FluxConfig.from_dict(sizes), jnp.bfloat16)
    kinds = {"forward": forward, "sample": sample, "step": step}
    kinds["iteration"] = partial(iteration, config)
    for name, work in progress.bar(works.items(), desc=SIDE):
        yield name, UNFINISHED
        yield name, attempt(partial(kinds[work.kind], model, params, work, repeats))
        gc.collect()


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    file, works = Path(given.out), chosen(given.works, SIDE)
    if jax.default_backend() != "gpu":
        raise InputError(f"JAX's backend is {jax.default_backend()!r} and must be 'gpu'")
    device = jax.devices()[0]
    entry = {"machine": {"device": device.device_kind, "jax": jax.__version__}, "works": {}}
    add(file, SIDE, entry | {"matmul_flops_per_second": matmul_rate(MATMUL, given.repeats)})
    for name, record in measure(works, SIZES, load_config(nudity.get_config()), given.repeats):
        add(file, SIDE, entry | {"works": {name: record}})
    if used := device.memory_stats():
        add(file, SIDE, entry | {"peak_bytes": used["peak_bytes_in_use"]})


if __name__ == "__main__":
    shared.define_flags()
    flags.adopt_module_key_flags(shared)
    app.run(main, flags_parser=parse_flags)
