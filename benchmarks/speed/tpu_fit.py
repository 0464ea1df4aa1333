"""Find the TPU slices that FLUX.1 [dev] fits on, by XLA's ahead-of-time compiler; needs no TPU.

    pip install '.[tpu]'
    python -m benchmarks.speed.tpu_fit --slices v5e-4 v5e-8 --out tpu_fit.json

Both updates of configs/nudity.py and the sampler are compiled ahead of time for every slice, with
one sample on every chip and the weights in bfloat16, split over all chips. This is compilation, not
a run: there are no step times, and only these programs are counted, for example without the text
encoders. Backward passes recompute blocks (`remat`) where an update does not fit otherwise. The
compiler takes minutes for each program. Results of slices that are not requested are kept in the
file.
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

from benchmarks.make_checkpoint import configs
from configs import nudity
from convert.arguments import Parser
from convert.tables import Table, show
from erase.config.schema import Config, MeshConfig
from erase.methods.erase_anything import lower_update, upper_update
from erase.methods.planning.configured import context_of, shapes_of, start
from erase.runs import load_config
from erase.runtime.files import read_json, write
from erase.runtime.mesh import RUNS, make_mesh
from flux_jax import sharding as meshes
from flux_jax.errors import InputError, exits_cleanly
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.programs import Conditioning, Denoiser, denoise
from flux_jax.weights.loading import abstract_params

GB = 1e9
# Text tokens by the side of the pictures.
TEXT_TOKENS = {512: 256, 1024: 512}
PIXELS_PER_TOKEN = 16
PROGRAMS = ("lower", "upper", "sampler")


@dataclass(frozen=True)
class Slice:
    """A TPU slice.

    Attributes:
        topology: its name in libtpu.
        chips: number of chips.
        hbm_gb: memory of each chip.
        options: of the topology; on v4 a chip's two cores are one device.
    """

    topology: str
    chips: int
    hbm_gb: int
    options: tuple[tuple[str, str], ...] = ()

    def devices(self) -> Sequence[Any]:
        """One device for each chip, as a target for compilation."""
        # Otherwise libtpu queries the cloud for this machine's TPU.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        return topologies.get_topology_desc(
            platform="tpu", topology_name=self.topology, **dict(self.options)
        ).devices


# In ascending order of the memory of all chips.
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
    """Memory of one chip for a compiled program, in GB.

    Attributes:
        arguments: weights, adapter, optimiser states and the bank.
        temporaries: intermediate results.
        total: both, with the program itself and results that do not reuse an argument's memory.
        squares: arrays of N x N, N all tokens of a sample, in the program.
        seconds: compile time.
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
        remat: whether backward passes recompute blocks.
        memory: what it needs; None if the compiler refused it.
        refusal: the compiler's message in that case.
        fits: whether a chip has that much memory.
    """

    slice: str
    side: int
    program: str
    remat: bool
    memory: Memory | None
    refusal: str | None
    fits: bool


def abstract(tree: PyTree, sharding: Callable[[Any], NamedSharding]) -> PyTree:
    """Shapes and dtypes, with each leaf's sharding."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf)), tree
    )


def trace(program: str, config: Config, sizes: Mapping[str, Any], mesh: Mesh) -> Any:
    """Trace a program of full size with abstract arguments, which use no memory.

    Args:
        program: one of `PROGRAMS`.
        config: the run's configuration; the samples of a batch are split over devices.
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
    """Compile a program (see `trace`) for the mesh's devices.

    Raises:
        jax.errors.JaxRuntimeError: the compiler cannot fit it into a device's memory.
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
    """Number of tokens x tokens arrays in a program's text."""
    return len(re.findall(rf"[\[,]{tokens},{tokens}[\],]", text))


def fit(name: str, side: int) -> Iterator[Row]:
    """Compile all programs for one slice at one size, each without `remat` and, if needed, with it.

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
    """The smallest slice that all programs fit on at a size, if there is one."""
    fitting = {(row.slice, row.program) for row in rows if row.side == side and row.fits}
    return next(
        (name for name in SLICES if all((name, program) in fitting for program in PROGRAMS)), None
    )


def table(rows: Sequence[Row]) -> Table:
    """Format the rows as a table."""
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
    """Rows of a result file, if there is one, except those of some slices."""
    if path is None or not path.exists():
        return []
    try:
        return [
            Row(**row | {"memory": row["memory"] and Memory(**row["memory"])})
            for row in read_json(path)["rows"]
            if row["slice"] not in others
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} holds other rows ({error!r}); name another file") from error


def result(rows: Sequence[Row]) -> dict[str, Any]:
    """Contents of the JSON file."""
    return {
        "jax": jax.__version__,
        "libtpu": version("libtpu"),
        "smallest": {str(side): smallest(rows, side) for side in TEXT_TOKENS},
        "slices": {name: asdict(place) for name, place in SLICES.items()},
        "rows": [asdict(row) for row in rows],
    }


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    parser = Parser("benchmarks.speed.tpu_fit", __doc__)
    parser.add_argument("--slices", nargs="+", choices=SLICES, default=list(SLICES))
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    options = parser.parse_args(arguments)
    # TPUs are only compiled for; all other computation runs on the CPU.
    jax.config.update("jax_platforms", "cpu")
    rows = read(options.out, options.slices)
    for name, side in itertools.product(options.slices, TEXT_TOKENS):
        for row in fit(name, side):
            print(*asdict(row).values(), flush=True)
            rows.append(row)
            if options.out:
                write(options.out, json.dumps(result(rows), indent=1) + "\n")
    show(table(rows))
    for side, name in result(rows)["smallest"].items():
        show(f"{side} x {side}: " + (f"smallest is {name}" if name else "none of these"))


if __name__ == "__main__":
    main()
