"""Time the updates on two GPUs of one host against one of them, at FLUX.1 [dev]'s size.

    python -m benchmarks.speed.two_devices --out benchmarks/speed/two_devices.json

Random weights and inputs, 512 x 512. `CASES` run one after another in one process: weights split
over both GPUs (`fsdp`), replicated on both with the samples split (`data`) or the runs (`concept`),
and on one GPU alone. A table is written beside the JSON file.

- Gradients are read from Adam's first moment after one update: on two GPUs they must equal those
  of one GPU for the whole batch. bfloat16 rounds differently when a product has another shape, so
  the comparison is repeated in float32 with fewer blocks.
- Collectives are NCCL's kernels in a profile. Part of their time is hidden behind products; the
  exposed part is reported separately.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.profiler import ProfileData
from jax.sharding import Mesh
from jaxtyping import PyTree
from rich.console import Console
from tqdm import tqdm

from benchmarks.speed.cases import SIZES, Record, Result, Work, attempt, times
from benchmarks.speed.flux_ours import Program, random_bank, random_params, timed
from configs import nudity
from convert.tables import Table, show
from erase.cli.flags import begin, parse_flags
from erase.config.schema import Config
from erase.methods.erase_anything import lower_update, upper_update
from erase.methods.planning.configured import context_of, start
from erase.runs import load_config
from erase.runtime.files import write
from erase.runtime.mesh import RUNS, SAMPLES
from flux_jax import sharding
from flux_jax.errors import InputError, exits_cleanly
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.sharding import FSDP

WORK = Work("iteration", 512, 256)
# Size for comparing gradients in float32: the same width, fewer blocks.
SHALLOW = {**SIZES, "num_layers": 2, "num_single_layers": 4}
UPDATES = {"lower": lower_update, "upper": upper_update}
PROFILED = 3
GB = 1e9
WIDTH = 150


@dataclass(frozen=True)
class Case:
    """A division of the work among devices.

    Attributes:
        runs: number of runs trained at once.
        batch: samples of each run.
        concept: devices that split the runs.
        data: devices that split the samples.
        fsdp: devices that split the weights, and samples.
        remat: whether backward passes recompute blocks.
        alone: the case of one device with as much work as each device has here.
        whole: the case of one device with all of the work.
    """

    runs: int = 1
    batch: int = 1
    concept: int = 1
    data: int = 1
    fsdp: int = 1
    remat: bool = False
    alone: str | None = None
    whole: str | None = None

    @property
    def samples(self) -> int:
        """Samples of all runs in an update."""
        return self.runs * self.batch

    def mesh(self) -> Mesh:
        """Device mesh of the case."""
        return sharding.make({RUNS: self.concept, SAMPLES: self.data, FSDP: self.fsdp})


# In ascending order of memory, since memory in use is known by its peak alone.
CASES = {
    "fsdp 2, remat": Case(batch=2, fsdp=2, remat=True),
    "fsdp 2": Case(batch=2, fsdp=2, alone="one", whole="one, 2 samples"),
    "data 2, remat": Case(batch=2, data=2, remat=True),
    "data 2": Case(batch=2, data=2, alone="one", whole="one, 2 samples"),
    "data 2, 2 samples each": Case(batch=4, data=2, alone="one, 2 samples"),
    "concept 2": Case(runs=2, concept=2, alone="one", whole="one, 2 runs"),
    "concept 2, 2 runs each": Case(runs=4, concept=2, alone="one, 2 runs"),
    "one": Case(),
    "one, 2 samples": Case(batch=2),
    "one, 2 runs": Case(runs=2),
}


def updates(
    case: Case,
    config: Config,
    model: FluxTransformer,
    params: PyTree,
    work: Work,
    precision: str | None = None,
) -> tuple[Callable[[], PyTree], dict[str, tuple[Program, Callable[[PyTree], PyTree]]]]:
    """A function that creates a state; and for each level, its compiled update and a step function.

    Args:
        case: the division of the work.
        config: of all runs.
        model: the transformer.
        params: its parameters, placed as the case requires.
        work: the picture's size.
        precision: of products, as in `jax.default_matmul_precision`.
    """
    config = replace(config, batch_size=case.batch, model=replace(config.model, remat=case.remat))
    context = context_of(config, model, case.mesh())
    bank = context.placed(random_bank(config, model, work, runs=case.runs))
    keys = jax.random.key_data(jax.random.split(jax.random.key(4), case.runs))
    keys = jax.random.wrap_key_data(context.divided(keys))

    @jax.jit
    def drawn() -> PyTree:
        """Random adapters with B ≠ 0: with B = 0, the gradient of A is 0."""
        run_keys = jax.random.split(jax.random.key(5), case.runs)
        state = jax.vmap(lambda key: start(key, params, config))(run_keys)
        leaves, tree = jax.tree.flatten(state.lora)
        normal = [
            0.02 * jax.random.normal(jax.random.fold_in(jax.random.key(6), index), leaf.shape)
            for index, leaf in enumerate(leaves)
        ]
        return state.replace(lora=jax.tree.unflatten(tree, normal))

    def fresh() -> PyTree:
        return context.divided(drawn())

    def compiled(level: str) -> tuple[Program, Callable[[PyTree], PyTree]]:
        # Context managers of JAX's configuration apply to one thread.
        with jax.default_matmul_precision(precision):
            program = Program.of(UPDATES[level], fresh(), params, bank, keys, context=context)
        return program, lambda state: program.call(state, params, bank, keys)[0]

    # In one thread, compiling would take longer than everything else.
    with ThreadPoolExecutor() as pool:
        return fresh, dict(zip(UPDATES, pool.map(compiled, UPDATES), strict=True))


def gradient(level: str, state: PyTree) -> list[np.ndarray]:
    """The gradient of a level's first update, up to a factor: Adam's first moment, on the host."""
    moments = optax.tree.get(state.own[level], "mu")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(moments)]


def apart(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """‖x - y‖ / ‖y‖ over all arrays."""
    squares = [(np.sum((x - y) ** 2), np.sum(y**2)) for x, y in zip(found, wanted, strict=True)]
    above, below = np.sum(squares, axis=0)
    return float(np.sqrt(above / below))


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Total length of the union of spans (begin, end)."""
    total, reached = 0.0, -np.inf
    for begin_, end in sorted(spans):
        total += max(0.0, end - max(begin_, reached))
        reached = max(reached, end)
    return total


