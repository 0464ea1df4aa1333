"""Which TPU slices FLUX.1 [dev] fits on: what XLA's compiler for them says, no TPU needed.

    pip install '.[tpu]'
    python -m benchmarks.speed.tpu_fit --slices v5e-4 v5e-8 --out tpu_fit.json

Both updates of configs/nudity.py and the sampler are compiled ahead of time for every slice, with
one sample on every chip and the weights in bfloat16, split over all chips. This is compilation, not
a run: there are no times of steps, and nothing that is not in these programs is counted, such as
the text encoders. Blocks are computed anew in backward passes (`remat`) where an update does not
fit without. The compiler takes minutes for each program; what a result's file says of slices that
are not asked for stays there.
"""

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

from benchmarks.make_checkpoint import configs
from configs import nudity
from convert.arguments import Parser
from erase.config.schema import Config, MeshConfig
from erase.methods.configured import context_of, shapes_of, start
from erase.methods.erase_anything import lower_update, upper_update
from erase.runs import load_config
from erase.runtime.files import write
from erase.runtime.mesh import RUNS, make_mesh
from flux_jax import sharding as meshes
from flux_jax.errors import exits_cleanly
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.programs import Conditioning, Denoiser, denoise
from flux_jax.weights.loading import abstract_params

GB = 1e9
# Text tokens by the pictures' sides.
TEXT_TOKENS = {512: 256, 1024: 512}
PIXELS_PER_TOKEN = 16
PROGRAMS = ("lower", "upper", "sampler")


@dataclass(frozen=True)
class Slice:
    """A slice that can be rented.

    Attributes:
        topology: what libtpu calls it.
        chips: their number.
        hbm_gb: memory of each.
        options: of the topology; on v4 a chip's two cores are one device.
    """

    topology: str
    chips: int
    hbm_gb: int
    options: tuple[tuple[str, str], ...] = ()

    def devices(self) -> Sequence[Any]:
        """One for each chip, which can be compiled for."""
        # libtpu would ask the cloud which TPU this machine has.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        return topologies.get_topology_desc(
            platform="tpu", topology_name=self.topology, **dict(self.options)
        ).devices


# From the smallest, by the memory of all chips.
SLICES = {
    "v5e-4": Slice("v5e:2x2", 4, 16),
    "v4-8": Slice("v4:2x2x1", 4, 32, (("chip_config_name", "megacore"),)),
    "v5e-8": Slice("v5e:2x4", 8, 16),
    "v5e-16": Slice("v5e:4x4", 16, 16),
    "v6e-8": Slice("v6e:2x4", 8, 32),
    "v5p-8": Slice("v5p:2x2x1", 4, 95),
}


@dataclass(frozen=True)
class Memory:
    """What one chip holds of a compiled program, in GB.

    Attributes:
        arguments: weights, adapter, optimisers and what samples are drawn from.
        temporaries: what is made on the way.
        total: both, with the program itself and results that take no argument's place.
        squares: arrays of N x N, N all tokens of a sample, in the program.
        seconds: of compiling.
    """

    arguments: float
    temporaries: float
    total: float
    squares: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """A program on a slice.

    Attributes:
        slice: a key of `SLICES`.
        side: of the pictures, pixels.
        program: one of `PROGRAMS`.
        remat: whether blocks are computed anew in backward passes.
        memory: what it takes; None where the compiler refused it.
        refusal: what the compiler then said.
        fits: whether a chip has that much.
    """

    slice: str
    side: int
    program: str
    remat: bool
    memory: Memory | None
    refusal: str | None
    fits: bool


def abstract(tree: PyTree, sharding: Callable[[Any], NamedSharding]) -> PyTree:
    """Shapes and types with the place that each leaf has on a mesh."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf)), tree
    )


def trace(program: str, config: Config, sizes: Mapping[str, Any], mesh: Mesh) -> Any:
    """A program of full size, traced with arguments that have no memory.

    Args:
        program: one of `PROGRAMS`.
        config: the run's configuration; a batch's samples are shared out.
        sizes: the transformer's configuration.
        mesh: from `make_mesh`.
    """
    model = FluxTransformer(FluxConfig.from_dict(sizes), jnp.dtype(config.model.dtype))
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, model.dtype),
        abstract_params("transformer", sizes),
    )
    state = jax.eval_shape(lambda: start(jax.random.key(0), params, config))
    params = abstract(params, lambda leaf: meshes.of_weight(mesh, leaf.shape))
    image_tokens = config.height // PIXELS_PER_TOKEN * (config.width // PIXELS_PER_TOKEN)
    assert config.text_tokens is not None

    def everywhere(tree: PyTree) -> PyTree:
        return abstract(tree, lambda _: meshes.whole(mesh))

    def of_a_run(tree: PyTree) -> PyTree:
        stacked = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[None], tree), tree)
        return abstract(stacked, lambda _: NamedSharding(mesh, PartitionSpec(RUNS)))

    if program == "sampler":

        def samples(*shape: int, dtype: Any = jnp.float32) -> Any:
            place = meshes.of_batch(mesh, config.batch_size)
            return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=place)

        text = samples(config.text_tokens, model.config.joint_attention_dim, dtype=model.dtype)
        pooled = samples(model.config.pooled_projection_dim, dtype=model.dtype)
        image_ids, guidance, sigmas = everywhere(
            [
                jax.ShapeDtypeStruct(shape, jnp.float32)
                for shape in ((image_tokens, 3), (), (config.steps + 1,))
            ]
        )
        denoiser = Denoiser(model, params, image_ids, guidance, everywhere(state.lora))
        latents = samples(image_tokens, model.config.in_channels)
        with jax.set_mesh(mesh):
            return denoise.trace(denoiser, latents, Conditioning(text, pooled), sigmas, None)
    bank = shapes_of(config, model, image_tokens, config.text_tokens)
    common = everywhere({"times": bank.times, "image_ids": bank.image_ids})
    bank = of_a_run(bank).replace(**common)
    key = of_a_run(jax.eval_shape(lambda: jax.random.key(0)))
    update = {"lower": lower_update, "upper": upper_update}[program]
    context = context_of(config, model, mesh)
    return update.trace(of_a_run(state), params, bank, key, context=context)


def measure(program: str, config: Config, sizes: Mapping[str, Any], mesh: Mesh) -> Memory:
    """Compiles a program (see `trace`) for the mesh's devices.

    Raises:
        jax.errors.JaxRuntimeError: the compiler cannot fit it into a device.
    """
    begun = time.perf_counter()
    compiled = trace(program, config, sizes, mesh).lower().compile()
    seconds = time.perf_counter() - begun
    analysis = compiled.memory_analysis()
    arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    total = arguments + temporaries + results + analysis.generated_code_size_in_bytes
    tokens = config.height // PIXELS_PER_TOKEN * (config.width // PIXELS_PER_TOKEN)
    tokens += config.text_tokens or 0
    return Memory(
        *(round(value / GB, 3) for value in (arguments, temporaries, total)),
        squares=squares(compiled.as_text(), tokens),
        seconds=round(seconds, 1),
    )


def squares(text: str, tokens: int) -> int:
    """How many arrays of tokens x tokens a program's text has."""
    return len(re.findall(rf"[\[,]{tokens},{tokens}[\],]", text))


