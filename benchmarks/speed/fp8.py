"""Time bfloat16, int8 and fp8 at FLUX.1 [dev]'s size on one Hopper GPU: products, and whole passes.

    python -m benchmarks.speed.fp8 --out benchmarks/speed/fp8.json

Products run in a loop over the stacked weights of 38 blocks; a time is that of the whole loop.
`rows` means weights that lie [L, N, K] instead of [L, K, N]. Then a forward pass and a gradient
step of an adapter at 512 x 512, with random weights in each storage type. `--parts` names some.
A part that fails leaves its error in the file, and the others go on. All parts take a few minutes.
"""

import collections
import functools
import gc
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jaxtyping import Array, PyTree

from benchmarks.speed.cases import SIZES, WORKS, Record, attempt, times
from benchmarks.speed.cases import add as add_records
from benchmarks.speed.flux_ours import Program, forward, normal, random_params, step, timed
from erase.cli.flags import begin, parse_flags
from flux_jax.errors import InputError, exits_cleanly
from flux_jax.lora import stacked
from flux_jax.models.kernels import fp8_hopper
from flux_jax.models.kernels.fp8_hopper import TILES, Tile
from flux_jax.models.layers import INPUTS, apart, product, product_fp8
from flux_jax.models.quantize import Quantized, beside, quantized, rounded
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.settings import STORAGE
from flux_jax.sharding import make
from flux_jax.tree import flatten, nest
from flux_jax.weights.loading import place_quantized

SIDE = "fp8"
BLOCKS = 38
# Tokens, inputs and outputs.
PRODUCTS = (
    (1280, 3072, 12288),
    (1280, 3072, 3072),
    (1280, 15360, 3072),
    (1280, 12288, 3072),
    (256, 12288, 3072),
    (256, 3072, 3072),
)
DOT = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
Step = Callable[[Any, Any, Array], Array]


def looped(one: Step) -> Callable[[Any, Any], Array]:
    """A jitted loop of a product over the blocks, of which the last result is returned."""

    def run(inputs: PyTree, weights: PyTree) -> Array:
        def block(last: Array, index: Array) -> tuple[Array, None]:
            return one(inputs, weights, index).astype(jnp.bfloat16), None

        shape = jax.eval_shape(one, inputs, weights, jnp.int32(0)).shape
        return jax.lax.scan(block, jnp.zeros(shape, jnp.bfloat16), jnp.arange(BLOCKS))[0]

    return jax.jit(run)


def at(weights: PyTree, index: Array) -> PyTree:
    """A block's weights out of the stacked ones."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), weights
    )


def rows_fp8(x: Array, weights: Quantized, index: Array) -> Array:
    """XLA's float8 product with weights that lie [N, K]."""
    kernel, scale = at(weights, index)
    values, steps = rounded(x, *INPUTS)
    y = apart(DOT(values.astype(jnp.bfloat16), kernel.T.astype(jnp.bfloat16)))
    return y * steps[:, None] * scale


def rows_back(given: Array, weights: Quantized, index: Array) -> Array:
    """The gradient of the inputs by XLA's float8 product with weights that lie [N, K]."""
    kernel, scale = at(weights, index)
    values, steps = rounded(given.astype(jnp.float32) * scale, *INPUTS)
    return apart(DOT(values.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))) * steps[:, None]


def back_fp8(given: Array, weights: Quantized, index: Array) -> Array:
    """The gradient of the inputs by `product_fp8`."""
    own = at(weights, index)
    x = jnp.zeros((len(given), own.kernel.shape[0]), given.dtype)
    return jax.vjp(lambda x: product_fp8(x, *own), x)[1](given)[0]


def in_kernel(tile: Tile | None) -> Step:
    """The kernel's product, with rounding of the inputs."""

    def one(x: Array, weights: Quantized, index: Array) -> Array:
        values, steps = rounded(x, *INPUTS)
        scale = at(weights.scale, index)
        return fp8_hopper.matmul(values, steps, scale, weights.kernel, index, tile)

    return one


def given_rounded(x: tuple[Array, Array], weights: Quantized, index: Array) -> Array:
    """The kernel's product of inputs that are rounded already."""
    return fp8_hopper.matmul(*x, at(weights.scale, index), weights.kernel, index)


def back_in_kernel(given: Array, weights: Quantized, index: Array) -> Array:
    """The gradient of the inputs by the kernel, from a copy of the block's weights as [K, N]."""
    kernel, scale = at(weights, index)
    values, steps = rounded(given.astype(jnp.float32) * scale, *INPUTS)
    ones = jnp.ones(kernel.shape[1])
    return fp8_hopper.matmul(values, steps, ones, kernel.T[None], jnp.int32(0))


def int8(x: Array, weights: Quantized, index: Array) -> Array:
    """The product of a layer with int8 weights."""
    kernel, scale = at(weights, index)
    return apart(product(x, kernel)) * scale


def back_int8(given: Array, weights: Quantized, index: Array) -> Array:
    """The gradient of the inputs with int8 weights."""
    kernel, scale = at(weights, index)
    return apart((given * scale).astype(given.dtype) @ kernel.T.astype(given.dtype))


def measured(one: Step, inputs: PyTree, weights: PyTree, repeats: int) -> Record:
    """Times a loop; counts the kernels that its program calls."""
    program = Program.of(looped(one), inputs, weights)
    samples, _ = timed(lambda _: program.call(inputs, weights), None, repeats)
    compiled: Any = program.call
    text = compiled.as_text()
    names = re.findall(r'custom_call_target="([^"]+)"', text)
    fusions = len(re.findall(r"= \S+ fusion\(", text))
    calls = dict(collections.Counter(names)) | {"fusions": fusions}
    return times(samples) | {"compile_seconds": program.seconds, "calls": calls}