def collectives(profile: Any, calls: int) -> Record | None:
    """Duration of NCCL's kernels, and the part of it during which nothing else runs.

    Args:
        profile: a `ProfileData` of identical calls.
        calls: number of calls.

    Returns:
        Seconds per call, averaged over devices; None if the profile has no GPU.
    """
    records = []
    for plane in profile.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for line in plane.lines:
            # Other lines repeat the same kernels, grouped by operation.
            if (line.name or "").startswith("Stream"):
                for event in line.events:
                    span = event.start_ns, event.start_ns + event.duration_ns
                    spans["nccl" in event.name.lower()].append(span)
        busy = covered(spans[True] + spans[False])
        if busy:
            records.append((covered(spans[True]), busy - covered(spans[False])))
    if not records:
        return None
    nccl, exposed = np.mean(records, axis=0) / calls / 1e9
    return {"collective_seconds": float(nccl), "exposed_seconds": float(exposed)}


def profiled(step: Callable[[PyTree], PyTree], state: PyTree) -> Record | None:
    """`collectives` of an update, and its seconds while it is profiled."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=_of_devices_alone()):
            for _ in range(PROFILED):
                state = jax.block_until_ready(step(state))
        (file,) = Path(folder).rglob("*.xplane.pb")
        return collectives(ProfileData.from_file(str(file)), PROFILED)


def _of_devices_alone() -> Any:
    options = jax.profiler.ProfileOptions()
    options.host_tracer_level = options.python_tracer_level = 0
    return options


def on(mesh: Mesh, params: PyTree) -> PyTree:
    """Place weights on a mesh; those already replicated on its one device are not copied."""
    if mesh.size == 1:
        params = jax.tree.map(
            lambda leaf: leaf.addressable_shards[0].data if leaf.is_fully_replicated else leaf,
            params,
        )
    return sharding.place_weights(mesh, params)


def record(
    case: Case,
    config: Config,
    model: FluxTransformer,
    params: PyTree,
    work: Work,
    repeats: int,
    gradients: dict[str, list[np.ndarray]],
) -> Record:
    """Measure a case, by level; adds the gradients of both levels to `gradients`.

    Memory is the compiler's, for one device: arguments, temporaries and results.
    """
    found: Record = {}
    fresh, made = updates(case, config, model, params, work)
    for level, (program, step) in made.items():
        gradients[level] = gradient(level, step(fresh()))
        samples, state = timed(step, fresh(), repeats)
        found[level] = {
            **times(samples),
            "samples_per_second": case.samples / times(samples)["seconds"],
            "memory_bytes": program.memory,
        }
        if case.mesh().size > 1 and jax.default_backend() == "gpu":
            found[level] |= profiled(step, state) or {}
    return found


def measure(
    cases: Mapping[str, Case], sizes: Mapping[str, Any], config: Config, work: Work, repeats: int
) -> Iterator[Result]:
    """Measure cases one after another.

    Args:
        cases: by name, those with replicated weights after those with split weights.
        sizes: the transformer's `config.json`.
        config: of a run; its model's dtype is that of weights and products.
        work: the picture's size.
        repeats: of each update.

    Yields:
        All results so far, after each case.
    """
    model = FluxTransformer(FluxConfig.from_dict(sizes), jnp.dtype(config.model.dtype))
    params, known, gradients = random_params(sizes), {}, {}
    for name, case in tqdm(cases.items(), desc="updates"):
        params = on(case.mesh(), params)
        gradients[name] = {}
        run = partial(record, case, config, model, params, work, repeats, gradients[name])
        known[name] = attempt(run)
        if used := jax.local_devices()[case.mesh().size - 1].memory_stats():
            known[name]["peak_bytes"] = used["peak_bytes_in_use"]
        yield {"cases": known, "gradients_apart": differences(cases, gradients)}


def exact(
    cases: Mapping[str, Case], sizes: Mapping[str, Any], config: Config, work: Work
) -> dict[str, dict[str, float]]:
    """Relative differences of gradients in float32, by case and level."""
    model, gradients = FluxTransformer(FluxConfig.from_dict(sizes), jnp.float32), {}
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), random_params(sizes))
    wanted = {case.whole for case in cases.values()}
    for name, case in tqdm(cases.items(), desc="gradients in float32"):
        if case.whole or name in wanted:
            params = on(case.mesh(), params)
            fresh, made = updates(case, config, model, params, work, "highest")
            gradients[name] = {
                level: gradient(level, step(fresh())) for level, (_, step) in made.items()
            }
    return differences(cases, gradients)


def differences(
    cases: Mapping[str, Case], gradients: Mapping[str, Mapping[str, list[np.ndarray]]]
) -> dict[str, dict[str, float]]:
    """Relative difference of each case's gradients to those of one device with all of the work."""
    return {
        name: {level: apart(own, gradients[case.whole][level]) for level, own in levels.items()}
        for name, levels in gradients.items()
        if (case := cases[name]).whole and gradients.get(case.whole)
    }


