"""Accuracy and time of attention on a GPU at even and odd numbers of tokens.

    python -m benchmarks.speed.attention_sizes --out benchmarks/speed/attention_sizes.json

For each picture size with 256 text tokens: cuDNN's kernel in bfloat16, as
`flux_jax.models.attention` calls it, against XLA's in float32. Values, gradients and attention
masses are compared by ‖found - wanted‖ / ‖wanted‖, and so is XLA's kernel in bfloat16, which shows
the error of rounding alone. Times are medians of value and gradient, and are of one card only.
Axis letters: B batch, N tokens, H heads, D head width, T text tokens.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Array

from convert.tables import Table, show
from erase.cli.flags import begin, parse_flags
from erase.runtime.files import write
from flux_jax.errors import InputError, exits_cleanly
from flux_jax.models import attention

SIZES = ((512, 512), (528, 528), (560, 560), (1008, 1008), (720, 1200), (1024, 1024))
TEXT, HEADS, WIDTH, REPEATS = 256, 24, 128, 10


def tokens_of(height: int, width: int) -> int:
    """Number of text and image tokens of a picture."""
    return TEXT + height // 16 * (width // 16)


def measure(height: int, width: int) -> dict[str, float]:
    """Errors and times at one size."""
    tokens = tokens_of(height, width)
    rng = np.random.default_rng(tokens)
    q, k, v, weight = (
        jnp.asarray(rng.standard_normal((1, tokens, HEADS, WIDTH)), jnp.bfloat16) for _ in range(4)
    )
    masks = jnp.asarray(rng.integers(0, 2, (1, TEXT, 3)), jnp.float32)

    def plain(q: Array, k: Array, v: Array) -> Array:
        return jax.nn.dot_product_attention(q, k, v, implementation="xla")

    def gradients(attend: Callable[..., Array], dtype: Any) -> Callable[[], Any]:
        def loss(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
            out = attend(q, k, v).astype(jnp.float32)
            return jnp.sum(out * weight.astype(jnp.float32)), out

        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        arrays = [x.astype(dtype) for x in (q, k, v)]

        def run() -> Any:
            (_, out), grads = both(*arrays)
            return jax.block_until_ready((out, *grads))

        return run

    def mass(dtype: Any) -> Array:
        return jax.jit(attention.attention_mass)(q.astype(dtype), k.astype(dtype), masks)

    ours = gradients(attention.attend, jnp.bfloat16)
    with jax.default_matmul_precision("highest"):
        wanted = gradients(plain, jnp.float32)()
        wanted_mass = mass(jnp.float32)
    found, rounded = ours(), gradients(plain, jnp.bfloat16)()
    names = ("values", "gradient of q", "gradient of k", "gradient of v")
    errors = {name: relative(a, b) for name, a, b in zip(names, found, wanted, strict=True)}
    errors |= {
        f"{name}, XLA": relative(a, b) for name, a, b in zip(names, rounded, wanted, strict=True)
    }
    errors["masses"] = relative(mass(jnp.bfloat16), wanted_mass)
    return {"tokens": tokens, **errors, "ms": 1000 * median_seconds(ours)}


def relative(found: Array, wanted: Array) -> float:
    """‖found - wanted‖ / ‖wanted‖, in double precision."""
    exact = np.asarray(wanted, np.float64)
    return float(np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact))


def median_seconds(run: Callable[[], Any]) -> float:
    """Median of `REPEATS` runs, after two warm-up runs."""
    seconds = []
    for index in range(REPEATS + 2):
        start = time.perf_counter()
        run()
        if index >= 2:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@exits_cleanly
def main(argv: list[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    if jax.default_backend() != "gpu":
        raise InputError(f"device = {jax.default_backend()!r} must be a GPU: cuDNN needs one")
    results = {f"{height} x {width}": measure(height, width) for height, width in SIZES}
    table = Table("", *results, title=jax.devices()[0].device_kind)
    for name in next(iter(results.values())):
        table.add_row(name, *(f"{row[name]:.4g}" for row in results.values()))
    show(table)
    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    write(Path(flags.FLAGS.out), json.dumps({**device, "sizes": results}, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("out", "attention_sizes.json", "File for the numbers.")
    app.run(main, flags_parser=parse_flags)