def fit(name: str, side: int) -> Iterator[Row]:
    """All programs on one slice at one size, each without `remat` and, if need be, with it.

    Args:
        name: a key of `SLICES`.
        side: of the pictures, pixels.
    """
    place = SLICES[name]
    config = replace(
        load_config(nudity.get_config()),
        height=side,
        width=side,
        text_tokens=TEXT_TOKENS[side],
        batch_size=place.chips,
        mesh=MeshConfig(fsdp=place.chips),
    )
    mesh = make_mesh(config.mesh, 1, config.batch_size, devices=place.devices())
    for program in PROGRAMS:
        # The sampler has no backward pass.
        for remat in (False,) if program == "sampler" else (False, True):
            run = replace(config, model=replace(config.model, remat=remat))
            memory, refusal = None, None
            try:
                memory = measure(program, run, configs("dev")["transformer"], mesh)
            except jax.errors.JaxRuntimeError as error:
                if not re.match("RESOURCE_EXHAUSTED: .*hbm", str(error), re.IGNORECASE):
                    raise
                refusal = str(error).splitlines()[0]
            fits = memory is not None and memory.total <= place.hbm_gb
            yield Row(name, side, program, remat, memory, refusal, fits)
            if fits:
                break


def smallest(rows: Sequence[Row], side: int) -> str | None:
    """The smallest slice on which all programs fit at a size, if there is one."""
    fitting = {(row.slice, row.program) for row in rows if row.side == side and row.fits}
    return next(
        (name for name in SLICES if all((name, program) in fitting for program in PROGRAMS)), None
    )


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    out = Table(title="Memory of one chip, GB, as compiled")
    for heading in ("slice", "side", "program", "remat"):
        out.add_column(heading)
    for heading in ("arguments", "temporaries", "total", "chip has"):
        out.add_column(heading, justify="right")
    out.add_column("fits")
    for row in rows:
        memory = row.memory
        sizes = (memory.arguments, memory.temporaries, memory.total) if memory else ()
        out.add_row(
            row.slice,
            str(row.side),
            row.program,
            "yes" if row.remat else "no",
            *([f"{size:.2f}" for size in sizes] or ("", "", "refused")),
            str(SLICES[row.slice].hbm_gb),
            "yes" if row.fits else "no",
        )
    return out


def read(path: Path | None, others: Sequence[str]) -> list[Row]:
    """The rows of a result's file, where there is one, but those of some slices."""
    rows = json.loads(path.read_text())["rows"] if path and path.exists() else []
    return [
        Row(**row | {"memory": row["memory"] and Memory(**row["memory"])})
        for row in rows
        if row["slice"] not in others
    ]


def result(rows: Sequence[Row]) -> dict[str, Any]:
    """What the JSON file says."""
    return {
        "jax": jax.__version__,
        "libtpu": version("libtpu"),
        "smallest": {str(side): smallest(rows, side) for side in TEXT_TOKENS},
        "slices": {name: asdict(place) for name, place in SLICES.items()},
        "rows": [asdict(row) for row in rows],
    }


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = Parser("benchmarks.speed.tpu_fit", __doc__)
    parser.add_argument("--slices", nargs="+", choices=SLICES, default=list(SLICES))
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    options = parser.parse_args(arguments)
    # TPUs are only compiled for; what is computed on the way goes to the CPU.
    jax.config.update("jax_platforms", "cpu")
    console, rows = Console(), read(options.out, options.slices)
    for name, side in itertools.product(options.slices, TEXT_TOKENS):
        for row in fit(name, side):
            print(*asdict(row).values(), flush=True)
            rows.append(row)
            if options.out:
                write(options.out, json.dumps(result(rows), indent=1) + "\n")
    console.print(table(rows))
    for side, name in result(rows)["smallest"].items():
        console.print(f"{side} x {side}: " + (f"smallest is {name}" if name else "none of these"))


if __name__ == "__main__":
    main()