def table(result: Result, cases: Mapping[str, Case]) -> Table:
    """Table with a row for each case and level."""
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    shown = Table(title="Updates on two GPUs and on one, medians", caption=machine)
    headings = ("", "level", "ms", "samples/s", "of one's", "GB", "of whole", "NCCL, ms")
    for heading in (*headings, "not hidden, ms", "gradient apart", "in float32"):
        shown.add_column(heading, justify="left" if heading in ("", "level") else "right")
    for name, found in result["cases"].items():
        for level in UPDATES:
            shown.add_row(name, level, *cells(result, cases, name, level))
        if "error" in found:
            shown.add_row(name, found["error"])
    return shown


def cells(result: Result, cases: Mapping[str, Case], name: str, level: str) -> Iterator[str]:
    """The numbers of a case and level, in the table's order."""
    own, known = cases[name], result["cases"]
    found = known[name].get(level, {})

    def other(case: str | None, field: str) -> float | None:
        return known.get(case, {}).get(level, {}).get(field) if case else None

    def cell(value: float | None, digits: int, unit: float = 1.0) -> str:
        return "" if value is None else f"{value / unit:.{digits}f}"

    def ratio(field: str, case: str | None) -> float | None:
        mine, its = found.get(field), other(case, field)
        return mine / its if mine and its else None

    whole = name.replace("fsdp", "data") if own.fsdp > 1 else None
    yield cell(found.get("seconds"), 1, 1e-3)
    yield cell(found.get("samples_per_second"), 2)
    yield cell(ratio("samples_per_second", own.alone), 2)
    yield cell(found.get("memory_bytes"), 1, GB)
    yield cell(ratio("memory_bytes", whole), 2)
    yield cell(found.get("collective_seconds"), 2, 1e-3)
    yield cell(found.get("exposed_seconds"), 2, 1e-3)
    for kind in ("gradients_apart", "gradients_apart_float32"):
        apart_by = result.get(kind, {}).get(name, {}).get(level)
        yield "" if apart_by is None else f"{apart_by:.1e}"


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    file = Path(flags.FLAGS.out)
    if (count := jax.device_count()) < 2 or jax.default_backend() != "gpu":
        raise InputError(f"devices = {count} of {jax.default_backend()!r}: two GPUs are needed")
    device, config = jax.devices()[0], load_config(nudity.get_config())
    result: Result = {"machine": {"device": device.device_kind, "jax": jax.__version__}}
    for known in measure(CASES, SIZES, config, WORK, flags.FLAGS.repeats):
        result |= known
        write(file, json.dumps(result, indent=1) + "\n")
    result["gradients_apart_float32"] = exact(CASES, SHALLOW, config, WORK)
    write(file, json.dumps(result, indent=1) + "\n")
    console = Console(record=True)
    console.width = max(console.width, WIDTH)
    show(table(result, CASES), console=console)
    write(file.with_suffix(".txt"), console.export_text())


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "JSON file of the result.", required=True)
    flags.DEFINE_integer("repeats", 10, "Repeats of each, after warm-up.", lower_bound=1)
    app.run(main, flags_parser=parse_flags)