def compared(one: Step, other: Step, x: PyTree, weights: PyTree, turned: PyTree) -> Record:
    """The largest difference of two products over all blocks, and the largest value."""

    @jax.jit
    def both(x: Array, weights: PyTree, turned: PyTree) -> tuple[Array, Array]:
        def block(_: None, index: Array) -> tuple[None, tuple[Array, Array]]:
            y, z = one(x, turned, index), other(x, weights, index)
            y, z = y.astype(jnp.float32), z.astype(jnp.float32)
            return None, (jnp.max(jnp.abs(y - z)), jnp.max(jnp.abs(z)))

        return jax.lax.scan(block, None, jnp.arange(BLOCKS))[1]

    difference, largest = both(x, weights, turned)
    return {"largest_difference": float(difference.max()), "largest": float(largest.min())}


def products(tokens: int, inputs: int, outputs: int, repeats: int) -> Iterator[tuple[str, Record]]:
    """Measure a product in every way.

    Args:
        tokens: M.
        inputs: K.
        outputs: N.
        repeats: of each.

    Yields:
        A way's name with its record.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    x = normal(keys[0], (tokens, inputs), dtype=jnp.bfloat16)
    given = normal(keys[1], (tokens, outputs), dtype=jnp.bfloat16)
    kernel = normal(keys[2], (BLOCKS, inputs, outputs), 0.0, inputs**-0.5, jnp.bfloat16)
    narrow = {name: quantized(kernel, name) for name in STORAGE}
    fp8 = narrow["fp8"]
    turned = Quantized(jax.jit(lambda leaf: leaf.swapaxes(1, 2))(fp8.kernel), fp8.scale)

    def plain(x: Array, weights: Quantized, index: Array) -> Array:
        return product_fp8(x, *at(weights, index))

    fitting = [tile for tile in TILES if not (tokens % (2 * tile.m) or outputs % tile.n)]
    for tile in fitting:
        one = in_kernel(tile)
        name = "x".join(map(str, tile))
        name += " (chosen)" * (tile == fp8_hopper.tile_for(tokens, inputs, outputs))
        yield (
            f"kernel {name} = xla",
            attempt(functools.partial(compared, one, plain, x, fp8, turned)),
        )
        yield f"kernel {name}", attempt(functools.partial(measured, one, x, turned, repeats))
    ways: dict[str, tuple[Step, Any, Any]] = {
        "kernel, inputs rounded": (given_rounded, rounded(x, *INPUTS), turned),
        "bfloat16": (lambda x, w, i: apart(x @ at(w, i)), x, kernel),
        "int8": (int8, x, narrow["int8"]),
        "fp8": (plain, x, fp8),
        "fp8 rows": (rows_fp8, x, turned),
        "bfloat16 gradient": (lambda g, w, i: apart(g @ at(w, i).T), given, kernel),
        "int8 gradient": (back_int8, given, narrow["int8"]),
        "fp8 gradient": (back_fp8, given, fp8),
        "fp8 rows gradient": (rows_back, given, turned),
        "kernel gradient": (back_in_kernel, given, turned),
    }
    for name, (one, own, weights) in ways.items():
        yield name, attempt(functools.partial(measured, one, own, weights, repeats))


def stored(params: PyTree, kind: str | None) -> PyTree:
    """Parameters with the large kernels in a storage type."""
    if kind is None:
        return params
    mesh, kernels = make({}), stacked(params).items()
    narrow = {
        f"{layer}/kernel": place_quantized(mesh, quantized(leaf, kind)) for layer, leaf in kernels
    }
    return beside(nest(flatten(params) | narrow))


def passes(kind: str | None, repeats: int) -> Iterator[tuple[str, Record]]:
    """Measure a forward pass and a step.

    Args:
        kind: storage type of the large kernels; None for bfloat16.
        repeats: of each.

    Yields:
        A workload's name with its record.
    """
    params = stored(random_params(SIZES), kind)
    model = FluxTransformer(FluxConfig.from_dict(SIZES), jnp.bfloat16)
    for name, run in (("forward-512", forward), ("step-512", step)):
        work = WORKS[name]
        yield name, attempt(functools.partial(run, model, params, work, repeats))


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    if jax.default_backend() != "gpu":
        raise InputError(f"JAX's backend is {jax.default_backend()!r} and must be 'gpu'")
    file, repeats = Path(flags.FLAGS.out), flags.FLAGS.repeats
    machine = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    began = time.monotonic()
    parts: dict[str, Any] = {
        " ".join(map(str, sizes)): functools.partial(products, *sizes) for sizes in PRODUCTS
    }
    parts |= {kind or "bfloat16": functools.partial(passes, kind) for kind in (None, *STORAGE)}
    for part in flags.FLAGS.parts or parts:
        measure = parts[part]

        def run(part: str = part, measure: Any = measure) -> Record:
            for name, record in measure(repeats=repeats):
                works = {f"{part}: {name}": record}
                add_records(file, SIDE, {"machine": machine, "works": works})
                shown = {key: value for key, value in record.items() if key != "calls"}
                print(f"{time.monotonic() - began:5.0f} s  {part}: {name} {shown}", flush=True)
            return {}

        if failed := attempt(run):
            print(f"{part}: {failed}", file=sys.stderr)
        gc.collect()


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "JSON file of the result.", required=True)
    flags.DEFINE_list("parts", None, "Parts to measure, separated by commas; by default all.")
    flags.DEFINE_integer("repeats", 10, "Repeats of each, after warm-up.", lower_bound=10)
    app.run(main, flags_parser=parse_flags)
